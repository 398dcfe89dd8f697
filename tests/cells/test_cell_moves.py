"""Partitions move between cells: while the service runs, and with a kill at every step."""

import asyncio
from io import BytesIO

import pytest
from eventually import eventually
from served import contract, fill
from two_cells import SYMBOLS, cell_templates, cells, owners, serving_cells, symbol_in

from fundsvc.core.contracts import partition_of
from fundsvc.store import cell_moves
from fundsvc.store.cell_moves import BY_PARTITION, BY_SYMBOL, CHAINS, CannotMove, Differs, Move, as_owner

__all__ = ["cell_templates", "cells", "owners"]  # fixtures

PARTITION = 1
MANY = [symbol_in(PARTITION, number) for number in range(3)]
FIRST = MANY[0]
TABLES = (*(chain.table for chain in CHAINS), *BY_PARTITION, *BY_SYMBOL)

STAYING = (
    *("alembic_version", "cell", "arriving", "copied", "departed"),  # describe the database itself
    *("engines", "posters", "stream_servers"),  # describe processes and stream servers; the first cell has the latter two
    *("mutual_pools", "mutual_terms", "mutual_entries", "mutual_policies", "mutual_accounts", "mutual_cycles"),
    *("mutual_gaps", "mutual_rejected"),  # the homes of pools do not move
)
"""The tables with rows of no contract, and of no partition that may move."""

STEPS = ("begun", "copied", "paused", "caught up", "copied the rest", "compared", "arrived", "left", "purging")
"""The steps of a move after which it may be killed."""

IRREVOCABLE = ("arrived", "left", "purging")
"""The steps after the target holds the partition."""


class Killed(BaseException):
    """Ends a move as a kill does: its connections close, and their transactions are rolled back."""


async def escalated(service, symbol, account):
    """Settles a surplus, a takeover, and a shortfall that needs ADL, in a contract."""
    await service.send(
        contract(symbol),
        {"type": "mark", "symbol": symbol, "price": "39000", "ts": 1},
        {
            "type": "position",
            "symbol": symbol,
            "account": account,
            "lots": -900,
            "entryPrice": "40000",
            "margin": "500",
            "ts": 1,
        },
        fill(symbol, 1),
        {"type": "takeover", "symbol": symbol, "seq": 2, "side": "sell", "lots": 5, "bankruptcyPrice": "39000", "ts": 1},
        fill(symbol, 3, price="38000"),
        {"type": "adlFill", "symbol": symbol, "seq": 4, "adl": 1, "account": account, "lots": 100, "ts": 1},
        fill(symbol, 1, price="1"),
    )


async def dump(connection):
    """Returns all rows of the partition, by table, without what a move changes."""
    found = {}
    for table in TABLES:
        rows = await connection.fetch(f"SELECT * FROM {table}")
        of = [row for row in map(dict, rows) if _is_of(row)]
        for row in of:
            for name in ("generation", "moving_to", "epoch", "owner", "lease_until", "at"):
                row.pop(name, None)
        found[table] = sorted(of, key=repr)
    return found


def _is_of(row):
    return row["partition"] == PARTITION if "partition" in row else partition_of(row["symbol"], 4) == PARTITION


async def holders(owners):
    """Returns the cells whose engines may own the partition."""
    query = "SELECT count(*) FROM partitions WHERE partition = $1 AND moving_to IS NULL"
    return [cell for cell, connection in owners.items() if await connection.fetchval(query, PARTITION)]


@pytest.fixture
async def ledger(cells, owners):
    """The rows of a partition of a ledger that engines have written, and no engine serves any more."""
    async with serving_cells(cells) as service:
        for symbol in MANY:
            await escalated(service, symbol, "ann")
        await service.send(*(contract(symbol) for symbol in SYMBOLS.values()))

        async def is_condensed():
            return await owners["main"].fetchval("SELECT count(*) FROM rollups") == len(MANY)

        await eventually(is_condensed)
    found = await dump(owners["main"])
    assert all(
        found[table] for table in ("entries", "adl_records", "adl_orders", "tranches", "rollups", "rejected", "policies")
    )
    return found


async def run_move(cells, step=None, *, source="main", target="b"):
    """Runs a move over connections of its own, which end with it."""
    dsns = {cell: cells.in_cell(cell).database.owner_dsn for cell in cells.cells}
    async with as_owner(dsns[source]) as one, as_owner(dsns[target]) as other:
        return await Move(one, other, PARTITION, *([step] if step else [])).run()


async def run_undo(cells, step=None):
    dsns = {cell: cells.in_cell(cell).database.owner_dsn for cell in cells.cells}
    async with as_owner(dsns["main"]) as one, as_owner(dsns["b"]) as other:
        await Move(one, other, PARTITION, *([step] if step else [])).undo()


def killing(at):
    async def step(name):
        if name == at:
            raise Killed

    return step


async def is_gone(connection):
    found = await dump(connection)
    rest = [await connection.fetchval(f"SELECT count(*) FROM {table}") for table in ("departed", "arriving", "copied")]
    return not any(found.values()) and not any(rest)


def set_sizes(monkeypatch, rows, linger_seconds):
    """Sets the rows of a chunk and of a deletion, and how long the source shows a moved partition."""
    monkeypatch.setattr(cell_moves, "CHUNK_ROWS", rows)
    monkeypatch.setattr(cell_moves, "PURGE_ROWS", rows)
    monkeypatch.setattr(cell_moves, "LINGER_SECONDS", linger_seconds)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks of few rows."""
    set_sizes(monkeypatch, 3, 0.0)


@pytest.mark.parametrize("step", STEPS)
async def test_move_killed_at_any_step_is_finished_by_repetition(cells, owners, ledger, step):
    with pytest.raises(Killed):
        await run_move(cells, killing(step))
    assert len(await holders(owners)) <= 1
    await run_move(cells)
    assert await holders(owners) == ["b"]
    assert await dump(owners["b"]) == ledger
    assert await is_gone(owners["main"])


@pytest.mark.parametrize("step", [step for step in STEPS if step not in IRREVOCABLE])
async def test_move_killed_before_its_end_is_undone(cells, owners, ledger, step):
    with pytest.raises(Killed):
        await run_move(cells, killing(step))
    await run_undo(cells)
    assert await holders(owners) == ["main"]
    assert await dump(owners["main"]) == ledger
    assert await is_gone(owners["b"])


@pytest.mark.parametrize("step", ["disarmed", "resumed", "purging"])
async def test_undo_killed_at_any_step_is_finished_by_repetition(cells, owners, ledger, step):
    with pytest.raises(Killed):
        await run_move(cells, killing("paused"))
    with pytest.raises(Killed):
        await run_undo(cells, killing(step))
    assert len(await holders(owners)) <= 1
    await run_undo(cells)
    assert await holders(owners) == ["main"]
    assert await dump(owners["main"]) == ledger
    assert await is_gone(owners["b"])


@pytest.mark.parametrize("step", IRREVOCABLE)
async def test_move_cannot_be_undone_once_the_target_holds_the_partition(cells, owners, ledger, step):
    with pytest.raises(Killed):
        await run_move(cells, killing(step))
    with pytest.raises(CannotMove, match="has moved"):
        await run_undo(cells)
    assert await holders(owners) == ["b"]
    assert await dump(owners["b"]) == ledger


async def test_partition_moves_back(cells, owners, ledger):
    await run_move(cells)
    await run_move(cells, source="b", target="main")
    assert await holders(owners) == ["main"]
    assert await dump(owners["main"]) == ledger
    assert await is_gone(owners["b"])


async def test_a_cell_restored_to_before_a_move_gives_up_its_outdated_copy(cells, owners, ledger):
    with pytest.raises(Killed):
        await run_move(cells, killing("arrived"))
    await owners["main"].execute("UPDATE partitions SET moving_to = NULL")
    assert await holders(owners) == ["main", "b"]
    await run_move(cells)
    assert await holders(owners) == ["b"]
    assert await dump(owners["b"]) == ledger
    assert await is_gone(owners["main"])


async def test_move_refuses_a_copy_that_differs(cells, owners, ledger):
    async def falsify(name):
        if name == "caught up":
            await owners["b"].execute("ALTER TABLE entries DISABLE TRIGGER entries_are_append_only")
            await owners["b"].execute("UPDATE entries SET hash = sha256(hash) WHERE entry = (SELECT max(entry) FROM entries)")

    with pytest.raises(Differs, match="the heads of"):
        await run_move(cells, falsify)
    assert await holders(owners) == []
    await run_undo(cells)
    assert await holders(owners) == ["main"]


async def test_move_decides_about_every_table(owners):
    rows = await owners["main"].fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    assert sorted(row["tablename"] for row in rows) == sorted((*TABLES, *STAYING))


async def test_partition_returns_to_a_cell_where_tasks_wrote_after_it_had_left(cells, owners, ledger):
    await run_move(cells)
    await owners["main"].execute("INSERT INTO heartbeats VALUES ($1, now())", PARTITION)
    for table in ("rollup_progress", "audit_progress", "audit_tranches"):
        await copy_rows(owners["b"], owners["main"], table)
    await run_move(cells, source="b", target="main")
    assert await dump(owners["main"]) == ledger
    assert await is_gone(owners["b"])


async def copy_rows(source, target, table):
    """Copies all rows of a table."""
    rows = BytesIO()
    await source.copy_from_table(table, output=rows)
    rows.seek(0)
    await target.copy_to_table(table, source=rows)


async def test_two_commands_do_not_move_a_partition_at_once(cells, ledger):
    async def another(name):
        if name == "paused":
            with pytest.raises(CannotMove, match="another command moves"):
                await run_move(cells)
            with pytest.raises(CannotMove, match="another command moves"):
                await run_undo(cells)

    await run_move(cells, another)


async def test_entries_of_the_ledger_stay_append_only(cells, owners, ledger):
    await run_move(cells)
    for statement in (
        "DELETE FROM entries WHERE entry = 1",
        "UPDATE entries SET change = 0",
        "DELETE FROM adl_records",
        "DELETE FROM policies",
    ):
        with pytest.raises(Exception, match="the ledger is append-only"):
            await owners["b"].execute(statement)


async def test_partition_moves_while_the_service_runs(cells, owners, monkeypatch):
    set_sizes(monkeypatch, 100, 0.3)
    async with serving_cells(cells) as service:
        await escalated(service, FIRST, "ann")
        await service.shows(FIRST, 3)
        bullet = await service.http.post("/api/v1/bullet-public")
        answer = (await bullet.json())["data"]
        endpoint = answer["instanceServers"][0]["endpoint"]
        async with service.http.ws_connect(endpoint, params={"token": answer["token"]}) as socket:
            await socket.receive_json()
            await socket.send_json({"id": "1", "type": "subscribe", "topic": f"/insuranceFund/entry:{FIRST}", "after": 0})
            stop, sent = asyncio.Event(), []

            async def send():
                for seq in range(5, 10_000):
                    if stop.is_set():
                        return
                    status, body = await service.post(fill(FIRST, seq, price="39000.1"))
                    assert status == 200, body
                    sent.append(body["data"]["messages"][0]["id"])
                    await asyncio.sleep(0.01)

            async def read():
                while not stop.is_set():
                    for path in ("", "/history", "/inventory"):
                        status, _, body = await service.answer(f"/api/v1/insurance-fund/{FIRST}{path}")
                        assert status == 200, (path, body)
                    await asyncio.sleep(0.01)

            working = [asyncio.create_task(send()), asyncio.create_task(read())]
            await asyncio.sleep(0.3)
            moved = await run_move(cells)
            settled = await owners["b"].fetchval("SELECT last_id FROM partitions WHERE partition = $1", PARTITION)

            async def settles_again():
                return settled != await owners["b"].fetchval("SELECT last_id FROM partitions WHERE partition = $1", PARTITION)

            await eventually(settles_again)
            assert moved.paused_seconds < 5
            await asyncio.sleep(0.3)
            stop.set()
            await asyncio.gather(*working)
            await service.settled({PARTITION: sent[-1]})
            seqs = [
                row["seq"] for row in await owners["b"].fetch("SELECT seq FROM entries WHERE symbol = $1 ORDER BY entry", FIRST)
            ]
            fills = [seq for seq in seqs if seq >= 5]
            assert fills == list(range(5, 5 + len(sent)))
            pause = await owners["b"].fetchval(
                "SELECT max(gap) FROM (SELECT recorded_at - lag(recorded_at) OVER (ORDER BY entry) AS gap FROM entries) g"
            )
            assert pause.total_seconds() < 5
            received = []
            while len(received) < len(seqs):
                message = await socket.receive_json(timeout=10)
                received += [message["data"]["entry"]] if message["type"] == "message" else []
            assert received == list(range(1, len(seqs) + 1))
            await service.shows(FIRST, len(seqs))
            listed = await service.data("/api/v1/insurance-fund")
            assert [fund["symbol"] for fund in listed] == [FIRST]
            positions = await service.data("/api/v1/adl/deleveraged", "trader", account="ann")
            assert len(positions["dataList"]) == 1
        assert await is_gone(owners["main"])
