"""Engines and the API serve a ledger in two cells."""

import pytest
from eventually import eventually
from served import contract, fill
from two_cells import HELD, SYMBOLS, cell_templates, cells, owners, serving_cells

from fundsvc.store.migrations import migrate
from fundsvc.store.schema import check_schema

__all__ = ["cell_templates", "cells", "owners"]  # fixtures


async def filled(service):
    """Lists a contract in each partition, and settles a fill of each."""
    await service.send(*(contract(symbol) for symbol in SYMBOLS.values()))
    await service.send(*(fill(symbol, 1) for symbol in SYMBOLS.values()))


async def test_each_cell_holds_everything_of_its_partitions(cells, owners):
    async with serving_cells(cells) as service:
        await filled(service)
    for cell, connection in owners.items():
        held = [SYMBOLS[partition] for partition in HELD[cell]]
        assert {row["partition"] for row in await connection.fetch("SELECT partition FROM partitions")} == set(HELD[cell])
        for table in ("contracts", "funds", "entries"):
            rows = await connection.fetch(f"SELECT symbol FROM {table} ORDER BY symbol")
            assert [row["symbol"] for row in rows] == sorted(held), table


async def test_lists_and_sums_merge_the_cells(cells):
    async with serving_cells(cells) as service:
        await filled(service)
        for symbol in SYMBOLS.values():
            assert (await service.shows(symbol, 1))["balance"] == "100"
        listed = await service.data("/api/v1/insurance-fund")
        assert [fund["symbol"] for fund in listed] == sorted(SYMBOLS.values())
        (total,) = (await service.data("/api/v1/insurance-fund/summary"))["currencies"]
        assert total["balance"] == "400"
        contracts = await service.data("/api/v1/contracts/active")
        assert [(one["symbol"], one["partition"]) for one in contracts] == sorted(
            (symbol, partition) for partition, symbol in SYMBOLS.items()
        )
        (candles,) = await service.data("/api/v1/summary/candles")
        assert candles["candles"][-1][2] == "400"
        cursor = await service.data("/api/v1/ingest/cursor", "engine")
        assert [one["partition"] for one in cursor["partitions"]] == [0, 1, 2, 3]
        assert {one["symbol"] for one in cursor["contracts"]} == set(SYMBOLS.values())
        for symbol in SYMBOLS.values():
            (entry,) = (await service.data(f"/api/v1/insurance-fund/{symbol}/history"))["dataList"]
            assert (entry["symbol"], entry["entry"]) == (symbol, 1)


def deleveraging(symbol, account, seq):
    """Returns events that empty a fund, and reduce a position of an account."""
    return (
        {"type": "mark", "symbol": symbol, "price": "39000", "ts": 1},
        {
            "type": "position",
            "symbol": symbol,
            "account": account,
            "lots": -1000,
            "entryPrice": "40000",
            "margin": "500",
            "ts": 1,
        },
        fill(symbol, seq, price="38000"),
        {"type": "adlFill", "symbol": symbol, "seq": seq + 1, "adl": 1, "account": account, "lots": 100, "ts": 1},
    )


async def test_account_queries_number_the_reductions_of_all_cells(cells):
    async with serving_cells(cells) as service:
        await service.send(*(contract(symbol) for symbol in SYMBOLS.values()))
        for symbol in SYMBOLS.values():
            await service.send(*deleveraging(symbol, "ann", 1))
        order = list(SYMBOLS.values())
        path = "/api/v1/adl/deleveraged"
        found = await service.data(f"{path}?forward=true", "trader", account="ann")
        assert [(one["number"], one["symbol"], one["executed"]) for one in found["dataList"]] == [
            (number, symbol, 100) for number, symbol in enumerate(order, 1)
        ]
        page = await service.data(f"{path}?forward=true&offset=1&maxCount=2", "trader", account="ann")
        assert [one["symbol"] for one in page["dataList"]] == order[1:3]
        assert page["hasMore"]
        page = await service.data(f"{path}?offset=3&maxCount=10", "trader", account="ann")
        assert [one["number"] for one in page["dataList"]] == [2, 1]

        async def positions_of_all():
            found = await service.data("/api/v1/adl/positions", "trader", account="ann")
            return found if {one["symbol"] for one in found["positions"]} == set(order) else None

        positions = await eventually(positions_of_all)
        assert [one["symbol"] for one in positions["deleveraged"]] == order[::-1]
        activity = await service.data("/api/v1/adl/activity")
        assert {one["symbol"] for one in activity} == set(order)


async def test_migrate_gives_a_cell_its_partitions_once(cells, owners):
    dsn = cells.database.cells["b"].owner_dsn
    await owners["b"].execute("DELETE FROM partitions")
    await migrate(dsn, 4, "b", [2, 3])
    assert await owners["b"].fetchval("SELECT count(*) FROM partitions") == 0


async def test_a_database_of_another_cell_or_ledger_is_refused(cells):
    dsn, owner_dsn = cells.database.cells["b"].dsn, cells.database.cells["b"].owner_dsn
    for check in (check_schema(dsn, 4, "c"), migrate(owner_dsn, 4, "c", [])):
        with pytest.raises(ValueError, match="the database of cell c is the cell b of a ledger"):
            await check
    with pytest.raises(ValueError, match="the ledger has 4 partitions"):
        await check_schema(dsn, 8, "b")


async def test_topics_of_all_cells_are_on_one_connection(cells):
    async with serving_cells(cells) as service:
        await filled(service)
        first, last = SYMBOLS[0], SYMBOLS[3]
        for symbol in (first, last):
            await service.shows(symbol, 1)
        bullet = await service.http.post("/api/v1/bullet-public")
        answer = (await bullet.json())["data"]
        async with service.http.ws_connect(
            answer["instanceServers"][0]["endpoint"], params={"token": answer["token"]}
        ) as socket:
            assert (await socket.receive_json())["type"] == "welcome"
            topic = f"/insuranceFund/entry:{first},{last}"
            await socket.send_json({"id": "1", "type": "subscribe", "topic": topic, "response": True, "after": 0})
            await service.send(fill(first, 2), fill(last, 2))
            received = []
            while len(received) < 4:
                message = await socket.receive_json(timeout=10)
                if message["type"] == "message":
                    received.append((message["data"]["symbol"], message["data"]["entry"]))
            assert sorted(received) == sorted([(first, 1), (first, 2), (last, 1), (last, 2)])
