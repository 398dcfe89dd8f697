import random
from contextlib import suppress
from itertools import takewhile

import pytest
from ledgers import clocked, fill, listing, owned

from fundsvc.api.fund_answers import candles
from fundsvc.core.events import AdlEnd, AdlFill, Mark, Position, Rejection
from fundsvc.core.numbers import format_units
from fundsvc.core.policy import Policy
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
            for symbol, fund in ((fund.contract.symbol, fund) for fund in self.owner.partition.funds()):
                self.outstanding[symbol][fund.entry] = fund.outstanding

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
