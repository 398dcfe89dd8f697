"""Entries with late or future times: all answers about the past of a fund use one definition of time."""

import time
from contextlib import asynccontextmanager

import pytest
from conftest import connected, with_section
from ledgers import fill, listing, owned, restamp
from test_adl_api import config, world_of  # noqa: F401 - a fixture

from fundsvc.store.database import open_pool
from fundsvc.store.rollups import condense
from fundsvc.store.statistics import DAY_MS

FUND = "/api/v1/insurance-fund/AAA"
HOUR_MS = 3_600_000
YEAR_MS = 365 * DAY_MS

LATE = [(-4, 100), (-1, 100), (-3, 100)]
DEEPER = [(-30, 50), (-3, 100), (-80, 40), (-2, 30), (-2.5, -60), (-200, 5), (-1, 7)]
SECONDS = [(-6, 100), (None, 50), (-5, 25)]
"""None is a time in seconds, which lies in January 1970."""

CASES = {"late": LATE, "deeper": DEEPER, "seconds": SECONDS, "in order": sorted(DEEPER)}


@pytest.fixture
def now():
    return time.time_ns() // 1_000_000


@asynccontextmanager
async def world_with(config, moves, now, condensed):  # noqa: F811
    """A service whose contract AAA changed by some points at some hours from now; a part of the entries is condensed."""
    fills = [fill("AAA", seq, points, now + int((hours or 0) * HOUR_MS)) for seq, (hours, points) in enumerate(moves, 1)]
    async with (
        owned(config) as owner,
        open_pool(config.database.dsn, 1) as pool,
        connected(config.database.owner_dsn) as owner_connection,
    ):
        await owner.settle([listing("AAA")])
        for place, event in enumerate(fills):
            if place == condensed:
                await condense(pool, 0)
            await owner.settle([event])
            if moves[place][0] is None:
                await restamp(owner_connection, "AAA", place + 1, now // 1000)
        if condensed >= len(fills):
            await condense(pool, 0)
    async with world_of(with_section(config, "http", venues=("gate",))) as world:
        yield world


def balances(moves, now):
    """Returns (time, balance) after each change; the time is the latest of all changes up to it."""
    clock, balance, found = 0, 0, []
    for hours, points in moves:
        clock = max(clock, now // 1000 if hours is None else now + int(hours * HOUR_MS))
        balance += points
        found.append((clock, balance))
    return found


def balance_at(changes, moment):
    return next((balance for clock, balance in reversed(changes) if clock <= moment), 0)


@pytest.mark.parametrize("condensed", [0, 2, 9])
@pytest.mark.parametrize("name", CASES)
async def test_candles_states_days_and_changes_are_consistent(config, now, name, condensed):  # noqa: F811
    moves = CASES[name]
    changes = balances(moves, now)
    async with world_with(config, moves, now, condensed) as world:
        for width, granularity, back in ((HOUR_MS, 60, 210), (DAY_MS, 1440, 20)):
            begin = now - back * width
            rows = await world.data(f"{FUND}/candles", granularity=granularity, **{"from": begin, "to": now})
            assert [row[4] for row in rows] == [str(balance_at(changes, row[0] + width - 1)) for row in rows], (
                "each close is the balance at its end"
            )
            assert [row[1] for row in rows[1:]] == [row[4] for row in rows[:-1]], "each open is the close before it"
            assert rows[-1][4] == str(changes[-1][1])
        for moment in (0, *(clock + step for clock, _ in changes for step in (-1, 0, 1)), now):
            assert (await world.data(f"{FUND}/at", ts=moment))["balance"] == str(balance_at(changes, moment))
        async with world.http.get("/api/v4/futures/usdt/insurance", params={"limit": 9}) as answer:
            days = await answer.json()
        assert [day["b"] for day in days] == [str(balance_at(changes, (day["t"] + 86400) * 1000 - 1)) for day in days]
        fund = await world.data(FUND)
        assert fund["change24h"] == str(changes[-1][1] - balance_at(changes, now - DAY_MS))
        assert fund["change7d"] == str(changes[-1][1] - balance_at(changes, now - 7 * DAY_MS))
        begin = now - 8 * HOUR_MS
        seen = [balance_at(changes, begin), *(balance for clock, balance in changes if clock > begin)]
        assert fund["peak8h"] == str(max(seen))


async def test_late_fill_is_charted_at_its_settlement(config, now):  # noqa: F811
    now = now // HOUR_MS * HOUR_MS
    async with world_with(config, LATE, now, 0) as world:
        rows = await world.data(f"{FUND}/candles", **{"from": now - 5 * HOUR_MS, "to": now})
        assert [(row[0] - now, row[1], row[4]) for row in rows] == [
            (-4 * HOUR_MS, "0", "100"),
            (-3 * HOUR_MS, "100", "100"),
            (-2 * HOUR_MS, "100", "100"),
            (-HOUR_MS, "100", "300"),
            (0, "300", "300"),
        ]


@pytest.mark.parametrize("condensed", [0, 5, 7])
async def test_histories_filter_by_the_engine_time(config, now, condensed):  # noqa: F811
    async with world_with(config, DEEPER, now, condensed) as world:
        for begin, end in ((-81, -29), (-3, -2.2), (-201, -199), (-2, 0), (-500, 0), (-1.5, -1.2)):
            wanted = [entry for entry, (hours, _) in enumerate(DEEPER, 1) if begin <= hours <= end]
            span = {"startAt": now + int(begin * HOUR_MS), "endAt": now + int(end * HOUR_MS)}
            for forward in (True, False):
                page = await world.data(f"{FUND}/history", forward=str(forward).lower(), **span)
                assert [row["entry"] for row in page["dataList"]] == (wanted if forward else wanted[::-1])


@pytest.mark.parametrize("ahead_ms", [YEAR_MS, 30 * DAY_MS, 2 * HOUR_MS])
@pytest.mark.parametrize("condensed", [0, 4])
async def test_entry_with_a_future_time_is_charted_at_its_recording_time(
    config,  # noqa: F811
    now,
    owner_connection,
    ahead_ms,
    condensed,
):
    async with owned(config) as owner, open_pool(config.database.dsn, 1) as pool:
        await owner.settle([listing("AAA"), fill("AAA", 1, 10, now - 30 * HOUR_MS), fill("AAA", 2, 5, now - 3 * HOUR_MS)])
        await restamp(owner_connection, "AAA", 2, now + ahead_ms)
        await owner.settle([fill("AAA", 3, -4, now), fill("AAA", 4, 1, now)])
        if condensed:
            await condense(pool, 0)
    async with world_of(with_section(config, "http", venues=("gate",))) as world:
        rows = await world.data(f"{FUND}/candles")
        assert rows[-1][0] <= now + HOUR_MS
        assert rows[-1][4] == "12"
        assert {row[4] for row in rows} == {"10", "12"}
        later = time.time_ns() // 1_000_000
        assert (await world.data(f"{FUND}/at", ts=later))["balance"] == "12"
        assert (await world.data(f"{FUND}/at", ts=now - HOUR_MS))["balance"] == "10"
        async with world.http.get("/api/v4/futures/usdt/insurance") as answer:
            assert [day["b"] for day in await answer.json()][-2:] == ["10", "12"]
        fund = await world.data(FUND)
        assert (fund["change24h"], fund["change7d"], fund["peak8h"]) == ("2", "12", "15")
        page = await world.data(f"{FUND}/history", startAt=now + ahead_ms, endAt=now + ahead_ms)
        assert [row["entry"] for row in page["dataList"]] == [2]
