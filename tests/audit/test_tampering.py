"""The audit finds every change of a column that decides money, even by the owner of the database.

The tests read the columns from the schema. A new column fails here until the audit covers it or a list below states why it
decides nothing.
"""

import itertools
import json

import pytest
from inventories import HELD, INVENTORY
from ledgers import fill, listing, owned

from fundsvc.cli.tools.audit import audit_contract
from fundsvc.core.events import AdlEnd, AdlFill, Fill, Mark, Position
from fundsvc.core.policy import DrawdownGuard, Policies, Policy
from fundsvc.store.database import open_pool
from fundsvc.store.exports import known_contracts
from fundsvc.store.rollups import condense

POLICY = Policy(drawdown_guard=DrawdownGuard(minimum_balance=1000))

TABLES_THAT_DECIDE_NOTHING = {
    "alembic_version": "the version of the schema",
    "audit_progress": "how far audits have come: an altered checkpoint is found by the next full walk (test_audit_loop)",
    "audit_tranches": "the tranches at these checkpoints",
    "books": "positions and marks of the matching engine: ADL records seal the allocations",
    "book_parts": "positions, as in books",
    "engines": "the running engines",
    "arriving": "which partitions are being copied",
    "cell": "which database of the ledger this is: processes check it at their start",
    "copied": "how far a partition is copied: the move compares the ends of all chains",
    "departed": "which rows another cell has",
    "heartbeats": "how old a replica is",
    "moves": "which funds readers read again, as funds.commit",
    "partitions": "how far the stream is settled: an event that is read again is known by its sequence",
    "rates": "what balances are worth in USDT, for people: no entry depends on it",
    "posters": "the producers that may post after a stream server changed",
    "stream_checkpoints": "from where a stream without its tail is read again: stored events are known by their sequence",
    "stream_gaps": "which messages of a stream are lost",
    "stream_servers": "which server a stream is on",
    "targets": "how large funds should be: a signal, nothing acts on it",
}

COLUMNS_THAT_DECIDE_NOTHING = {
    ("adl_orders", "acknowledged"): "whether a round is announced again",
    ("adl_orders", "created_at"): "our clock",
    ("adl_orders", "round_ms"): "when the service ends an unanswered round",
    ("adl_orders", "updated_at"): "our clock",
    ("adl_records", "first_rank"): "where a page of a round begins: ranks are sealed in the body",
    ("adl_records", "recorded_at"): "our clock",
    ("contracts", "listed_at"): "our clock",
    ("contracts", "suspended"): "whether events are refused: what was settled does not depend on it",
    ("contracts", "updated_at"): "our clock",
    ("entries", "recorded_at"): "our clock",
    ("holdings", "returned_ts"): "when ADL is tried again: it moves no lots",
    ("funds", "commit"): "whether readers read the fund again",
    ("funds", "updated_at"): "our clock",
    ("policies", "recorded_at"): "our clock",
    ("policies", "stream_id"): "which message changed the policies",
    ("rollup_progress", "entry"): "the rollup progress: hours are rebuilt where it differs from `sound`",
    ("rollup_progress", "sound"): "the rollup progress: hours are rebuilt where it differs from `entry`",
    ("rejected", "body"): "what was not settled",
    ("rejected", "codec"): "what was not settled",
    ("rejected", "detail"): "what was not settled",
    ("rejected", "digest"): "what was not settled",
    ("rejected", "event_seq"): "what was not settled",
    ("rejected", "event_symbol"): "what was not settled",
    ("rejected", "partition"): "what was not settled",
    ("rejected", "position"): "what was not settled",
    ("rejected", "reason"): "what was not settled",
    ("rejected", "rejected_at"): "our clock",
    ("rejected", "replayed_at"): "our clock",
    ("rejected", "settled_at"): "our clock",
    ("rejected", "settled_by"): "which of two copies of a replay counted",
    ("rejected", "stream_id"): "what was not settled",
}

ANOTHER = {
    "bigint": "coalesce({0}, 0) + 1",
    "integer": "coalesce({0}, 0) + 1",
    "smallint": "coalesce({0}, 0) + 1",
    "numeric": "coalesce({0}, 0) + 1",
    "text": "coalesce({0}, '') || 'x'",
    "bytea": "sha256(coalesce({0}, ''))",
    "boolean": "NOT coalesce({0}, false)",
    "timestamp with time zone": "{0} + interval '1 day'",
}
"""Expressions of another value for a column, by the column's type."""

ALTERED = {
    ("contracts", "specification"): ["'{{}}'", "({0}::jsonb || '{{\"multiplier\": 2}}')::json"],
    ("policies", "body"): ["jsonb_set({0}::jsonb, '{{default,waterfall}}', '\"adl_then_fund\"')::json"],
    ("funds", "guard"): ["NULL", "'[true, []]'", "'[false, [[1, 1]]]'"],
    ("entries", "kind"): [
        f"'{kind}'" for kind in ("surplus", "flat", "shortfall", "refund", "cover", "takeover", "deleverage")
    ],
    ("entries", "side"): ["CASE {0} WHEN 'buy' THEN 'sell' ELSE 'buy' END"],
    ("adl_orders", "state"): [f"'{state}'" for state in ("open", "done", "uncovered", "returned")],
    ("adl_orders", "origin"): [f"'{origin}'" for origin in ("shortfall", "takeover", "inventory")],
    ("adl_orders", "reduce"): ["CASE {0} WHEN 'long' THEN 'short' ELSE 'long' END"],
    ("adl_records", "kind"): [f"'{kind}'" for kind in ("order", "round", "part", "execution", "unwind", "end")],
    ("tranches", "side"): ["CASE {0} WHEN 'long' THEN 'short' ELSE 'long' END"],
    ("holdings", "side"): ["CASE {0} WHEN 'long' THEN 'short' ELSE 'long' END", "'x'"],
}
"""Other legal values of columns with a fixed set of values or with JSON."""


SYMBOL = "UNITUSDTM"
TS = 1_765_400_000_000


def mark(price):
    return Mark(SYMBOL, price, TS)


def position(account, lots, entry_price="100"):
    return Position(SYMBOL, account, lots, entry_price, "500", TS)


def sold(seq, lots=1, price="100", **fields):
    """Returns a fill that closes a long with bankruptcy price 100; one point of one lot is one USDT."""
    return Fill(SYMBOL, seq, "sell", lots, price, "100", TS + seq, **fields)


def executed(seq, account, lots, adl=1):
    return AdlFill(SYMBOL, seq, adl, account, lots, TS + seq)


def ended(seq, adl=1):
    return AdlEnd(SYMBOL, seq, adl, TS + seq)


@pytest.fixture
async def ledger(config, owner_connection):
    """A ledger with entries and records of every kind, without the constraints and triggers that refuse altered rows."""
    events = [
        *(mark("80"), position("anna", -10), position("bert", -6, "95"), position("carl", -30, "90"), position("long", 40)),
        *(sold(1, 4, "101"), sold(2, 7, "96.5", account="long", order_id="o", trade_id="t")),
        *(executed(3, "carl", 2), ended(4), executed(5, "anna", 4), sold(6, 2, "101"), mark("120")),
        *(sold(7, 5, "97"), mark("80"), sold(8, 20, "101"), sold(9, 20, "97")),
        *(executed(10, "carl", 3, 3), sold(11, 5, "101"), sold(12), *(ended(seq, 3) for seq in range(13, 30))),
        *(sold(40, 12, "90"), executed(41, "carl", 1, 4)),
    ]
    async with owned(config, recorded=Policies(1, POLICY, {})) as owner:
        await owner.settle([listing(SYMBOL), *events, listing("XYZ"), fill("XYZ", 1, 5), listing(HELD), *INVENTORY])
        await owner.settle_late(sold(30, 1, "101"))
    async with open_pool(config.database.dsn, 1) as pool:
        await condense(pool, 0)
    constraints = await owner_connection.fetch(
        "SELECT conrelid::regclass AS table, conname FROM pg_constraint JOIN pg_class t ON t.oid = conrelid"
        " WHERE connamespace = 'public'::regnamespace AND contype <> 'n' ORDER BY contype = 'p'"
    )
    for row in constraints:
        await owner_connection.execute(f"ALTER TABLE {row['table']} DROP CONSTRAINT IF EXISTS {row['conname']} CASCADE")
    await owner_connection.execute("SET session_replication_role = replica")
    return config


async def columns_of(connection):
    """Returns the columns of all writable tables with their types, but those of the mutual: see test_mutual_audit."""
    rows = await connection.fetch(
        "SELECT table_name, column_name, data_type FROM information_schema.columns JOIN information_schema.tables"
        " USING (table_schema, table_name)"
        " WHERE table_schema = 'public' AND table_type = 'BASE TABLE' AND is_generated = 'NEVER'"
        " AND table_name NOT LIKE 'mutual\\_%'"
        " ORDER BY table_name, ordinal_position"
    )
    return {(row["table_name"], row["column_name"]): row["data_type"] for row in rows}


@pytest.fixture
async def pool(config):
    async with open_pool(config.database.dsn, 1) as pool:
        yield pool


async def differences(pool):
    audits = [await audit_contract(pool, symbol, lambda _: None) for symbol, _ in await known_contracts(pool)]
    return [difference for audit in audits for difference in audit.differences]


async def test_ledger_fixture_has_every_kind_of_row(ledger, pool, owner_connection):
    assert await differences(pool) == []
    kinds = {row["kind"] for row in await owner_connection.fetch("SELECT kind FROM entries UNION SELECT kind FROM adl_records")}
    of_entries = {"surplus", "flat", "shortfall", "refund", "cover", "takeover", "deleverage"}
    assert kinds == of_entries | {"order", "round", "execution", "unwind", "end"}
    orders = {tuple(row) for row in await owner_connection.fetch("SELECT origin, state FROM adl_orders")}
    assert orders == {
        *(("shortfall", state) for state in ("open", "done", "uncovered")),
        *((origin, state) for origin in ("takeover", "inventory") for state in ("open", "returned")),
    }
    pieces = {
        tuple(row)
        for row in await owner_connection.fetch("SELECT kind, closes > 0, forced FROM entries WHERE symbol = $1", HELD)
    }
    assert pieces > {
        *((kind, True, False) for kind in ("surplus", "flat", "shortfall", "deleverage")),
        *(("takeover", False, forced) for forced in (False, True)),
        ("deleverage", False, False),
    }
    tranches = {row["side"] for row in await owner_connection.fetch("SELECT side FROM tranches")}
    assert tranches == {"long", "short"}


async def test_listed_exceptions_exist_in_the_schema(ledger, owner_connection):
    columns = await columns_of(owner_connection)
    assert {table for table, _ in columns} >= set(TABLES_THAT_DECIDE_NOTHING)
    assert set(columns) >= set(COLUMNS_THAT_DECIDE_NOTHING)
    assert not {table for table, _ in COLUMNS_THAT_DECIDE_NOTHING} & set(TABLES_THAT_DECIDE_NOTHING)


async def test_audit_covers_every_other_column(ledger, pool, owner_connection):
    believed, tried, columns = [], 0, await columns_of(owner_connection)
    for (table, column), kind in columns.items():
        if table in TABLES_THAT_DECIDE_NOTHING or (table, column) in COLUMNS_THAT_DECIDE_NOTHING:
            continue
        for place, expression in itertools.product(await places(owner_connection, table), changes(table, column, kind)):
            altered = await altered_row(owner_connection, table, column, place, expression)
            if altered:
                tried += 1
                believed += [] if await differences(pool) else [(table, column, expression, altered)]
                await put_back(owner_connection, table, [name for of, name in columns if of == table])
    assert believed == []
    assert tried > 200, "that many rows and values were tried"


def changes(table, column, kind):
    return ALTERED.get((table, column)) or [ANOTHER[kind]]


async def places(connection, table):
    """Returns one row of every kind, by its place in the stored copy of a table."""
    await connection.execute(f"DROP TABLE IF EXISTS kept; CREATE TEMP TABLE kept AS SELECT * FROM {table}")
    by = {
        "entries": "symbol, kind, closes > 0, forced",
        "adl_records": "symbol, kind",
        "adl_orders": "symbol, state, origin, unwound > 0",
    }.get(table, "ctid")
    rows = await connection.fetch(f"SELECT max(to_jsonb(k.*)::text) AS row FROM kept k WHERE {of_ours(table)} GROUP BY {by}")
    return [row["row"] for row in rows]


def of_ours(table):
    return {"rejected": "symbol IS NOT NULL", "policies": "partition = 0"}.get(table, f"symbol IN ('{SYMBOL}', '{HELD}')")


async def altered_row(connection, table, column, row, expression):
    """Alters a column of one row; returns the old and the new value, or None if they are equal."""
    value = expression.format(column)
    differs = f"{column}::text IS DISTINCT FROM ({value})::text"
    found = await connection.fetchrow(
        f"UPDATE {table} t SET {column} = {value} WHERE to_jsonb(t.*)::text = $1 AND {differs} RETURNING {column}::text AS now",
        row,
    )
    return (str(json.loads(row)[column]), found["now"]) if found else None


async def put_back(connection, table, columns):
    names = ", ".join(columns)
    await connection.execute(f"DELETE FROM {table}; INSERT INTO {table} ({names}) SELECT {names} FROM kept")
