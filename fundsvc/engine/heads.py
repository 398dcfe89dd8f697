"""Heads of chains that are kept outside the database, where its owner cannot change them, and the ledger compared with them.

Each entry seals the one before it, and so does each ADL record. So one hash, kept elsewhere, fixes everything up to it: a chain
that was rewritten with valid hashes, an end that was cut off and a contract that was deleted all differ from it.

A file has one JSON object a line: `symbol`; `entry` and `head` (hex), number and hash of its last entry; `adlRecord` and
`adlHead`, those of its last ADL record; `at`, when they were read (milliseconds). Further keys are passed over. An answer of
the API's insurance-fund routes stands for the funds in it, so a file of saved answers is a file of heads.
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

from fundsvc.store.database import Pool, StoreFault
from fundsvc.store.reader import fetch

HEADS_PER_READ = 1000
"""Bounds a statement: each head is two look-ups by key."""

FILE_PATTERN = "heads-*.jsonl"


class Head(msgspec.Struct, rename="camel", frozen=True):
    """The ends of a contract's two chains, at a time (ms): numbers and hashes (hex); number 0 is an empty chain."""

    symbol: str
    entry: int
    head: str
    adl_record: int = 0
    adl_head: str = ""
    at: int = 0


class _Answer(msgspec.Struct):
    """An answer of the API: one fund, or a list of them."""

    data: list[Head] | Head


async def save_heads(pool: Pool, directory: Path, days: float) -> None:
    """Writes the heads of all contracts into this hour's file, if there is none yet, and removes files older than so many days.

    Raises StoreFault where the database or the directory does not do its part.
    """
    path = directory / time.strftime("heads-%Y-%m-%dT%H.jsonl", time.gmtime())
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
    """Writes a file whole or not at all, and never over another: the first one of an hour stays."""
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
    """The heads in a file, or in all files that an engine kept in a directory; raises ValueError for a line without any."""
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


async def head_differences(pool: Pool, heads: Iterable[Head]) -> dict[str, list[str]]:
    """Where the ledger is not what chunk heads say that it was, by contract; raises StoreFault."""
    found: dict[str, list[str]] = defaultdict(list)
    rest = iter(heads)
    while chunk := list(islice(rest, HEADS_PER_READ)):
        keys = [head.symbol for head in chunk], [head.entry for head in chunk], [head.adl_record for head in chunk]
        for head, row in zip(chunk, await fetch(pool, "chain_links", *keys), strict=True):
            found[head.symbol] += _differences(head, *row)
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
