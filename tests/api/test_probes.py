"""Probes, exports and previews under load, and the details that probes show."""

import asyncio
import contextlib
from contextlib import asynccontextmanager

import aiohttp
import pytest
from conftest import with_section
from escalations import BEGINNING
from eventually import eventually
from ledgers import fill, listing, owned
from live import serving
from raw import raw
from test_adl_api import ADL, world_of
from test_fund_api import small_socket
from tokens import SECRET, bearer

from fundsvc.api.health import DETAILS_HIDDEN
from fundsvc.core.events import Position

FUNDS = "/api/v1/insurance-fund"
CSV = f"{FUNDS}/AAA/history.csv"
PREVIEW = "/api/v1/adl/AAA/preview"
FILL = {"side": "sell", "lots": 1, "price": "38900", "bankruptcyPrice": "39000"}
ENTRIES = 3000


@pytest.fixture
def config(config):
    config = with_section(config, "token", secret=SECRET)
    return with_section(config, "http", port=0, requests_max=1000, requests_seconds=3600.0, exports_max=4)


@pytest.fixture
async def ledger(config):
    async with owned(config) as owner:
        await owner.settle([listing("AAA")])
        await owner.settle([fill("AAA", seq, 1) for seq in range(1, ENTRIES)])
        yield owner


async def checks(service, **headers):
    async with service.http.get("/readyz", headers=headers) as answer:
        return {check["name"]: check for check in (await answer.json())["checks"]}


async def is_shown(service):
    async with service.http.get(f"{FUNDS}/AAA") as answer:
        return answer.status == 200


SECRETS = ("fundsvc_service", "socket", "127.0.0.1", "asyncpg", "Error", "/", "postgres")


async def test_error_details_are_shown_only_to_risk_and_in_the_log(config, ledger, servers, capfd):
    async with serving(config) as service:
        await eventually(lambda: is_shown(service))
        servers.postgres.stop()
        try:
            await eventually(lambda: is_database_failing(service))
            for headers in ({}, bearer("trader", account="anna"), bearer("engine"), {"Authorization": "Bearer garbage"}):
                check = (await checks(service, **headers))["database"]
                assert (check["ok"], check["error"]) == (False, DETAILS_HIDDEN)
                assert not [secret for secret in SECRETS if secret in check["error"]]
            full = (await checks(service, **bearer("risk")))["database"]["error"]
            assert full not in {"", DETAILS_HIDDEN}
        finally:
            servers.postgres.start()
        await eventually(lambda: is_database_healthy(service))
    output = "".join(capfd.readouterr())
    (line,) = [line for line in output.splitlines() if "fault" in line and "part=database " in line + " "]
    assert full.split(":")[0] in line


async def is_database_failing(service):
    return not await is_database_healthy(service)


async def is_database_healthy(service):
    return (await checks(service))["database"]["ok"]


async def test_probes_are_answered_while_all_pooled_connections_are_busy(config, ledger, owner_connection):
    config = with_section(config, "database", connections_max=2)
    async with serving(config) as service:
        await eventually(lambda: is_shown(service))
        async with asyncio.TaskGroup() as tasks, held(owner_connection, "entries"):
            requests = [tasks.create_task(status(service, f"{FUNDS}/AAA/history")) for _ in range(20)]
            await eventually(lambda: waits(owner_connection))
            for _ in range(20):
                found = await checks(service)
                assert found["database"]["ok"]
                assert found["database"]["durationMs"] < 1000
            assert not any(task.done() for task in requests)
        assert {task.result() for task in requests} == {200}


async def status(service, path):
    async with service.http.get(path) as answer:
        return answer.status


@asynccontextmanager
async def held(connection, table):
    """Holds a lock that blocks all readers of a table."""
    async with connection.transaction():
        await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield


async def waits(connection):
    return await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") >= 2


async def test_concurrent_probes_query_the_database_once(config, ledger, owner_connection):
    async with serving(config) as service:
        await eventually(lambda: is_shown(service))
        async with held(owner_connection, "partitions"):
            requests = [asyncio.create_task(checks(service)) for _ in range(50)]
            await asyncio.sleep(0.5)
            waiting = await owner_connection.fetchval(
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'partitions'::regclass"
            )
        assert waiting <= 4  # the two probes, the tail, and the follower of the pools of the mutual
        assert len(await asyncio.gather(*requests)) == 50


async def test_health_port_is_a_separate_listener(config, ledger, unused_tcp_port_factory):
    port = unused_tcp_port_factory()
    async with serving(with_section(config, "http", health_port=port, clients_max=1)) as service:
        await eventually(lambda: is_shown(service))
        async with raw(service.url) as refused, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as probe:
            assert (await refused.head())[0] == 503
            for path in ("/healthz", "/readyz", "/metrics"):
                async with probe.get(path) as answer:
                    assert answer.status in {200, 503}
            async with probe.get(FUNDS) as answer:
                assert answer.status == 404


@asynccontextmanager
async def reading_nothing(service, source=None):
    """Starts an export and does not read it; yields the head of the answer."""
    async with raw(service.url, source) as connection:
        await connection.send(f"GET {CSV} HTTP/1.1\r\nHost: x\r\n\r\n")
        yield await connection.head()


async def test_running_exports_are_limited_in_total_and_by_client(config, ledger, monkeypatch):
    monkeypatch.setattr("fundsvc.api.funds.STREAMED_ROWS", 1)
    async with serving(with_section(config, "http", requests_max=1_000_000)) as service:
        await eventually(lambda: is_shown(service))
        async with contextlib.AsyncExitStack() as stack:
            for source in ("127.0.0.2", "127.0.0.2", "127.0.0.3", "127.0.0.3"):
                assert (await stack.enter_async_context(reading_nothing(service, source)))[0] == 200
            for source, expected in (("127.0.0.2", 429), ("127.0.0.4", 503)):
                async with reading_nothing(service, source) as (found, headers):
                    assert found == expected
                    assert int(headers["retry-after"]) >= 1
            assert await is_shown(service)
            async with service.http.head(CSV) as answer:
                assert answer.status in {200, 503}
        await eventually(lambda: is_exported(service))


async def is_exported(service):
    async with service.http.get(CSV) as answer:
        return answer.status == 200 and (await answer.text()).count("\n") == ENTRIES


async def test_export_that_is_not_read_ends(config, ledger, monkeypatch):
    monkeypatch.setattr("fundsvc.api.exports.WRITE_SECONDS_MAX", 0.3)
    monkeypatch.setattr("fundsvc.api.exports.csv_rows", lambda entries: b"x" * 10_000_000)
    async with serving(with_section(config, "http", exports_max=1)) as service:
        await eventually(lambda: is_shown(service))
        connector = aiohttp.TCPConnector(socket_factory=small_socket)
        async with (
            aiohttp.ClientSession(service.url, connector=connector) as silent,
            silent.get(CSV, read_bufsize=1024) as answer,
        ):
            assert answer.status == 200
            await eventually(lambda: is_started(service))


async def is_started(service):
    async with service.http.get(CSV) as answer:
        return answer.status == 200


async def test_exports_use_separate_database_connections(config, ledger, owner_connection):
    config = with_section(config, "database", connections_max=1)
    async with serving(config) as service:
        await eventually(lambda: is_shown(service))
        async with service.http.get(CSV) as answer:
            assert (await answer.text()).count("\n") == ENTRIES
        rows = await owner_connection.fetch(
            "SELECT query FROM pg_stat_activity WHERE application_name = 'fundsvc reader' AND datname = current_database()"
        )
        assert len(rows) >= 2


async def left(answer):
    return int(answer.headers["gw-ratelimit-remaining"])


async def test_export_counts_as_the_pages_that_it_reads(config, ledger):
    async with serving(config) as service:
        await eventually(lambda: is_shown(service))
        for headers, cost in ((bearer("trader", account="anna"), 1 + 5), (bearer("engine"), 1 + 5 * 3000)):
            async with service.http.get(f"{FUNDS}/AAA", headers=headers) as answer:
                before = await left(answer)
            async with service.http.get(CSV, headers=headers) as answer:
                await answer.read()
                assert await left(answer) == before - cost


async def test_preview_counts_as_the_positions_that_it_ranks(config, monkeypatch):
    monkeypatch.setattr("fundsvc.api.adl.POSITIONS_PER_REQUEST", 1)
    config = with_section(config, "http", book_seconds=0.05)
    async with world_of(config) as world:
        await world.send(*BEGINNING)
        count = sum(1 for event in BEGINNING if isinstance(event, Position))
        assert count > 3
        trader = bearer("trader", account="anna")
        for number in range(1, 4):
            async with world.http.post(f"{ADL}/preview", json=FILL, headers=trader) as answer:
                assert (answer.status, await left(answer)) == (200, 1000 - (1 + count) * number)
        while answer.status == 200:
            async with world.http.post(f"{ADL}/preview", json=FILL, headers=trader) as answer:
                pass
        assert answer.status == 429
        assert int(answer.headers["Retry-After"]) >= 1
        async with world.http.get("/api/v1/timestamp", headers=trader) as answer:
            assert answer.status == 200


async def preview_status(world, account):
    trader = bearer("trader", account=account)
    async with world.http.post(f"{ADL}/preview", json=FILL, headers=trader) as answer:
        return answer.status, answer.headers.get("Retry-After")


async def test_waiting_previews_are_limited_in_total_and_by_client(config, owner_connection, monkeypatch):
    monkeypatch.setattr("fundsvc.api.adl.PREVIEWS_MAX", 3)
    monkeypatch.setattr("fundsvc.api.adl.CLIENT_PREVIEWS_MAX", 2)
    async with world_of(with_section(config, "http", book_seconds=0.05)) as world:
        await world.send(*BEGINNING)
        async with asyncio.TaskGroup() as tasks, held(owner_connection, "adl_orders"):
            previews = [tasks.create_task(preview_status(world, account)) for account in ("anna", "anna", "bert")]
            await eventually(lambda: waiting(owner_connection, "adl_orders", 3))
            assert await preview_status(world, "anna") == (429, "4")
            assert await preview_status(world, "carl") == (503, "1")
            assert not any(task.done() for task in previews)
        assert [task.result() for task in previews] == [(200, None)] * 3
        assert await preview_status(world, "anna") == (200, None)


async def waiting(connection, table, count):
    query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = $1::text::regclass"
    return await connection.fetchval(query, table) >= count


async def test_charge_is_at_most_the_whole_limit(config, ledger):
    async with serving(with_section(config, "http", requests_max=3)) as service:
        trader = bearer("trader", account="anna")
        for expected in (200, 429):
            async with service.http.get(CSV, headers=trader) as answer:
                assert answer.status == expected


@pytest.mark.parametrize("authorization", [{}, {"Authorization": "Bearer garbage"}])
async def test_preview_without_a_token_is_rejected_without_charge(config, ledger, authorization):
    async with serving(config) as service, service.http.post(PREVIEW, json=FILL, headers=authorization) as answer:
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert await left(answer) == 999
