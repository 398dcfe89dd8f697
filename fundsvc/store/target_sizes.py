"""Stores target sizes, and reads the deficits that the value at risk uses."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import asyncpg
import msgspec

from fundsvc.core.fund.fullness import Target, TargetPolicy
from fundsvc.core.fund.target_sizing import Deficits, Explanation, Size, quantile_rank
from fundsvc.store.database import SQL, Pool, acquired, faults, pool_of_symbol
from fundsvc.store.reader import HOUR_MS, fetch


class ExplainedTarget(NamedTuple):
    """A target with its explanation, or the reason why there is none, and its time."""

    target: Target
    explanation: Explanation | None
    reason: str
    computed_at: datetime


class Targets:
    """Reads and writes targets. Every method raises StoreFault if the database is unreachable."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def deficits(self, policies: Mapping[str, TargetPolicy]) -> dict[str, Deficits]:
        """Returns the deficits of some contracts, each by the periods and over the history of its policy.

        A history ends with the contract's last charted hour, so later quiet time does not count.
        """
        rows = await fetch(
            self._pool,
            "deficits",
            list(policies),
            [policy.period_hours * HOUR_MS for policy in policies.values()],
            [policy.periods_max for policy in policies.values()],
            [quantile_rank(policy.periods_max, policy.level) for policy in policies.values()],
        )
        return {row["symbol"]: _deficits(row) for row in rows}

    async def leverages(self, symbols: Sequence[str]) -> dict[str, float | None]:
        """Returns the listed `maxLeverage` of some contracts, or None."""
        rows = await fetch(self._pool, "leverages", symbols)
        return {row["symbol"]: _leverage(row["leverage_max"]) for row in rows}

    async def keep(self, sizes: Mapping[str, tuple[Target, Size]]) -> None:
        """Stores the targets of some contracts of a partition in place of the previous ones."""
        targets = [target for target, _ in sizes.values()]
        explanations = [_encoded(size.explanation) for _, size in sizes.values()]
        with faults():
            async with acquired(pool_of_symbol(self._pool, next(iter(sizes)))) as connection:
                await connection.execute(
                    SQL["keep_targets"],
                    list(sizes),
                    *map(list, zip(*targets, strict=True)),
                    explanations,
                    [size.reason for _, size in sizes.values()],
                )

    async def all(self) -> dict[str, Target]:
        """Returns the targets of all contracts for which one was computed."""
        return {row["symbol"]: _target(row) for row in await fetch(self._pool, "targets")}

    async def explained(self, symbol: str) -> ExplainedTarget | None:
        """Returns a contract's target with its explanation, or None before the first computation."""
        for row in await fetch(self._pool, "target", symbol):
            found = row["explanation"]
            explanation = msgspec.json.decode(found, type=Explanation) if found is not None else None
            return ExplainedTarget(_target(row), explanation, row["reason"], row["computed_at"])
        return None


def _deficits(row: asyncpg.Record) -> Deficits:
    largest = [int(deficit) for deficit in row["largest"] or ()]
    return Deficits(row["start_ms"], row["end_ms"], row["periods"], row["number"], largest)


def _target(row: asyncpg.Record) -> Target:
    amount = row["target"]
    rest = (row["fullness_low"], row["fullness_high"], row["leverage_min"], row["leverage_max"])
    return Target(row["rule"], None if amount is None else int(amount), *rest)


def _encoded(explanation: Explanation | None) -> str | None:
    return None if explanation is None else msgspec.json.encode(explanation).decode()


def _leverage(listed: str | None) -> float | None:
    """Returns the listed number, or None for another value: a specification may contain anything."""
    try:
        leverage = float(listed or "")
    except ValueError:
        return None
    return leverage if math.isfinite(leverage) and leverage > 0 else None
