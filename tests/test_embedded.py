"""The embedded servers, used by processes that come, go and are killed."""

import asyncio
import itertools
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis
from eventually import eventually

from fundsvc.config import Config, DatabaseConfig, DataConfig, StreamConfig
from fundsvc.embedded import EmbeddedError, EmbeddedServers, embedded

USER = """
import asyncio, sys
from fundsvc.config import Config, DataConfig
from fundsvc.embedded import embedded

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

    def __init__(self, directory, prefix=()):
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", USER, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

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
    """Servers of a directory of their own that have run before; stopped at the end if a test did not see to it."""
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


async def ask(dsn, statement):
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def test_the_last_of_two_users_stops_the_servers(servers):
    first, second = User(servers.directory), User(servers.directory)
    first.wait_until_up(), second.wait_until_up()
    before = pids(servers)
    assert None not in before
    first.leave()
    assert pids(servers) == before
    second.leave()
    assert stopped(servers)
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in before)


def test_users_that_leave_at_once_stop_the_servers_and_one_that_comes_then_starts_them(servers):
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


def test_a_killed_user_leaves_servers_that_the_next_adopts_with_all_they_hold(servers):
    killed = User(servers.directory).wait_until_up()
    with stream(servers) as client:
        client.set("kept", "1")
    asyncio.run(ask(servers.owner_dsn, "CREATE TABLE kept AS SELECT 1 AS x"))
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
    assert asyncio.run(ask(servers.dsn, "SELECT count(*) FROM pg_tables WHERE tablename = 'kept'")) == 1
    servers.stop()


async def test_a_server_that_dies_is_started_again(servers):
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
            return client.ping() and await ask(config.database.dsn, "SELECT 1")
    except (OSError, redis.ConnectionError, asyncpg.PostgresError):
        return False


async def test_only_what_the_configuration_does_not_name_is_started(servers):
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


async def test_nothing_is_started_or_made_when_both_are_named(tmp_path):
    named = Config(
        data=DataConfig(str(tmp_path / "absent")),
        database=DatabaseConfig(dsn="postgresql://x/y"),
        stream=StreamConfig(url="redis://x"),
    )
    async with embedded(named) as config:
        assert config == named
    assert not (tmp_path / "absent").exists()


def test_too_long_a_path_is_told_before_anything_is_started(tmp_path):
    servers = EmbeddedServers(tmp_path / ("x" * 90))
    with pytest.raises(EmbeddedError, match="too long a path"):
        servers.start()
    assert not (servers.directory / "postgres").exists()


def test_an_initialisation_that_was_interrupted_is_begun_anew(short_directory):
    servers = EmbeddedServers(short_directory / f"e{next(_NUMBERS)}")
    (servers.directory / "postgres.new" / "junk").mkdir(parents=True)
    servers.start(valkey=False)
    assert asyncio.run(ask(servers.dsn, "SELECT current_user::text")) == "fundsvc_service"
    servers.stop()


def test_a_server_that_cannot_start_says_why(servers):
    settings = servers.directory / "postgres" / "postgresql.conf"
    settings.write_text("nonsense = 1\n")
    with pytest.raises(EmbeddedError, match="nonsense"):
        servers.start()


def test_a_stranger_with_the_number_of_a_server_is_left_alone(servers):
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (servers.directory / "valkey.pid").write_text(str(stranger.pid))
        servers.stop()
        servers.start(postgres=False)
        assert servers.valkey.process.pid != stranger.pid
        servers.stop()
        assert stranger.poll() is None
        stranger.kill()


def test_starting_again_starts_nothing_and_stopping_takes_little_time(servers):
    servers.start()
    before = pids(servers)
    servers.start()
    assert pids(servers) == before
    started = time.monotonic()
    servers.stop()
    assert time.monotonic() - started < 4
    servers.stop()


def test_a_server_that_does_not_react_is_killed(servers):
    servers.start(postgres=False)
    process = servers.valkey.process
    process.suspend()
    servers.stop()
    assert servers.valkey.process is None


def test_ctrl_c_in_the_terminal_reaches_no_server(servers):
    servers.start()
    for pid in pids(servers):
        assert os.getsid(pid) != os.getsid(0)
        assert os.getpgid(pid) != os.getpgid(0)
    servers.stop()


def test_sockets_are_only_for_the_owner(servers):
    servers.start()
    run = servers.directory / "run"
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    sockets = [path for path in run.iterdir() if path.is_socket()]
    assert len(sockets) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in sockets} == {0o700}
    for pid in pids(servers):
        assert not [c for c in psutil.Process(pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
    servers.stop()


@as_root
def test_others_cannot_reach_the_sockets(servers):
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


@as_root
def test_root_runs_servers_as_nobody_below_a_closed_directory(servers):
    assert stat.S_IMODE(servers.directory.parent.stat().st_mode) == 0o700
    assert servers.directory.parent.stat().st_uid == 0
    servers.start()
    for pid in pids(servers):
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
        assert psutil.Process(pid).username() == "nobody"
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 1 << 1, "CAP_DAC_OVERRIDE and nothing else"
    servers.stop()


@as_root
def test_an_ordinary_user_needs_no_root(servers, short_directory):
    """The interpreter may lie where only root can read, so this user keeps root's right to pass directories."""
    directory = short_directory / f"e{next(_NUMBERS)}"
    directory.mkdir(mode=0o700)
    prefix = servers._as_owner()
    os.chown(directory, *servers._owner())
    own = EmbeddedServers(directory)
    user = User(directory, prefix).wait_until_up()
    assert {psutil.Process(pid).username() for pid in pids(own)} == {"nobody"}
    assert asyncio.run(ask(own.dsn, "SELECT 1")) == 1
    user.leave()
    assert stopped(own)
