from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fundsvc.core.adl.account_order import AccountOrder
from fundsvc.core.adl.ranking import BLOCK_ROWS, SAMPLE_ROWS, Columns, keys_of, rank_all, rank_leaders

DIRECTIONS = st.sampled_from([1, -1])
CLOSED = (np.nan, 1.0)
TYPICAL = st.tuples(st.floats(3e9, 5e9), st.floats(0, 1e9))
EXTREME = st.tuples(st.floats(1e-30, 1e50), st.just(0.0) | st.floats(1e-18, 1e19))
FEW = st.tuples(st.integers(1, 5).map(float), st.integers(0, 3).map(float))
ROWS = st.lists(TYPICAL | st.just(CLOSED), max_size=60) | st.lists(EXTREME | FEW | st.just(CLOSED), max_size=60)
MARKS = st.floats(3e9, 5e9) | st.integers(1, 5).map(float) | st.floats(1e-30, 1e50)


def columns(rows, mark: float, direction: int) -> Columns:
    entry, margin = np.array(rows, np.float64).reshape(-1, 2).T.copy()
    return Columns(entry, margin, mark, direction)


def names(count: int) -> list[str]:
    """Returns names that are not in alphabetical order."""
    return [f"{(row * 7919) % 100_003:06d}" for row in range(count)]


def score(entry: float, margin: float, mark: float, direction: int) -> float | None:
    """Returns the score by its definition; None without equity."""
    gain = (mark - entry) * direction
    equity = margin + gain
    if not equity > 0:
        return None
    return gain / entry * (mark / equity) if gain > 0 else gain / entry / (mark / equity)


@given(ROWS, MARKS, DIRECTIONS)
def test_only_positions_with_equity_are_ranked_by_score(rows, mark, direction):
    side = columns(rows, mark, direction)
    ranking = rank_all(side, AccountOrder(names(len(rows))))
    scores = [score(*row, mark, direction) for row in rows]
    assert sorted(ranking.rows) == [row for row, known in enumerate(scores) if known is not None]
    ranked = [scores[row] for row in ranking.rows]
    for better, worse in pairwise(ranked):
        assert better >= worse - abs(worse) * 2.0**-27
    gainers = np.flatnonzero(side.gainers())
    assert set(ranking.rows[: len(gainers)]) == set(gainers)


@given(st.lists(st.sampled_from([CLOSED, (4.0, 1.0), (4.0, 2.0), (5.0, 1.0), (2.0, 0.5)]), max_size=80), DIRECTIONS)
def test_account_breaks_ties_of_equal_scores(rows, direction):
    accounts = names(len(rows))
    ranking = rank_all(columns(rows, 3.0, direction), AccountOrder(accounts))
    scores = {row: score(*given, 3.0, direction) for row, given in enumerate(rows)}
    ranked = [row for row, known in scores.items() if known is not None]
    assert list(ranking.rows) == sorted(ranked, key=lambda row: (-scores[row], accounts[row]))


@given(st.floats(3e9, 5e9), st.floats(1e6, 1e9), st.permutations(range(8)))
def test_last_bits_of_a_score_do_not_affect_ranks(entry, margin, order):
    rows = [(entry, margin * (1 + step * 2.0**-52)) for step in order]
    side = columns(rows, entry * 1.1, 1)
    # Rounding separates some neighbours: here about one case in a million.
    assume(len(set(keys_of(side, np.zeros(8, np.int32)))) == 1)
    assert list(rank_all(side, AccountOrder([f"{row}" for row in range(8)])).rows) == list(range(8))


@given(ROWS, MARKS, DIRECTIONS, st.integers(1, 70))
def test_leaders_equal_the_head_of_the_ranking(rows, mark, direction, count):
    side, accounts = columns(rows, mark, direction), names(len(rows))
    ranking = rank_all(side, AccountOrder(accounts))
    leaders = rank_leaders(side, accounts, count)
    head = min(count, int(side.gainers().sum()))
    assert list(leaders.rows) == list(ranking.rows[:head])
    assert leaders.ranked == len(ranking.rows)


@pytest.mark.parametrize("count", [1, 64, 1000, BLOCK_ROWS, 69_999, 70_000, 80_000])
@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("kind", ["distinct", "tied", "equal"])
def test_side_of_several_blocks_has_one_ranking(count, direction, kind):
    random = np.random.default_rng(5)
    entry, margin = random.uniform(3e9, 5e9, 70_000), random.uniform(0, 1e9, 70_000)
    if kind == "tied":
        entry, margin = np.round(entry, -8), np.round(margin, -8)
    if kind == "equal":
        entry[:], margin[:] = 4.1e9 - direction * 2e8, 1e7
    entry[random.random(70_000) < 0.1] = np.nan
    side, accounts = Columns(entry, margin, 4.1e9, direction), names(70_000)
    ranking = rank_all(side, AccountOrder(accounts))
    scores = [score(*row, 4.1e9, direction) for row in zip(entry.tolist(), margin.tolist(), strict=True)]
    ordinals = AccountOrder(accounts).ordinals
    keys = {row: (-scores[row], ordinals[row]) for row in range(70_000) if scores[row] is not None}
    if kind == "distinct":
        assert sorted(ranking.rows) == sorted(keys)
        assert all(scores[one] >= scores[next_] - abs(scores[next_]) * 2.0**-27 for one, next_ in pairwise(ranking.rows))
    else:
        assert list(ranking.rows) == sorted(keys, key=lambda row: (round(keys[row][0], 9), keys[row][1]))
    leaders = rank_leaders(side, accounts, count)
    head = min(count, int(side.gainers().sum()))
    assert list(leaders.rows) == list(ranking.rows[:head])
    assert leaders.ranked == len(keys)


def test_positions_without_equity_do_not_displace_leaders():
    without = [(5.0, 2.0)] * 300 + [(9.0, 2.0)] * 300 + [CLOSED] * 300
    side = columns([*without, (2.0, 1.0), (1.0, 1.0)], 3.0, 1)
    leaders = rank_leaders(side, names(902), 2)
    assert list(leaders.rows) == [901, 900]
    assert leaders.ranked == 2


def test_scores_below_single_precision_are_ranked():
    rows = [(1e40, 1e10), (1e30, 1e3), (9e39, 1e19)]
    side = columns(rows, 1e40 * (1 + 1e-10), 1)
    assert list(rank_leaders(side, names(3), 2).rows) == list(rank_all(side, AccountOrder(names(3))).rows[:2])


def test_misleading_sample_does_not_change_the_leaders():
    rows = 10 * SAMPLE_ROWS
    entry = 1e9 + np.arange(rows) % 1000
    entry[:: rows // SAMPLE_ROWS][:300] = 5e8
    side, accounts = Columns(entry, np.full(rows, 1e8), 1.1e9, 1), names(rows)
    leaders = rank_leaders(side, accounts, 1000)
    assert list(leaders.rows) == list(rank_all(side, AccountOrder(accounts)).rows[:1000])


def test_empty_side_has_no_ranks():
    side = columns([], 1.0, 1)
    assert len(rank_all(side, AccountOrder([])).rows) == 0
    assert len(rank_leaders(side, [], 5).rows) == 0
