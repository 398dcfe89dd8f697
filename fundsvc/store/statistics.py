"""Reads past states of funds, from the hourly rollups, and from the entries for finer or newer times.

A chart places an entry at the latest time of all entries up to it, so times rise along the entries. An entry that is settled
late, with an old time, does not change past balances. A time more than five minutes ahead of the clock at its recording counts
as that clock. The SQL functions `charted_at` and `chart_hours` implement this definition.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from operator import add, itemgetter, sub
from typing import NamedTuple

import asyncpg

from fundsvc.core.events import TIMESTAMP_MAX
from fundsvc.store.archive.files import NO_FILES, ArchiveFiles
from fundsvc.store.archive.ranges import Archives, ChartRows
from fundsvc.store.database import Pool
from fundsvc.store.reader import HOUR_MS, Span, fetch

DAY_MS = 24 * HOUR_MS
WEEK_MS = 7 * DAY_MS

PEAK_MS = 8 * HOUR_MS
"""The window of Bybit's and OKX's drawdown rules, and the default of the drawdown guard."""


CHART_BUCKETS_MAX = 1500
"""The buckets of a chart: more than one for each pixel of its width."""

CHART_ENTRIES_MAX = 150_000
"""The newest entries of a chart that are read one by one. PostgreSQL groups them in 0.2 s; hours stand for earlier ones."""

CHART_HOURS_MAX = 62 * 24
"""Before those entries, a longer chart has days instead of hours."""

WITHOUT_FILLS = frozenset({"refund", "cover", "carry_out", "carry_in"})
"""Kinds of entries that a chart does not count as fills."""

SEQUENCES = 1000
"""Archived entries of one search for an entry that was not settled late."""


class Past(NamedTuple):
    """A fund's balance a day ago and a week ago, and its highest balance of the last eight hours, in atoms."""

    day: int
    week: int
    peak: int


class FundAt(NamedTuple):
    """A fund at a moment: after entry `entry` of time `entry_ts`; all 0 before the first entry."""

    entry: int
    entry_ts: int
    balance: int
    outstanding: int


class Bucket(NamedTuple):
    """A candle of a balance: amounts in atoms, `start` in milliseconds."""

    start: int
    opening: int
    highest: int
    lowest: int
    closing: int
    credited: int
    paid: int
    uncovered: int
    fills: int


class ChartBucket(NamedTuple):
    """A part of a chart, with the times of its first and last entry (ms): its balances and what changed them, in atoms."""

    since: int
    until: int
    highest: int
    lowest: int
    closing: int
    paid: int
    uncovered: int
    fills: int


class Chart(NamedTuple):
    """The balance over time up to entry `entry`: `opening` at `start` (ms), then as its buckets state.

    `begin` is the time of the fund's first entry, None without entries.
    """

    begin: int | None
    start: int
    opening: int
    entry: int
    buckets: list[ChartBucket]


class Hour(NamedTuple):
    """An hour of a fund: its start (ms), and the balance before it, its lowest and its last one in atoms."""

    start: int
    opening: int
    lowest: int
    closing: int


class CurrencyBucket(NamedTuple):
    """The total balance of a currency's funds at the start and the end of a part of time, and what changed it, in atoms."""

    start: int
    opening: int
    closing: int
    credited: int
    paid: int
    uncovered: int
    fills: int


class CurrencyHistory(NamedTuple):
    """The buckets of a currency from its first change on; amounts count units of 10**-decimals."""

    currency: str
    decimals: int
    buckets: list[CurrencyBucket]


class Statistics:
    """Reads past states of funds. Every method raises StoreFault if the database is unreachable.

    `at` and `chart` raise ArchiveUnreachable if they need archived entries and `files`, by default none, are. The other methods
    read rollups, and entries of the last days, which are never archived.
    """

    def __init__(self, pool: Pool, files: ArchiveFiles = NO_FILES) -> None:
        self._pool = pool
        self._archives = Archives(pool, files)
        self._next: dict[tuple[str, int], int] = {}

    async def past(self, now_ms: int) -> dict[str, Past]:
        """Returns the past balances of every fund. `now_ms` must not decrease, because each call continues from the previous
        one.
        """
        moments = [now_ms - DAY_MS, now_ms - WEEK_MS, now_ms - PEAK_MS]
        known = [(symbol, place, entry) for (symbol, place), entry in self._next.items()]
        columns = [[row[column] for row in known] for column in range(3)]
        rows = await fetch(self._pool, "balances_at", None, moments, *columns)
        highest = await self.peaks(now_ms)
        self._next = {(row["symbol"], row["place"]): row["next"] for row in rows}
        balances = {(row["symbol"], row["place"]): row["balance"] for row in rows}
        return {
            symbol: Past(balances[symbol, 1], balances[symbol, 2], max(balances[symbol, 3], highest.get(symbol, 0)))
            for symbol in {row["symbol"] for row in rows}
        }

    async def peaks(self, now_ms: int) -> dict[str, int]:
        """Returns the highest balance of the last eight hours of each fund with entries in them."""
        return {row["symbol"]: row["highest"] for row in await fetch(self._pool, "highest_since", now_ms - PEAK_MS)}

    async def at(self, symbol: str, moment_ms: int) -> FundAt:
        """Returns a listed contract's fund at a moment."""
        (found,), bound = await self._states(symbol, [moment_ms])
        if 0 < found.entry <= bound:
            return found._replace(outstanding=await self._archived_outstanding(symbol, found.entry, bound))
        ((outstanding,),) = await fetch(self._pool, "outstanding_at", symbol, found.entry)
        return found._replace(outstanding=int(outstanding))

    async def _states(self, symbol: str, moments: Sequence[int]) -> tuple[list[FundAt], int]:
        """Returns a contract's fund at some moments, without the outstanding amount, and its last archived entry."""
        rows = await fetch(self._pool, "balances_at", [symbol], moments, [], [], [])
        bound = await self._archives.bound(symbol)
        found = [FundAt(row["next"] - 1, row["ts"], row["balance"], 0) for row in sorted(rows, key=itemgetter("place"))]
        return [
            await self._archived_state(symbol, moment, one.entry) if 0 < one.entry <= bound else one
            for one, moment in zip(found, moments, strict=True)
        ], bound

    async def _archived_state(self, symbol: str, moment_ms: int, last: int) -> FundAt:
        """Returns the fund after the last archived entry, up to `last`, that a chart does not place after a moment."""
        entry = last
        for first, end in await self._archives.fetch("hour_of", symbol, moment_ms - moment_ms % HOUR_MS):
            part = await self._archives.chart_rows(symbol, first, end)
            entry = next((first + place - 1 for place, time in enumerate(part.times) if time > moment_ms), last)
        row = await self._archives.row(symbol, entry)
        return FundAt(entry, row["ts"], row["balance"], 0)

    async def _archived_outstanding(self, symbol: str, entry: int, bound: int) -> int:
        """Returns the outstanding amount after an archived entry, as the statement `outstanding_at` does of others."""
        ((first,),) = await self._archives.fetch("hour_before", symbol, entry + 1)
        part = await self._archives.chart_rows(symbol, first, entry, "uncovered", "repaid")
        owed = sum(part.columns["uncovered"]) - sum(part.columns["repaid"])
        seq = await self._sequence_after(symbol, entry, bound)
        ((outstanding,),) = await self._archives.fetch("outstanding", symbol, entry, owed, first, seq)
        return int(outstanding)

    async def _sequence_after(self, symbol: str, entry: int, bound: int) -> int:
        """Returns the sequence of the first entry after an archived one that was not settled late."""
        while rows := await self._archives.rows(symbol, entry + 1, min(entry + SEQUENCES, bound), SEQUENCES):
            late = {row["entry"] for row in await self._archives.fetch("late_entries", symbol, entry + 1, entry + SEQUENCES)}
            for row in rows:
                if row["entry"] not in late:
                    return int(row["seq"])
            entry = rows[-1]["entry"]
        ((seq,),) = await self._archives.fetch("sequence_from", symbol, bound)
        return int(seq)

    async def buckets(self, symbol: str, start_ms: int, end_ms: int, width_ms: int) -> list[Bucket]:
        """Returns the buckets with entries, from the one that starts at `start_ms` to the one that ends at `end_ms`.

        The last earlier bucket, if any, precedes them: its close is the balance at their begin.
        """
        rows = await fetch(self._pool, "candles", symbol, start_ms, end_ms, width_ms)
        return [Bucket(*map(int, row)) for row in rows]

    async def currencies(self, span: range, now_ms: int) -> list[CurrencyHistory]:
        """Returns the total balance of each currency's funds in the buckets that start within a span, until now, by currency.

        Changes that an engine with a fast clock dated after the present bucket count for that.
        """
        present = now_ms - now_ms % span.step
        starts = range(span.start, min(span.stop, present + span.step), span.step)
        rows = await fetch(self._pool, "currency_buckets", span.start, span.step)
        groups = {currency: list(group) for currency, group in groupby(rows, itemgetter("currency"))}
        return [_history(currency, group, starts, present) for currency, group in groups.items()]

    async def hours(self, since_ms: int) -> dict[str, list[Hour]]:
        """Returns the hours with entries that begin at `since_ms` or later, by ledger key."""
        rows = await fetch(self._pool, "fund_hours", since_ms)
        return {symbol: [Hour(*row[1:]) for row in map(tuple, group)] for symbol, group in groupby(rows, itemgetter("symbol"))}

    async def chart(self, symbol: str, start_ms: int, end_ms: int | None) -> Chart:
        """Returns the balance of a listed contract from `start_ms`, or its first entry, to `end_ms`; None means its last entry.

        The lowest and the highest balance of each time are those of a bucket, so the chart shows every dip. Few entries have a
        bucket each.
        """
        ((begin, clock),) = await fetch(self._pool, "chart_ends", symbol)
        if begin is None:
            return Chart(None, start_ms, 0, 0, [])
        start = max(start_ms, begin - 1)
        end = max(start, clock if end_ms is None else end_ms)
        (opened, closed), _ = await self._states(symbol, [start, TIMESTAMP_MAX if end_ms is None else end])
        width = max(1, -(-(end - start) // CHART_BUCKETS_MAX))
        buckets = await self._chart_buckets(symbol, opened.entry + 1, closed.entry, start, width)
        return Chart(begin, start, opened.balance, closed.entry, buckets)

    async def _chart_buckets(self, symbol: str, first: int, last: int, start: int, width: int) -> list[ChartBucket]:
        """Returns the buckets of entries; of many, the earlier ones as hours or days, which may begin within a bucket."""
        near, hour, clock = first, None, start
        if last - first >= CHART_ENTRIES_MAX:
            near = last - CHART_ENTRIES_MAX + 1
            ((hour,),) = await fetch(self._pool, "chart_hour_from", symbol, near, last)
            near = hour or near
            clock = await self._clock_before(symbol, near)
        fine = await self._fine_buckets(symbol, Span(near, last), start, width, clock)
        if near == first:
            return fine
        since = fine[0].since
        length = HOUR_MS if since - start <= CHART_HOURS_MAX * HOUR_MS else DAY_MS
        end = since - since % HOUR_MS if hour else since
        earlier = await self.buckets(symbol, start - start % length, end, length)
        return [_charted(bucket, length, start, since) for bucket in earlier if bucket.start + length > start] + fine

    async def _clock_before(self, symbol: str, entry: int) -> int:
        """Returns the chart clock before an entry: the latest time of the hour before."""
        ((clock,),) = await fetch(self._pool, "chart_clock_before", symbol, entry)
        if entry - 1 > await self._archives.bound(symbol):
            return int(clock)
        ((first,),) = await self._archives.fetch("hour_before", symbol, entry)
        return max((await self._archives.chart_rows(symbol, first, entry - 1)).times)

    async def _fine_buckets(self, symbol: str, entries: Span, start: int, width: int, clock: int) -> list[ChartBucket]:
        """Returns the buckets of entries that are read one by one. `clock` is the chart clock before the first one."""
        first, last = entries
        rows = await fetch(self._pool, "chart_buckets", symbol, first, last, start, width, clock)
        bound = min(last, await self._archives.bound(symbol))
        if first > bound:
            return [ChartBucket(*map(int, row)) for row in rows]
        part = await self._archives.chart_rows(symbol, first, bound, "kind", "change", "balance", "uncovered")
        clocks = part.clocks(clock)
        archived = _archived_buckets(part, clocks, start, width)
        rows = await fetch(self._pool, "chart_buckets", symbol, bound + 1, last, start, width, clocks[-1])
        return _joined(archived, [ChartBucket(*map(int, row)) for row in rows], start, width)

    async def marks(self) -> dict[str, int]:
        """Returns the last stored mark of each contract, in the contract's units."""
        return {row["symbol"]: row["mark"] for row in await fetch(self._pool, "marks")}


def _history(currency: str, rows: list[asyncpg.Record], starts: range, present: int) -> CurrencyHistory:
    """Returns the history of a currency from its present total and the changes since the first bucket."""
    changes: defaultdict[int, tuple[int, ...]] = defaultdict(lambda: (0, 0, 0, 0))
    for row in rows:
        if row["start"] is not None:
            start = min(row["start"], present)
            amounts = map(int, (row["credited"], row["paid"], row["uncovered"], row["fills"]))
            changes[start] = tuple(map(add, changes[start], amounts))
    balance = int(rows[0]["held"]) - sum(credited - paid for credited, paid, *_ in changes.values())
    buckets: list[CurrencyBucket] = []
    for start in starts:
        credited, paid, uncovered, fills = changes.get(start, (0, 0, 0, 0))
        opening, balance = balance, balance + credited - paid
        if buckets or opening or start in changes:
            buckets.append(CurrencyBucket(start, opening, balance, credited, paid, uncovered, fills))
    return CurrencyHistory(currency, rows[0]["decimals"], buckets)


def _archived_buckets(part: ChartRows, clocks: Sequence[int], start: int, width: int) -> list[ChartBucket]:
    """Returns the buckets of archived entries, as the statement `chart_buckets` does of others."""
    rows = zip(clocks, *(part.columns[name] for name in ("kind", "change", "balance", "uncovered")), strict=True)
    buckets: list[ChartBucket] = []
    for _, group in groupby(rows, lambda row: (row[0] - start) // width):
        times, kinds, changes, balances, uncovered = map(list, zip(*group, strict=True))
        before = list(map(sub, balances, changes))
        fills = sum(kind not in WITHOUT_FILLS for kind in kinds)
        paid = sum(max(0, -change) for change in changes)
        highest, lowest = max(*balances, *before), min(*balances, *before)
        buckets.append(ChartBucket(times[0], times[-1], highest, lowest, balances[-1], paid, sum(uncovered), fills))
    return buckets


def _joined(earlier: list[ChartBucket], later: list[ChartBucket], start: int, width: int) -> list[ChartBucket]:
    """Returns all buckets; the last of the earlier ones and the first of the later ones may be parts of one."""
    if not later or (earlier[-1].until - start) // width != (later[0].since - start) // width:
        return earlier + later
    one, two = earlier[-1], later[0]
    whole = ChartBucket(
        one.since,
        two.until,
        max(one.highest, two.highest),
        min(one.lowest, two.lowest),
        two.closing,
        one.paid + two.paid,
        one.uncovered + two.uncovered,
        one.fills + two.fills,
    )
    return [*earlier[:-1], whole, *later[1:]]


def _charted(bucket: Bucket, length: int, start: int, end: int) -> ChartBucket:
    """Returns a candle of `length` milliseconds as a bucket of a chart from `start` to `end`."""
    since, until = max(start, bucket.start), min(end, bucket.start + length) - 1
    amounts = bucket.highest, bucket.lowest, bucket.closing, bucket.paid, bucket.uncovered
    return ChartBucket(since, max(since, until), *amounts, bucket.fills)
