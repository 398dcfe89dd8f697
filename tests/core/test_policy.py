import msgspec
import pytest
from builders import ONE, UNIT, a_fund, mark, partition, position, worth
from hypothesis import given
from hypothesis import strategies as st

from fundsvc.core.fund.settlement import Fund
from fundsvc.core.partition import Partition
from fundsvc.core.policy import MINUTE_MS, DrawdownGuard, Guard, Peaks, Policy, SavedGuard

HOUR_MS = 60 * MINUTE_MS
GUARDED = Policy(drawdown_guard=DrawdownGuard())


def guarded(policy: Policy = GUARDED, **fields) -> tuple[Partition, Fund]:
    """A partition with a guarded fund and a large position on either side, and the fund."""
    fund = a_fund(UNIT, policy=policy, **fields)
    settling = partition(fund)
    for event in (mark("100"), position("short", -(10**9), "200"), position("long", 10**9, "50")):
        settling.apply(event)
    return settling, fund


def apply(settling: Partition, *amounts: int, hours: float = 0.0) -> list[tuple[int, int]]:
    """Settles fills worth these amounts; returns (covered, uncovered) of each in USDT."""
    outcomes = []
    fund = settling.market(UNIT.symbol).fund
    for amount in amounts:
        settling.apply(worth(amount, fund.seq + 1, ts=int(hours * HOUR_MS)))
        entry = settling.take().entries[0]
        outcomes.append((-entry.change // ONE, entry.uncovered // ONE))
    return outcomes


def test_fund_of_a_million_stops_paying_at_seven_hundred_thousand():
    settling, fund = guarded()
    assert apply(settling, 1_000_000, -350_000)[1] == (300_000, 50_000)
    assert fund.balance == 700_000 * ONE
    assert fund.guard.active


def test_fall_from_two_million_by_six_hundred_thousand_starts_the_guard():
    settling, fund = guarded()
    apply(settling, 1_000_000, 1_000_000)
    assert apply(settling, -599_999) == [(599_999, 0)]
    assert not fund.guard.active
    assert apply(settling, -1) == [(1, 0)]
    assert fund.guard.active
    assert apply(settling, -1) == [(0, 1)]


def test_balance_of_zero_starts_the_guard():
    settling, fund = guarded()
    assert apply(settling, -5) == [(0, 5)]
    assert fund.guard.active
    settling, fund = guarded(balance=100 * ONE)
    assert apply(settling, -500, hours=0) == [(30, 470)]


def test_active_guard_stops_only_above_its_stop_line():
    settling, fund = guarded()
    apply(settling, 1000, -300)
    assert apply(settling, -1, 49, -1) == [(0, 1), (-49, 0), (0, 1)]
    assert fund.guard.active
    assert apply(settling, 1) == [(-1, 0)]
    assert not fund.guard.active
    assert apply(settling, -60) == [(50, 10)]
    assert fund.guard.active


def test_peak_leaves_the_window():
    settling, fund = guarded()
    apply(settling, 1000, -300)
    assert apply(settling, -1, hours=8) == [(0, 1)]
    assert apply(settling, -300, hours=8.02) == [(210, 90)]
    assert fund.balance == 490 * ONE


def test_fund_below_the_minimum_balance_has_no_guard():
    policy = Policy(drawdown_guard=DrawdownGuard(minimum_balance=1000.0))
    settling, _ = guarded(policy)
    assert apply(settling, 999, -998) == [(-999, 0), (998, 0)]
    assert apply(settling, 999) == [(-999, 0)]
    assert apply(settling, -500) == [(300, 200)]


def test_higher_of_two_lines_applies():
    settling, _ = guarded(balance=1000 * ONE, reserve_line=800 * ONE)
    assert apply(settling, -500) == [(200, 300)]
    settling, _ = guarded(balance=1000 * ONE, reserve_line=100 * ONE)
    assert apply(settling, -500) == [(300, 200)]


def test_fund_is_near_its_guard_below_the_stop_line():
    settling, fund = guarded(Policy(drawdown_guard=DrawdownGuard(minimum_balance=500.0)))
    apply(settling, 1000)
    assert [fund.guard.near(balance * ONE) for balance in (750, 749)] == [False, True]
    settling, fund = guarded(Policy(drawdown_guard=DrawdownGuard(minimum_balance=5000.0)))
    apply(settling, 1000)
    assert not fund.guard.near(0)


def test_fund_without_a_guard_pays_its_whole_balance():
    settling, fund = guarded(Policy())
    assert apply(settling, 1000, -1001) == [(-1000, 0), (1000, 1)]
    assert fund.state().guard is None


@pytest.mark.parametrize(
    "terms", [{"start": 0}, {"start": 1.1}, {"stop": 0.31}, {"hours": 0}, {"hours": 169}, {"minimum_balance": -1}]
)
def test_illegal_guard_terms_are_rejected(terms):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(terms, DrawdownGuard)


HISTORY = st.lists(st.tuples(st.integers(-30, 200), st.integers(0, 1000)), max_size=60)


def times(history) -> list[tuple[int, int]]:
    """Pairs (ts, balance) in steps of minutes, some of them backwards."""
    now, made = 10**6 * MINUTE_MS, []
    for minutes, balance in history:
        now += minutes * MINUTE_MS
        made.append((now, balance))
    return made


@given(HISTORY, st.integers(0, 600))
def test_peak_is_the_highest_balance_of_the_window(history, span):
    peaks, noted, latest = Peaks(span * MINUTE_MS, []), [], 0
    assert peaks.peak == 0
    for ts, balance in times(history):
        peaks.note(ts, balance)
        latest = max(latest, ts // MINUTE_MS)
        noted.append((latest, balance))
        assert peaks.peak == max(known for minute, known in noted if minute >= latest - span)
        assert len(peaks.save()) <= span + 1


@given(HISTORY, st.floats(0.05, 1), st.floats(0.05, 1), st.sampled_from([0.0, 0.000004]))
def test_restored_guard_equals_the_original(history, one, other, minimum):
    terms = DrawdownGuard(start=max(one, other), stop=min(one, other), minimum_balance=minimum)
    guard = kept = Guard(terms, 8, SavedGuard())
    for ts, balance in times(history):
        kept = Guard(terms, 8, msgspec.msgpack.decode(msgspec.msgpack.encode(kept.save()), type=SavedGuard))
        guard.observe(ts, balance)
        kept.observe(ts, balance)
        assert (kept.active, kept.line, kept.save()) == (guard.active, guard.line, guard.save())


@given(HISTORY)
def test_guard_changes_only_at_its_lines(history):
    terms = DrawdownGuard()
    guard, peaks, before = Guard(terms, 8, SavedGuard()), Peaks(int(terms.hours * 60) * MINUTE_MS, []), False
    for ts, balance in times(history):
        guard.observe(ts, balance)
        peaks.note(ts, balance)
        peak = peaks.peak
        if balance >= max(1, -(-peak * 3 // 4)):
            assert not guard.active
        elif balance <= -(-peak * 7 // 10):
            assert guard.active
        else:
            assert guard.active is before
        before = guard.active


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 3000))
def test_higher_balance_never_increases_adl_under_a_guard(balance, more, deficit):
    uncovered = [apply(guarded(balance=start * ONE)[0], -deficit)[0][1] for start in (balance, balance + more)]
    assert uncovered[1] <= uncovered[0]
