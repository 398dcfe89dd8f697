"""Archives entries: verifies a range by the rules of the audit, writes it to a file, reads that again, and removes the range.

A range is a run of whole hours of the rollups, so no hour is divided. The process may be killed after any step: a file without
a stub is written again, and entries that a stub covers are removed by the next run.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

import msgspec

from fundsvc.core.commitment import Secrets
from fundsvc.core.fund.archive import Stub
from fundsvc.core.fund.chain import GENESIS, link
from fundsvc.core.policy import Policy
from fundsvc.store.archive.files import ROWS_PER_GROUP, ArchiveFiles, FileFacts, FileRange, FileWriter, Row, file_name
from fundsvc.store.archive.moves import Due, Moves
from fundsvc.store.archive.ranges import charted_ms
from fundsvc.store.audits import Followed, beginning, read_part, saved_checkpoint
from fundsvc.store.database import Pool
from fundsvc.store.exports import line_from
from fundsvc.store.policies import policies_of
from fundsvc.store.reader import READ_SECONDS_MAX, fetch
from fundsvc.store.rollup_audit import rollup_differences

ENTRIES_MAX = 1_000_000
"""Entries of a file, unless one hour has more: some 60 MB."""

EPOCH, MICROSECOND = datetime.fromtimestamp(0, UTC), timedelta(microseconds=1)

PART_ENTRIES = 5000
"""Entries that are verified and written at a time."""

RESTORE_SECONDS = READ_SECONDS_MAX
"""How long restored entries are in the table before readers use them. A read that began without them has ended then."""

Progress = Callable[[int], None]
"""Receives the number of entries that were archived, removed or restored since the last call."""


class NotArchived(Exception):
    """A range is not archived or restored, because something differs. The message has the first difference."""


class Archived(msgspec.Struct):
    """What an archiving did with a contract: new files, their entries and bytes, and the removed entries."""

    symbol: str
    files: int = 0
    entries: int = 0
    bytes: int = 0
    removed: int = 0


class Verified(NamedTuple):
    """The end of a verified range: the state after it, the highest sequence so far, and the chart clock."""

    followed: Followed
    seq: int
    clock: int


class Archiver:
    """Archives entries of contracts, and restores them. Methods raise StoreFault, and NotArchived for what differs."""

    def __init__(
        self, pool: Pool, moves: Moves, files: ArchiveFiles, policy_of: Callable[[str], Policy], secrets: Secrets
    ) -> None:
        self._pool = pool
        self._moves = moves
        self._files = files
        self._policy_of = policy_of
        self._secrets = secrets

    async def archive(self, due: Due, progress: Progress) -> Archived:
        """Archives the entries of a contract that are due, and removes them from the table."""
        found, symbol = Archived(due.symbol), due.symbol
        stubs = [known.stub for known in await self._moves.stubs([symbol])]
        for stub in stubs:
            if due.bound < stub.last_entry <= due.upto:  # It was restored.
                await check_file(self._files, stub, self._secrets)
                await self._moves.set_bound(symbol, stub.last_entry)
        if due.archived < due.upto:
            for difference in await rollup_differences(self._pool, symbol):
                raise NotArchived(difference)
        before = stubs[-1] if stubs else None
        while (before.last_entry if before else 0) < due.upto:
            before = await self._write_range(symbol, before, due.upto)
            found.files, found.entries, found.bytes = found.files + 1, found.entries + before.entries, found.bytes + before.size
            progress(before.entries)
        async for removed in self._moves.removed(symbol, due.removed, due.upto):
            found.removed += removed
            progress(removed)
        return found

    async def restore(self, stubs: Sequence[Stub], progress: Progress, files: ArchiveFiles | None = None) -> None:
        """Inserts the entries of the last ranges of a contract into the table again, and then lets readers use these.

        `files` has the files if the location of the archive does not.
        """
        source, symbol, left = files or self._files, stubs[0].symbol, stubs[0].first_entry - 1
        for stub in stubs:
            await check_file(source, stub, self._secrets)
        await self._moves.begin_restoring(symbol, left)
        for stub in stubs:
            async for rows in file_rows(source, stub):
                await self._moves.restore(rows)
                progress(len(rows))
        await asyncio.sleep(RESTORE_SECONDS)
        await self._moves.set_bound(symbol, left)

    async def _write_range(self, symbol: str, before: Stub | None, upto: int) -> Stub:
        """Verifies and writes the next range of a contract; returns its stub, which is stored."""
        first = before.last_entry + 1 if before else 1
        last = await self._moves.range_end(symbol, first - 1, upto, ENTRIES_MAX)
        name = file_name(symbol, first, last)
        end = Verified(beginning(), before.seq if before else 0, before.clock if before else 0)
        writer: FileWriter = await self._files.run(partial(self._files.writer, name))
        with writer:
            async for rows, reached in self._verified(symbol, first, last, end):
                await self._files.run(partial(writer.add, rows), None)
                end = reached
            await self._files.run(writer.end, None)
        facts = await self._files.facts(name)
        hours = await self._moves.hours(symbol, first, last)
        head = end.followed.checkpoint.head
        stub = Stub(
            symbol, first, last, before.last_hash if before else GENESIS, head, end.seq, end.clock, name, *facts, hours,
            saved_checkpoint(end.followed),
        )  # fmt: skip
        stub = stub._replace(signature=self._secrets.sign(stub.message))
        await check_file(self._files, stub, self._secrets)
        await self._moves.add(stub)
        return stub

    async def _verified(
        self, symbol: str, first: int, last: int, end: Verified
    ) -> AsyncIterator[tuple[Sequence[Any], Verified]]:
        """Yields the entries of a range in parts, each with the state after it, after they passed the rules of the audit."""
        policies = (await policies_of(partial(fetch, self._pool), [symbol], self._policy_of))[symbol]
        entry = first - 1
        while entry < last:
            part = await read_part(self._pool, symbol, end.followed, min(PART_ENTRIES, last - entry))
            if part.ledger is None or not len(part):
                raise NotArchived(f"{symbol}: entry {entry + 1} is missing")
            replay = part.replay(part.ledger, policies, self._secrets)
            for _ in part.followed(replay):
                if replay.differences:
                    break
            part.compare(replay)
            for difference in replay.differences:
                raise NotArchived(difference)
            rows = part.entries_until(replay.entry)
            entry = replay.entry
            yield rows, (end := Verified(part.reached(replay), *_raised(end, rows)))


async def file_rows(files: ArchiveFiles, stub: Stub, after: int = 0) -> AsyncIterator[list[Row]]:
    """Yields the entries of a range after one of them, a row group at a time; raises ArchiveUnreachable."""
    for first in range(stub.first_entry, stub.last_entry + 1, ROWS_PER_GROUP):
        last = min(first + ROWS_PER_GROUP - 1, stub.last_entry)
        if last > after:
            yield await files.select([FileRange(stub.path, stub.first_entry, max(first, after + 1), last)], ROWS_PER_GROUP)


async def stub_difference(files: ArchiveFiles, stub: Stub, secrets: Secrets) -> str | None:
    """Returns the difference between a stub and its signature or its file, if any; raises ArchiveUnreachable."""
    if secrets.has_signed(stub.message, stub.signature) is False:
        return f"{stub}: the stub differs from its signature"
    found = await files.facts(stub.path)
    if found != FileFacts(stub.size, stub.digest):
        return f"{stub}: the file {stub.path} has {found.size} bytes and SHA-256 {found.digest.hex()}, not {stub.digest.hex()}"
    return None


async def check_file(files: ArchiveFiles, stub: Stub, secrets: Secrets) -> None:
    """Verifies the file of a range: its digest, its number of entries, and its hashes. Raises NotArchived."""
    if difference := await stub_difference(files, stub, secrets):
        raise NotArchived(difference)
    head, entry = stub.previous_hash, stub.first_entry - 1
    async for rows in file_rows(files, stub):
        for line in map(line_from, rows):
            head, entry = link(head, line.entry), entry + 1
            if (line.entry.symbol, line.entry.entry, line.hash) != (stub.symbol, entry, head):
                raise NotArchived(f"{stub}: the file {stub.path} does not continue the chain at entry {entry}")
    if (entry, head) != (stub.last_entry, stub.last_hash):
        raise NotArchived(f"{stub}: the file {stub.path} ends with entry {entry} and hash {head.hex()}")


def _raised(end: Verified, rows: Iterable[Any]) -> tuple[int, int]:
    """Returns the highest sequence and the chart clock after further entries."""
    seq, clock = end.seq, end.clock
    for row in rows:
        seq = max(seq, row["seq"])
        clock = max(clock, charted_ms(row["ts"], (row["recorded_at"] - EPOCH) // MICROSECOND))
    return seq, clock
