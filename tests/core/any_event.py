"""Strategies that generate events of every type, with legal and illegal fields."""

from builders import LINEAR, UNIT, listing
from hypothesis import strategies as st

from fundsvc.core.events import (
    AdlAck,
    AdlEnd,
    AdlFill,
    AdlTimeout,
    Event,
    Fill,
    Listing,
    Mark,
    PolicyChange,
    Position,
    Rate,
    Settle,
    Snapshot,
    Takeover,
    Unwind,
)
from fundsvc.core.numbers import INT64_MAX
from fundsvc.core.policy import Policy, TakeoverPolicy

SYMBOLS = st.sampled_from([UNIT.symbol, UNIT.symbol, LINEAR.symbol, "OTHER"])
NAMES = st.sampled_from(["", "a", "b", "c", "a\n", "a\tb", "a\0", "\ud800", "=1", " -1", "\uff20x"]) | st.text(max_size=4)
NUMBERS = st.sampled_from(["1", "50", "60", "0.5", "0", "-1", "1e5", "1.", ".5", "1.0000000000001", "9" * 40, "\u0661", ""])
CURRENCIES = st.sampled_from(["USDT", "XBT", "US-DT", "X\0", " USD", "=A"])
SEQUENCES = st.integers(1, 9) | st.integers(1, INT64_MAX)
LOTS = st.integers(1, 20) | st.integers(1, INT64_MAX)
SIGNED_LOTS = st.integers(-20, 20) | st.integers(-INT64_MAX, INT64_MAX)
ORDERS = st.integers(1, 3)
TIMES = st.integers(0, 10**6)
PREVIOUS = st.none() | st.integers(0, 9)
SIDES = st.sampled_from(["sell", "buy"])
LEGS = st.sampled_from(["BOTH", "LONG", "SHORT"])
PHASES = st.sampled_from(["begin", "end"])
POLICIES = st.sampled_from(
    [Policy(), Policy(waterfall="adl_then_fund"), Policy(eligible="all", escalate_min=0, takeover=TakeoverPolicy("adl"))]
)
MULTIPLIERS = st.sampled_from([1.0, 2.0, -1, "x", "1e-30", float("nan")])

BY_TYPE = {
    Fill: st.builds(Fill, SYMBOLS, SEQUENCES, SIDES, LOTS, NUMBERS, NUMBERS, TIMES, NAMES, NAMES, NAMES, PREVIOUS),
    Takeover: st.builds(Takeover, SYMBOLS, SEQUENCES, SIDES, LOTS, NUMBERS, TIMES, NAMES, NAMES, NAMES, PREVIOUS),
    Unwind: st.builds(Unwind, SYMBOLS, SEQUENCES, SIDES, LOTS, NUMBERS, TIMES, NAMES, NAMES, PREVIOUS),
    Settle: st.builds(Settle, SYMBOLS, SEQUENCES, NUMBERS, TIMES, PREVIOUS),
    Mark: st.builds(Mark, SYMBOLS, NUMBERS, TIMES, st.none() | NUMBERS, st.none() | SEQUENCES),
    Position: st.builds(Position, SYMBOLS, NAMES, SIGNED_LOTS, NUMBERS, NUMBERS, TIMES, LEGS, NAMES, st.none() | SEQUENCES),
    Snapshot: st.builds(Snapshot, SYMBOLS, PHASES, TIMES),
    AdlFill: st.builds(AdlFill, SYMBOLS, SEQUENCES, ORDERS, NAMES, LOTS, TIMES, PREVIOUS),
    AdlEnd: st.builds(AdlEnd, SYMBOLS, SEQUENCES, ORDERS, TIMES, PREVIOUS),
    AdlAck: st.builds(AdlAck, SYMBOLS, ORDERS, ORDERS, TIMES),
    AdlTimeout: st.builds(AdlTimeout, SYMBOLS, ORDERS, ORDERS, TIMES),
    Rate: st.builds(Rate, CURRENCIES, NUMBERS, TIMES),
    PolicyChange: st.builds(PolicyChange, st.integers(1, 3), POLICIES, st.dictionaries(SYMBOLS, POLICIES, max_size=1), TIMES),
    Listing: st.builds(
        listing, symbol=SYMBOLS | NAMES, settleCurrency=CURRENCIES, multiplier=MULTIPLIERS, maxPrice=st.none() | NUMBERS
    )
    | st.just(Listing({})),
}
"""Maps each type of event to a strategy."""

EVENTS = st.one_of(*BY_TYPE.values())


def types() -> set[type[Event]]:
    """All types of events that exist."""
    return set(Event.__subclasses__())
