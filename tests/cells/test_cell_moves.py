"""Partitions move between cells, with a kill at every step."""

import asyncio
from io import BytesIO

import pytest
from conftest import connected
from eventually import eventually
from served import contract
from two_cells import (
    HELD,
    MANY,
    PARTITION,
    SYMBOLS,
    TABLES,
    base_config,
    cells,
    copy_cells,
    dsns_of,
    dump,
    escalated,
    in_cells,
    is_gone,
    owners,
    run_move,
    serving_cells,
    set_sizes,
)
from two_cells import cell_templates as empty_templates

from fundsvc.store.cell_moves import CannotMove, Differs, Move, as_owner
from fundsvc.store.database import StoreFault

__all__ = ["cells", "empty_templates", "owners"]  # fixtures

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


@pytest.fixture(scope="module")
def cell_templates(servers, empty_templates):
    """The names of databases of both cells for copies, with rows of a partition that engines have written."""
    names = {cell: f"template_moves_{cell}" for cell in HELD}

    async def write():
        await copy_cells(servers, empty_templates, names)
        config = in_cells(base_config(servers), *dsns_of(servers, names))
        async with serving_cells(config) as service, connected(config.database.owner_dsn) as owner:
            for symbol in MANY:
                await escalated(service, symbol, "ann")
            await service.send(*(contract(symbol) for symbol in SYMBOLS.values()))

            async def is_condensed():
                return await owner.fetchval("SELECT count(*) FROM rollups") == len(MANY)

            await eventually(is_condensed)

    asyncio.run(write())
    return names


@pytest.fixture
async def ledger(owners):
    """The rows of the partition, which no engine serves."""
    found = await dump(owners["main"])
    assert all(
        found[table] for table in ("entries", "adl_records", "adl_orders", "tranches", "rollups", "rejected", "policies")
    )
    return found


async def holders(owners):
    """Returns the cells whose engines may own the partition."""
    query = "SELECT count(*) FROM partitions WHERE partition = $1 AND moving_to IS NULL"
    return [cell for cell, connection in owners.items() if await connection.fetchval(query, PARTITION)]


async def run_undo(cells, step=None):
    dsns = {cell: cells.in_cell(cell).database.owner_dsn for cell in cells.cells}
    async with as_owner(dsns["main"]) as one, as_owner(dsns["b"]) as other:
        await Move(one, other, PARTITION, *([step] if step else [])).undo()


def killing(at):
    async def step(name):
        if name == at:
            raise Killed

    return step


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks of few rows."""
    set_sizes(monkeypatch, 7, 0.0)


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


async def test_rollups_that_change_during_a_move_are_copied_again(cells, owners, ledger):
    changed = {}

    async def change(name):
        if name == "paused":
            await owners["main"].execute("UPDATE rollups SET fills = fills + 1 WHERE symbol = $1", MANY[0])
            await owners["main"].execute("DELETE FROM rollups WHERE symbol = $1", MANY[1])
            changed.update(await dump(owners["main"]))

    await run_move(cells, change)
    assert changed["rollups"] != ledger["rollups"]
    assert await dump(owners["b"]) == changed


@pytest.mark.parametrize("cell", ["main", "b"])
@pytest.mark.parametrize("step", ["begun", "paused", "copied the rest"])
async def test_lost_connection_is_a_fault_after_which_the_move_is_repeated(cells, owners, ledger, cell, step):
    async def lose(name):
        if name == step:
            await owners[cell].execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE application_name = 'fundsvc move' AND datname = current_database()"
            )

    with pytest.raises(StoreFault):
        await run_move(cells, lose)
    await run_move(cells)
    assert await holders(owners) == ["b"]
    assert await dump(owners["b"]) == ledger
    assert await is_gone(owners["main"])


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
