"""The files of deploy/, checked with linters, PostgreSQL, Docker Compose, systemd, Kubernetes schemas and the configuration."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import asyncpg
import kubernetes_validate
import msgspec
import pytest
import redis
import yaml
from commands import fundsvc
from conftest import connected, with_section
from ledgers import fill, listing

from fundsvc.config.settings import load_config
from fundsvc.core.contracts import partition_of
from fundsvc.local.servers import EmbeddedServers, postgres_binary
from fundsvc.store.migrations import migrate
from fundsvc.store.schema import check_schema

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
TOOLS = Path(sys.executable).parent
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
UNITS = ["fundsvc-api.service", "fundsvc-archive.service", "fundsvc-engine@1.service", "fundsvc-migrate.service"]
MANIFESTS = sorted(path for path in (DEPLOY / "kubernetes").glob("*.yaml") if path.name != "kustomization.yaml")
DOCUMENTS = [document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text())]
IMAGE = dict(re.findall(r"(FUNDSVC_\w+)=(\S+)", DOCKERFILE))
ARCHIVE = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "archive" / "archive.yaml").read_text()))
WORKLOADS = [document for document in DOCUMENTS if document["kind"] in {"Deployment", "Job"}]


def run(*command, given="", **environment):
    """Runs a command that must succeed; returns its output."""
    words = [str(word) for word in command]
    done = subprocess.run(words, input=given, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def needs(program):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def name_of(document):
    return f"{document['kind']}-{document['metadata']['name']}"


def find(kind, name):
    (found,) = [document for document in DOCUMENTS if (document["kind"], document["metadata"]["name"]) == (kind, name)]
    return found


def locked(name):
    return dict(re.findall(r"^([a-z0-9_.-]+)(?:\[[^]]*\])?==(\S+)", (DEPLOY / name).read_text(), re.MULTILINE))


def readable(environment, directory):
    """Returns the service's variables of an environment, with the files that they name in `directory`."""
    return {
        name: str(directory / Path(value).name) if name.endswith("_FILE") else value
        for name, value in environment.items()
        if name.startswith("FUNDSVC_")
    }


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    directory = tmp_path_factory.mktemp("local")
    run(DEPLOY / "prepare", directory)
    return directory


@pytest.fixture(scope="module")
def compose(local):
    answer = run(
        *(TOOLS / "docker-compose", "--file", DEPLOY / "compose.yaml", "--profile", "archive", "config", "--format", "json"),
        FUNDSVC_LOCAL=str(local),
    )
    return json.loads(answer)


def test_hadolint_finds_nothing():
    assert run(TOOLS / "hadolint", "--failure-threshold", "style", DEPLOY / "Dockerfile") == ""


def test_both_stages_have_the_same_pinned_base_and_the_image_runs_unprivileged():
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(bases) == 2
    assert len(set(bases)) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+@sha256:[0-9a-f]{64}", bases[0])
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE) == ["10001:10001"]


def test_the_build_context_contains_only_copied_files():
    first, *admitted = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] != "#"]
    copied = {word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()}
    assert first == "*"
    assert {line[1:] for line in admitted if line.startswith("!")} == copied
    assert all((ROOT / word).exists() for word in copied)


def test_the_service_lock_is_a_subset_of_the_development_lock():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower() for requirement in project["dependencies"]}
    service, developers = locked("service.lock"), locked("requirements.lock")
    assert service.items() < developers.items()
    assert names <= service.keys()
    assert not {"pytest", "ruff", "mypy", "flit-core"} & service.keys()
    assert "flit-core" in developers


def test_secrets_are_created_once_in_a_private_directory(local):
    kept = {path.name: path.read_text() for path in (local / "secrets").iterdir()}
    run(DEPLOY / "prepare", local)
    assert {path.name: path.read_text() for path in (local / "secrets").iterdir()} == kept
    assert stat.S_IMODE(local.stat().st_mode) == 0o700
    assert len({value for name, value in kept.items() if name.endswith(("_password", "_secret"))}) == 9
    assert all(len(value) >= 64 for value in kept.values())


def test_containers_have_a_read_only_root_no_capabilities_and_loopback_ports(compose):
    for name, service in compose["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "healthcheck" in service or "fundsvc" in service["image"], name  # the image of fundsvc has a check
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", ())), name
        assert not service.get("privileged"), name


def test_third_party_images_are_pinned_by_digest(compose):
    images = {service["image"] for service in compose["services"].values() if "build" not in service}
    assert len(images) == 6
    assert all(re.fullmatch(r"[a-z/-]+:[\w.-]+@sha256:[0-9a-f]{64}", image) for image in images)


def test_no_secret_is_in_an_environment_or_command_line(compose, local):
    secrets = {path.read_text().strip() for path in (local / "secrets").iterdir()}
    shown = json.dumps([{**service, "secrets": ()} for service in compose["services"].values()])
    assert not [secret for secret in secrets if secret in shown]
    mounted = {secret["source"] for service in compose["services"].values() for secret in service.get("secrets", ())}
    assert mounted == compose["secrets"].keys()


def test_only_migrations_and_the_database_get_the_owners_password(compose):
    users = {
        name
        for name, service in compose["services"].items()
        if any(secret["source"].startswith("owner_") for secret in service.get("secrets", ()))
    }
    assert users == {"migrate", "postgres"}


def test_compose_configures_the_service(compose, local):
    services = compose["services"]
    for name in ("migrate", "engine", "archive", "api"):
        config = load_config(None, readable(services[name]["environment"], local / "secrets"))
        assert bool(config.database.owner_dsn) == (name == "migrate")
        assert bool(config.database.dsn) == (name != "migrate")
        assert bool(config.stream.url) == (name in {"engine", "api"})
        assert bool(config.archive.location) == (name in {"archive", "api"})
        assert bool(config.archive.dsn) == (name == "archive")
        assert config.ledger.secret == ("" if name == "migrate" else (local / "secrets" / "ledger_secret").read_text())
    assert config.token.secret == (local / "secrets" / "token_secret").read_text()
    assert services["engine"]["deploy"]["replicas"] == 2


def test_an_engine_outside_the_containers_reaches_stream_and_api(compose, local):
    published = {port["published"]: name for name, service in compose["services"].items() for port in service.get("ports", ())}
    assert (published["8080"], published["6379"]) == ("api", "valkey")
    inner, outer = ((local / "secrets" / name).read_text() for name in ("stream_url", "engine_stream_url"))
    assert outer == inner.replace("@valkey:", "@127.0.0.1:")
    assert not compose["networks"]["edge"].get("internal")
    assert "edge" in compose["services"]["valkey"]["networks"]


def test_compose_mounts_a_configuration_file_that_overrides_only_what_it_does_not_set(compose, local):
    services = compose["services"]
    for name in ("migrate", "engine", "api"):
        (mount,) = [volume for volume in services[name]["volumes"] if volume["target"] != "/entries"]
        environment = services[name]["environment"]
        assert (mount["source"], mount["target"]) == (str(local / "fundsvc.toml"), environment["FUNDSVC_CONFIG"])
        assert mount["read_only"]
        config = load_config(local / "fundsvc.toml", readable(environment, local / "secrets"))
        assert config == load_config(None, readable(environment, local / "secrets"))


def test_grafana_provisions_the_mounted_dashboards(compose):
    provisioning = DEPLOY / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "fundsvc.yaml").read_text())["providers"]
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    mounts = {volume["target"]: volume["source"] for volume in compose["services"]["grafana"]["volumes"]}
    assert mounts[provider["options"]["path"]] == str(DEPLOY / "grafana" / "dashboards")
    assert mounts["/etc/grafana/provisioning"] == str(provisioning)
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose["services"]


def health_ports(config):
    """Returns the ports on which an engine and an API serve health and metrics."""
    return {config.engine.port, config.http.health_port}


def checked_port():
    """Returns the port of the image's health check."""
    return int(re.search(r"^HEALTHCHECK .*\n.*http://127\.0\.0\.1:(\d+)/healthz", DOCKERFILE, re.MULTILINE)[1])


def test_the_health_check_of_the_image_uses_the_port_for_health():
    config = load_config(None, IMAGE)
    assert health_ports(config) == {checked_port()}
    assert config.http.port != checked_port()
    (exposed,) = re.findall(r"^EXPOSE (.+)$", DOCKERFILE, re.MULTILINE)
    assert set(map(int, exposed.split())) == {config.http.port, checked_port()}


@pytest.mark.parametrize("name", ["engine", "api"])
def test_compose_checks_and_scrapes_the_port_for_health(compose, local, name):
    service = compose["services"][name]
    config = load_config(None, readable(IMAGE | service["environment"], local / "secrets"))
    assert health_ports(config) == {checked_port()}
    assert "healthcheck" not in service  # that of the image applies
    assert checked_port() not in {port["target"] for port in service.get("ports", ())}
    jobs = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    scraped = {found["port"] for job in jobs for found in job.get("dns_sd_configs", ()) if name in found["names"]}
    assert scraped == {checked_port()}


@pytest.mark.parametrize("unit", ["fundsvc-api.service", "fundsvc-engine@.service"])
def test_units_serve_health_on_a_port_of_their_own(unit):
    text = (DEPLOY / "systemd" / unit).read_text()
    variables = dict(re.findall(r"(FUNDSVC_\w+_PORT)=(\d+)", text.replace("%i", "1")))
    config = load_config(None, variables)
    port = config.engine.port if "@" in unit else config.http.health_port
    assert port == (9101 if "@" in unit else 9100)
    assert re.search(r"Health and\n?#? ?metrics: ports? (\d+)", text)[1] == str(port)


@pytest.fixture
def with_receivers(local, tmp_path):
    """The configuration of Alertmanager with all receivers of the template, and where amtool finds the template of texts."""
    text = re.sub(r"^    # (\w+_configs:|  )", r"    \1", (local / "alertmanager.yml").read_text(), flags=re.MULTILINE)
    assert text.count("_configs:") == 5
    path = tmp_path / "alertmanager.yml"
    path.write_text(text.replace("/etc/alertmanager/", f"{DEPLOY}/alertmanager/"))
    return path


@needs("amtool")
def test_the_alertmanager_configuration_is_valid_with_and_without_receivers(local, with_receivers):
    assert "SUCCESS" in run("amtool", "check-config", local / "alertmanager.yml")
    assert "1 templates" in run("amtool", "check-config", with_receivers)


@needs("amtool")
@pytest.mark.parametrize(("severity", "receiver"), [("critical", "page"), ("warning", "notify"), ("info", "inform")])
def test_alerts_are_routed_by_severity(with_receivers, severity, receiver):
    found = run("amtool", "config", "routes", "test", f"--config.file={with_receivers}", f"severity={severity}", "team=risk")
    assert receiver in found.splitlines()


def test_alerts_of_the_inhibit_rules_exist(local):
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    rules = yaml.safe_load((local / "alertmanager.yml").read_text())["inhibit_rules"]
    matchers = [matcher for rule in rules for matcher in (*rule["source_matchers"], *rule["target_matchers"])]
    named = {name for matcher in matchers for name in re.findall(r"\w+", matcher.split('"')[1])}
    assert named
    assert named <= alerts


def test_compose_runs_an_alertmanager_that_prometheus_knows(compose, local):
    service = compose["services"]["alertmanager"]
    mounts = {volume["target"]: volume["source"] for volume in service["volumes"]}
    assert mounts["/etc/alertmanager/alertmanager.yml"] == str(local / "alertmanager.yml")
    assert mounts["/etc/alertmanager/fundsvc.tmpl"] == str(DEPLOY / "alertmanager" / "fundsvc.tmpl")
    (found,) = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["alerting"]["alertmanagers"]
    assert found["static_configs"] == [{"targets": ["alertmanager:9093"]}]
    assert "watch" in service["networks"]


@needs("promtool")
def test_the_prometheus_configuration_is_valid():
    assert "SUCCESS" in run("promtool", "check", "config", DEPLOY / "prometheus" / "prometheus.yml")


def test_prometheus_scrapes_existing_services(compose):
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    names = {name for job in scraped for discovery in job.get("dns_sd_configs", ()) for name in discovery["names"]}
    assert names == {"engine", "api"}
    assert all("watch" in compose["services"][name]["networks"] for name in (*names, "prometheus"))


@pytest.fixture(scope="module")
def fresh(short_directory, local):
    """A server with only the roles that deploy/postgres/roles.sh creates; a function from role to DSN."""
    servers = EmbeddedServers(short_directory / "roles")
    host = servers.directory / "run"
    environment = {
        "PATH": f"{postgres_binary('psql').parent}:{os.environ['PATH']}",
        "PGHOST": str(host),
        "FUNDSVC_SECRETS": str(local / "secrets"),
    }
    with servers.used():
        servers.start(valkey=False)
        for statement in ("DROP DATABASE fundsvc", "DROP ROLE fundsvc_service"):
            run("psql", "-U", "postgres", "-c", statement, **environment)
        run(DEPLOY / "postgres" / "roles.sh", **environment)
        yield lambda role, database="fundsvc": f"postgresql://{role}@/{database}?host={host}"


async def test_the_archiver_logs_in_and_removes_nothing_that_no_archive_has(fresh):
    await migrate(fresh("fundsvc_owner"), 2)
    async with connected(fresh("fundsvc_archive")) as archiver:
        assert await archiver.fetchval("SELECT count(*) FROM archives") == 0
        await archiver.execute("DELETE FROM entries")
        for statement in ("UPDATE entries SET change = 1", "DELETE FROM adl_records", "DELETE FROM funds"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await archiver.execute(statement)


async def test_the_owner_migrates_and_the_service_role_has_no_further_rights(fresh):
    await migrate(fresh("fundsvc_owner"), 2)
    await check_schema(fresh("fundsvc_app"), 2)
    async with connected(fresh("fundsvc_app")) as service:
        assert await service.fetchval("SELECT count(*) FROM entries") == 0
        refused = (
            "DELETE FROM entries",
            "UPDATE entries SET change = 1",
            "TRUNCATE entries",
            "ALTER TABLE entries DISABLE TRIGGER ALL",
            "INSERT INTO partitions (partition) VALUES (9)",
            "CREATE TABLE mine ()",
            "CREATE TEMPORARY TABLE mine ()",
            "CREATE ROLE mine",
        )
        for statement in refused:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await service.execute(statement)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with connected(fresh("fundsvc_backup")):
            pass
    async with connected(fresh("postgres", "postgres")) as server:
        kept = dict(await server.fetch("SELECT rolname, rolpassword FROM pg_authid WHERE rolname LIKE 'fundsvc%'"))
    assert kept.pop("fundsvc_service") is kept.pop("fundsvc_archiver") is None
    assert len(kept) == 4
    assert all(password.startswith("SCRAM-SHA-256$") for password in kept.values())


def test_archiving_is_idempotent_and_rejects_another_segment_of_the_same_name(tmp_path):
    segment, archived = tmp_path / "segment", tmp_path / "archive"
    archived.mkdir()
    segment.write_bytes(b"written ahead")
    for _ in range(2):
        run(DEPLOY / "postgres" / "archive.sh", segment, archived / "0001")
    assert [(path.name, path.read_bytes()) for path in archived.iterdir()] == [("0001", b"written ahead")]
    segment.write_bytes(b"another")
    refused = subprocess.run([DEPLOY / "postgres" / "archive.sh", segment, archived / "0001"], capture_output=True, check=False)
    assert refused.returncode
    assert (archived / "0001").read_bytes() == b"written ahead"


async def test_repartitioned_contracts_are_settled_in_their_new_partitions(config, owner_connection, tmp_path):
    symbols = ("XBTUSDTM", "DOGEUSDTM", "PAXGUSDTM", "it's")
    listings = [{"type": "contract", "contract": listing(symbol).contract} for symbol in symbols]

    async def settle(config, seq):
        fills = ({"type": "fill", **msgspec.to_builtins(fill(symbol, seq, 5))} for symbol in symbols)
        recording = tmp_path / f"{seq}.ndjson"
        recording.write_bytes(b"\n".join(map(msgspec.json.encode, [*listings, *fills])))
        assert (await fundsvc(config, "replay", recording)).code == 0

    await settle(config, 1)
    moves = run(sys.executable, DEPLOY / "repartition", "4", given="\n".join(symbols))
    await owner_connection.execute(moves)
    with redis.Redis.from_url(config.stream.url) as stream:
        stream.delete("fundsvc:{0}:in")
    spread = with_section(config, "stream", partitions=4)
    await settle(spread, 2)
    assert {row["symbol"]: row["partition"] for row in await owner_connection.fetch("TABLE contracts")} == {
        symbol: partition_of(symbol, 4) for symbol in symbols
    }
    assert len({partition_of(symbol, 4) for symbol in symbols}) > 1
    assert {tuple(row) for row in await owner_connection.fetch("SELECT entry, seq FROM funds")} == {(2, 2)}
    assert (await fundsvc(spread, "audit")).code == 0
    assert (await fundsvc(config, "audit")).code == 2
    await owner_connection.execute("DELETE FROM partitions WHERE partition = 3")  # as if another cell had it
    with pytest.raises(asyncpg.RaiseError, match="other cells hold partitions"):
        await owner_connection.execute(run(sys.executable, DEPLOY / "repartition", "2", given="\n".join(symbols)))


def test_all_generations_of_a_symbol_move_to_the_same_partition():
    keys = ("XBTUSDTM", "XBTUSDTM@2", "XBTUSDTM@13", "A@B", "A@0")
    moves = run(sys.executable, DEPLOY / "repartition", "7", given="\n".join(keys))
    assert [f"= {partition_of(key, 7)} WHERE symbol = '{key}'" in moves for key in keys] == [True] * len(keys)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """The root directory of a host with the units installed."""
    root = tmp_path_factory.mktemp("host")
    shutil.copytree("/lib/systemd/system", root / "usr/lib/systemd/system", symlinks=True)
    shutil.copytree(DEPLOY / "systemd", root / "etc/systemd/system")
    program = root / "opt/fundsvc/bin/fundsvc"
    program.parent.mkdir(parents=True)
    program.touch(0o755)
    return root


@needs("systemd-analyze")
@pytest.mark.parametrize("unit", [*UNITS, "fundsvc-archive.timer"])
def test_systemd_verifies_a_unit_without_warnings(host, unit):
    assert run("systemd-analyze", "verify", "--man=no", f"--root={host}", unit) == ""


@needs("systemd-analyze")
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_rates_the_exposure_of_a_unit_as_ok(host, unit):
    verdict = run("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=15", f"--root={host}", unit)
    assert "OK" in verdict


@pytest.mark.parametrize("document", [*DOCUMENTS, *ARCHIVE], ids=name_of)
def test_manifests_match_the_kubernetes_schema(document):
    kubernetes_validate.validate(document, "1.37", strict=True)


def test_an_unknown_field_fails_the_schema_check():
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**DOCUMENTS[0], "sepc": {}}, "1.37", strict=True)


def test_the_kustomization_contains_every_manifest_and_no_secret():
    kustomization = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
    assert sorted(kustomization["resources"]) == [path.name for path in MANIFESTS]
    assert not [document for document in DOCUMENTS if document["kind"] == "Secret"]


@needs("kubectl")
def test_kustomize_sets_one_image_for_all_pods():
    built = [document for document in yaml.safe_load_all(run("kubectl", "kustomize", DEPLOY / "kubernetes")) if document]
    assert sorted(map(name_of, built)) == sorted(map(name_of, DOCUMENTS))
    pods = [document["spec"]["template"]["spec"] for document in built if document["kind"] in {"Deployment", "Job"}]
    assert len({container["image"] for pod in pods for container in pod["containers"]}) == 1


def check_restricted(pod):
    """Fails if a pod does not meet the restricted profile, or may use memory without a limit."""
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod["automountServiceAccountToken"]
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_pods_meet_the_restricted_profile(workload):
    pod = workload["spec"]["template"]["spec"]
    check_restricted(pod)
    assert not pod["enableServiceLinks"]


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_kubernetes_configures_the_service(workload, tmp_path, local):
    (settings,) = [document["data"] for document in DOCUMENTS if document["kind"] == "ConfigMap"]
    path = tmp_path / "fundsvc.toml"
    path.write_text(settings["fundsvc.toml"])
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    assert environment.pop("FUNDSVC_CONFIG") == "/etc/fundsvc/fundsvc.toml"
    config = load_config(path, readable(IMAGE | environment, local / "secrets"))
    assert config == load_config(
        path, readable(environment, local / "secrets") | {"FUNDSVC_DATA_DIRECTORY": config.data.directory}
    )
    assert (config.http.port, config.http.health_port, config.engine.port) == (8080, 8081, 8081)
    assert bool(config.database.owner_dsn) == (workload["kind"] == "Job") != bool(config.ledger.secret)


def test_the_archive_of_kubernetes_is_restricted_and_configured(local):
    (job,) = [document for document in ARCHIVE if document["kind"] == "CronJob"]
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    check_restricted(pod)
    environment = {variable["name"]: variable["value"] for variable in pod["containers"][0]["env"]}
    assert environment.pop("FUNDSVC_CONFIG") == "/etc/fundsvc/fundsvc.toml"
    config = load_config(None, readable(environment, local / "secrets"))
    assert "fundsvc_archive:" in config.archive.dsn
    assert "fundsvc_app:" in config.database.dsn
    assert not config.database.owner_dsn


@needs("kubectl")
def test_the_archive_of_kubernetes_gives_its_volume_to_the_apis(tmp_path):
    shutil.copytree(DEPLOY / "kubernetes", tmp_path / "kubernetes")
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text("resources: [../kubernetes]\ncomponents: [../kubernetes/archive]\n")
    built = {name_of(document): document for document in yaml.safe_load_all(run("kubectl", "kustomize", overlay))}
    pods = [built["Deployment-api"]["spec"]["template"]["spec"]]
    pods.append(built["CronJob-archive"]["spec"]["jobTemplate"]["spec"]["template"]["spec"])
    for pod, is_read_only in zip(pods, (True, False), strict=True):
        (volume,) = [one for one in pod["volumes"] if one.get("persistentVolumeClaim", {}).get("claimName") == "entries"]
        (container,) = pod["containers"]
        (mount,) = [one for one in container["volumeMounts"] if one["name"] == volume["name"]]
        location = {variable["name"]: variable["value"] for variable in container["env"]}["FUNDSVC_ARCHIVE_LOCATION"]
        assert (mount["mountPath"], bool(mount.get("readOnly"))) == (location, is_read_only)


@pytest.mark.parametrize("name", ["api", "engine"])
def test_probes_and_scrapes_use_the_port_for_health(name):
    settings, deployment = (find(kind, of) for kind, of in (("ConfigMap", "fundsvc"), ("Deployment", name)))
    config = tomllib.loads(settings["data"]["fundsvc.toml"])
    port = {"api": config["http"]["health_port"], "engine": config["engine"]["port"]}[name]
    template = deployment["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert {"name": "health", "containerPort": port} in container["ports"]
    probes = [container[f"{probe}Probe"]["httpGet"] for probe in ("startup", "liveness", "readiness")]
    assert {probe["port"] for probe in probes} == {"health"}
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(port)
    (ingress,) = find("NetworkPolicy", "metrics")["spec"]["ingress"]
    assert [each["port"] for each in ingress["ports"]] == ["health"]


def test_every_selector_matches_pods():
    labels = [workload["spec"]["template"]["metadata"]["labels"] for workload in WORKLOADS]
    selectors = {
        "Service": lambda spec: spec["selector"],
        "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
        "NetworkPolicy": lambda spec: spec["podSelector"].get("matchLabels", {}),
        "Deployment": lambda spec: spec["selector"]["matchLabels"],
    }
    chosen = [selectors[document["kind"]](document["spec"]) for document in DOCUMENTS if document["kind"] in selectors]
    assert len(chosen) == 11
    assert all(any(wanted.items() <= found.items() for found in labels) for wanted in chosen)


def test_the_image_contains_the_licences_of_the_project_and_its_packages():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (project["license"], project["license-files"]) == ("Apache-2.0", ["LICENSE"])
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert "> /opt/fundsvc/NOTICES" in DOCKERFILE
    notices = run(sys.executable, DEPLOY / "notices", DEPLOY / "service.lock")
    here = {name for name in locked("service.lock") if name not in ("async-timeout", "colorama")}  # for other platforms
    named = {line.split()[0].lower().replace("_", "-") for line in notices.splitlines() if re.match(r"\S+ \S+: .", line)}
    assert here - named == set()
    assert "PostgreSQL License" in notices
    assert "Copyright (c) 2022 Leon Sorokin" in notices
    script = (ROOT / "fundsvc" / "page" / "uplot" / "uPlot.iife.min.js").read_text()
    assert re.search(r"uPlot \((v[\d.]+)\)", script)[1] in notices.replace("uPlot ", "v")


def test_unreachable_advisories_are_skipped_with_a_message():
    nowhere = "http://127.0.0.1:9"
    assert "advisories: skipped" in run(ROOT / "scripts" / "advisories", HTTPS_PROXY=nowhere, https_proxy=nowhere)
    assert (ROOT / "scripts" / "check").read_text().splitlines()[-1] == "scripts/advisories"
