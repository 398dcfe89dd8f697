"""The commands of docker, systemctl and kubectl in the handbook and in deploy/.

They are not run, because a test has no Docker daemon, no systemd and no cluster. Each is compared with the files that it names
(services, units, manifests) and with the help of its program (subcommands, options). `kubectl create` runs without a cluster.
"""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import yaml
from test_deployment import ARCHIVE, DEPLOY, DOCUMENTS, ROOT, TOOLS, WORKLOADS, compose, local, needs, run  # noqa: F401 - fixtures
from test_high_availability import HA, ha_compose  # noqa: F401 - a fixture
from test_runbook import CHAPTERS

DEPLOYED = [
    path.read_text()
    for path in DEPLOY.rglob("*")
    if path.suffix in {".yaml", ".yml", ".service", ".conf"} or path.name == "Dockerfile"
]
PROGRAMS = ("docker", "systemctl", "kubectl")
KINDS = {"deployment": "Deployment", "job": "Job"}


def code_of(text):
    """Yields the code of a text: inline code, and lines of indented blocks and comments, joined at a trailing backslash."""
    text = text.replace("\\\n", " ")
    yield from re.findall(r"`([^`]+)`", re.sub(r"\n# ?", " ", text))
    yield from re.findall(r"^(?:#  )? +(\S.*)$", text, re.MULTILINE)


def commands():
    """Returns the commands of the three programs as words, each once."""
    found = set()
    for text in (*CHAPTERS.values(), *DEPLOYED):
        for code in code_of(text):
            for part in re.split(r" && |; ", code):
                command = re.sub(r"^(\w+=\S+ )+", "", part.strip())
                words = (
                    shlex.split(command, comments=True) if command.startswith(tuple(f"{each} " for each in PROGRAMS)) else []
                )
                if len(words) > 1:
                    found.add(tuple(words))
    return sorted(found)


COMMANDS = commands()


def of(*program):
    return [list(words[len(program) :]) for words in COMMANDS if words[: len(program)] == program]


def split(words, valued):
    """Splits words into the values of options, by name, and the other words; `valued` names the options with a value."""
    options, others, rest = {}, [], iter(words)
    for word in rest:
        if not word.startswith("--"):
            others.append(word)
            continue
        name, given, value = word.partition("=")
        options.setdefault(name, []).append(value if given else next(rest) if name in valued else "")
    return options, others


def test_all_programs_have_commands():
    assert {words[0] for words in COMMANDS} == set(PROGRAMS)
    assert len(of("docker", "compose")) >= 3
    assert len(of("systemctl")) >= 3
    assert len(of("kubectl")) >= 6


def _before_container(words, services):
    """Returns the words up to the service in whose container `exec` runs the words after it."""
    service = next((place for place, word in enumerate(words) if word in services), len(words))
    return words[: service + 1] if "exec" in words else words


@pytest.mark.parametrize("words", of("docker", "compose"), ids=" ".join)
def test_compose_commands_name_the_files_their_services_and_existing_options(words, compose, ha_compose):  # noqa: F811
    found = ha_compose if "deploy/ha/compose.yaml" in words else compose
    options, (subcommand, *services) = split(_before_container(words, found["services"]), {"--file"})
    assert options.pop("--file") == ["deploy/compose.yaml", "deploy/ha/compose.yaml"][: 2 if found is ha_compose else 1]
    assert set(services) <= found["services"].keys()
    known = set(re.findall(r"(--[\w-]+)", run(TOOLS / "docker-compose", subcommand, "--help")))
    assert set(options) <= known


@pytest.mark.parametrize("words", of("docker", "build"), ids=" ".join)
def test_the_build_command_names_the_dockerfile_and_its_context(words):
    options, context = split(words, {"--file", "--tag"})
    assert options.keys() == {"--file", "--tag"}
    contexts = {"deploy/Dockerfile": ["."], "deploy/ha/Dockerfile": ["deploy"]}
    assert context == contexts[options["--file"][0]]


@pytest.mark.parametrize("words", of("systemctl"), ids=" ".join)
def test_systemctl_commands_name_units_of_the_repository(words):
    verb, *units = words
    assert verb in {"start", "stop", "restart"}
    assert units
    for unit in units:
        template = re.sub(r"@\d$", "@", unit.removesuffix(".service"))
        assert (DEPLOY / "systemd" / f"{template}.service").exists(), unit


VALUED = {"--namespace", "--filename", "--kustomize", "--replicas"}


@cache
def kubectl_options(*subcommand):
    return set(re.findall(r"(--[\w-]+)[=']", run("kubectl", *subcommand, "--help") + run("kubectl", "options")))


@pytest.mark.parametrize("words", of("kubectl"), ids=" ".join)
def test_kubectl_commands_name_objects_of_the_manifests(words):
    options, (verb, *others) = split(words, VALUED)
    (namespace,) = [each["metadata"]["name"] for each in DOCUMENTS if each["kind"] == "Namespace"]
    assert options.get("--namespace", [namespace]) == [namespace]
    assert yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())["namespace"] == namespace
    for path in options.get("--filename", []) + options.get("--kustomize", []):
        assert (ROOT / path).exists(), path
    if verb in {"delete", "scale", "rollout"}:
        assert "--namespace" in options
        objects = [others] if verb == "delete" else [each.split("/") for each in others if "/" in each]
        assert objects
        existing = [[each["kind"], each["metadata"]["name"]] for each in DOCUMENTS]
        assert all([KINDS[kind], name] in existing for kind, name in objects)


@needs("kubectl")
@pytest.mark.parametrize("words", of("kubectl"), ids=" ".join)
def test_kubectl_knows_the_subcommands_and_options(words):
    options, (verb, *others) = split(words, VALUED)
    subcommands = {"create": others[:2], "rollout": others[:1]}.get(verb, [])
    assert set(options) <= kubectl_options(verb, *subcommands)


@needs("kubectl")
def test_the_created_secrets_have_the_keys_that_the_pods_mount(local):  # noqa: F811
    created = {}
    for words in of("kubectl"):
        if "create" in words:
            filled = [word.replace("$SECRETS", str(local / "secrets")) for word in words]
            secret = yaml.safe_load(run("kubectl", *filled, "--dry-run=client", "--output=yaml"))
            created[secret["metadata"]["name"]] = secret["data"].keys()
    needed = {}
    (archive,) = [document for document in ARCHIVE if document["kind"] == "CronJob"]
    for workload in (*WORKLOADS, archive["spec"]["jobTemplate"]):
        pod = workload["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        secrets = {volume["name"]: volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
        places = {Path(mount["mountPath"]): secrets.get(mount["name"]) for mount in container["volumeMounts"]}
        for path in (Path(variable["value"]) for variable in container["env"] if variable["name"].endswith("_FILE")):
            needed.setdefault(places[path.parent], set()).add(path.name)
    scripts = (HA / "with-secrets", HA / "join-valkey", DEPLOY / "postgres" / "roles.sh")
    needed["fundsvc-servers"] = {
        key for script in scripts for key in re.findall(r"[s}]/(\w+_(?:password|conf))\b", script.read_text())
    }
    assert created == needed
