"""The background audit and the export of a fund that holds positions."""

import csv
import io
import sys
from pathlib import Path

import pytest
from commands import program
from eventually import eventually
from inventories import HELD, INVENTORY, taken, unwound
from ledgers import listing, owned
from test_audit_loop import ALWAYS, auditing, quick  # noqa: F401

from fundsvc.cli.tools.export import COLUMNS, PUBLIC_COLUMNS, export_rows, public_rows
from fundsvc.store import audit_inventories
from fundsvc.store.audits import read_parts
from fundsvc.store.database import open_pool
from fundsvc.store.exports import open_ledger

SCRIPT = Path(__file__).parents[2] / "scripts" / "verify-export"


@pytest.fixture(autouse=True)
def small_pages(monkeypatch):
    monkeypatch.setattr(audit_inventories, "PAGE_TRANCHES", 2)


@pytest.fixture
async def owner(config):
    async with owned(config) as owner:
        await owner.settle([listing(HELD), *INVENTORY])
        yield owner


@pytest.fixture
async def tamper(config, owner_connection):
    """Runs a statement without triggers, foreign keys and checks."""
    for table in ("tranches", "holdings"):
        for row in await owner_connection.fetch(
            "SELECT conname FROM pg_constraint WHERE contype = 'c' AND conrelid = $1::regclass", table
        ):
            await owner_connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {row['conname']} CASCADE")
    await owner_connection.execute("SET session_replication_role = replica")
    return owner_connection.execute


async def verified(config):
    async with auditing(config) as audit:
        await eventually(lambda: audit.good(HELD))
        assert audit.shows("fundsvc_inventory_conservation_error_lots", HELD) == 0


async def kept(connection):
    """The tranches at the checkpoints of both walks."""
    rows = await connection.fetch("SELECT walk, entry, lots FROM audit_tranches ORDER BY 1, 2")
    return [tuple(row) for row in rows]


async def stored(connection):
    return [("newest", *row) for row in await connection.fetch("SELECT entry, lots FROM tranches ORDER BY 1")]


async def test_newest_walk_continues_from_its_stored_tranches(config, owner, owner_connection):
    await verified(config)
    assert await kept(owner_connection) == await stored(owner_connection) != []
    await owner.settle([taken(30, 3, "buy", "45"), unwound(31, 2, "52"), unwound(32, 3, "52")])
    async with auditing(config) as audit:
        await eventually(lambda: follows(owner_connection))
        await eventually(lambda: reached(audit))


async def follows(connection):
    return await kept(connection) == await stored(connection)


async def test_walks_follow_an_inventory_while_it_changes(config, owner, owner_connection):
    async with auditing(config, ALWAYS) as audit:
        for seq in range(30, 90, 3):
            await owner.settle([taken(seq, 2, "buy", "45"), taken(seq + 1, 1, price="41"), unwound(seq + 2, 1, "41")])
            assert not audit.bad(HELD)
        await eventually(lambda: audit.good(HELD))
        assert audit.shows("fundsvc_inventory_conservation_error_lots", HELD) == 0


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE tranches SET lots = lots + 1 WHERE side = 'long'",
        "UPDATE tranches SET price = price - 1 WHERE side = 'long'",
        "UPDATE tranches SET forced = NOT forced",
        "DELETE FROM tranches WHERE side = 'short'",
        "INSERT INTO tranches (symbol, entry, side, lots, price, ts, forced) VALUES ('HELDUSDTM', 1, 'long', 1, 1, 0, false)",
        "UPDATE holdings SET held = held + 1 WHERE side = 'short'",
        "DELETE FROM holdings",
    ],
)
@pytest.mark.parametrize("is_checked", [False, True])
async def test_altered_inventory_is_found(config, owner, owner_connection, tamper, statement, is_checked, monkeypatch):
    """By the full walk, and by the newest walk when it has nothing new."""
    monkeypatch.setattr("fundsvc.engine.audit_loop.RECHECK_SECONDS", 0.01)
    if is_checked:
        await verified(config)
    await tamper(statement)
    async with auditing(config) as audit:
        await eventually(lambda: audit.bad(HELD))
        assert (audit.shows("fundsvc_inventory_conservation_error_lots", HELD) == 1) == ("held + 1" in statement)


async def test_newest_walk_finds_an_altered_tranche_that_an_entry_names(config, owner, owner_connection, tamper):
    await verified(config)
    await tamper("UPDATE tranches SET lots = lots + 7 WHERE side = 'short'")
    await owner.settle([taken(30, 1)])
    async with auditing(config) as audit:
        await eventually(lambda: reached(audit))
        assert audit.good(HELD), "nothing new names the short side"
    await owner.settle([taken(31, 1, "buy", "45")])
    await tamper("UPDATE tranches SET lots = lots + 7 WHERE side = 'short' AND lots = 1")
    async with auditing(config) as audit:
        await eventually(lambda: audit.bad(HELD))


async def reached(audit):
    last = await audit.pool.fetchval("SELECT entry FROM funds WHERE symbol = $1", HELD)
    return (await audit.entries("newest"))[HELD] == last and audit.good(HELD)


async def test_newest_walk_reads_only_the_tranches_that_changed(config, owner, owner_connection):
    await verified(config)
    await owner.settle([taken(30, 1, "buy", "45")])
    async with open_pool(config.database.dsn, 1) as pool:
        (restored,) = (await read_parts(pool, {HELD: 100}, "newest", {})).values()
        assert restored.since.held.unchecked is None, "the rows of a restored checkpoint are not known to be equal"
        assert restored.held_rows.is_whole
        restored.since.held.unchecked = set()
        (again,) = (await read_parts(pool, {HELD: 100}, "newest", {HELD: restored.since})).values()
    entry = await owner_connection.fetchval("SELECT entry FROM funds WHERE symbol = $1", HELD)
    assert set(again.held_rows.tranches) == {entry}
    assert not again.held_rows.is_whole


@pytest.mark.parametrize("is_public", [False, True])
async def test_export_with_an_inventory_verifies(config, owner, is_public):
    columns, rows_of = (PUBLIC_COLUMNS, public_rows) if is_public else (COLUMNS, export_rows)
    async with open_pool(config.database.dsn, 1) as pool:
        rows = [row async for row in rows_of(await open_ledger(pool, HELD))]
        held = dict(await pool.fetch("SELECT side, sum(lots)::bigint FROM tranches GROUP BY 1"))
    assert {row["forced"] for row in rows if row.get("kind") == "takeover"} == {False, True}
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    options = ["--public"] if is_public else []
    done = await program(sys.executable, SCRIPT, *options, given=text.getvalue())
    assert (done.code, done.error) == (0, "")
    assert f"{held['long']} long and {held['short']} short lots held" in done.output
