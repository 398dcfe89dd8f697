"""Histories as other venues tell them: balances of a currency by day, and when ADL of a contract began and ended."""

from collections import Counter
from typing import NamedTuple

from fundsvc.store.database import Pool
from fundsvc.store.reader import HOUR_MS, fetch

DAY_MS = 24 * HOUR_MS


class DayRow(NamedTuple):
    """What the funds of a currency held together, in 10**-decimals of it, at the end of the day that began at `start` (ms)."""

    start: int
    balance: int
    decimals: int


class TurnRow(NamedTuple):
    """When ADL began, and what the fund held then, in atoms; or when it ended. Times in ms."""

    ts: int
    began: bool
    balance: int | None


class Histories:
    """Answers from rollups, entries and orders; every method raises StoreFault when the database is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def days(self, currency: str, count: int, now_ms: int) -> list[DayRow]:
        """The last `count` days until now of the funds of a currency, the oldest first, from when they held something.

        What an engine whose clock is ahead has moved on a later day counts for today.
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
        """When ADL of a contract began and ended within a time, both ends included, the newest first, at most `count`."""
        return [TurnRow(*row) for row in await fetch(self._pool, "adl_turns", symbol, start_ms, end_ms, count)]
