"""Strategies that generate terms of pools and their events, with small numbers so that all rules meet."""

import random

import msgspec
from hypothesis import strategies as st

from fundsvc.mutual.core.events import Cancel, Disable, Enable, Payout, Tick, TopUp, Trade, Transfer
from fundsvc.mutual.core.terms import XT_SHAPE

POOL = "P"
START = 86_400_000 * 20_000 - 3_500
"""Shortly before a UTC day begins."""


def small_rules(**changes):
    """Returns rules with small amounts and short times: no decimals, a cycle of a second."""
    given = {
        "decimals": 0,
        "min_funding": 10,
        "threshold": 7,
        "face": 10,
        "min_loss": 2,
        "waiting_ms": 1_500,
        "cycle_ms": 1_000,
        "premium_tiers": ((0, 100_000), (10, 300_000)),
        "release": ((0, 300_000), (500_000, 600_000)),
        "cap_rate": 700_000,
        "expiry_ms": 6_000,
        "live_max": 4,
        "activity_ms": 2_300,
        "activity_volume": 5,
    }
    return msgspec.structs.replace(XT_SHAPE.rules(), **(given | changes))


RULES = st.builds(
    small_rules,
    min_funding=st.sampled_from([0, 10]),
    face=st.sampled_from([3, 10, 997]),
    premium_tiers=st.sampled_from([((0, 100_000), (10, 300_000)), ((5, 500_000),), ((0, 333_333), (4, 333_334), (50, 10**6))]),
    tier_mode=st.sampled_from(["marginal", "slab"]),
    platform_fee=st.sampled_from([0, 150_000]),
    reserve_floor=st.sampled_from([0, 9]),
    symbols=st.sampled_from([None, ("X",)]),
    waiting_ms=st.sampled_from([1, 1_000, 1_500, 3_000]),
    anchor_ms=st.sampled_from([0, 300]),
    release=st.sampled_from([((0, 100_000),), ((0, 10**6),), ((0, 0), (100_000, 300_000), (900_000, 10**6))]),
    cap_rate=st.sampled_from([400_000, 700_000, 10**6]),
    expiry_ms=st.sampled_from([2_000, 6_000, 60_000]),
    live_max=st.sampled_from([1, 4]),
    activity_ms=st.sampled_from([900, 2_300, 60_000]),
    activity_volume=st.sampled_from([0, 5]),
)

DELAYS = (0, 0, 0, 0, 100, 400, 1_000, 2_600, -300)
TAGS = ((),) * 6 + (("copy",), ("self",), ("hedge", "hedge"))


def _step(choose, position):  # noqa: PLR0911 - one for each type
    """Returns a step by chance: most are losses of covered accounts, so that policies are issued, paid and ended."""
    account, other = choose.choice("abc"), choose.random()
    if other < 0.5:
        pnl = choose.randint(-40, -1) if choose.random() < 0.75 else choose.randint(0, 40)
        age = choose.choice((0, 0, 0, 0, 50, 3_000))
        return "trade", account, pnl, choose.randint(0, 9), age, choose.choice(TAGS)
    if other < 0.62:
        return "topUp", choose.randint(1, 90)
    if other < 0.72:
        return "transfer", account, choose.choice((-30, -1, 5, 20, 60))
    if other < 0.76:
        return "disable", account
    if other < 0.84:
        return "enable", account
    if other < 0.89:
        return "payout", account
    return ("cancel", account, choose.randint(1 + position // 5, 1 + position // 2)) if other < 0.96 else ("tick",)


def _event(step, seq, ts):  # noqa: PLR0911 - one for each type
    match step:
        case "transfer", account, amount:
            return Transfer(POOL, ts, seq, account, str(amount), f"t{seq}"), (amount,)
        case "enable", account:
            return Enable(POOL, ts, seq, account), ()
        case "disable", account:
            return Disable(POOL, ts, seq, account), ()
        case "trade", account, pnl, volume, age, tags:
            symbol = "Y" if volume == 3 else "X"
            return Trade(POOL, ts, seq, account, symbol, f"x{seq}", ts - age, f"{pnl}.9", str(volume), tags), (pnl, volume)
        case "topUp", amount:
            return TopUp(POOL, ts, seq, str(amount), f"u{seq}"), (amount,)
        case "cancel", account, policy:
            return Cancel(POOL, ts, seq, account, policy), ()
        case "payout", account:
            return Payout(POOL, ts, seq, account), ()
        case _:
            return Tick(POOL, ts), ()


def events_of(seed, count):
    """Returns events with their integer amounts. All accounts are funded and enabled first."""
    choose = random.Random(seed)
    ts, events = START, []
    first = [("transfer", name, 40) for name in "abc"] + [("enable", name) for name in "abc"]
    steps = [(step, 0) for step in first] + [(_step(choose, position), choose.choice(DELAYS)) for position in range(count)]
    for seq, (step, delay) in enumerate(steps, 1):
        ts += delay
        events.append(_event(step, seq, ts))
    return events


STREAMS = st.builds(events_of, st.integers(0, 2**32), st.integers(0, 90))
