"""Reads what the ledger contains of engine sequences. No index maps a sequence to its entry, so it reads pages of entries."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import asyncpg

from fundsvc.core.numbers import INT64_MAX
from fundsvc.core.sequences import (
    Applied,
    Content,
    Facts,
    Key,
    content_of_end,
    content_of_execution,
    content_of_fill,
    content_of_settlement,
)

PAGE_ENTRIES = 1000
"""Entries of a contract per read. Engines resend runs of events, so the following entries are likely to be needed next."""

Fetch = Callable[..., Awaitable[list[asyncpg.Record]]]
"""Runs a statement by name with its parameters."""


async def facts_of(fetch: Fetch, wanted: Mapping[str, Sequence[int]]) -> Facts:
    """Returns what the ledger contains of the first of each contract's ascending sequences, at least of the very first."""
    rows = await fetch("sequences_from", list(wanted), [seqs[0] for seqs in wanted.values()], PAGE_ENTRIES)
    applied = await _contents(rows)
    ends = _ends(rows)
    keys = [(symbol, seq) for symbol, seqs in wanted.items() for seq in seqs if seq <= ends.get(symbol, INT64_MAX)]
    symbols, numbers = list({symbol for symbol, _ in keys}), list({seq for _, seq in keys})
    applied |= await _contents(await fetch("sequences_late", symbols, numbers))
    for symbol, seq, kind, *answer in await fetch("sequences_adl", *map(list, zip(*keys, strict=True))):
        # An order that ends at once, without candidates, has the sequence of its fill. The fill's entry contains that content.
        if not isinstance(applied.get((symbol, seq)), int):
            applied[symbol, seq] = _content_of_answer(kind, *answer)
    for symbol, seq, price, ts in await fetch("sequences_settled", symbols, numbers):
        applied[symbol, seq] = content_of_settlement(price, ts)  # Its entries contain other fields.
    refused = await fetch("sequences_refused", symbols, numbers)
    # Pages also contain entries outside `wanted`. Unverified ones are left out; the call that wants one reads its event.
    seen = {key: content for key, content in applied.items() if content is not Applied.UNVERIFIED}
    facts = {key: applied.get(key, Applied.NEVER) for key in keys} | seen
    return Facts(facts, [row["digest"] for row in refused])


def _ends(rows: Iterable[asyncpg.Record]) -> dict[str, int]:
    """Returns the last sequence of each contract with a full page. For other contracts, the page contains all later entries."""
    counts: dict[str, int] = {}
    lasts: dict[str, int] = {}
    for row in rows:
        symbol = row["symbol"]
        counts[symbol] = counts.get(symbol, 0) + 1
        lasts[symbol] = row["seq"]
    return {symbol: seq for symbol, seq in lasts.items() if counts[symbol] == PAGE_ENTRIES}


async def _contents(rows: Sequence[asyncpg.Record]) -> dict[Key, Content | Applied]:
    """Returns the contents applied under the sequences of entries. An entry that an ADL order causes has no content of an
    event.
    """
    found: dict[Key, Content | Applied] = {}
    for number, row in enumerate(rows, 1):
        is_of_order = row["kind"] in ("refund", "cover")
        found.setdefault((row["symbol"], row["seq"]), Applied.UNVERIFIED if is_of_order else content_of_fill(*row[3:]))
        if number % PAGE_ENTRIES == 0:
            await asyncio.sleep(0)
    return found


def _content_of_answer(kind: str, adl: int, account: str, lots: int, ts: int) -> Content:
    """Returns the content of the adlFill or adlEnd event of an ADL record."""
    return content_of_execution(adl, account, lots, ts) if kind == "execution" else content_of_end(adl, ts)
