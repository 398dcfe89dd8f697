"""The files of deploy/ha, checked with linters, haproxy, Patroni, Docker Compose, Kubernetes schemas and the configuration."""

import json
import re
import socket
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml
from patroni import HA, PatroniCluster, needs_ha, patroni_packages
from test_deployment import DEPLOY, TOOLS, check_restricted, name_of, needs, readable, run

from fundsvc.config.settings import load_config

DOCKERFILE = (HA / "Dockerfile").read_text()
OWN_FILES = {"compose.yaml", "kustomization.yaml", "patroni.yml"}
DOCUMENTS = [
    document
    for path in sorted(HA.glob("*.yaml"))
    if path.name not in OWN_FILES
    for document in yaml.safe_load_all(path.read_text())
]
WORKLOADS = [document for document in DOCUMENTS if document["kind"] in {"Deployment", "StatefulSet", "Job"}]
REPLICATED = [workload for workload in WORKLOADS if workload["kind"] != "Job"]
PINNED = r"[a-z0-9./-]+:[\w.-]+@sha256:[0-9a-f]{64}"
PARTS = {
    **{f"{kind}-{number}": 1 for kind in ("etcd", "postgres") for number in (1, 2, 3)},
    **{f"valkey-{number}": 1 for number in range(1, 7)},
    "haproxy": 1,
    "engine": 2,
    "api": 2,
}
"""Services with their replicas."""


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    directory = tmp_path_factory.mktemp("local")
    run(DEPLOY / "prepare", directory)
    return directory


@pytest.fixture(scope="module")
def ha_compose(local):
    files = ("--file", DEPLOY / "compose.yaml", "--file", HA / "compose.yaml")
    return json.loads(run(TOOLS / "docker-compose", *files, "config", "--format", "json", FUNDSVC_LOCAL=str(local)))


def test_hadolint_finds_nothing():
    assert run(TOOLS / "hadolint", "--failure-threshold", "style", HA / "Dockerfile") == ""


def test_the_image_has_the_pinned_base_of_compose_and_runs_unprivileged():
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    single = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["postgres"]["image"]
    assert bases == [single, single]
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE) == ["999:999"]


def test_the_build_context_contains_only_copied_files():
    first, *admitted = [line for line in (HA / "Dockerfile.dockerignore").read_text().splitlines() if line[0] != "#"]
    copied = {word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()}
    assert first == "*"
    assert {line[1:] for line in admitted} == copied
    assert all((DEPLOY / word).exists() for word in copied)


@needs_ha
def test_haproxy_finds_no_fault_in_its_configuration():
    names = {"POSTGRES_1": "127.0.0.1", "POSTGRES_2": "127.0.0.2", "POSTGRES_3": "127.0.0.3"}
    names |= {"API_1": "127.0.0.4", "API_2": "127.0.0.5", "BIND": "*"}
    command = ("haproxy", "-c", "-f", HA / "haproxy.cfg")
    assert "Configuration file is valid" in run(*command, **names)
    shown = run(*command, "-f", HA / "haproxy-api.cfg", **names)
    assert "Configuration file is valid" in shown
    assert "WARNING" not in shown


@pytest.mark.parametrize(("ttl", "fault"), [("20", ""), ("2", "bootstrap.dcs.ttl 2 didn't pass validation")])
def test_patroni_accepts_its_configuration_and_not_a_wrong_one(tmp_path, ttl, fault):
    patroni_packages()
    cluster = PatroniCluster(tmp_path, members=1)
    run(DEPLOY / "prepare", tmp_path / "local")
    path = tmp_path / "patroni.yml"
    path.write_text((HA / "patroni.yml").read_text().replace("ttl: 20", f"ttl: {ttl}"))
    with socket.create_server((cluster.etcd, 2379)):  # Patroni checks that etcd listens
        command = (HA / "with-secrets", sys.executable, "-m", "patroni", "--validate-config", path)
        done = subprocess.run(command, env=cluster.members[0].environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (bool(fault), "")
    assert done.stderr.startswith(fault) if fault else done.stderr == ""


def test_a_primary_that_loses_etcd_steps_down_before_another_is_promoted():
    config = yaml.safe_load((HA / "patroni.yml").read_text())
    dcs = config["bootstrap"]["dcs"]
    assert dcs["ttl"] >= dcs["loop_wait"] + 2 * dcs["retry_timeout"]
    assert dcs["synchronous_mode"]
    assert config["watchdog"]["mode"] == "automatic"


def test_compose_replaces_the_single_servers(ha_compose):
    assert not {"postgres", "valkey"} & ha_compose["services"].keys()
    found = {name: service.get("deploy", {}).get("replicas", 1) for name, service in ha_compose["services"].items()}
    assert found.items() >= PARTS.items()


def test_containers_have_a_read_only_root_no_capabilities_and_loopback_ports(ha_compose):
    for name, service in ha_compose["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "healthcheck" in service or "fundsvc" in service["image"], name  # the images of fundsvc have a check
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", ())), name
        assert "build" in service or re.fullmatch(PINNED, service["image"]), name


def test_no_secret_is_in_an_environment_or_command_line(ha_compose, local):
    secrets = {path.read_text().strip() for path in (local / "secrets").iterdir()}
    shown = json.dumps([{**service, "secrets": ()} for service in ha_compose["services"].values()])
    assert not [secret for secret in secrets if secret in shown]


def test_haproxy_knows_the_names_of_all_servers_and_is_the_only_way_to_the_apis(ha_compose):
    services = ha_compose["services"]
    environment = services["haproxy"]["environment"]
    assert {environment[f"POSTGRES_{number}"] for number in (1, 2, 3)} == {f"postgres-{number}" for number in (1, 2, 3)}
    assert {environment[f"API_{number}"] for number in (1, 2)} == {f"{ha_compose['name']}-api-{number}" for number in (1, 2)}
    assert [name for name, service in services.items() for port in service.get("ports", ()) if port["target"] == 8080] == [
        "haproxy"
    ]
    for number in (1, 2, 3):
        member = services[f"postgres-{number}"]["environment"]
        assert member["PATRONI_NAME"] == f"postgres-{number}"
        assert {host.partition(":")[0] for host in member["PATRONI_ETCD3_HOSTS"].split(",")} <= services.keys()


@pytest.mark.parametrize("name", ["engine", "api"])
def test_the_secrets_name_the_servers_of_the_cluster(ha_compose, local, name):
    config = load_config(None, readable(ha_compose["services"][name]["environment"], local / "secrets"))
    assert (config.stream.mode, config.stream.replicas_min) == ("cluster", 1)
    aliases = {
        service: {alias for network in found["networks"].values() if network for alias in network.get("aliases", ())}
        for service, found in ha_compose["services"].items()
    }
    assert "@postgres/" in config.database.dsn
    assert [service for service, found in aliases.items() if "postgres" in found] == ["haproxy"]
    assert "@valkey:6379" in config.stream.url
    assert [service for service, found in aliases.items() if "valkey" in found] == [f"valkey-{n}" for n in range(1, 7)]
    if name == "api":
        assert config.http.proxies == 1


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_manifests_match_the_kubernetes_schema(document):
    kubernetes_validate.validate(document, "1.37", strict=True)


@needs("kubectl")
def test_kustomize_adds_the_servers_to_the_service(local):
    built = [document for document in yaml.safe_load_all(run("kubectl", "kustomize", HA)) if document]
    for document in built:
        kubernetes_validate.validate(document, "1.37", strict=True)
    assert {name_of(document) for document in DOCUMENTS} < {name_of(document) for document in built}
    for name in ("engine", "api"):
        (found,) = [document for document in built if name_of(document) == f"Deployment-{name}"]
        (container,) = found["spec"]["template"]["spec"]["containers"]
        environment = {variable["name"]: variable["value"] for variable in container["env"]}
        config = load_config(None, readable(environment, local / "secrets") | {"FUNDSVC_CONFIG": ""})
        assert (config.stream.mode, config.stream.replicas_min) == ("cluster", 1)
    maps = {name_of(document).rpartition("-")[0] for document in built if document["kind"] == "ConfigMap"}
    assert {"ConfigMap-haproxy", "ConfigMap-join-valkey"} <= maps


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_pods_meet_the_restricted_profile(workload):
    pod = workload["spec"]["template"]["spec"]
    check_restricted(pod)
    for container in pod["containers"]:
        assert container["image"] == "fundsvc-postgres" or re.fullmatch(PINNED, container["image"])


@pytest.mark.parametrize("workload", REPLICATED, ids=name_of)
def test_replicas_run_on_different_nodes_and_end_one_at_a_time(workload):
    labels = workload["spec"]["template"]["metadata"]["labels"]
    (budget,) = [
        document["spec"]
        for document in DOCUMENTS
        if document["kind"] == "PodDisruptionBudget" and document["spec"]["selector"]["matchLabels"] == labels
    ]
    assert budget["maxUnavailable"] == 1
    assert workload["spec"]["replicas"] > 1
    pod = workload["spec"]["template"]["spec"]
    spread = pod.get("topologySpreadConstraints", [])
    affinity = pod.get("affinity", {}).get("podAntiAffinity", {})
    preferred = [term["podAffinityTerm"] for term in affinity.get("preferredDuringSchedulingIgnoredDuringExecution", [])]
    (apart,) = [*spread, *affinity.get("requiredDuringSchedulingIgnoredDuringExecution", []), *preferred]
    assert (apart["topologyKey"], apart["labelSelector"]["matchLabels"]) == ("kubernetes.io/hostname", labels)


def test_services_select_pods_and_images_are_those_of_compose(ha_compose):
    labels = [workload["spec"]["template"]["metadata"]["labels"] for workload in WORKLOADS]
    selectors = [document["spec"]["selector"] for document in DOCUMENTS if document["kind"] == "Service"]
    assert len(selectors) == len(REPLICATED)
    assert all(any(wanted.items() <= found.items() for found in labels) for wanted in selectors)
    images = {container["image"] for workload in WORKLOADS for container in workload["spec"]["template"]["spec"]["containers"]}
    assert images - {"fundsvc-postgres"} <= {service["image"] for service in ha_compose["services"].values()}
