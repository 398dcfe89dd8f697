"""Reads past states of funds, from the hourly rollups, and from the entries for finer or newer times.

A chart places an entry at the latest time of all entries up to it, so times rise along the entries. An entry that is settled
late, with an old time, does not change past balances. A time more than five minutes ahead of the clock at its recording counts
as that clock. The SQL functions `charted_at` and `chart_hours` implement this definition.
"""

from typing import NamedTuple

from fundsvc.store.database import Pool
from fundsvc.store.reader import HOUR_MS, fetch

DAY_MS = 24 * HOUR_MS
WEEK_MS = 7 * DAY_MS

PEAK_MS = 8 * HOUR_MS
"""The window of Bybit's and OKX's drawdown rules, and the default of the drawdown guard."""


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


class Statistics:
    """Reads past states of funds. Every method raises StoreFault if the database is unreachable."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
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
        (row,) = await fetch(self._pool, "balances_at", [symbol], [moment_ms], [], [], [])
        entry = row["next"] - 1
        ((outstanding,),) = await fetch(self._pool, "outstanding_at", symbol, entry)
        return FundAt(entry, row["ts"], row["balance"], int(outstanding))

    async def buckets(self, symbol: str, start_ms: int, end_ms: int, width_ms: int) -> list[Bucket]:
        """Returns the buckets with entries, from the one that starts at `start_ms` to the one that ends at `end_ms`.

        The last earlier bucket, if any, precedes them: its close is the balance at their begin.
        """
        rows = await fetch(self._pool, "candles", symbol, start_ms, end_ms, width_ms)
        return [Bucket(*map(int, row)) for row in rows]

    async def marks(self) -> dict[str, int]:
        """Returns the last stored mark of each contract, in the contract's units."""
        return {row["symbol"]: row["mark"] for row in await fetch(self._pool, "marks")}
