"""Strategies that generate terms of pools and their events, with small numbers so that all rules meet."""

import msgspec
from hypothesis import strategies as st

from fundsvc.mutual.core.events import Cancel, Disable, Enable, Payout, Tick, TopUp, Trade, Transfer
from fundsvc.mutual.core.terms import XT_SHAPE

POOL = "P"
START = 86_400_000 * 20_000 - 3_500
"""Shortly before a UTC day begins."""

ACCOUNTS = st.sampled_from(["a", "b", "c"])
TAGS = st.sampled_from([(), (), (), ("copy",), ("self",), ("hedge", "hedge")])


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

_TRADES = st.tuples(st.just("trade"), ACCOUNTS, st.integers(-40, 40), st.integers(0, 9), st.integers(0, 3_000), TAGS)
_STEPS = st.one_of(
    st.tuples(st.just("transfer"), ACCOUNTS, st.integers(-30, 60).filter(bool)),
    st.tuples(st.just("enable"), ACCOUNTS),
    st.tuples(st.just("disable"), ACCOUNTS),
    _TRADES,
    _TRADES,
    _TRADES,
    st.tuples(st.just("topUp"), st.integers(1, 90)),
    st.tuples(st.just("cancel"), ACCOUNTS, st.integers(1, 8)),
    st.tuples(st.just("payout"), ACCOUNTS),
    st.tuples(st.just("tick")),
)
_DELAYS = st.sampled_from([0, 0, 1, 200, 500, 1_000, 2_600, -300])


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


def events_of(steps):
    """Returns events with their integer amounts, from steps with delays. All accounts are funded and enabled first."""
    ts, events = START, []
    first = [(("transfer", name, 40), 0) for name in "abc"] + [(("enable", name), 0) for name in "abc"]
    for seq, (step, delay) in enumerate([*first, *steps], 1):
        ts += delay
        events.append(_event(step, seq, ts))
    return events


STREAMS = st.lists(st.tuples(_STEPS, _DELAYS), max_size=60).map(events_of)
