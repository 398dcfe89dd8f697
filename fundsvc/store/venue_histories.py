"""Histories in the form of other venues: balances of a currency by day, and the times at which ADL of a contract began and
ended.
"""

from collections import Counter
from typing import NamedTuple

from fundsvc.store.database import Pool
from fundsvc.store.reader import HOUR_MS, fetch

DAY_MS = 24 * HOUR_MS


class DayRow(NamedTuple):
    """The total balance of a currency's funds, in units of 10**-decimals, at the end of the day that begins at `start` (ms)."""

    start: int
    balance: int
    decimals: int


class TurnRow(NamedTuple):
    """The begin of ADL with the fund's balance in atoms, or its end. Times are in ms."""

    ts: int
    began: bool
    balance: int | None


class Histories:
    """Reads rollups, entries and orders. Every method raises StoreFault if the database is unreachable."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def days(self, currency: str, count: int, now_ms: int) -> list[DayRow]:
        """Returns the last `count` days of a currency's funds, oldest first, from the first day with a balance.

        Changes that an engine with a fast clock dated to a later day count for today.
        """
        today = now_ms - now_ms % DAY_MS
        begin = today - (count - 1) * DAY_MS
        rows = await fetch(self._pool, "currency_days", currency, begin, DAY_MS)
        changes: Counter[int] = Counter()
        for row in rows:
            if row["day"] is not None:
                changes[min(row["day"], today)] += int(row["change"])
        balance, decimals = int(rows[0]["held"]) - sum(changes.values()), rows[0]["decimals"]
        days = []
        for start in range(begin if balance else min(changes, default=today), today + DAY_MS, DAY_MS):
            balance += changes[start]
            days.append(DayRow(start, balance, decimals))
        return days

    async def turns(self, symbol: str, start_ms: int, end_ms: int, count: int) -> list[TurnRow]:
        """Returns up to `count` begins and ends of a contract's ADL within a time span, both ends included, newest first."""
        return [TurnRow(*row) for row in await fetch(self._pool, "adl_turns", symbol, start_ms, end_ms, count)]
