"""A DSN with several hosts: the primary with the newest timeline is found in time, whatever the others do."""

import socket
import time
from contextlib import contextmanager

import pytest
from eventually import eventually
from ports import free_port

from fundsvc.local.servers import EmbeddedServers
from fundsvc.store.database import StoreFault, connect, follow_primary, open_pool
from fundsvc.store.hosts import Host, hosts_of
from fundsvc.store.migrations import migrate

SECONDS_MAX = 4.0
"""Less than the time limit of one host, which does not answer."""


@contextmanager
def silent():
    """A host that accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def closed():
    """A host that refuses connections."""
    return f"127.0.0.1:{free_port()}"


def dsn_of(*hosts, user="fundsvc_service"):
    """Returns a DSN whose hosts are addresses, or embedded servers."""
    names, ports = [], []
    for host in hosts:
        name, _, port = host.partition(":") if isinstance(host, str) else (str(host.run_directory), "", "5432")
        names.append(name)
        ports.append(port)
    return f"postgresql://{user}@/fundsvc?host={','.join(names)}&port={','.join(ports)}"


@pytest.mark.parametrize(
    ("dsn", "hosts"),
    [
        ("postgresql://me@one/db", [Host("one", None)]),
        ("postgresql://me:p%40@one:1,two/db?target_session_attrs=primary", [Host("one", 1), Host("two", None)]),
        ("postgresql://me@[::1]:7,[fe80::2]/db", [Host("::1", 7), Host("fe80::2", None)]),
        ("postgresql://me@/db?host=/run/a,b&port=1,2", [Host("/run/a", 1), Host("b", 2)]),
        ("postgresql://me@/db?host=a,b&port=9", [Host("a", 9), Host("b", 9)]),
        ("postgresql:///db", []),
    ],
)
def test_hosts_of_a_dsn(dsn, hosts):
    assert hosts_of(dsn) == hosts


async def test_hosts_that_hang_or_refuse_are_passed(config, servers):
    with silent() as first:
        dsn = dsn_of(first, closed(), servers)
        started = time.monotonic()
        async with connect(dsn, "test") as connection, open_pool(dsn, 2) as pool:
            assert await connection.fetchval("SELECT 1") == await pool.fetchval("SELECT 1")
        await migrate(dsn_of(first, servers, user="postgres"), 1)
        assert time.monotonic() - started < SECONDS_MAX


async def test_no_host_is_a_fault(config):
    with pytest.raises(StoreFault, match="refused"):
        async with connect(dsn_of(closed(), closed()), "test"):
            pass
    with pytest.raises(StoreFault, match="cannot migrate"):
        await migrate(dsn_of(closed(), closed()), 1)


@pytest.fixture
def promoted(tmp_path):
    """A server that was promoted, so that it has a newer timeline than others."""
    server = EmbeddedServers(tmp_path)
    server.start(valkey=False)
    server.stop()
    (tmp_path / "postgres" / "standby.signal").touch()
    try:
        server.start(valkey=False)
        yield server
    finally:
        server.stop()


async def test_newest_primary_is_preferred_to_an_older_one_and_to_a_standby(servers, promoted):
    is_standby, identity = "SELECT pg_is_in_recovery()", "SELECT system_identifier FROM pg_control_system()"
    place = dsn_of(servers, promoted)
    async with connect(place, "test") as older, connect(promoted.owner_dsn, "test") as owner:
        assert not await older.fetchval(is_standby), "the other host is a standby"
        assert not await follow_primary(place), "and no primary is newer"
        assert await owner.fetchval("SELECT pg_promote()")
        async with connect(place, "test") as newer:
            assert await newer.fetchval(identity) == await owner.fetchval(identity)
            assert await follow_primary(place) == 1
            await eventually(older.is_closed)
            assert not await follow_primary(place)
            assert not await newer.fetchval(is_standby)
        others = "SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = 'fundsvc_service'"
        await eventually(lambda: owner.fetchval(others))
