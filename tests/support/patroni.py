"""PostgreSQL under Patroni, with etcd and haproxy, from the files of deploy/ha. Each server has its own loopback address."""

import asyncio
import os
import secrets
import shutil
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil
import pytest
from eventually import eventually
from installed import once

from fundsvc.local.server_process import give
from fundsvc.local.servers import postgres_binary

DEPLOY = Path(__file__).parents[2] / "deploy"
HA = DEPLOY / "ha"
LOCK = HA / "patroni.lock"
PACKAGES = DEPLOY.parent / ".patroni"
POSTGRES = postgres_binary("postgres").parent
SERVERS = 3
"""In the configuration of haproxy."""

NOBODY = 65534
STOP_SECONDS_MAX = 5

needs_ha = pytest.mark.skipif(
    any(shutil.which(program) is None for program in ("etcd", "haproxy")),
    reason="etcd or haproxy is not installed: run scripts/ha",
)


def patroni_packages():
    """Installs Patroni beside the environment of the tests."""
    once(PACKAGES, LOCK, _install)


def _install():
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade", "--require-hashes")
    subprocess.run((*pip, "--target", PACKAGES, "--requirement", LOCK), check=True)


def as_server(command):
    """Returns a command for `nobody` under root, because PostgreSQL refuses root; it can read all files like root."""
    words = [str(word) for word in command]
    if os.geteuid():
        return words
    capability = ("--inh-caps=+dac_override", "--ambient-caps=+dac_override")
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *capability, *words]


class Member:
    """A PostgreSQL server with its Patroni."""

    def __init__(self, cluster, number):
        self.name, self.address = f"postgres-{number}", cluster.address(number)
        self.data = cluster.directory / self.name
        self._cluster = cluster
        self._process = None

    @property
    def environment(self):
        """What Patroni gets beside the configuration."""
        return self._cluster.environment | {
            "PATRONI_NAME": self.name,
            "PATRONI_RESTAPI_LISTEN": f"{self.address}:8008",
            "PATRONI_RESTAPI_CONNECT_ADDRESS": f"{self.address}:8008",
            "PATRONI_POSTGRESQL_LISTEN": f"{self.address}:5432",
            "PATRONI_POSTGRESQL_CONNECT_ADDRESS": f"{self.address}:5432",
            "PATRONI_POSTGRESQL_DATA_DIR": str(self.data),
            "PATRONI_POSTGRESQL_PGPASS": str(self.data.with_suffix(".pgpass")),
        }

    def start(self):
        """Starts Patroni if it does not run. It starts PostgreSQL, with a copy of the primary's data if there are none."""
        if self._process and self._process.poll() is None:
            return
        command = ("with-secrets", sys.executable, "-m", "patroni", HA / "patroni.yml")
        self._process = self._cluster.spawn(self.name, *command, environment=self.environment)

    def kill_postgres(self):
        """Kills PostgreSQL as a crash would."""
        with suppress(FileNotFoundError, psutil.NoSuchProcess):
            server = psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))
            for process in (server, *server.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def kill(self):
        """Kills Patroni and PostgreSQL, as the end of their host would."""
        if self._process:
            self._process.kill()
            self._process.wait()
        self.kill_postgres()

    def stop(self):
        """Stops Patroni, which stops PostgreSQL; kills both if that takes too long."""
        if self._process:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS_MAX)
        self.kill()

    def standing(self):
        """Returns role and state of each member by its name, as this member sees them; empty if it does not answer."""
        with suppress(OSError), urllib.request.urlopen(f"http://{self.address}:8008/cluster", timeout=2) as answer:
            members = msgspec.json.decode(answer.read())["members"]
            return {member["name"]: (member["role"], member["state"]) for member in members}
        return {}


class PatroniCluster:
    """Members, up to three, with etcd, and haproxy before them."""

    def __init__(self, directory, members):
        self.directory = directory
        self._network = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(254) + 1}"
        self._processes = []
        self.etcd, self.haproxy = self.address(10), self.address(11)
        self.members = [Member(self, number) for number in range(1, members + 1)]
        self.secrets = directory / "local" / "secrets"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PG")},
            "PATH": ":".join(map(str, (HA, DEPLOY / "postgres", PACKAGES / "bin", POSTGRES, os.environ["PATH"]))),
            "PYTHONPATH": str(PACKAGES),
            "PYTHONDONTWRITEBYTECODE": "1",
            "FUNDSVC_SECRETS": str(self.secrets),
            "ARCHIVE": str(directory / "local" / "archive"),
            "PATRONICTL_CONFIG_FILE": str(HA / "patroni.yml"),
            "PATRONI_ETCD3_HOSTS": f"{self.etcd}:2379",
            "BIND": self.haproxy,
            **{f"POSTGRES_{number}": self.address(number) for number in range(1, SERVERS + 1)},
        }

    def address(self, number):
        return f"{self._network}.{number}"

    def spawn(self, name, *command, environment=None):
        """Starts a program."""
        with (self.directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                as_server(command),
                env=environment or self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    async def start(self):
        """Starts all programs, and waits for a primary with a synchronous standby."""
        await asyncio.to_thread(subprocess.run, [DEPLOY / "prepare", self.directory / "local"], check=True)
        if os.geteuid() == 0:
            give(self.directory, NOBODY)
        client, peer = f"http://{self.etcd}:2379", f"http://{self.etcd}:2380"
        self.spawn(
            *("etcd", "etcd", "--data-dir", self.directory / "etcd", "--unsafe-no-fsync", "--name", "one"),
            *("--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer),
            *("--initial-advertise-peer-urls", peer, "--initial-cluster", f"one={peer}"),
        )
        self.spawn("haproxy", "haproxy", "-f", HA / "haproxy.cfg")
        for member in self.members:
            member.start()
        await self.until_whole()

    async def until_whole(self):
        """Waits for a primary whose commits a standby confirms, and for all other members."""

        def is_whole():
            roles = sorted(role for role, state in self.standing().values() if state in {"running", "streaming"})
            return roles == ["leader", *["replica"] * (len(self.members) - 2), "sync_standby"]

        await eventually(is_whole)

    def standing(self):
        return next(filter(None, (member.standing() for member in self.members)), {})

    def primary(self):
        """Returns the member that is the primary; None at the moment without one."""
        standing = self.standing()
        return next((member for member in self.members if standing.get(member.name) == ("leader", "running")), None)

    def shell(self, script):
        """Runs a script, which must succeed, with the programs and secrets of a member; returns its output."""
        words = as_server(("with-secrets", "bash", "-euo", "pipefail", "-c", script))
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def dsn(self, role, *hosts):
        """Returns the DSN of a role of deploy/postgres/roles.sh."""
        password = (self.secrets / f"{role.removeprefix('fundsvc_')}_password").read_text()
        return f"postgresql://{role}:{password}@{','.join(hosts)}/fundsvc"

    def close(self):
        """Stops the members, then kills all programs."""
        for member in self.members:
            member.stop()
        for process in self._processes:
            process.kill()
            process.wait()
