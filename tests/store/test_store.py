import asyncio
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import asyncpg
import msgspec
import pytest
from conftest import connected, dsn_for
from eventually import eventually
from ledgers import fill, listing

import fundsvc
from fundsvc.core.adl.book_parts import ROWS_PER_PART, BookPart, SidePart
from fundsvc.core.batch import BookState, Offset, RateState, StoredBook
from fundsvc.core.events import Rate, Reason, Rejected
from fundsvc.core.fund.chain import GENESIS, Entry
from fundsvc.core.fund.settlement import FundState
from fundsvc.core.numbers import INT64_MAX
from fundsvc.core.partition import Partition
from fundsvc.core.sequences import Applied
from fundsvc.mutual.store.writer import SQL as POOL_SQL
from fundsvc.store.adl import AdlReader
from fundsvc.store.archive.ranges import ARCHIVE_SQL
from fundsvc.store.cell_moves import MOVE_SQL
from fundsvc.store.database import (
    SQL,
    StoreFault,
    StoreRefusal,
    acquired,
    connect,
    faults,
    open_pool,
    refusals,
    transaction,
)
from fundsvc.store.migrations import migrate
from fundsvc.store.parameters import (
    ENTRY_COLUMNS,
    BookRow,
    ClosingRow,
    ListingRow,
    MovedOrderRow,
    PolicyRow,
    RejectedRow,
    ReplayedRow,
    SuspensionRow,
)
from fundsvc.store.reader import Reader
from fundsvc.store.rows import COLUMNS
from fundsvc.store.schema import check_schema
from fundsvc.store.writer import IN_PARTS, SMALL_ROWS_MAX, WITH_CHANGES, OwnershipLost, load_books, open_writer

START = Offset("0-0", 0)
NEXT = Offset("1-0", 1)
TABLES = ("contracts", "funds", "entries", "adl_orders", "rejected")

STORED = [name for name in Entry.__struct_fields__ if name in COLUMNS]
"""The fields of an entry that the database has."""


def partition_of(*funds):
    return Partition(0, 1, funds, {"USDT": 8}, 10)


def batch_of(*events, funds=()):
    partition = partition_of(*funds)
    for event in events:
        partition.apply(event)
    return partition.take()


@pytest.fixture
async def epoch(service_connection):
    return await service_connection.fetchval("UPDATE partitions SET epoch = 1, owner = 'me' RETURNING epoch")


@pytest.fixture
async def writer(config, epoch):
    async with open_writer(config.database.dsn, "me", 0, epoch) as writer:
        yield writer


@pytest.fixture(params=[-1, SMALL_ROWS_MAX], ids=["copy", "single-statement"])
def way(request, monkeypatch):
    """Both ways in which a batch is committed."""
    monkeypatch.setattr("fundsvc.store.writer.SMALL_ROWS_MAX", request.param)


async def count(connection):
    return {table: await connection.fetchval(f"SELECT count(*) FROM {table}") for table in TABLES}


async def offset_of(connection):
    return Offset(*await connection.fetchrow("SELECT last_id, messages FROM partitions"))


SYMBOL = "币安人生USDT"
EXTREME = Entry(
    SYMBOL, INT64_MAX, INT64_MAX, "surplus", INT64_MAX, INT64_MAX, 0, 0, "sell", INT64_MAX, INT64_MAX, 1, "", "", "", 0
)
DEEPEST = Entry(
    SYMBOL, 1, 1, "shortfall", -1, 0, INT64_MAX - 1, 0, "buy", 1, 1, INT64_MAX, "t\u00e9", "o" * 64, "\U0001f600", INT64_MAX
)


async def read_entries(connection):
    rows = await connection.fetch(f"SELECT {', '.join(STORED)} FROM entries ORDER BY symbol, entry")
    return [Entry(*row) for row in rows]


@pytest.mark.parametrize(
    ("block", "alias", "columns"),
    [
        ("commit_contracts", "l", ListingRow._fields),
        ("commit", "s", FundState._fields),
        ("commit_rejected", "e", RejectedRow._fields),
        ("commit_replayed", "d", ReplayedRow._fields),
        ("commit", "n", ENTRY_COLUMNS),
        ("commit_orders", "m", MovedOrderRow._fields),
        ("commit_suspensions", "s", SuspensionRow._fields),
        ("commit_closings", "s", ClosingRow._fields),
        ("commit_books", "k", BookRow._fields),
        ("commit_policies", "p", PolicyRow._fields),
        ("commit_rates", "k", RateState._fields),
    ],
)
def test_row_types_have_the_columns_that_their_statements_unnest(block, alias, columns):
    (found,) = re.findall(rf"AS {alias} \(([^)]*)\)", SQL[block])
    assert tuple(re.split(r",\s*", found)) == columns


@pytest.mark.usefixtures("way")
async def test_entries_round_trip_exactly(writer, service_connection):
    hashes = [bytes(range(32)), b"\xff" * 32]
    batch = replace(batch_of(listing(SYMBOL)), entries=[DEEPEST, EXTREME], hashes=hashes)
    await writer.commit(batch, START, NEXT)
    assert await read_entries(service_connection) == [DEEPEST, EXTREME]
    found = await service_connection.fetch("SELECT hash FROM entries ORDER BY entry")
    assert [row["hash"] for row in found] == hashes


async def test_commit_writes_everything_in_one_transaction(writer, service_connection):
    rejected = [
        Rejected("1-0", 3, Reason.UNDECODABLE, "why", "json", b"\x00\xff"),
        Rejected("1-0", 4, Reason.UNKNOWN_TYPE, "", "", b""),
    ]
    batch = batch_of(listing("AAA", multiplier="1"), fill("AAA", 7, 5), fill("AAA", 8, -9))
    await writer.commit(replace(batch, rejected=rejected, duplicates=Counter(AAA=2)), START, Offset("17-3", 4))
    assert await count(service_connection) == {"contracts": 1, "funds": 1, "entries": 2, "adl_orders": 1, "rejected": 2}
    assert await offset_of(service_connection) == Offset("17-3", 4)
    stamps = await service_connection.fetchrow(
        "SELECT count(DISTINCT xmin::text) FROM"
        " (SELECT xmin FROM contracts UNION ALL SELECT xmin FROM funds UNION ALL SELECT xmin FROM entries"
        " UNION ALL SELECT xmin FROM adl_orders UNION ALL SELECT xmin FROM rejected UNION ALL SELECT xmin FROM partitions) x"
    )
    assert stamps[0] == 1
    rejected = await service_connection.fetchrow("SELECT stream_id, position, reason, detail, codec, body FROM rejected")
    assert tuple(rejected) == ("1-0", 3, "undecodable", "why", "json", b"\x00\xff")


@pytest.mark.usefixtures("way")
async def test_load_returns_the_committed_state(writer):
    partition = partition_of()
    for event in (listing("AAA", multiplier="1E-05", maxPrice=1e6), listing("BBB"), fill("AAA", 7, 5), fill("AAA", 8, -9)):
        partition.apply(event)
    batch = partition.take()
    await writer.commit(batch, START, NEXT)
    offset, funds = await writer.load()
    assert offset == NEXT
    loaded = {fund.contract.symbol: fund for fund in funds}
    assert {symbol: fund.state() for symbol, fund in loaded.items()} == {state.symbol: state for state in batch.funds}
    assert loaded["AAA"].contract == batch.listings["AAA"][0]
    assert loaded["AAA"].outstanding > 0
    assert loaded["BBB"].head == GENESIS


async def test_later_batch_updates_funds_and_listings(writer, service_connection):
    first = batch_of(listing("AAA"), fill("AAA", 1, 5))
    await writer.commit(first, START, NEXT)
    _, funds = await writer.load()
    second = batch_of(fill("AAA", 2, 6), listing("AAA", more={"x": [1, None]}), funds=funds)
    await writer.commit(second, NEXT, Offset("2-0", 2))
    assert await read_entries(service_connection) == first.entries + second.entries
    specification = await service_connection.fetchval("SELECT specification FROM contracts")
    assert msgspec.json.decode(specification)["more"] == {"x": [1, None]}


async def test_newest_rate_wins_in_any_order_of_commits(writer, service_connection):
    batches = [(Rate("XBT", "100", 5), Rate("USDC", "1", 5)), (Rate("XBT", "90", 4),), (Rate("XBT", "101", 6),)]
    offsets = [Offset(f"{number}-0", number) for number in range(len(batches) + 2)]
    for number, rates in enumerate((*batches, batches[0])):
        await writer.commit(batch_of(*rates), offsets[number], offsets[number + 1])
    rows = await service_connection.fetch("SELECT partition, currency, price, ts FROM rates ORDER BY currency")
    assert [tuple(row) for row in rows] == [(0, "USDC", 10**12, 5), (0, "XBT", 101 * 10**12, 6)]


async def test_reader_returns_the_newest_rate_of_all_partitions(config, owner_connection):
    rows = [(0, "XBT", 3, 7), (1, "XBT", 4, 8), (2, "XBT", 5, 6), (2, "ETH", 9, 1)]
    await owner_connection.executemany("INSERT INTO rates VALUES ($1, $2, $3, $4)", rows)
    async with open_pool(config.database.dsn, 1) as pool:
        assert await Reader(pool).rates() == {"ETH": RateState("ETH", 9, 1), "XBT": RateState("XBT", 4, 8)}


async def test_batch_of_many_chunks_is_written_completely(writer, service_connection):
    batch = batch_of(listing("AAA"), *(fill("AAA", seq, seq % 7 - 3) for seq in range(1, 3334)))
    await writer.commit(batch, START, NEXT)
    assert await read_entries(service_connection) == batch.entries


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("epoch_off", "before"), [(1, START), (0, Offset("9-9", 0)), (-1, START)])
async def test_stale_owner_writes_nothing(config, epoch, service_connection, epoch_off, before):
    rejected = [Rejected("1-0", 0, Reason.UNDECODABLE, "", "json", b"")]
    batch = replace(batch_of(listing("AAA"), fill("AAA", 1, -5)), rejected=rejected)
    async with open_writer(config.database.dsn, "me", 0, epoch + epoch_off) as writer:
        with pytest.raises(OwnershipLost):
            await writer.commit(batch, before, NEXT)
    assert set((await count(service_connection)).values()) == {0}
    assert await offset_of(service_connection) == START


async def test_stale_owner_cannot_load(config, epoch):
    async with open_writer(config.database.dsn, "me", 0, epoch + 1) as writer:
        with pytest.raises(OwnershipLost):
            await writer.load()


@pytest.mark.usefixtures("way")
async def test_existing_entry_number_is_refused(writer):
    await writer.commit(batch_of(listing("AAA"), fill("AAA", 1, 5)), START, NEXT)
    with pytest.raises(StoreRefusal, match="UniqueViolationError"):
        await writer.commit(batch_of(listing("AAA"), fill("AAA", 1, 5)), NEXT, Offset("2-0", 2))


@pytest.mark.usefixtures("way")
async def test_new_writer_continues_after_a_failed_commit(config, epoch, service_connection):
    batch = batch_of(listing("AAA"), fill("AAA", 1, 5))
    async with open_writer(config.database.dsn, "me", 0, epoch) as writer:
        with pytest.raises(OwnershipLost):
            await writer.commit(batch, NEXT, NEXT)
        with pytest.raises(StoreFault):
            await writer.load()
    async with open_writer(config.database.dsn, "me", 0, epoch) as writer:
        offset, _ = await writer.load()
        await writer.commit(batch, offset, NEXT)
    assert await read_entries(service_connection) == batch.entries


@pytest.mark.usefixtures("way")
async def test_cancelled_commit_releases_its_locks(config, epoch, service_connection, owner_connection):
    batch = batch_of(listing("AAA"), fill("AAA", 1, 5))
    async with open_writer(config.database.dsn, "me", 0, epoch) as writer, owner_connection.transaction():
        await owner_connection.execute("LOCK TABLE entries IN SHARE MODE")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.commit(batch, START, NEXT), 0.2)
    async with open_writer(config.database.dsn, "me", 0, epoch) as writer:
        await writer.commit(batch, (await writer.load())[0], NEXT)
    assert await read_entries(service_connection) == batch.entries


async def test_session_end_during_copy_is_a_fault(config, epoch, owner_connection, service_connection):
    batch = batch_of(listing("AAA"), *(fill("AAA", seq, 1) for seq in range(1, 3_001)))
    async with open_writer(config.database.dsn, "me", 0, epoch) as writer, owner_connection.transaction():
        await owner_connection.execute("LOCK TABLE entries IN SHARE MODE")
        commit = asyncio.create_task(writer.commit(batch, START, NEXT))
        waits = "SELECT 1 FROM pg_locks WHERE relation = 'entries'::regclass AND NOT granted"
        await eventually(lambda: service_connection.fetchval(waits))  # The client has filled its buffers meanwhile.
        await owner_connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'fundsvc engine me'"
        )
        await eventually(commit.done, 5)
        with pytest.raises(StoreFault):
            await commit


async def test_replayed_events_are_recorded_as_settled(writer, service_connection):
    rejected = [Rejected("1-0", n, Reason.UNKNOWN_SYMBOL, "first", "json", b"x") for n in range(3)]
    first = batch_of(listing("AAA"), *(fill("AAA", seq, 1) for seq in (10, 20, 30)))
    await writer.commit(replace(first, rejected=rejected), START, NEXT)
    assert await writer.is_open("1-0", 0)
    assert not await writer.is_open("1-0", 7)
    assert not await writer.is_open("", -1)
    _, funds = await writer.load()
    partition = partition_of(*funds)
    partition.batch.replayed = [("1-0", 0, "9-0", partition.apply_late(fill("AAA", 5, 1))), ("1-0", 1, None, None)]
    partition.batch.rejected = [Rejected("1-0", 2, Reason.INVALID_FIELD, "again", "json", b"y")]
    await writer.commit(partition.take(), NEXT, Offset("2-0", 2))
    assert [await writer.is_open("1-0", n) for n in range(3)] == [False, False, True]
    assert await settled(writer, "AAA", range(40)) == {5, 10, 20, 30}
    assert await settled(writer, "BBB", [5]) == set()
    again = await service_connection.fetchrow("SELECT reason, detail, body FROM rejected WHERE position = 2")
    assert tuple(again) == ("invalid_field", "again", b"x")


async def test_database_refuses_a_second_late_settlement_of_a_sequence(writer):
    rejected = [Rejected("1-0", n, Reason.LATE, "late", "json", b"x", ("AAA", 5, bytes(16))) for n in range(2)]
    await writer.commit(replace(batch_of(listing("AAA"), fill("AAA", 10, 1)), rejected=rejected), START, NEXT)
    partition = partition_of(*(await writer.load())[1])
    partition.batch.replayed = [("1-0", 0, "8-0", partition.apply_late(fill("AAA", 5, 1)))]
    await writer.commit(partition.take(), NEXT, Offset("2-0", 2))
    partition.batch.replayed = [("1-0", 1, "9-0", partition.apply_late(fill("AAA", 5, 1)))]
    with pytest.raises(StoreRefusal, match="rejected_settled_once"):
        await writer.commit(partition.take(), Offset("2-0", 2), Offset("3-0", 3))


@pytest.mark.usefixtures("way")
async def test_commit_never_sets_the_sequence_of_a_fund_back(writer, service_connection):
    await writer.commit(batch_of(listing("AAA"), fill("AAA", 10, 1)), START, NEXT)
    partition = partition_of(*(await writer.load())[1])
    partition.apply(fill("AAA", 11, 1))
    batch = partition.take()
    older = replace(batch, funds=[state._replace(seq=9) for state in batch.funds])
    with pytest.raises(StoreRefusal, match="AAA"):
        await writer.commit(older, NEXT, Offset("2-0", 2))
    assert await service_connection.fetchval("SELECT seq FROM funds") == 10


async def settled(writer, symbol, seqs):
    """Returns the settled ones of some sequences according to `facts`, page by page."""
    known, left = set(), list(seqs)
    while left:
        facts = (await writer.facts({symbol: left})).applied
        known |= {seq for seq in left if facts.get((symbol, seq), Applied.NEVER) is not Applied.NEVER}
        assert (symbol, left[0]) in facts
        left = [seq for seq in left if (symbol, seq) not in facts]
    return known


async def test_facts_find_sequences_among_many_late_entries(writer, monkeypatch):
    """Sequences from 200 on are in order; lower ones are late, singly and many in a row."""
    partition = partition_of()
    partition.apply(listing("AAA"))
    lates = {*range(1, 40, 2), *range(60, 100)}
    partition.batch.rejected = [Rejected("1-0", late, Reason.UNKNOWN_SYMBOL, "", "json", b"") for late in lates]
    for seq in range(200, 1100, 3):
        partition.apply(fill("AAA", seq, 1))
    await writer.commit(partition.take(), START, NEXT)
    known = set(range(200, 1100, 3)) | lates
    for late in sorted(lates):
        partition.batch.replayed.append(("1-0", late, "9-0", partition.apply_late(fill("AAA", late, 1))))
        if late < 60:
            partition.apply(fill("AAA", 2000 + late, 1))
            known.add(2000 + late)
    await writer.commit(partition.take(), NEXT, Offset("2-0", 2))
    for page in (3, 7, 1000):
        monkeypatch.setattr("fundsvc.store.sequences.PAGE_ENTRIES", page)
        assert await settled(writer, "AAA", range(2100)) == known


LEGAL = msgspec.structs.replace(EXTREME, entry=1, seq=1, change=5, balance=5, lots=1, price=1)
ILLEGAL = {
    "balance": {"balance": -1, "change": -5},
    "balance before the change": {"balance": 4, "change": 5},
    "entry": {"entry": 0},
    "seq": {"seq": 0},
    "lots": {"lots": 0},
    "price": {"price": 0},
    "bankruptcy price": {"bankruptcy_price": -1},
    "time": {"ts": -1},
    "side": {"side": "both"},
    "kind": {"kind": "deposit"},
    "a surplus that pays": {"change": -1},
    "a surplus of nothing": {"change": 0},
    "a surplus uncovered": {"uncovered": 1},
    "a negative repayment": {"repaid": -1},
    "a flat that moves": {"kind": "flat"},
    "a flat that repays": {"kind": "flat", "change": 0, "repaid": 1},
    "a shortfall that credits": {"kind": "shortfall"},
    "a shortfall of nothing": {"kind": "shortfall", "change": 0},
    "a shortfall that repays": {"kind": "shortfall", "change": -1, "repaid": 1},
    "a negative uncovered": {"kind": "shortfall", "change": -5, "uncovered": -1},
    "a refund that pays": {"kind": "refund", "change": -1},
    "a cover that repays less": {"kind": "cover", "change": -5, "repaid": 4},
    "a takeover at another price": {"kind": "takeover", "change": 0, "price": 2},
    "a takeover that moves": {"kind": "takeover", "price": 1, "bankruptcy_price": 1},
    "a forced fill": {"forced": True},
    "a fill of a later tranche": {"closes": 1},
    "a fill of a negative tranche": {"closes": -1},
    "a refund of a tranche": {"kind": "refund", "entry": 2, "closes": 1},
    "a move with lots": {"kind": "carry_in", "order_id": "carry/A@1"},
    "a move without its order": {"kind": "carry_in", "lots": 0, "price": 0},
    "a move out that leaves a balance": {"kind": "carry_out", "change": -5, "lots": 0, "price": 0, "order_id": "carry/A@1"},
    "a seal without an account": {"seal": bytes(36)},
    "a short seal": {"seal": bytes(35), "account": "a"},
}


@pytest.mark.usefixtures("way")
async def test_schema_refuses_illegal_entries(config, epoch, service_connection):
    for name, fields in ILLEGAL.items():
        batch = batch_with(msgspec.structs.replace(LEGAL, **fields))
        with pytest.raises(StoreRefusal, match="CheckViolationError"):
            await commit_alone(config, epoch, batch)
        assert set((await count(service_connection)).values()) == {0}, name
    await commit_alone(config, epoch, batch_with(LEGAL))


def batch_with(entry):
    return replace(batch_of(listing(SYMBOL)), entries=[entry], hashes=[GENESIS])


async def commit_alone(config, epoch, batch):
    async with open_writer(config.database.dsn, "me", 0, epoch) as writer:
        await writer.commit(batch, START, NEXT)


async def test_schema_refuses_illegal_funds(config, epoch, service_connection):
    for field in ("balance", "outstanding", "entry", "seq", "adl"):
        batch = batch_of(listing("AAA"))
        batch = replace(batch, funds=[batch.funds[0]._replace(**{field: -1})])
        with pytest.raises(StoreRefusal, match="CheckViolationError"):
            await commit_alone(config, epoch, batch)
        assert set((await count(service_connection)).values()) == {0}


@pytest.mark.parametrize("length", [0, 31, 33])
async def test_schema_refuses_a_hash_of_wrong_length(writer, service_connection, length):
    await writer.commit(batch_of(listing("AAA"), fill("AAA", 1, 1)), START, NEXT)
    with pytest.raises(asyncpg.CheckViolationError):
        await service_connection.execute("UPDATE funds SET head = $1", bytes(length))
    names = ", ".join(STORED).replace("entry", "entry + 1", 1)
    with pytest.raises(asyncpg.CheckViolationError):
        await service_connection.execute(
            f"INSERT INTO entries ({', '.join(STORED)}, hash) SELECT {names}, $1 FROM entries", bytes(length)
        )


@pytest.mark.parametrize("statement", ["UPDATE entries SET balance = 0", "DELETE FROM entries", "TRUNCATE entries CASCADE"])
async def test_neither_service_nor_owner_can_change_entries(writer, service_connection, owner_connection, statement):
    batch = batch_of(listing("AAA"), fill("AAA", 1, 1))
    await writer.commit(batch, START, NEXT)
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied"):
        await service_connection.execute(statement)
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
        await owner_connection.execute(statement)
    assert await read_entries(service_connection) == batch.entries


FORBIDDEN = (
    "CREATE TABLE mine (x int)",
    "DROP TABLE entries",
    "ALTER TABLE entries DISABLE TRIGGER ALL",
    "DROP TRIGGER entries_are_append_only ON entries",
    "DROP FUNCTION refuse_change() CASCADE",
    "DELETE FROM funds",
    "TRUNCATE funds CASCADE",
    "DELETE FROM contracts",
    "DELETE FROM rejected",
    "DELETE FROM adl_orders",
    "INSERT INTO partitions (partition) VALUES (9)",
    "DELETE FROM partitions",
    "SET ROLE postgres",
)


async def test_service_cannot_grant_rights(service_connection):
    for statement in FORBIDDEN:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await service_connection.execute(statement)
    await service_connection.execute("GRANT UPDATE ON entries TO fundsvc_service")  # PostgreSQL only warns
    assert not await service_connection.fetchval("SELECT has_table_privilege('entries', 'UPDATE')")


@pytest.mark.parametrize(
    ("name", "statements", "of_mutual"),
    [("SQL", SQL, False), ("ARCHIVE_SQL", ARCHIVE_SQL, False), ("MOVE_SQL", MOVE_SQL, False), ("SQL", POOL_SQL, True)],
    ids=["reserve", "archive", "moves", "mutual"],
)
def test_every_statement_exists_and_is_used(name, statements, of_mutual):
    root = Path(fundsvc.__file__).parent
    paths = [path for path in root.rglob("*.py") if path.is_relative_to(root / "mutual") == of_mutual]
    sources = "".join(path.read_text() for path in paths)
    assert set(re.findall(rf'\b{name}\["(\w+)"\]', sources)) <= set(statements)
    assert set(statements) <= set(re.findall(r'"(\w+)"', sources))


async def test_database_prepares_every_statement(service_connection):
    for statement in (*SQL.values(), *ARCHIVE_SQL.values()):
        await service_connection.prepare(statement)


async def backend(connection):
    return await connection.fetchval("SELECT pg_backend_pid()")


async def test_ended_session_is_a_fault(config, owner_connection):
    async with connect(config.database.dsn, "me") as connection:
        await owner_connection.execute("SELECT pg_terminate_backend($1, 5000)", await backend(connection))
        for _ in range(2):
            with pytest.raises(StoreFault), faults():
                await connection.fetchval("SELECT 1")


async def test_session_end_during_a_statement_is_a_fault(config, owner_connection):
    async with connect(config.database.dsn, "me") as connection:
        pid = await backend(connection)
        asyncio.get_running_loop().call_later(
            0.1, lambda: asyncio.ensure_future(owner_connection.execute("SELECT pg_terminate_backend($1)", pid))
        )
        with pytest.raises(StoreFault), faults():
            await connection.fetchval("SELECT pg_sleep(30)")


async def test_cancelled_and_timed_out_statements_are_faults(config, owner_connection):
    async with connect(config.database.dsn, "me", command_seconds=0.1) as connection:
        with pytest.raises(StoreFault), faults():
            await connection.fetchval("SELECT pg_sleep(30)")
    async with connect(config.database.dsn, "me") as connection:
        await connection.execute("SET statement_timeout = 50")
        with pytest.raises(StoreFault), faults():
            await connection.fetchval("SELECT pg_sleep(30)")


@pytest.mark.parametrize(
    "state", ["25006", "25P03", "25P04", "42501", "3D000", "42P01", "22P05", "XX000", "XX001", "55P03", "0A000"]
)
async def test_repairable_server_errors_are_faults(service_connection, state):
    with pytest.raises(StoreFault), faults(), refusals():
        await raise_in(service_connection, state)


@pytest.mark.parametrize("state", ["23502", "23503", "23505", "23514", "22003", "22021", "22P02"])
async def test_errors_caused_by_a_value_are_refusals(service_connection, state):
    with pytest.raises(StoreRefusal), faults(), refusals():
        await raise_in(service_connection, state)


async def test_value_that_the_driver_cannot_encode_is_a_refusal(service_connection):
    for value in (2**63, "text"):
        with pytest.raises(StoreRefusal), faults(), refusals():
            await service_connection.fetchval("SELECT $1::bigint", value)


@pytest.mark.parametrize("state", ["42601", "42883", "42804"])
async def test_programming_error_is_neither_fault_nor_refusal(service_connection, state):
    with pytest.raises(asyncpg.PostgresError), faults(), refusals():
        await raise_in(service_connection, state)


async def raise_in(connection, state):
    await connection.execute(f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END $$")


@pytest.mark.usefixtures("way")
async def test_offset_inside_a_message_moves_only_from_its_stored_position(config, epoch, service_connection):
    inside, elsewhere = Offset("1-0", 1, 3, "2-0"), Offset("1-0", 1, 2, "2-0")
    async with open_writer(config.database.dsn, "me", 0, epoch) as writer:
        await writer.commit(batch_of(listing("AAA")), START, inside)
        assert (await writer.load())[0] == inside
        with pytest.raises(OwnershipLost):
            await writer.commit(batch_of(listing("BBB")), elsewhere, NEXT)
    async with open_writer(config.database.dsn, "me", 0, epoch) as writer:
        await writer.commit(batch_of(listing("AAA"), fill("AAA", 1, 5)), inside, Offset("2-0", 2))
        assert (await writer.load())[0] == Offset("2-0", 2)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_other_encoding_than_utf8_is_refused_by_name(config, servers, owner_connection, encoding):
    name = f"other_{encoding.lower()}"
    await owner_connection.execute(
        f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    for check in (migrate(dsn_for(servers.owner_dsn, name), 1), check_schema(dsn_for(servers.dsn, name), 1)):
        with pytest.raises(ValueError, match=encoding):
            await check


def test_write_to_a_just_lost_connection_is_a_fault():
    with pytest.raises(StoreFault), faults():
        raise RuntimeError("unable to perform operation on <UnixTransport closed=True>; the handler is closed")
    with pytest.raises(RuntimeError, match="other"), faults():
        raise RuntimeError("other")


async def test_pool_survives_a_restart_of_the_server(config, servers):
    async with connect(config.database.dsn, "me") as connection, open_pool(config.database.dsn, 2) as pool:
        assert await pool.fetchval("SELECT 1") == 1
        servers.postgres.stop()
        try:
            with pytest.raises(StoreFault), faults():
                await connection.fetchval("SELECT 1")
            with pytest.raises(StoreFault):
                async with connect(config.database.dsn, "me"):
                    pass
            with pytest.raises(StoreFault), faults():
                await pool.fetchval("SELECT 1")
        finally:
            servers.start()
        assert await pool.fetchval("SELECT 1") == 1


async def test_pool_replaces_a_failed_connection(config):
    async with open_pool(config.database.dsn, 1) as pool:
        with pytest.raises(asyncpg.UndefinedTableError):
            async with acquired(pool) as connection, transaction(connection):
                await connection.execute("SELECT * FROM nothing")
        with pytest.raises(TimeoutError):
            async with acquired(pool) as connection:
                await asyncio.wait_for(connection.execute("SELECT pg_sleep(30)"), 0.1)
        async with acquired(pool) as connection, transaction(connection):
            assert await connection.fetchval("SELECT count(*) FROM partitions") == 1


async def test_transaction_is_all_or_nothing(config, service_connection):
    async def half(connection):
        async with transaction(connection):
            await connection.execute("UPDATE partitions SET owner = 'me'")
            await connection.execute("SELECT 1 / 0")

    async with connect(config.database.dsn, "me") as connection:
        with pytest.raises(asyncpg.DivisionByZeroError):
            await half(connection)
    assert await service_connection.fetchval("SELECT owner FROM partitions") is None


async def test_second_migration_changes_nothing(config, owner_connection):
    schema = (
        "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2"
    )
    before = await owner_connection.fetch(schema)
    await migrate(config.database.owner_dsn, 1)
    assert await owner_connection.fetch(schema) == before
    assert await owner_connection.fetchval("SELECT count(*) FROM partitions") == 1


@pytest.mark.parametrize("partitions", [4])
@pytest.mark.parametrize("wanted", [1, 3, 5])
async def test_other_number_of_partitions_is_refused_and_changes_nothing(config, owner_connection, wanted):
    with pytest.raises(ValueError, match=rf"4 partitions.*stream\.partitions = {wanted}"):
        await migrate(config.database.owner_dsn, wanted)
    assert await owner_connection.fetchval("SELECT count(*) FROM partitions") == 4


async def test_migrate_leaves_a_newer_schema_unchanged(config, owner_connection):
    await owner_connection.execute("UPDATE alembic_version SET version_num = '9999'")
    await migrate(config.database.owner_dsn, 1)
    assert await owner_connection.fetchval("SELECT version_num FROM alembic_version") == "9999"


async def test_refused_login_is_a_fault(config):
    with pytest.raises(StoreFault, match="nobody_at_all"):
        await check_schema(config.database.dsn.replace("fundsvc_service", "nobody_at_all", 1), 1)


async def test_concurrent_migrations_wait_for_each_other(servers, config):
    async with connected(config.database.owner_dsn) as connection:
        await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO PUBLIC")
        await asyncio.gather(*(migrate(config.database.owner_dsn, 2) for _ in range(3)))
        assert await connection.fetchval("SELECT count(*) FROM partitions") == 2


async def test_migrating_a_missing_database_is_a_fault(config):
    with pytest.raises(StoreFault):
        await migrate(config.database.owner_dsn.replace("host=", "host=/nowhere"), 1)


def saved_side(rows):
    column = bytes(8 * rows)
    return SidePart([f"a{number}" for number in range(rows)], column, column, column)


def saved_book(rows):
    return BookPart(saved_side(rows), saved_side(3), stale=True, known_ms=7)


def keep(*parts, first=0):
    """A batch that saves a book; without parts its positions are unchanged, with `first` the parts are changes."""
    book = BookState("ABC", 5, 6, 7, 8, [msgspec.msgpack.encode(part) for part in parts] or None, 0, first=first)
    return replace(batch_of(listing("ABC")), books=[book])


async def kept(config, owner_connection):
    """The parts of the only book, as the engine and as a reader load them."""
    async with open_pool(config.database.dsn, 1) as pool:
        (shown,) = await AdlReader(pool).books(0)
    (loaded,) = await load_books(owner_connection, 0)
    assert loaded._replace(book=None) == shown._replace(book=None)
    parts = list(loaded.book or ())
    assert parts == list(shown.book or ())
    return loaded, parts


@pytest.mark.parametrize("sizes", [[0], [1], [5, 6], [ROWS_PER_PART] * 20, [9, 9, 9, 1], [5, 6, 3]])
async def test_book_is_loaded_as_last_saved(config, writer, owner_connection, sizes):
    await writer.commit(keep(*map(saved_book, [4, 4, 4, 4])), START, NEXT)
    parts = [saved_book(rows) for rows in sizes]
    await writer.commit(keep(*parts), NEXT, Offset("2-0", 2))
    await writer.commit(keep(), Offset("2-0", 2), Offset("3-0", 3))
    loaded, found = await kept(config, owner_connection)
    assert loaded._replace(book=None) == StoredBook("ABC", "3-0", 5, 6, 7, 8, None, 0, len(sizes))
    assert found == parts
    assert await owner_connection.fetchval("SELECT count(*) FROM book_parts") == len(sizes)
    (saved,) = await writer.saved_books()
    assert saved == loaded._replace(book=None)


async def test_changes_of_a_book_are_added_to_its_parts_until_it_is_saved_whole(config, writer, owner_connection):
    parts = [saved_book(rows) for rows in (4, 5, 1, 2, 3)]
    offsets = [Offset(f"{number}-0", number) for number in range(1, 6)]
    await writer.commit(keep(*parts[:2]), START, offsets[0])
    await writer.commit(keep(*parts[2:4], first=2), offsets[0], offsets[1])
    await writer.commit(keep(*parts[4:], first=4), offsets[1], offsets[2])
    loaded, found = await kept(config, owner_connection)
    assert (loaded.parts, found) == (5, parts)
    assert await owner_connection.fetchval("SELECT body FROM books") == WITH_CHANGES
    await writer.commit(keep(*parts[3:4]), offsets[2], offsets[3])
    loaded, found = await kept(config, owner_connection)
    assert (loaded.parts, found) == (1, parts[3:4])
    assert await owner_connection.fetchval("SELECT body FROM books") == IN_PARTS


async def test_saving_a_few_changed_positions_of_a_large_book_writes_little(writer, owner_connection):
    whole, changes = [saved_book(ROWS_PER_PART)] * 20, saved_book(10)
    written = []
    offsets = [START, *(Offset(f"{number}-0", number) for number in (1, 2))]
    for number, batch in enumerate((keep(*whole), keep(changes, first=20))):
        before = await owner_connection.fetchval("SELECT pg_current_wal_insert_lsn()")
        await writer.commit(batch, offsets[number], offsets[number + 1])
        written.append(await owner_connection.fetchval("SELECT pg_current_wal_insert_lsn() - $1::pg_lsn", before))
    assert written[1] < written[0] / 10
    assert written[1] < 40_000  # Mostly first images of pages.


async def test_failed_commit_leaves_the_saved_book(config, writer, owner_connection):
    parts = [saved_book(rows) for rows in (4, 4)]
    await writer.commit(keep(*parts), START, NEXT)
    with pytest.raises(OwnershipLost):
        await writer.commit(keep(saved_book(1), saved_book(2), saved_book(3)), Offset("7-0", 7), Offset("8-0", 8))
    assert (await kept(config, owner_connection))[1] == parts


async def test_book_without_positions_is_loaded_without_positions(config, writer, owner_connection):
    await writer.commit(keep(), START, NEXT)
    loaded, _ = await kept(config, owner_connection)
    assert loaded.book is None


def earlier_body(parts):
    """The body of a book as releases without rows of parts write it."""
    bodies = [msgspec.msgpack.encode(part) for part in parts]
    return bodies[0] if len(bodies) == 1 else msgspec.msgpack.encode(bodies)


@pytest.mark.parametrize("sizes", [[3], [30_000], [5, 6], [4] * 20])
async def test_book_saved_by_an_earlier_release_replaces_the_parts(config, writer, owner_connection, sizes):
    await writer.commit(keep(saved_book(4), saved_book(4)), START, NEXT)
    parts = [saved_book(rows) for rows in sizes]
    await owner_connection.execute("UPDATE books SET body = $1", earlier_body(parts))
    assert (await kept(config, owner_connection))[1] == parts


async def test_earlier_release_fails_to_decode_a_book_in_parts(writer, owner_connection):
    await writer.commit(keep(saved_book(4), saved_book(4)), START, NEXT)
    body = await owner_connection.fetchval("SELECT body FROM books")
    assert body
    with pytest.raises(msgspec.DecodeError, match=r"trunc|malformed|invalid"):
        msgspec.msgpack.decode(body, type=list[memoryview])


async def test_runbook_statement_converts_books_in_parts_for_an_earlier_release(writer, owner_connection):
    parts = [saved_book(rows) for rows in (4, 70_000, 5)]
    await writer.commit(keep(*parts), START, NEXT)
    runbook = Path(fundsvc.__file__).parent.joinpath("handbook", "runbook.md").read_text()
    (statement,) = re.findall(r"UPDATE books [^\"]*", runbook)
    await owner_connection.execute(statement)
    body = await owner_connection.fetchval("SELECT body FROM books")
    found = msgspec.msgpack.decode(body, type=list[memoryview])
    assert [msgspec.msgpack.decode(part, type=BookPart) for part in found] == parts
