"""Target sizes as they are kept, and the history that the value at risk is taken from."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import asyncpg
import msgspec

from fundsvc.core.fund.fullness import Target, TargetPolicy
from fundsvc.core.fund.target_sizing import Deficits, Explanation, Size, quantile_rank
from fundsvc.store.database import SQL, Pool, acquired, faults
from fundsvc.store.reader import HOUR_MS, fetch


class ExplainedTarget(NamedTuple):
    """A target with what explains it, or why there is none, and when that was."""

    target: Target
    explanation: Explanation | None
    reason: str
    computed_at: datetime


class Targets:
    """Asks and keeps; every method raises StoreFault when the database is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def deficits(self, policies: Mapping[str, TargetPolicy]) -> dict[str, Deficits]:
        """The deficits of some contracts, each by the periods of its policy, over the history that this says.

        A history ends with the contract's last charted hour: quiet time after that is not counted.
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
        """The highest leverage of some contracts as their listings name it (`maxLeverage`), None where there is none."""
        rows = await fetch(self._pool, "leverages", symbols)
        return {row["symbol"]: _leverage(row["leverage_max"]) for row in rows}

    async def keep(self, sizes: Mapping[str, tuple[Target, Size]]) -> None:
        """Keeps the targets of some contracts in place of those before."""
        targets = [target for target, _ in sizes.values()]
        explanations = [_encoded(size.explanation) for _, size in sizes.values()]
        with faults():
            async with acquired(self._pool) as connection:
                await connection.execute(
                    SQL["keep_targets"],
                    list(sizes),
                    *map(list, zip(*targets, strict=True)),
                    explanations,
                    [size.reason for _, size in sizes.values()],
                )

    async def all(self) -> dict[str, Target]:
        """The targets of all contracts that have been looked at."""
        return {row["symbol"]: _target(row) for row in await fetch(self._pool, "targets")}

    async def explained(self, symbol: str) -> ExplainedTarget | None:
        """A contract's target with its explanation, if it has been looked at."""
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
    """The number that a listing names, if it is one: a specification may hold anything."""
    try:
        leverage = float(listed or "")
    except ValueError:
        return None
    return leverage if math.isfinite(leverage) and leverage > 0 else None
