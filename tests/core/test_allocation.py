from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fundsvc.core.adl import allocation
from fundsvc.core.adl.allocation import FEW, allocate_pro_rata, allocate_queue
from fundsvc.core.numbers import INT64_MAX

ROOM = st.lists(st.tuples(st.integers(0, 50), st.integers(-20, 100)), max_size=25)


def pro_rata(rooms: list[int], profits: list[float], lots: int, accounts: str | list[str] | None = None) -> dict[int, int]:
    names = accounts or [f"{index:03d}" for index in range(len(rooms))]
    ordinals = np.argsort(np.argsort(np.array(list(names), object), kind="stable"), kind="stable").astype(np.int32)
    shares = allocate_pro_rata(np.array(rooms, np.int64), np.array(profits, np.float64), ordinals, lots)
    return dict(zip(shares.indices.tolist(), shares.lots.tolist(), strict=True))


def exact_shares(rooms: list[int], profits: list[int], lots: int) -> list[Fraction]:
    """Returns fractional shares by profit, up to each room; the rest is distributed again."""
    shares = [Fraction(0)] * len(rooms)
    sharing = {index for index, room in enumerate(rooms) if room and profits[index] > 0}
    left = Fraction(lots)
    while sharing:
        whole = sum(profits[index] for index in sharing)
        full = {index for index in sharing if left * profits[index] >= rooms[index] * whole}
        for index in full or sharing:
            shares[index] = Fraction(rooms[index]) if full else left * profits[index] / whole
        if not full:
            break
        left -= sum(rooms[index] for index in full)
        sharing -= full
    return shares


@given(st.lists(st.integers(0, 50), max_size=25), st.integers(1, 500))
def test_queue_allocates_from_its_head(available, lots):
    taken = dict(allocate_queue(available, lots))
    assert sum(taken.values()) == min(lots, sum(available))
    assert all(0 < take <= available[index] for index, take in taken.items())
    for index, offered in enumerate(available):
        if taken.get(index, 0) < offered:
            assert all(later <= index for later in taken)
            break


@given(ROOM, st.integers(1, 400))
def test_shares_are_whole_lots_within_one_lot_of_the_exact_share(holders, lots):
    rooms, profits = [room for room, _ in holders], [profit for _, profit in holders]
    taken = pro_rata(rooms, profits, lots)
    assert list(taken) == sorted(taken)
    assert sum(taken.values()) == min(lots, sum(rooms))
    shares = exact_shares(rooms, profits, lots)
    for index, room in enumerate(rooms):
        assert 0 <= taken.get(index, 0) <= room
        if profits[index] > 0:
            assert abs(taken.get(index, 0) - shares[index]) < 1
    if any(take for index, take in taken.items() if profits[index] <= 0):
        assert all(taken.get(index, 0) == room for index, room in enumerate(rooms) if profits[index] > 0)


@given(ROOM, st.integers(1, 400), st.data())
def test_shares_do_not_depend_on_the_order_of_holders(holders, lots, data):
    holders = [(room, max(profit, 1), f"{index:03d}") for index, (room, profit) in enumerate(holders)]
    outcomes = []
    for arranged in (holders, data.draw(st.permutations(holders))):
        rooms, profits, names = map(list, zip(*arranged, strict=True)) if arranged else ([], [], [])
        outcomes.append({names[index]: take for index, take in pro_rata(rooms, profits, lots, names).items()})
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    ("rooms", "profits", "lots", "accounts", "taken"),
    [
        ([10, 10, 3], [200, 300, 120], 17, "bac", {0: 6, 1: 8, 2: 3}),
        ([9, 9], [1, 1], 3, "ba", {0: 1, 1: 2}),
        ([9, 9], [1, 3], 2, "ab", {0: 1, 1: 1}),
        ([9, 9], [1, 3], 2, "ba", {1: 2}),
        ([9, 9, 9], [1 / 3, 2 / 3, 1.0], 3, "cab", {1: 1, 2: 2}),
        ([9, 9, 9], [5, 0, -3], 4, "abc", {0: 4}),
        ([2, 9, 9], [5, 0, -3], 14, "abc", {0: 2, 1: 9, 2: 3}),
        ([0, 9], [5, 5], 4, "ab", {1: 4}),
        ([3, 4], [0, 0], 5, "ab", {0: 3, 1: 2}),
        ([], [], 5, "", {}),
    ],
)
def test_pro_rata_examples(rooms, profits, lots, accounts, taken):
    assert pro_rata(rooms, profits, lots, accounts) == taken


@given(st.lists(st.tuples(st.integers(1, INT64_MAX), st.floats(0, 1e38)), min_size=1, max_size=12), st.integers(1, INT64_MAX))
def test_pro_rata_handles_lots_up_to_64_bits(holders, lots):
    rooms, profits = [room for room, _ in holders], [profit for _, profit in holders]
    taken = pro_rata(rooms, profits, lots)
    assert sum(taken.values()) == min(lots, sum(rooms))
    assert all(0 < take <= rooms[index] for index, take in taken.items())


def test_few_lots_go_to_the_largest_profits():
    profits = np.random.default_rng(3).permutation(5000) + 1.0
    taken = pro_rata([5] * 5000, list(profits), 40)
    assert set(taken) == {index for index, profit in enumerate(profits) if profit > 4960}
    assert set(taken.values()) == {1}


@given(
    st.lists(st.tuples(st.integers(0, 60), st.floats(0, 1e12)), min_size=1, max_size=FEW),
    st.one_of(st.integers(1, 300), st.integers(1, INT64_MAX)),
)
def test_few_and_many_positions_have_the_same_shares(holders, lots):
    rooms, profits = [room for room, _ in holders], [profit for _, profit in holders]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocation, "FEW", 0)
        as_many = pro_rata(rooms, profits, lots)
    assert pro_rata(rooms, profits, lots) == as_many
