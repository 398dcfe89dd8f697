import random
from contextlib import suppress
from itertools import pairwise, takewhile

import pytest
from ledgers import clocked, fill, listing, owned, restamp

from fundsvc.api.fund_answers import candles
from fundsvc.core.events import TIMESTAMP_MAX, AdlEnd, AdlFill, AdlTimeout, Mark, Position, Rejection
from fundsvc.core.numbers import format_units
from fundsvc.core.policy import Policy
from fundsvc.store import rollups, statistics
from fundsvc.store.database import open_pool
from fundsvc.store.rollups import condense
from fundsvc.store.statistics import DAY_MS, PEAK_MS, WEEK_MS, FundAt, Past, Statistics

HOUR_MS = 3_600_000
START_MS = 1_700_000_000_000 // DAY_MS * DAY_MS
SYMBOLS = ("AAA", "BBB", "CCC")
CROWD = [Position("AAA", f"account-{number}", -2, "1000", "500", 0) for number in range(3)]
POLICY = Policy(rounds_max=1, escalate_min=2.5)  # so that orders end soon, and some amounts never escalate


class Ledger:
    """Settles events and computes past states independently."""

    def __init__(self, owner, pool):
        self.owner, self.pool = owner, pool
        self.statistics = Statistics(pool)
        self.outstanding = {symbol: {0: 0} for symbol in SYMBOLS}

    async def settle(self, *events):
        for event in events:
            await self.owner.settle([event])
            self._note()

    async def settle_late(self, event):
        await self.owner.settle_late(event)
        self._note()

    def _note(self):
        for fund in self.owner.partition.funds():
            self.outstanding[fund.contract.symbol][fund.entry] = fund.outstanding

    async def entries(self, symbol):
        return await self.pool.fetch("SELECT * FROM entries WHERE symbol = $1 ORDER BY entry", symbol)

    async def at(self, symbol, moment):
        standing = FundAt(0, 0, 0, self.outstanding[symbol][0])
        for _, row in takewhile(lambda found: found[0] <= moment, clocked(await self.entries(symbol))):
            standing = FundAt(row["entry"], row["ts"], row["balance"], self.outstanding[symbol][row["entry"]])
        return standing

    async def past(self, symbol, now):
        day, week, eight_hours = [(await self.at(symbol, now - span)).balance for span in (DAY_MS, WEEK_MS, PEAK_MS)]
        rows = [row for clock, row in clocked(await self.entries(symbol)) if clock > now - PEAK_MS]
        return Past(day, week, max([eight_hours, *(max(row["balance"], row["balance"] - row["change"]) for row in rows)]))


@pytest.fixture
async def ledger(config):
    async with owned(config, lambda _: POLICY) as owner, open_pool(config.database.dsn, 2) as pool:
        ledger = Ledger(owner, pool)
        await ledger.settle(*(listing(symbol) for symbol in SYMBOLS), Mark("AAA", "900", 0), *CROWD)
        yield ledger


def market(dice, seqs, minutes, lateness_ms):
    """Returns fills some minutes apart, in order of time except for a random lateness. AAA also has ADL answers."""
    for seq in seqs:
        ts = START_MS + int(seq * minutes * 60_000) - dice.randint(0, lateness_ms)
        yield fill(dice.choice(SYMBOLS), 10 * seq, dice.randint(-24, 20) / 2, ts)
        if dice.random() < 0.3:
            adl = dice.randint(1, 8)
            yield AdlFill("AAA", 10 * seq + 1, adl, "account-1", 1, ts)
            yield from (AdlEnd("AAA", 10 * seq + step, adl, ts) for step in range(2, dice.randint(3, 9)))


async def settle_what_can_be(ledger, events):
    for event in events:
        with suppress(Rejection):  # the order does not exist or has ended
            await ledger.settle(event)


TIMES = [(7.0, 0), (7.0, 3 * HOUR_MS), (200.0, 0), (200.0, 2 * DAY_MS)]


@pytest.mark.parametrize(("minutes", "lateness_ms"), TIMES)
async def test_past_balances_equal_a_walk_along_the_entries(ledger, minutes, lateness_ms):
    dice = random.Random(minutes + lateness_ms)
    for step in range(4):
        seqs = range(1 + 40 * step, 41 + 40 * step)
        await settle_what_can_be(ledger, market(dice, seqs, minutes, lateness_ms))
        if step % 2:
            await condense(ledger.pool, 0)
        now = START_MS + int(seqs[-1] * minutes * 60_000) + step * HOUR_MS + dice.randint(0, HOUR_MS)
        expected = {symbol: await ledger.past(symbol, now) for symbol in SYMBOLS}
        assert await ledger.statistics.past(now) == expected
        assert await Statistics(ledger.pool).past(now) == expected, "what was known before must not matter"
        for symbol in SYMBOLS:
            ends = [(await ledger.entries(symbol))[0]["ts"] - 1, START_MS // HOUR_MS * HOUR_MS + 5 * HOUR_MS, now]
            for moment in (0, *ends, *(dice.randint(START_MS, now) for _ in range(5))):
                assert await ledger.statistics.at(symbol, moment) == await ledger.at(symbol, moment), (symbol, moment)
    outstanding = [value for by_entry in ledger.outstanding.values() for value in by_entry.values()]
    assert len(set(outstanding)) > 3


def unruly_market(dice, seqs, owner):
    """Returns fills with times that repeat and go back, ADL answers, and rounds that end without one."""
    for seq in seqs:
        ts = START_MS + seq * 240_000 - dice.choice((0, 0, 0, dice.randint(0, 3 * HOUR_MS)))
        ts -= ts % 600_000
        yield fill(dice.choice(SYMBOLS), 10 * seq, dice.randint(-24, 14) / 2, ts)
        adl = max(1, owner.orders("AAA") - dice.randint(0, 3))
        if dice.random() < 0.3:
            yield AdlFill("AAA", 10 * seq + 1, adl, f"account-{dice.randint(0, 2)}", 1, ts)
        if dice.random() < 0.2:
            yield from (fill("AAA", 10 * seq + 3, -50, ts), fill("AAA", 10 * seq + 4, 3, ts + HOUR_MS))
            yield from (AdlTimeout("AAA", owner.orders("AAA"), number, ts + 2 * HOUR_MS) for number in (1, 2, 3))
        yield from [AdlEnd("AAA", 10 * seq + 5, adl, ts)] * (dice.random() < 0.2)


FORGET_NEWEST = """
    UPDATE rollups r SET outstanding = NULL
    WHERE first_entry > $1 * (SELECT max(x.first_entry) FROM rollups x WHERE x.symbol = r.symbol)
"""
"""Leaves the newest hours, or all, as an engine of an earlier version does."""


@pytest.mark.parametrize("seed", range(3))
async def test_fund_at_a_moment_equals_a_walk_along_any_entries(ledger, owner_connection, monkeypatch, seed):
    monkeypatch.setattr(rollups, "HOURS_PER_STATEMENT_MAX", 3)
    dice = random.Random(seed)
    await ledger.settle(*(Position("AAA", f"account-{number}", -100, "1000", "50000", 0) for number in range(3)))
    for step in range(3):
        seqs = range(1 + 40 * step, 41 + 40 * step)
        await settle_what_can_be(ledger, unruly_market(dice, seqs, ledger.owner))
        await ledger.settle_late(fill("AAA", 10 * dice.choice(seqs) - 1, -4, START_MS))
        if step == 1:
            await restamp(owner_connection, "BBB", ledger.owner.entries("BBB"), START_MS + 10 * 365 * DAY_MS)
        if step != dice.randint(1, 3):
            await condense(ledger.pool, 0)
        if dice.random() < 0.5:
            await owner_connection.execute(FORGET_NEWEST, dice.choice((0.0, dice.random())))
        for symbol in SYMBOLS:
            times = [time + shift for time, _ in clocked(await ledger.entries(symbol)) for shift in (-1, 0, 1)]
            borders = [time - time % HOUR_MS + shift for time in times for shift in (-1, 0, HOUR_MS)]
            far = [0, START_MS - DAY_MS, max(times) + DAY_MS, TIMESTAMP_MAX]
            ends = [time for (time, _), (_, row) in pairwise(clocked(await ledger.entries(symbol))) if row["kind"] == "cover"]
            for moment in far + ends[-3:] + dice.sample(times, 6) + dice.sample(borders, 6):
                assert await ledger.statistics.at(symbol, moment) == await ledger.at(symbol, moment), (symbol, moment)
    timed_out = "SELECT count(*) FROM adl_records WHERE symbol = 'AAA' AND kind = 'end' AND seq = 0"
    covers = "SELECT count(*) FROM entries WHERE symbol = 'AAA' AND kind = 'cover'"
    assert min([await ledger.pool.fetchval(statement) for statement in (timed_out, covers)]) > 0


async def test_late_entry_does_not_change_past_balances(ledger):
    await ledger.settle(fill("AAA", 1, 5, START_MS), fill("AAA", 2, 7, START_MS + DAY_MS), fill("AAA", 3, 9, START_MS + 1))
    for _ in range(2):
        standing = await ledger.statistics.at("AAA", START_MS + 10)
        assert (standing.entry, standing.balance) == (1, 5 * 10**8)
        await condense(ledger.pool, 0)


async def test_fund_is_zero_before_the_first_entry(ledger):
    await ledger.settle(fill("AAA", 1, 5, START_MS))
    assert await ledger.statistics.at("AAA", START_MS - 1) == FundAt(0, 0, 0, 0)
    assert await ledger.statistics.at("BBB", START_MS) == FundAt(0, 0, 0, 0)
    assert (await ledger.statistics.past(START_MS + HOUR_MS))["AAA"] == Past(0, 0, 5 * 10**8)
    assert (await ledger.statistics.past(START_MS + 8 * DAY_MS))["AAA"] == Past(5 * 10**8, 5 * 10**8, 5 * 10**8)


def brute_candles(rows, span, now):
    """Computes candles by a walk along the entries."""
    close, candles, width = None, [], span.step
    starts = [(clock // width * width, row) for clock, row in clocked(rows)]
    for start in sorted({start for start, _ in starts} | set(span)):
        found = [row for of, row in starts if of == start]
        opening = found[0]["balance"] - found[0]["change"] if found else close
        close = found[-1]["balance"] if found else close
        seen = [opening, close, *(value for row in found for value in (row["balance"], row["balance"] - row["change"]))]
        sums = [sum(max(row["change"], 0) for row in found), sum(max(-row["change"], 0) for row in found)]
        sums.append(sum(row["uncovered"] for row in found))
        if start in span and close is not None and (found or start <= now):
            money = [format_units(amount, 8) for amount in (opening, max(seen), min(seen), close, *sums)]
            candles.append((start, *money, sum(row["kind"] in {"surplus", "flat", "shortfall"} for row in found)))
    return candles


@pytest.mark.parametrize("granularity", [60, 1440])
@pytest.mark.parametrize(("minutes", "lateness_ms"), TIMES)
async def test_candles_equal_a_walk_along_the_entries(ledger, minutes, lateness_ms, granularity):
    dice = random.Random(minutes + lateness_ms)
    width = granularity * 60_000
    for step in range(3):
        seqs = range(1 + 30 * step, 31 + 30 * step)
        await settle_what_can_be(ledger, market(dice, seqs, minutes, lateness_ms))
        if step == 1:
            await condense(ledger.pool, 0)
        now = START_MS + int(seqs[-1] * minutes * 60_000)
        for symbol in SYMBOLS:
            rows = await ledger.entries(symbol)
            for _ in range(5):
                first, last = sorted(dice.randint(START_MS - 2 * DAY_MS, now + DAY_MS) // width * width for _ in range(2))
                span = range(first, last + width, width)
                buckets = await ledger.statistics.buckets(symbol, span.start, span.stop, width)
                assert list(candles(buckets, span, now, 8)) == brute_candles(rows, span, now), (symbol, span)


async def settled_market(ledger, minutes, lateness_ms):
    """Settles a market in parts and condenses most of it; returns the time of its end."""
    dice = random.Random(minutes + lateness_ms)
    for step in range(3):
        await settle_what_can_be(ledger, market(dice, range(1 + 30 * step, 31 + 30 * step), minutes, lateness_ms))
        if step < 2:
            await condense(ledger.pool, 0)
    return START_MS + int(91 * minutes * 60_000)


@pytest.mark.parametrize("entries_max", [150_000, 12])
@pytest.mark.parametrize(("minutes", "lateness_ms"), TIMES)
async def test_chart_has_every_extreme_balance(ledger, monkeypatch, minutes, lateness_ms, entries_max):
    monkeypatch.setattr(statistics, "CHART_ENTRIES_MAX", entries_max)
    now = await settled_market(ledger, minutes, lateness_ms)
    for symbol in SYMBOLS:
        rows = list(clocked(await ledger.entries(symbol)))
        for start, end in ((0, None), (START_MS + (now - START_MS) // 3, None), (START_MS + HOUR_MS, now - HOUR_MS)):
            found = await ledger.statistics.chart(symbol, start, end)
            within = [(clock, row) for clock, row in rows if start < clock <= (end or now + DAY_MS)]
            begin = max(start, rows[0][0] - 1)
            assert (found.begin, found.start) == (rows[0][0], begin)
            assert found.opening == (await ledger.at(symbol, begin)).balance
            if not within:
                assert found.buckets == []
                continue
            last = within[-1][1]
            assert (found.entry, found.buckets[-1].closing) == (last["entry"], last["balance"])
            assert min(bucket.lowest for bucket in found.buckets) <= min(row["balance"] for _, row in within)
            assert max(bucket.highest for bucket in found.buckets) >= max(row["balance"] for _, row in within)
            for clock, row in within:
                assert any(
                    bucket.since <= clock <= bucket.until and bucket.lowest <= row["balance"] <= bucket.highest
                    for bucket in found.buckets
                ), (symbol, clock, row["balance"])
            times = [time for bucket in found.buckets for time in (bucket.since, bucket.until)]
            assert times == sorted(times)


@pytest.mark.parametrize(("minutes", "lateness_ms"), TIMES)
async def test_few_entries_have_a_part_of_a_chart_each(ledger, minutes, lateness_ms):
    await settled_market(ledger, minutes, lateness_ms)
    found = await ledger.statistics.chart("BBB", 0, None)
    clocks = [clock for clock, _ in clocked(await ledger.entries("BBB"))]
    width = -(-(clocks[-1] - found.start) // statistics.CHART_BUCKETS_MAX)
    assert len(found.buckets) == len({(clock - found.start) // width for clock in clocks})


async def test_chart_of_a_fund_without_entries_is_empty(ledger):
    found = await ledger.statistics.chart("CCC", 0, None)
    assert (found.begin, found.entry, found.buckets) == (None, 0, [])


@pytest.mark.parametrize("granularity", [60, 1440])
@pytest.mark.parametrize(("minutes", "lateness_ms"), TIMES)
async def test_totals_of_a_currency_are_the_sums_of_its_funds(ledger, minutes, lateness_ms, granularity):
    now, width = await settled_market(ledger, minutes, lateness_ms), granularity * 60_000
    span = range(START_MS // width * width, now - now % width + width, width)
    (history,) = await ledger.statistics.currencies(span, now)
    assert (history.currency, history.decimals) == ("USDT", 8)
    present = now - now % width
    for bucket in history.buckets:
        end = bucket.start + width - 1 if bucket.start < present else now + DAY_MS
        assert bucket.closing == sum([(await ledger.at(symbol, end)).balance for symbol in SYMBOLS]), bucket
        assert bucket.closing - bucket.opening == bucket.credited - bucket.paid
    balances = [(await ledger.entries(symbol))[-1]["balance"] for symbol in SYMBOLS]
    assert history.buckets[-1].closing == sum(balances)


@pytest.mark.parametrize(("minutes", "lateness_ms"), TIMES)
async def test_hours_have_the_lowest_balance_of_each_fund(ledger, minutes, lateness_ms):
    now = await settled_market(ledger, minutes, lateness_ms)
    since = now - now % HOUR_MS - 23 * HOUR_MS
    found = await ledger.statistics.hours(since)
    for symbol in SYMBOLS:
        expected = {}
        for clock, row in clocked(await ledger.entries(symbol)):
            before = row["balance"] - row["change"]
            opening, lowest, _ = expected.get(clock - clock % HOUR_MS, (before, before, 0))
            expected[clock - clock % HOUR_MS] = opening, min(lowest, row["balance"]), row["balance"]
        wanted = [(start, *amounts) for start, amounts in sorted(expected.items()) if start >= since]
        assert [tuple(hour) for hour in found.get(symbol, [])] == wanted
