"""Server settings that may lose confirmed data are detected and exported; sessions set `synchronous_commit` themselves."""

from contextlib import asynccontextmanager, suppress

import aiohttp
import asyncpg
import pytest
from conftest import with_section
from eventually import eventually
from exposed import sample_sum
from ports import free_port
from structlog.testing import capture_logs
from test_streams import answer, reachable, valkey

from fundsvc.app import http_side
from fundsvc.config.settings import StreamConfig
from fundsvc.engine.durability import Durability, NotDurable
from fundsvc.metrics import Metrics
from fundsvc.store.database import SQL, connect, open_pool
from fundsvc.store.leases import Leases, open_leases
from fundsvc.store.writer import OwnershipLost, open_writer
from fundsvc.streams.client import is_append_only, memory, open_client
from fundsvc.streams.source import Source

OFF = ("fsync", "full_page_writes")


@asynccontextmanager
async def with_settings(connection, **settings):
    """Sets settings of the server while the context is open."""
    try:
        for name, value in settings.items():
            await connection.execute(f"ALTER SYSTEM SET {name} = {value}")
        await connection.execute("SELECT pg_reload_conf()")
        await eventually(lambda: shows(connection, settings))
        yield
    finally:
        await connection.execute("ALTER SYSTEM SET fsync = off")  # the setting of all other tests
        await connection.execute("ALTER SYSTEM RESET full_page_writes")
        await connection.execute("SELECT pg_reload_conf()")
        await eventually(lambda: shows(connection, {"fsync": "off", "full_page_writes": "on"}))


async def shows(connection, settings):
    return all([await connection.fetchval("SELECT current_setting($1)", name) == value for name, value in settings.items()])


@asynccontextmanager
async def checking(config):
    metrics = Metrics()
    async with open_pool(config.database.dsn, 1) as pool, open_client(config.stream) as client:
        yield Durability(pool, client, metrics), metrics


@pytest.mark.parametrize("off", [(), ("fsync",), ("full_page_writes",), OFF])
async def test_durability_settings_of_the_database_are_checked(config, owner_connection, off):
    settings = {name: "off" if name in off else "on" for name in OFF}
    async with with_settings(owner_connection, **settings), checking(config) as (durability, metrics):
        with capture_logs() as logs:
            await durability.check_database()
            await durability.check_database()
        assert [line["off"] for line in logs if line["event"] == "commits not durable"] == ([list(off)] if off else [])
        for name in OFF:
            assert sample_sum(metrics, "fundsvc_durability_off", setting=name) == (name in off)
        if off:
            with pytest.raises(NotDurable, match=", ".join(off)):
                await durability.check()
        else:
            await durability.check()


async def test_archiving_of_the_database_is_measured(config, owner_connection):
    async with checking(config) as (durability, metrics):
        await durability.check_database()
        assert sample_sum(metrics, "fundsvc_wal_archive_failing") == 0
        assert sample_sum(metrics, "fundsvc_wal_archived_timestamp_seconds") == 0


@pytest.mark.parametrize(
    ("mode", "failed", "archived", "failing"),
    [
        ("off", "now()", "NULL", False),
        ("on", "NULL", "now()", False),
        ("on", "now()", "NULL", True),
        ("on", "now()", "now() - interval '1 second'", True),
        ("on", "now() - interval '1 second'", "now()", False),
    ],
)
async def test_archiving_fails_while_its_last_attempt_failed(owner_connection, mode, failed, archived, failing):
    statement = SQL["archiving"].replace("current_setting('archive_mode')", f"'{mode}'")
    given = f"(SELECT ({failed})::timestamptz AS last_failed_time, ({archived})::timestamptz AS last_archived_time) a"
    row = await owner_connection.fetchrow(statement.replace("pg_stat_archiver", given))
    assert row["failing"] is failing


@pytest.mark.parametrize("mode", ["single", "cluster"])
async def test_appendonly_of_the_stream_server_is_checked(tmp_path, mode):
    port, bus = free_port(), free_port()
    cluster = ("--cluster-enabled", "yes", "--cluster-port", bus) if mode == "cluster" else ()
    with valkey(tmp_path, "--port", port, "--save", "", *cluster):
        await eventually(lambda: answer(port, "PING"))
        if mode == "cluster":
            answer(port, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        async with open_client(StreamConfig(mode=mode, url=f"redis://127.0.0.1:{port}")) as client:
            await eventually(lambda: reachable(Source(client, 0)))
            assert not await is_append_only(client)
            answer(port, "CONFIG", "SET", "appendonly", "yes")
            assert await is_append_only(client)
            used, limit = await memory(client)
            assert 100_000 < used < limit
            answer(port, "CONFIG", "SET", "maxmemory", "50mb")
            assert (await memory(client)).limit == 50 * 2**20


async def test_readiness_and_metrics_show_weak_durability_and_the_service_continues(config, owner_connection):
    config = with_section(config, "http", port=0)
    async with (
        with_settings(owner_connection, fsync="off"),
        open_pool(config.database.dsn, 2) as pool,
        open_client(config.stream) as client,
        http_side(config, Metrics(), pool, client, engine=None, public=True) as url,
        aiohttp.ClientSession(url) as http,
    ):

        async def ready():
            async with http.get("/readyz") as answered:
                (check,) = [one for one in (await answered.json())["checks"] if one["name"] == "durability"]
                assert answered.status == 200
                return not check["ok"] and not check["needed"]

        await eventually(ready)
        async with http.get("/metrics") as answered:
            text = await answered.text()
        assert 'fundsvc_durability_off{setting="fsync"} 1.0' in text
        assert 'fundsvc_durability_off{setting="appendonly"} 0.0' in text


SYNCHRONOUS = [("off", "on"), ("local", "on"), ("on", "on"), ("remote_apply", "remote_apply")]


RECORD_SETTING = """
CREATE TABLE recorded (setting text);
CREATE FUNCTION record_setting() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
    $$BEGIN INSERT INTO recorded VALUES (current_setting('synchronous_commit')); RETURN NULL; END$$;
CREATE TRIGGER record_setting AFTER UPDATE ON partitions FOR EACH STATEMENT EXECUTE FUNCTION record_setting();
CREATE TRIGGER record_setting AFTER INSERT ON policies FOR EACH STATEMENT EXECUTE FUNCTION record_setting();
"""
"""Records the setting with which sessions write."""


async def write_nothing(session):
    await session.execute("UPDATE partitions SET halted = halted")


@pytest.mark.parametrize(("configured", "used"), SYNCHRONOUS)
@pytest.mark.parametrize("session", ["writer", "leases", "pool", "connection"])
async def test_every_session_sets_synchronous_commit(config, owner_connection, configured, used, session):
    name = await owner_connection.fetchval("SELECT current_database()")
    await owner_connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = {configured}")
    await owner_connection.execute(RECORD_SETTING)
    dsn = config.database.dsn
    opened, write = {
        "writer": (open_writer(dsn, "a", 0, 0), lambda writer: writer.load_policies(config.policy.version(1))),
        "leases": (open_leases(dsn, "a", 3.0), Leases.keep),
        "pool": (open_pool(dsn, 1), write_nothing),
        "connection": (connect(dsn, "a"), write_nothing),
    }[session]
    async with opened as one:
        with suppress(OwnershipLost):  # The writer owns no partition.
            await write(one)
    assert await owner_connection.fetchval("SELECT DISTINCT setting FROM recorded") == used
    plain = await asyncpg.connect(dsn)
    try:
        assert await plain.fetchval("SHOW synchronous_commit") == configured, "other connections have the configured value"
    finally:
        plain.terminate()
