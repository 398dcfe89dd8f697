"""One of two cells, each with a server of its own, is away: the other one serves on."""

import asyncio

import pytest
from conftest import administrator, dsn_for
from eventually import eventually
from served import contract, fill
from two_cells import SYMBOLS, create_cells, in_cells, serving_cells

from fundsvc.local.servers import EmbeddedServers

HERE, AWAY = SYMBOLS[0], SYMBOLS[2]


@pytest.fixture(scope="module")
def second(servers, short_directory):
    """A second PostgreSQL server; it has the second cell, and the other server the first one."""
    second = EmbeddedServers(short_directory / "b")
    with second.used():
        second.start(valkey=False)
        asyncio.run(create_cells({"away_main": (servers, "main"), "away_b": (second, "b")}))
        yield second


@pytest.fixture
async def cells(config, servers, second):
    """The configuration of a ledger in two cells with servers of their own."""
    of = {}
    for cell, server in (("main", servers), ("b", second)):
        name = f"copy_{cell}"
        async with administrator(server) as connection:
            await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            await connection.execute(f"CREATE DATABASE {name} TEMPLATE away_{cell}")
        of[cell] = dsn_for(server.dsn, name), dsn_for(server.owner_dsn, name)
    return in_cells(config, of["main"], of["b"])


def stop(server):
    server.postgres.interrupt()
    server.postgres.wait()


async def filled(service):
    await service.send(contract(HERE), contract(AWAY))
    await service.send(fill(HERE, 1), fill(AWAY, 1))
    for symbol in (HERE, AWAY):
        await service.shows(symbol, 1)


async def status_of(service, path, *caller, **claims):
    status, headers, body = await service.answer(path, *caller, **claims)
    return status, headers.get("Fundsvc-Cells-Away"), body


async def test_a_cell_that_is_away_takes_down_its_funds_alone(cells, second):
    async with serving_cells(cells) as service:
        await filled(service)
        assert (await status_of(service, "/api/v1/insurance-fund"))[:2] == (200, None)
        await asyncio.to_thread(stop, second)
        try:

            async def is_away():
                return (await service.answer(f"/api/v1/insurance-fund/{AWAY}"))[0] == 503

            await eventually(is_away)
            for path in (f"/{AWAY}", f"/{AWAY}/history", f"/{AWAY}/candles"):
                status, headers, body = await service.answer(f"/api/v1/insurance-fund{path}")
                assert (status, body["msg"]) == (503, "the database of cell b is unreachable: retry shortly"), path
                assert headers["Retry-After"]
            for path in ("", "/history", "/candles", "/chart", "/at?ts=9000000000000"):
                assert (await status_of(service, f"/api/v1/insurance-fund/{HERE}{path}"))[0] == 200, path
            for path in ("/insurance-fund", "/contracts/active", "/policies"):
                status, away, body = await status_of(service, f"/api/v1{path}")
                assert (status, away, HERE in str(body), AWAY in str(body)) == (200, "b", True, False), path
            status, away, body = await status_of(service, "/api/v1/insurance-fund/summary")
            assert (status, away, body["data"]["currencies"][0]["balance"]) == (200, "b", "100")
            for path, role in (("/adl/positions", "trader"), ("/adl/deleveraged", "trader"), ("/ingest/cursor", "engine")):
                status, _, body = await service.answer(f"/api/v1{path}", role, account="ann" if role == "trader" else None)
                assert (status, body["msg"]) == (503, "the database of cell b is unreachable: retry shortly"), path
            await service.send(fill(HERE, 2))
            await service.shows(HERE, 2)
            assert (await service.post(fill(AWAY, 2)))[0] == 503
            status, _, body = await service.answer("/readyz")
            checks = {check["name"]: check["ok"] for check in body["checks"]}
            assert (status, checks["cell main"], checks["cell b"], checks["database"]) == (200, True, False, True)
            heard = [
                service.metrics.registry.get_sample_value("fundsvc_cell_heard_timestamp_seconds", {"cell": cell})
                for cell in ("main", "b")
            ]
            assert heard[0] > heard[1] == service.metrics.registry.get_sample_value("fundsvc_tail_heard_timestamp_seconds")
        finally:
            await asyncio.to_thread(second.start, valkey=False)
        await service.shows(AWAY, 1)

        async def is_accepted():
            return (await service.post(fill(AWAY, 2)))[0] == 200

        await eventually(is_accepted)
        await service.shows(AWAY, 2)
        assert (await status_of(service, "/api/v1/insurance-fund"))[:2] == (200, None)


async def test_a_service_starts_while_a_cell_is_away(cells, second):
    async with serving_cells(cells) as service:
        await filled(service)
    await asyncio.to_thread(stop, second)
    try:
        async with serving_cells(cells) as service:
            await service.shows(HERE, 1)
            assert (await service.answer(f"/api/v1/insurance-fund/{AWAY}"))[0] == 503
            await asyncio.to_thread(second.start, valkey=False)
            await service.shows(AWAY, 1)
            await service.send(fill(AWAY, 2))
    finally:
        await asyncio.to_thread(second.start, valkey=False)
