"""The audit of the mutual finds every change of a column that decides money and every missing row, and nothing else."""

import asyncio

import msgspec
import pytest
from commands import fundsvc
from owners import owned_pool
from streams import POOL, events_of, small_rules

from fundsvc.core.events import Rejection
from fundsvc.mutual.core.events import TermsChange, Tick, TopUp
from fundsvc.mutual.store import audits
from fundsvc.mutual.store.audits import PoolWalk, audited_pools
from fundsvc.store.database import open_pool

SEED = 1892
"""A stream with entries of all kinds; see test_mutual_verification."""

TABLES_THAT_DECIDE_NOTHING = {
    "mutual_rejected": "what was not applied",
    "mutual_gaps": "which messages of a stream are lost",
}

COLUMNS_THAT_DECIDE_NOTHING = {
    ("mutual_accounts", "activity"): "uninsured trades, which have no entry, decide fitness too",
    ("mutual_accounts", "number"): "the order in which accounts are loaded",
    ("mutual_accounts", "updated_at"): "our clock",
    ("mutual_entries", "recorded_at"): "our clock",
    ("mutual_pools", "duplicates"): "a count of events that changed nothing",
    ("mutual_pools", "events"): "how far the stream is settled: an event that is read again is known by its sequence",
    ("mutual_pools", "halted"): "whether events are applied: what was applied does not depend on it",
    ("mutual_pools", "home"): "which engine settles the pool",
    ("mutual_pools", "last_id"): "how far the stream is settled",
    ("mutual_pools", "messages"): "how far the stream is settled",
    ("mutual_pools", "partial_id"): "how far the stream is settled",
    ("mutual_pools", "seq"): "events without an entry have a sequence; a lower one than that of the last entry is found",
    ("mutual_pools", "time"): "events without an entry move it; a time outside of the cycle is found",
    ("mutual_pools", "updated_at"): "our clock",
    ("mutual_terms", "recorded_at"): "our clock",
}

ANOTHER = {
    "bigint": "{0} + 1",
    "integer": "{0} + 1",
    "smallint": "({0} + 1) % 6",
    "numeric": "{0} + 1",
    "text": "{0} || 'x'",
    "bytea": "sha256({0})",
    "boolean": "NOT {0}",
    "ARRAY": "{0} || 1::bigint",
    "json": "({0}::jsonb || '{{\"threshold\": 8}}')::json",
}
"""Expressions of another value for a column, by the column's type."""

ALTERED = {
    ("mutual_accounts", "day"): "{0} - 1",
    ("mutual_accounts", "profits"): "{0} + 1000",
    ("mutual_cycles", "cycle"): "{0} + 1000",
    ("mutual_entries", "entry"): "{0} + 1000",
    ("mutual_policies", "policy"): "{0} + 1000",
}

DECIDES_NOTHING_WHERE = {
    ("mutual_accounts", "enabled"): "unfunded",  # Such an account may be disabled without an entry.
    ("mutual_accounts", "profits"): "day < (SELECT max(ts) FROM mutual_entries) / 86400000",  # No later premium counts them.
    ("mutual_accounts", "unfit_since"): """
        NOT EXISTS (SELECT FROM mutual_policies p WHERE p.account = mutual_accounts.account AND p.state IN (1, 2))""",
}
"""Columns that decide nothing in some rows."""


@pytest.fixture
async def ledger(config, owner_connection, monkeypatch):
    """A pool whose rows were written in batches, beside one without entries. Parts and pages have few rows."""
    monkeypatch.setattr(audits, "PART_ENTRIES", 40)
    monkeypatch.setattr(audits, "PAGE_ROWS", 2)
    async with owned_pool(config, small_rules(platform_fee=150_000), POOL) as owner:
        for count, (event, _) in enumerate(events_of(SEED, 90)):
            apply(owner.pool, event)
            if not count % 7:
                await owner.commit()
        await owner.commit()
    await owner_connection.execute("SET session_replication_role = replica")
    return config


def apply(pool, event):
    try:
        pool.apply(event)
    except Rejection:
        return


@pytest.fixture
async def connections(config):
    async with open_pool(config.database.dsn, 1) as connections:
        yield connections


async def walked(connections, config):
    """Returns what a walk through each pool finds."""
    found = []
    for name, _ in await audited_pools(connections):
        walk = PoolWalk(connections, name, config.ledger.secrets)
        while not walk.ended:
            await walk.step()
        found.append(walk.result())
    return found


async def differences(connections, config):
    return [difference for result in await walked(connections, config) for difference in result.differences]


async def columns_of(connection):
    rows = await connection.fetch(
        "SELECT table_name, column_name, data_type FROM information_schema.columns"
        " WHERE table_schema = 'public' AND table_name LIKE 'mutual\\_%' ORDER BY table_name, ordinal_position"
    )
    return {(row["table_name"], row["column_name"]): row["data_type"] for row in rows}


async def test_a_stored_ledger_has_no_difference(ledger, connections, owner_connection):
    (result,) = await walked(connections, ledger)
    row = await owner_connection.fetchrow("SELECT entry, head FROM mutual_pools")
    assert (result.pool, result.entries, result.head) == (POOL, row["entry"], row["head"].hex())
    assert result.differences == []
    states = await owner_connection.fetch("SELECT DISTINCT state FROM mutual_policies")
    assert {state for (state,) in states} > {3, 4, 5}


async def test_a_walk_continues_with_new_entries_and_terms_after_its_end(config):
    rules = small_rules()
    async with owned_pool(config, rules, POOL) as owner, open_pool(config.database.dsn, 1) as pool:
        walk, events = PoolWalk(pool, POOL, config.ledger.secrets), [event for event, _ in events_of(SEED, 60)]
        for start in range(0, len(events), 11):
            for event in events[start : start + 11]:
                apply(owner.pool, event)
            await owner.commit()
            while not walk.ended:
                await walk.step()
            await walk.step()
            assert (walk.entry, walk.differences) == (owner.pool.row().entry, [])
        last = owner.pool.row()
        owner.pool.apply(TermsChange(POOL, last.time, 2, msgspec.structs.replace(rules, threshold=9)))
        owner.pool.apply(TopUp(POOL, last.time, last.seq + 1, "5", "u"))
        owner.pool.apply(Tick(POOL, last.time + 3_000))
        await owner.commit()
        await walk.step()
        assert (walk.entry, walk.differences, walk.ended) == (owner.pool.row().entry, [], True)


async def test_a_walk_gives_other_tasks_turns_while_it_follows_entries(ledger, monkeypatch):
    monkeypatch.setattr(audits, "PART_ENTRIES", 1000)
    async with open_pool(ledger.database.dsn, 1) as pool:
        walk, turns = PoolWalk(pool, POOL, ledger.ledger.secrets), 0
        step = asyncio.create_task(walk.step())
        while not step.done():
            turns += 1
            await asyncio.sleep(0)
    assert turns > await step / 25


async def test_listed_exceptions_exist_in_the_schema(ledger, owner_connection):
    columns = await columns_of(owner_connection)
    assert {table for table, _ in columns} >= set(TABLES_THAT_DECIDE_NOTHING)
    assert set(columns) >= set(COLUMNS_THAT_DECIDE_NOTHING) | set(DECIDES_NOTHING_WHERE)


async def drop_checks(connection):
    """Removes the constraints, as the owner of the database can."""
    checks = await connection.fetch(
        "SELECT conrelid::regclass AS checked, conname FROM pg_constraint"
        " WHERE contype = 'c' AND conrelid::regclass::text LIKE 'mutual\\_%'"
    )
    for table, name in checks:
        await connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")


async def test_audit_covers_every_other_column(ledger, connections, owner_connection, monkeypatch):
    monkeypatch.setattr(audits, "PART_ENTRIES", 1000)
    monkeypatch.setattr(audits, "PAGE_ROWS", 1000)
    await drop_checks(owner_connection)
    believed, tried = [], 0
    for (table, column), kind in (await columns_of(owner_connection)).items():
        if table in TABLES_THAT_DECIDE_NOTHING or (table, column) in COLUMNS_THAT_DECIDE_NOTHING:
            continue
        expression = ALTERED.get((table, column), ANOTHER[kind]).format(column)
        for row in await rows_of(owner_connection, table, DECIDES_NOTHING_WHERE.get((table, column), "false")):
            await owner_connection.execute(f"UPDATE {table} t SET {column} = {expression} WHERE to_jsonb(t.*)::text = $1", row)
            tried += 1
            believed += [] if await differences(connections, ledger) else [(table, column, row)]
            await put_back(owner_connection, table)
    assert believed == []
    assert tried > 200, "that many rows and values were tried"


async def rows_of(connection, table, excluded):
    """Returns one row of every kind, as it is stored."""
    await connection.execute(
        f"DROP TABLE IF EXISTS kept; CREATE TEMP TABLE kept AS SELECT *, ({excluded}) AS excluded FROM {table}"
    )
    by = {"mutual_entries": "kind, profits > 0", "mutual_policies": "state", "mutual_cycles": "completed > 0"}.get(
        table, "ctid"
    )
    rows = await connection.fetch(
        f"SELECT max((to_jsonb(k.*) - 'excluded')::text) AS row FROM kept k WHERE NOT excluded GROUP BY {by}"
    )
    return [row["row"] for row in rows]


async def put_back(connection, table):
    await connection.execute(
        f"ALTER TABLE kept DROP COLUMN IF EXISTS excluded; DELETE FROM {table}; INSERT INTO {table} SELECT * FROM kept"
    )


ADDED = {
    "entries": """
        INSERT INTO mutual_entries SELECT pool, entry + 1, seq + 1, ts, policy, amount, balance, profits, recorded_at, terms,
            kind, account, seal, hash FROM mutual_entries ORDER BY entry DESC LIMIT 1""",
    "cycles": """
        INSERT INTO mutual_cycles SELECT pool, cycle + 1, at + 1000, balance, caps_left, rate, budget, returned, weight,
            completed, share_index, rem, terms, entry + 1 FROM mutual_cycles ORDER BY cycle DESC LIMIT 1""",
    "accounts": """
        INSERT INTO mutual_accounts SELECT pool, number + 9, 'z', 5, arrears, payable, paid_out, accumulated, enabled, unfunded,
            cover, day, profits, activity, unfit_since FROM mutual_accounts WHERE account = 'a'""",
    "policies": """
        INSERT INTO mutual_policies SELECT pool, policy + 1, account, state, terms, face, cap, issued_at, active_at, expires_at,
            paid, moved, entered FROM mutual_policies ORDER BY policy DESC LIMIT 1""",
}


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("DELETE FROM mutual_accounts WHERE account = 'b'", "P: account b is not stored"),
        ("DELETE FROM mutual_policies WHERE policy = 3", "P: policy 3 is not stored"),
        ("DELETE FROM mutual_policies WHERE policy = (SELECT policies FROM mutual_pools)", "the last stored one is"),
        ("DELETE FROM mutual_cycles WHERE cycle = 4", "P cycle 4: is missing"),
        ("DELETE FROM mutual_entries WHERE entry = 7", "P entry 8: entry 7 is missing before it"),
        ("DELETE FROM mutual_entries WHERE entry = (SELECT entry FROM mutual_pools)", "missing after the last entry"),
        ("DELETE FROM mutual_entries", "P: entry is "),
        ("DELETE FROM mutual_pools", "P: its state or its terms are missing"),
        ("DELETE FROM mutual_terms", "P: its state or its terms are missing"),
        ("UPDATE mutual_terms SET rules = '{}'", "P: its terms are illegal: "),
        ("UPDATE mutual_terms SET version = 2; UPDATE mutual_pools SET terms = 2", "P: its state or its terms are missing"),
        (ADDED["entries"], "is stored, but the last one is "),
        (ADDED["cycles"], "is stored, but the last one is "),
        (ADDED["accounts"], "P account z: balance is 5, it should be 0"),
        (ADDED["policies"], "is stored, but only "),
    ],
)
async def test_missing_and_added_rows_are_found(ledger, connections, owner_connection, statement, sentence):
    await owner_connection.execute(statement)
    found = await differences(connections, ledger)
    assert any(sentence in difference for difference in found), found
    assert len(found) < 60


async def test_command_exits_with_1_on_differences_and_prints_them(ledger, owner_connection):
    done = await fundsvc(ledger, "mutual", "audit")
    entries = await owner_connection.fetchval("SELECT entry FROM mutual_pools")
    assert (done.code, done.error, done.output) == (0, "", f"{entries} entries of 1 pools recomputed: no differences\n")
    assert (await fundsvc(ledger, "mutual", "audit", "--pool", POOL, "--json")).result["differences"] == 0
    await owner_connection.execute("UPDATE mutual_accounts SET payable = payable + 1 WHERE account = 'a'")
    done = await fundsvc(ledger, "mutual", "audit")
    assert done.code == 1
    assert "P account a: payable is " in done.output
    assert "1 pools recomputed: 1 pools differ" in done.output
    failed = await fundsvc(ledger, "mutual", "audit", "--pool", "other")
    assert (failed.code, failed.output) == (2, "")
    assert "there is no pool 'other'" in failed.error
