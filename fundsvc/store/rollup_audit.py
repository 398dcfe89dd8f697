"""Audits the hourly rollups: recomputes them from the entries and compares."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import asyncpg

from fundsvc.store.database import SQL, Pool, acquired, faults, pool_of_symbol, snapshot
from fundsvc.store.reader import fetch
from fundsvc.store.rollups import ENTRIES_PER_STATEMENT_MAX, HOURS_PER_STATEMENT_MAX, archive_end

Result = TypeVar("Result")

Paced = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]
"""Runs some work, and may pause after it."""

SUMS = ("credited", "paid", "uncovered", "repaid", "covered", "fills")
MAXIMA = ("highest", "latest")
MINIMA = ("lowest", "earliest")
LAST = ("last_entry", "closing")
"""The rules by which two parts of an hour are merged, by column."""

PENDING = ("outstanding", None)
"""An amount that is not computed yet."""


class StoredHours(NamedTuple):
    """A contract's stored hours by their begin, and the rollup progress; None before the first rollup.

    `archived` is the last archived entry, and the chart clock there. The hours begin after it.
    """

    hours: Mapping[int, Mapping[str, Any]]
    progress: asyncpg.Record | None
    archived: tuple[int, int]


async def at_once(work: Callable[[], Awaitable[Any]]) -> Any:
    """Runs some work without a pause."""
    return await work()


async def rollup_differences(pool: Pool, symbol: str, paced: Paced = at_once) -> list[str]:
    """Returns the differences between a contract's hourly rollups and its entries, without archived ones; raises StoreFault."""
    kept: StoredHours = await paced(lambda: _read(pool, symbol))
    if kept.progress is None:
        return [f"{symbol}: {len(kept.hours)} hours of rollups exist without rollup progress"] if kept.hours else []
    if kept.progress["sound"] != kept.progress["entry"]:
        return []  # A rebuild is pending.
    hours: dict[int, dict[str, Any]] = {}
    after, clock = kept.archived
    while after < kept.progress["entry"]:
        upto = min(kept.progress["entry"], after + ENTRIES_PER_STATEMENT_MAX)
        part = [symbol], [after], [upto], [clock]
        for row in await paced(lambda part=part: fetch(pool, "rollup_hours", *part)):  # type: ignore[misc]
            _add(hours, dict(row))
            clock = max(clock, row["clock"])
        after = upto
    for hour, amount in (await _outstanding(pool, symbol, paced)).items():
        if hour in hours:
            hours[hour]["outstanding"] = amount
    found = [] if kept.progress["clock"] == clock else [f"{symbol}: the chart clock is {kept.progress['clock']}, not {clock}"]
    return found + _compared(symbol, kept.hours, hours)


async def _read(pool: Pool, symbol: str) -> StoredHours:
    with faults():
        async with acquired(pool_of_symbol(pool, symbol)) as connection, snapshot(connection):
            archived = await archive_end(connection, symbol)
            hours = await connection.fetch(SQL["rollups_of"], symbol, archived[0])
            progress = await connection.fetchrow(SQL["rollup_progress"], symbol)
            return StoredHours({row["hour"]: dict(row) for row in hours}, progress, archived)


async def _outstanding(pool: Pool, symbol: str, paced: Paced) -> dict[int, int]:
    """Returns the outstanding amount before each stored hour, from the amounts of the hours before it and the ADL orders."""
    found: dict[int, int] = {}
    last = 1, 0
    while True:
        part = symbol, *last, HOURS_PER_STATEMENT_MAX
        rows = await paced(lambda part=part: fetch(pool, "rollup_outstanding", *part))  # type: ignore[misc]
        found |= {row["hour"]: row["outstanding"] for row in rows}
        if len(rows) < HOURS_PER_STATEMENT_MAX:
            return found
        last = rows[-1]["first_entry"], rows[-1]["outstanding"]


def _add(hours: dict[int, dict[str, Any]], part: dict[str, Any]) -> None:
    """Merges a part of an hour into the hour."""
    whole = hours.setdefault(part["hour"], part)
    if whole is part:
        return
    for name in SUMS:
        whole[name] += part[name]
    for name in MAXIMA:
        whole[name] = max(whole[name], part[name])
    for name in MINIMA:
        whole[name] = min(whole[name], part[name])
    for name in LAST:
        whole[name] = part[name]


def _compared(symbol: str, kept: Mapping[int, Mapping[str, Any]], made: Mapping[int, Mapping[str, Any]]) -> list[str]:
    missing = [f"{symbol} hour {hour}: its rollup is missing" for hour in made if hour not in kept]
    beyond = [f"{symbol} hour {hour}: it has a rollup, and no entries" for hour in kept if hour not in made]
    other = [
        f"{symbol} hour {hour}: its rollup has {name} {value}, its entries give {made[hour].get(name)}"
        for hour, row in kept.items()
        if hour in made
        for name, value in row.items()
        if value != made[hour].get(name) and (name, value) != PENDING
    ]
    return missing + beyond + other
