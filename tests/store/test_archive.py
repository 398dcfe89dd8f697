"""Archived entries are read from files as they were from the table, and only they may leave it."""

import asyncio

import asyncpg
import pytest
from archives import BEGINNING, HOUR_MS, POLICY, SECRETS, SYMBOLS, TS, history, mover, settle
from ledgers import owned

from fundsvc.cli.tools import archiving
from fundsvc.cli.tools.archiving import NotArchived
from fundsvc.cli.tools.audit import audit_contract
from fundsvc.cli.tools.export import export_rows
from fundsvc.core.events import Fill, Reason, Rejection
from fundsvc.core.sequences import Applied
from fundsvc.store import statistics
from fundsvc.store.adl import AdlReader
from fundsvc.store.archive import files as archive_files
from fundsvc.store.archive import moves as archive_moves
from fundsvc.store.archive.files import ArchiveFiles, ArchiveUnreachable
from fundsvc.store.audits import VerifiedPart, keep_verified, read_parts
from fundsvc.store.database import open_pool
from fundsvc.store.days import Days
from fundsvc.store.exports import Line, open_ledger
from fundsvc.store.reader import Reader
from fundsvc.store.rollups import condense, mark_unsound, rebuild
from fundsvc.store.statistics import Statistics
from fundsvc.store.venue_histories import Histories

EVENTS = range(1, 120)
END = TS + 600_000 * EVENTS[-1]
CUT = TS + 600_000 * 100


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small files, row groups and transactions, and no wait, so that a short ledger has many of each."""
    monkeypatch.setattr(archiving, "ENTRIES_MAX", 20)
    monkeypatch.setattr(archiving, "PART_ENTRIES", 9)
    monkeypatch.setattr(archiving, "RESTORE_SECONDS", 0)
    monkeypatch.setattr(archive_moves, "REMOVED_ROWS", 7)
    for module in (archive_files, archiving):
        monkeypatch.setattr(module, "ROWS_PER_GROUP", 8)


@pytest.fixture
def files(tmp_path):
    return ArchiveFiles(str(tmp_path))


@pytest.fixture
async def pool(config):
    async with open_pool(config.database.dsn, 2) as pool:
        yield pool


@pytest.fixture
async def ledger(config, pool):
    """The owner of a condensed ledger of some days."""
    async with owned(config, lambda _: POLICY) as owner:
        await settle(owner, [*BEGINNING, *history(1, EVENTS)])
        await condense(pool, 0)
        yield owner


async def paged(reader, symbol, *, forward, **chosen):
    """Returns all entries of a history, page by page."""
    found, offset = [], None
    while page := await reader.history(symbol, count=31, offset=offset, forward=forward, **chosen):
        found += page
        offset = page[-1].entry
    return found


async def reads(pool, files):
    """Returns what clients read of the ledger."""
    reader, past, found = Reader(pool, files), Statistics(pool, files), {}
    spans = [(TS + step * 7 * HOUR_MS, TS + (step + 2) * 7 * HOUR_MS) for step in range(2)]
    for symbol in SYMBOLS:
        for forward in (True, False):
            found[symbol, forward] = await paged(reader, symbol, forward=forward)
            for kind in ("surplus", "flat", "takeover", "cover"):
                found[symbol, forward, kind] = await paged(reader, symbol, forward=forward, kind=kind)
            for begin, end in spans:
                found[symbol, forward, begin] = await paged(reader, symbol, forward=forward, start_ms=begin, end_ms=end)
        for begin, end in [(0, None), *spans]:
            found[symbol, "chart", begin] = await past.chart(symbol, begin, end)
            found[symbol, "candles", begin] = await past.buckets(symbol, begin, end or END, HOUR_MS)
        for moment in range(TS - HOUR_MS, END, 3 * HOUR_MS + 7):
            found[symbol, "at", moment] = await past.at(symbol, moment)
        exported = await open_ledger(pool, symbol, files)
        found[symbol, "export"] = [row async for row in export_rows(exported, SECRETS)]
        found[symbol, "shortfalls"] = await Days(pool, files).largest_shortfalls(TS - TS % HOUR_MS, END, 5)
        found[symbol, "turns"] = await Histories(pool).turns(symbol, 0, END + HOUR_MS, 1000)
        for entry in range(1, 60, 5):
            found[symbol, "account", entry] = await reader.account_of(symbol, entry)
            found[symbol, "caused", entry] = await AdlReader(pool).caused_by(symbol, entry)
    return found


def differing(one, two):
    return [key for key in one if one[key] != two[key]]


async def differences(pool, files=None):
    audits = [await audit_contract(pool, symbol, lambda _: None, POLICY, SECRETS, files) for symbol in SYMBOLS]
    return [difference for audit in audits for difference in audit.differences]


async def in_table(connection, symbol):
    return {row["entry"] for row in await connection.fetch("SELECT entry FROM entries WHERE symbol = $1", symbol)}


@pytest.mark.parametrize("chart_entries_max", [150_000, 25])
async def test_every_read_is_equal_before_and_after_archiving_and_restoring(
    ledger, config, pool, files, owner_connection, monkeypatch, chart_entries_max
):
    monkeypatch.setattr(statistics, "CHART_ENTRIES_MAX", chart_entries_max)
    before = await reads(pool, files)
    assert await differences(pool) == []
    async with mover(config, files) as moving:
        for cut in (CUT - 8 * HOUR_MS, CUT):
            archived = await moving.archive(cut)
            assert archived.keys() == set(SYMBOLS)
            assert differing(before, await reads(pool, files)) == []
            assert await differences(pool) == []
            assert await differences(pool, files) == []
        stubs = {symbol: await moving.stubs(symbol) for symbol in SYMBOLS}
        for symbol, ranges in stubs.items():
            left = await in_table(owner_connection, symbol)
            assert len(left) < ledger.entries(symbol) - 10
            assert set(range(ranges[-1].last_entry + 1, ledger.entries(symbol) + 1)) <= left
        assert await moving.archive(CUT) == {}
        for symbol in SYMBOLS:
            await moving.restore(symbol)
            assert await in_table(owner_connection, symbol) == set(range(1, ledger.entries(symbol) + 1))
        assert differing(before, await reads(pool, ArchiveFiles("/nowhere"))) == []
        assert await differences(pool, files) == []
        archived = await moving.archive(CUT)
        assert [one.files for one in archived.values()] == [0, 0]
        assert {symbol: await moving.stubs(symbol) for symbol in SYMBOLS} == stubs
    assert differing(before, await reads(pool, files)) == []


NEXT_STUB = """
INSERT INTO archives
SELECT symbol, last_entry + {0}, last_entry + {0}, last_hash, last_hash, seq, clock, path, bytes, digest, hours, checkpoint,
       signature
FROM archives WHERE symbol = 'AAA' ORDER BY last_entry DESC LIMIT 1
"""
"""A stub that follows the last one, or leaves a gap, with a hash that the ledger does not have."""


async def test_reads_during_archiving_and_restoring_miss_nothing(ledger, config, pool, files):
    reader, ended = Reader(pool, files), asyncio.Event()
    before = {kind: await paged(reader, "AAA", forward=True, kind=kind) for kind in (None, "flat")}

    async def read():
        rounds = 0
        while not ended.is_set():
            for kind, rows in before.items():
                assert await paged(reader, "AAA", forward=rounds % 2 == 0, kind=kind) == rows[:: 1 if rounds % 2 == 0 else -1]
            exported = await open_ledger(pool, "AAA", files)
            assert len([line async for line in exported.lines() if isinstance(line, Line)]) == len(before[None])
            rounds += 1
        return rounds

    reading = asyncio.create_task(read())
    async with mover(config, files) as moving:
        for cut in range(TS + 5 * HOUR_MS, CUT, 4 * HOUR_MS):
            await moving.archive(cut, ["AAA"])
        await moving.restore("AAA")
        await moving.archive(CUT, ["AAA"])
    ended.set()
    assert await reading > 1


async def test_schema_lets_only_archived_entries_leave(ledger, config, files, owner_connection):
    refused = asyncpg.InsufficientPrivilegeError, asyncpg.IntegrityConstraintViolationError
    async with mover(config, files) as moving:
        await moving.archive(CUT)
        stub = (await moving.stubs("AAA"))[-1]
    for statement in (
        f"DELETE FROM entries WHERE symbol = 'AAA' AND entry > {stub.last_entry}",
        "DELETE FROM entries",
        "UPDATE entries SET balance = 0",
        "UPDATE archives SET path = ''",
        "DELETE FROM archives",
        "TRUNCATE archives",
        "DELETE FROM archive_bounds",
        "TRUNCATE archive_bounds",
        f"UPDATE archive_bounds SET entry = {stub.last_entry + 1} WHERE symbol = 'AAA'",
        "UPDATE archive_bounds SET entry = 0, removed = 0",
        NEXT_STUB.format(1),
        NEXT_STUB.format(2),
    ):
        with pytest.raises(refused):
            await owner_connection.execute(statement)


async def test_role_of_the_archiver_suffices_and_changes_nothing_else(ledger, config, pool, files, owner_connection):
    await owner_connection.execute("SET ROLE fundsvc_archiver")
    for table in ("funds", "contracts", "partitions", "rollups", "adl_orders", "adl_records", "rejected", "audit_progress"):
        for statement in (f"DELETE FROM {table}", f"UPDATE {table} SET {await column_of(pool, table)} = NULL"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await owner_connection.execute(statement)
    moves = archive_moves.Moves(owner_connection)
    archiver = archiving.Archiver(pool, moves, files, lambda _: POLICY, SECRETS)
    for due in await moves.due(CUT, None):
        await archiver.archive(due, lambda _: None)
    await archiver.restore([known.stub for known in await moves.stubs(["AAA"])], lambda _: None)
    assert await in_table(owner_connection, "AAA") == set(range(1, ledger.entries("AAA") + 1))


async def column_of(pool, table):
    return await pool.fetchval("SELECT max(column_name) FROM information_schema.columns WHERE table_name = $1", table)


async def test_archived_sequences_are_never_settled_again(ledger, config, files, pool):
    wanted = {symbol: [10 * seq for seq in EVENTS] for symbol in SYMBOLS}
    reader = Reader(pool)
    async with mover(config, files) as moving:
        keys = {(symbol, seq) for symbol, seqs in wanted.items() for seq in seqs}
        before = {key: found for key, found in (await reader.facts(wanted)).applied.items() if key in keys}
        await moving.archive(CUT)
        last = {symbol: (await moving.stubs(symbol))[-1].seq for symbol in SYMBOLS}
        after = (await reader.facts(wanted)).applied
        for (symbol, seq), found in before.items():
            known = after[symbol, seq]
            if seq > last[symbol]:
                assert known == found
            else:
                assert known is Applied.ARCHIVED
        for symbol in SYMBOLS:
            await moving.restore(symbol)
    restored = (await reader.facts(wanted)).applied
    assert {key: restored[key] for key in keys} == before


async def test_resent_event_of_an_archived_entry_is_rejected_as_archived(ledger, config, files, pool):
    (event,) = [one for one in history(1, EVENTS) if isinstance(one, Fill) and one.seq == 10]
    async with mover(config, files) as moving, owned(config, lambda _: POLICY) as later:
        partition = later.partition

        async def look_up():
            wanted = {symbol: sorted(seqs) for symbol, seqs in partition.lacking([event], {}).items()}
            partition.sequences.learn(await Reader(pool).facts(wanted))

        await moving.archive(CUT)
        await look_up()
        with pytest.raises(Rejection, match="archived: fundsvc archive restore") as rejected:
            partition.apply(event)
        assert rejected.value.reason is Reason.ARCHIVED
        assert not partition.batch.entries
        await moving.restore(event.symbol)
        await look_up()
        assert partition.is_applied(event)


@pytest.mark.parametrize("walk", ["full", "newest"])
async def test_walks_of_the_audit_continue_at_the_end_of_the_archive(ledger, config, pool, files, walk):
    async with mover(config, files) as moving:
        await follow(pool, "full", 31)  # a walk that has not reached the end
        await follow(pool, walk, None)
        await moving.archive(CUT)
        assert await follow(pool, "full", 31) < ledger.entries("HELD") + ledger.entries("AAA")
        await settle(ledger, history(2, range(120, 140)))
        await follow(pool, walk, None)
        await follow(pool, "newest", None)


async def follow(pool, walk, count):
    """Follows a walk in parts of some entries, once with a count and else to the end; returns the number of entries."""
    entries, ended, policies = 0, False, {0: POLICY}
    while not ended:
        parts = await read_parts(pool, dict.fromkeys(SYMBOLS, count or 13), walk, {})
        verified = []
        for symbol, part in parts.items():
            replay = part.replay(part.ledger, policies, SECRETS)
            list(part.followed(replay))
            part.compare(replay)
            list(part.compared_lots(replay))
            assert replay.differences == []
            entries += len(part)
            verified.append(VerifiedPart(symbol, part.reached(replay), part.ended))
        await keep_verified(pool, walk, verified)
        ended = count is not None or all(one.ended for one in verified)
    return entries


async def test_rollups_of_archived_hours_survive_a_rebuild(ledger, config, pool, files):
    async with mover(config, files) as moving:
        await moving.archive(CUT)
    hours = await pool.fetch("SELECT * FROM rollups ORDER BY symbol, hour")
    await mark_unsound(pool)
    await rebuild(pool, 0)
    assert await pool.fetch("SELECT * FROM rollups ORDER BY symbol, hour") == hours
    assert await differences(pool, files) == []


async def test_hours_that_await_a_rebuild_are_not_archived(ledger, config, pool, files):
    await mark_unsound(pool)
    async with mover(config, files) as moving:
        assert await moving.archive(CUT) == {}


TAMPERED = {
    "a file": ("", "SHA-256"),
    "a stub": ("UPDATE archives SET clock = clock + 1", "the stub differs from its signature"),
    "a checkpoint": ("UPDATE archives SET checkpoint = checkpoint || 'x'", "the stub differs from its signature"),
    "a removed stub": ("DELETE FROM archives WHERE first_entry = 1", "it should be 1"),
    "an hour": ("UPDATE rollups SET highest = highest + 1 WHERE first_entry = 1", "the rollups differ from those archived"),
    "the bound": ("UPDATE archive_bounds SET entry = 0, removed = 0", "entry number is "),
}


@pytest.mark.parametrize("what", TAMPERED)
async def test_audit_of_archives_finds_what_was_altered(ledger, config, pool, files, tmp_path, owner_connection, what):
    async with mover(config, files) as moving:
        await moving.archive(CUT)
    statement, sentence = TAMPERED[what]
    await owner_connection.execute("SET session_replication_role = replica")
    if statement:
        await owner_connection.execute(statement)
    else:
        path = min(tmp_path.iterdir())
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 1
        path.write_bytes(data)
    found = await differences(pool, ArchiveFiles(str(tmp_path)))
    assert any(sentence in difference for difference in found), found


async def test_missing_file_is_a_difference(ledger, config, pool, files, tmp_path):
    async with mover(config, files) as moving:
        await moving.archive(CUT)
    min(tmp_path.iterdir()).unlink()
    assert "cannot be used" in (await differences(pool, ArchiveFiles(str(tmp_path))))[0]


async def test_entries_of_a_restore_that_ended_early_are_removed_by_the_next_run(ledger, config, pool, files, monkeypatch):
    async with mover(config, files) as moving:
        await moving.archive(CUT)
        count = await pool.fetchval("SELECT count(*) FROM entries")
        with monkeypatch.context() as patch:
            patch.setattr(archive_moves.Moves, "set_bound", None)
            with pytest.raises(TypeError):
                await moving.restore("AAA")
        assert await pool.fetchval("SELECT count(*) FROM entries") > count
        await moving.archive(CUT)
    assert await pool.fetchval("SELECT count(*) FROM entries") == count


async def test_altered_file_is_not_restored(ledger, config, files, tmp_path, owner_connection):
    async with mover(config, files) as moving:
        await moving.archive(CUT)
        left = await in_table(owner_connection, "AAA")
        stub = (await moving.stubs("AAA"))[-1]
        path = tmp_path / stub.path
        path.write_bytes(path.read_bytes().replace(b"trade-", b"trick-"))
        with pytest.raises(NotArchived):
            await moving.restore("AAA")
    assert await in_table(owner_connection, "AAA") == left


async def test_altered_entry_is_not_archived(ledger, config, files, owner_connection):
    await owner_connection.execute("SET session_replication_role = replica")
    await owner_connection.execute("UPDATE entries SET trade_id = 'x' WHERE symbol = 'AAA' AND entry = 5")
    async with mover(config, files) as moving:
        with pytest.raises(NotArchived, match="entry 5: hash is"):
            await moving.archive(CUT)
    assert await owner_connection.fetchval("SELECT count(*) FROM archives") == 0


async def test_only_reads_of_archived_entries_need_the_files(ledger, config, pool, files):
    async with mover(config, files) as moving:
        await moving.archive(CUT)
    reader, past = Reader(pool), Statistics(pool)
    assert len(await reader.history("AAA", count=10)) == 10
    assert (await past.at("AAA", END)).entry == ledger.entries("AAA")
    assert await past.past(END)
    for read in (
        reader.history("AAA", count=1000),
        reader.history("AAA", count=1, forward=True, offset=0),
        past.at("AAA", TS + 2 * HOUR_MS),
        past.chart("AAA", 0, None),
    ):
        with pytest.raises(ArchiveUnreachable, match="location is not set"):
            await read
    await settle(ledger, history(3, range(200, 210)))


class Killed(Exception):
    """Stands for the end of the process at a step."""


@pytest.mark.parametrize("step", range(1, 14))
async def test_archiving_killed_at_any_step_continues(ledger, config, pool, files, monkeypatch, step):
    before = await paged(Reader(pool), "AAA", forward=True)
    left = step

    def dying(function):
        async def call(*arguments, **options):
            nonlocal left
            left -= 1
            if not left:
                raise Killed
            return await function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("run", "facts"):
            patch.setattr(ArchiveFiles, name, dying(getattr(ArchiveFiles, name)))
        patch.setattr(archive_moves.Moves, "fetch", dying(archive_moves.Moves.fetch))
        with pytest.raises(Killed):
            async with mover(config, files) as moving:
                await moving.archive(CUT, ["AAA"])
    assert await paged(Reader(pool, files), "AAA", forward=True) == before
    async with mover(config, files) as moving:
        await moving.archive(CUT, ["AAA"])
        assert await moving.moves.due(CUT, ["AAA"]) == []
    assert await paged(Reader(pool, files), "AAA", forward=True) == before
    assert await differences(pool, files) == []
