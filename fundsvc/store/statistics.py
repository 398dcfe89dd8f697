"""How funds stood at other times: from the hourly rollups, and from the entries where these are too coarse or not there yet.

An entry stands on a chart at the latest time of all entries up to it, so that time goes on along the entries: an entry that was
settled late, with a time long past, does not change what was the balance then. A time more than five minutes ahead of the clock
that an entry was recorded at is taken for that clock. The SQL functions `charted_at` and `chart_hours` are this definition.
"""

from typing import NamedTuple

from fundsvc.store.database import Pool
from fundsvc.store.reader import HOUR_MS, fetch

DAY_MS = 24 * HOUR_MS
WEEK_MS = 7 * DAY_MS

PEAK_MS = 8 * HOUR_MS
"""As far back as Bybit's and OKX's drawdown rules look, and our drawdown guard by default."""


class Past(NamedTuple):
    """What a fund held a day and a week ago, and at most within the last eight hours, in atoms."""

    day: int
    week: int
    peak: int


class FundAt(NamedTuple):
    """A fund at a moment: as entry `entry` left it at `entry_ts`; all 0 before the first."""

    entry: int
    entry_ts: int
    balance: int
    outstanding: int


class Bucket(NamedTuple):
    """A candle of a balance; amounts in atoms, `start` in milliseconds."""

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
    """Answers how funds stood; every method raises StoreFault when the database is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._next: dict[tuple[str, int], int] = {}

    async def past(self, now_ms: int) -> dict[str, Past]:
        """The past of every fund. `now_ms` must not go back, as what has passed once is not looked at again."""
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
        """The highest balance of the last eight hours, of each fund that has had entries in them."""
        return {row["symbol"]: row["highest"] for row in await fetch(self._pool, "highest_since", now_ms - PEAK_MS)}

    async def at(self, symbol: str, moment_ms: int) -> FundAt:
        """A listed contract's fund as it stood at a moment."""
        (row,) = await fetch(self._pool, "balances_at", [symbol], [moment_ms], [], [], [])
        entry = row["next"] - 1
        ((outstanding,),) = await fetch(self._pool, "outstanding_at", symbol, entry)
        return FundAt(entry, row["ts"], row["balance"], int(outstanding))

    async def buckets(self, symbol: str, start_ms: int, end_ms: int, width_ms: int) -> list[Bucket]:
        """The buckets of a fund that have entries, from one that starts at `start_ms` to one that ends at `end_ms`.

        Before them stands the last earlier one, if there is one: what its fund held when they began is its close.
        """
        rows = await fetch(self._pool, "candles", symbol, start_ms, end_ms, width_ms)
        return [Bucket(*map(int, row)) for row in rows]

    async def marks(self) -> dict[str, int]:
        """The marks of contracts as they were last kept, in the contracts' units."""
        return {row["symbol"]: row["mark"] for row in await fetch(self._pool, "marks")}
