"""Saves the heads of all chains outside the database, where its owner cannot change them, and compares the ledger with them.

Each entry contains the hash of the previous entry, and each ADL record that of the previous record. A saved hash therefore
detects every change before it: a chain rewritten with valid hashes, a truncated chain, a deleted contract.

A file contains one JSON object a line: `symbol`; `entry` and `head` (hex), the number and hash of the last entry; `adlRecord`
and `adlHead`, those of the last ADL record; `at`, the time of reading (milliseconds). Other keys are ignored. A line may also
be an answer of the API's insurance-fund routes, so a file of saved answers is a file of heads.
"""

import asyncio
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from fundsvc.config.cells import MAIN
from fundsvc.store.archive.files import NO_FILES, ArchiveFiles
from fundsvc.store.archive.ranges import Archives
from fundsvc.store.database import Pool, StoreFault
from fundsvc.store.reader import fetch

HEADS_PER_READ = 1000
"""Bounds a query: each head costs two look-ups by key."""

FILE_PATTERN = "heads-*.jsonl"


class Head(msgspec.Struct, rename="camel", frozen=True):
    """The ends of a contract's two chains at a time (ms): numbers and hashes (hex). Number 0 denotes an empty chain."""

    symbol: str
    entry: int
    head: str
    adl_record: int = 0
    adl_head: str = ""
    at: int = 0


class _Answer(msgspec.Struct):
    """An answer of the API: one fund, or a list of funds."""

    data: list[Head] | Head


async def save_heads(pool: Pool, directory: Path, days: float, cell: str = MAIN) -> None:
    """Writes the heads of all contracts of a cell into its file of this hour unless it exists, and deletes files older than
    `days`.

    Raises StoreFault if the database fails or the directory is not writable.
    """
    of_cell = "" if cell == MAIN else f"-{cell}"
    path = directory / time.strftime(f"heads-%Y-%m-%dT%H{of_cell}.jsonl", time.gmtime())
    if path.exists():
        return
    now = time.time_ns() // 1_000_000
    heads = [Head(**row, at=now) for row in await fetch(pool, "chain_heads")]
    try:
        await asyncio.to_thread(_write, path, heads)
        await asyncio.to_thread(_expire, directory, time.time() - days * 86_400)
    except OSError as error:
        raise StoreFault(f"heads are not kept: {error}") from error


def _write(path: Path, heads: Sequence[Head]) -> None:
    """Writes the file atomically. Never overwrites a file: the first one of an hour stays."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent) as file:
        for head in heads:
            file.write(msgspec.json.encode(head) + b"\n")
        file.flush()
        os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(file.name, path)


def _expire(directory: Path, before: float) -> None:
    for path in directory.glob(FILE_PATTERN):
        if path.stat().st_mtime < before:
            path.unlink(missing_ok=True)


def read_heads(path: Path) -> Iterator[Head]:
    """Yields the heads of a file, or of all files in a directory; raises ValueError for a line without a head."""
    for file in sorted(path.glob(FILE_PATTERN)) if path.is_dir() else [path]:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield from _heads_in(line, f"{file}, line {number}")


def _heads_in(line: bytes, place: str) -> Iterable[Head]:
    try:
        found: Any = msgspec.json.decode(line)
        if isinstance(found, dict) and "data" in found:
            data = msgspec.convert(found, _Answer).data
            return data if isinstance(data, list) else [data]
        return [msgspec.convert(found, Head)]
    except msgspec.ValidationError as error:
        raise ValueError(f"{place} has no head: {error}") from None
    except msgspec.DecodeError as error:
        raise ValueError(f"{place} is not JSON: {error}") from None


async def head_differences(pool: Pool, heads: Iterable[Head], files: ArchiveFiles = NO_FILES) -> dict[str, list[str]]:
    """Returns the differences between the ledger and saved heads, by contract; raises StoreFault."""
    found: dict[str, list[str]] = defaultdict(list)
    archives = Archives(pool, files)
    rest = iter(heads)
    while chunk := list(islice(rest, HEADS_PER_READ)):
        keys = [head.symbol for head in chunk], [head.entry for head in chunk], [head.adl_record for head in chunk]
        for head, row in zip(chunk, await fetch(pool, "chain_links", *keys), strict=True):
            archived = await archives.after(head.symbol, head.entry - 1, 1) if head.entry and row["head"] is None else []
            entry_hash = archived[0]["hash"].hex() if archived else row["head"]
            found[head.symbol] += _differences(head, row["listed"], entry_hash, row["adl_head"])
    return {symbol: differences for symbol, differences in found.items() if differences}


def _differences(head: Head, listed: bool, entry_hash: str | None, record_hash: str | None) -> Iterator[str]:
    saved = f"a head that was saved {_moment(head.at)}"
    if not listed:
        yield f"{head.symbol}: the contract is missing, {saved} has it"
    chains = ("entry", head.entry, head.head, entry_hash), ("ADL record", head.adl_record, head.adl_head, record_hash)
    for what, number, then, now in chains:
        if number and now is None:
            yield f"{head.symbol} {what} {number} is missing, {saved} has it"
        elif number and now != then:
            yield f"{head.symbol} {what} {number}: hash is {now}, {saved} has {then}"


def _moment(at: int) -> str:
    return time.strftime("at %Y-%m-%dT%H:%M:%SZ", time.gmtime(at / 1000)) if at else "at an unknown time"
