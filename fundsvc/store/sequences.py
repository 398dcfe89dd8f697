"""Reads what the ledger contains of engine sequences. No index maps a sequence to its entry, so it reads pages of entries.

Sequences up to that of an archived entry, without an entry in the table, are archived: their entries are in files, which no
engine reads.

A fill has one entry. An unwind has one for each tranche; their lots add up to those of the event. A takeover has an entry of
the accepted lots, and an order for the rest. If it has no entry, the ledger does not contain its trade and order.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import asyncpg

from fundsvc.core.adl.valuation import SideName
from fundsvc.core.generations import public_symbol
from fundsvc.core.numbers import INT64_MAX
from fundsvc.core.sequences import (
    Applied,
    Content,
    Facts,
    Found,
    Key,
    WithoutIds,
    content_of_end,
    content_of_execution,
    content_of_fill,
    content_of_settlement,
    content_of_takeover,
    content_of_unwind,
)

PAGE_ENTRIES = 1000
"""Entries of a contract per read. Engines resend runs of events, so the following entries are likely to be needed next."""

WITHOUT_EVENTS = frozenset({"refund", "cover", "deleverage", "carry_out", "carry_in"})
"""Kinds of entries that contain no event: those that an ADL order causes, whose records contain it, and moves of balances."""

Fetch = Callable[..., Awaitable[list[asyncpg.Record]]]
"""Runs a statement by name with its parameters."""


class Event(NamedTuple):
    """What the entries of an event contain, with the lots of all of them."""

    kind: str
    side: str
    lots: int
    price: int
    bankruptcy_price: int
    trade_id: str
    order_id: str
    account: str
    ts: int

    def content(self) -> Content:
        """Hashes the event without its sequence."""
        match self.kind:
            case "unwind":
                return content_of_unwind(self.side, self.lots, self.price, self.trade_id, self.order_id, self.ts)
            case "takeover":
                ids = self.trade_id, self.order_id, self.account
                return content_of_takeover(self.side, self.lots, self.price, *ids, self.ts)
        return content_of_fill(*self[1:])


async def facts_of(fetch: Fetch, wanted: Mapping[str, Sequence[int]]) -> Facts:
    """Returns what the ledger contains of the first of each contract's ascending sequences, at least of the very first."""
    rows = await fetch("sequences_from", list(wanted), [seqs[0] for seqs in wanted.values()], PAGE_ENTRIES)
    lasts = _lasts(rows)
    ends = {row["symbol"]: row["seq"] for row in lasts}
    keys = [(symbol, seq) for symbol, seqs in wanted.items() for seq in seqs if seq <= ends.get(symbol, INT64_MAX)]
    symbols, numbers = list({symbol for symbol, _ in keys}), list({seq for _, seq in keys})
    late = await fetch("sequences_late", symbols, numbers)
    # Read after the entries: a bound moves before entries are removed.
    bounds = {row["symbol"]: row for row in await fetch("sequences_archived", symbols)}
    found = await _events([row for row in (*rows, *late) if not _is_archived(row, bounds)])
    await _complete(fetch, found, [row for row in lasts if _is_piece(row) and not _is_archived(row, bounds)])
    archived = {key for key in keys if key not in found and key[0] in bounds and key[1] <= bounds[key[0]]["seq"]}
    columns = list(map(list, zip(*keys, strict=True)))
    applied = _contents(found, await fetch("sequences_takeovers", *columns), set(keys), archived)
    for symbol, seq, kind, *answer in await fetch("sequences_adl", *columns):
        # An order that ends at once, without candidates, has the sequence of its fill or takeover, which has an entry.
        if kind == "execution" or (symbol, seq) not in archived:
            applied.setdefault((symbol, seq), _content_of_answer(kind, *answer))
    for symbol, seq, price, ts in await fetch("sequences_settled", symbols, numbers):
        applied[symbol, seq] = content_of_settlement(price, ts)  # Its entries contain other fields.
    refused = await fetch("sequences_refused", [public_symbol(symbol) for symbol in symbols], numbers)
    unknown = {key: Applied.UNVERIFIED if key in found else Applied.NEVER for key in keys}
    return Facts(unknown | dict.fromkeys(archived, Applied.ARCHIVED) | applied, [row["digest"] for row in refused])


def _is_archived(row: asyncpg.Record, bounds: Mapping[str, asyncpg.Record]) -> bool:
    """Whether an entry is one of an archived range. The table has only some of these, so they are not used."""
    return row["symbol"] in bounds and row["entry"] <= bounds[row["symbol"]]["entry"]


def _lasts(rows: Iterable[asyncpg.Record]) -> list[asyncpg.Record]:
    """Returns the last entry of each contract with a full page. For other contracts, the page contains all later entries."""
    counts: dict[str, int] = {}
    lasts: dict[str, asyncpg.Record] = {}
    for row in rows:
        symbol = row["symbol"]
        counts[symbol] = counts.get(symbol, 0) + 1
        lasts[symbol] = row
    return [row for symbol, row in lasts.items() if counts[symbol] == PAGE_ENTRIES]


def _is_piece(row: asyncpg.Record) -> bool:
    return bool(row["closes"]) and row["kind"] != "deleverage"


async def _events(rows: Sequence[asyncpg.Record]) -> dict[Key, Event | None]:
    """Returns the events that entries contain, by sequence; None for a sequence that has only entries without events."""
    found: dict[Key, Event | None] = {}
    for number, row in enumerate(rows, 1):
        key, kind = (row["symbol"], row["seq"]), row["kind"]
        event = found.setdefault(key, None)
        if event is None and kind not in WITHOUT_EVENTS and not row["forced"]:
            found[key] = Event("unwind" if row["closes"] else kind, *row[6:])
        elif event is not None and event.kind == "unwind" and _is_piece(row):
            found[key] = event._replace(lots=event.lots + row["lots"])
        if number % PAGE_ENTRIES == 0:
            await asyncio.sleep(0)
    return found


async def _complete(fetch: Fetch, found: dict[Key, Event | None], lasts: Sequence[asyncpg.Record]) -> None:
    """Adds the pieces of unwinds whose last entry on a full page is given, but which continue after the page."""
    columns = [[row[name] for row in lasts] for name in ("symbol", "seq", "entry")]
    for symbol, seq, lots in await fetch("sequences_rest", *columns) if lasts else ():
        event = found[symbol, seq]
        found[symbol, seq] = event and event._replace(lots=event.lots + lots)


def _contents(
    found: Mapping[Key, Event | None], orders: Iterable[asyncpg.Record], known: set[Key], archived: set[Key]
) -> dict[Key, Found]:
    """Returns the contents of events. `orders` are the takeover orders of `known` sequences; other takeovers are left out, and
    `archived` ones.
    """
    applied: dict[Key, Found] = {}
    rests = {key: row for row in orders if (key := (row["symbol"], row["seq"])) not in archived}
    for key, event in found.items():
        if event is not None and event.kind != "takeover":
            applied[key] = event.content()
        elif event is not None and key in known:
            rest = rests.get(key)
            applied[key] = event._replace(lots=event.lots + (rest["lots"] if rest else 0)).content()
    for key, row in rests.items():
        if found.get(key) is None:
            lots, price, account, ts = row[4:]
            applied[key] = WithoutIds(content_of_takeover(_side(row["reduce"]), lots, price, "", "", account, ts))
    return applied


def _side(reduce: SideName) -> str:
    """Returns the side of a takeover whose order reduces positions of a side."""
    return "sell" if reduce == "short" else "buy"


def _content_of_answer(kind: str, adl: int, account: str, lots: int, ts: int) -> Content:
    """Returns the content of the adlFill or adlEnd event of an ADL record."""
    return content_of_execution(adl, account, lots, ts) if kind == "execution" else content_of_end(adl, ts)
