import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fundsvc.core.adl.allocation import RunningSharing, Sharing

VERSION = 7

profits = st.lists(
    st.one_of(st.sampled_from([-5.0, 0.0, 1e-30, 1.0, 2.0, 3.0, 4e12]), st.floats(0, 1e15)), min_size=1, max_size=60
)


class Allotment:
    """Shares the same positions twice: by `RunningSharing` and, for comparison, by a new `Sharing` for each order."""

    def __init__(self, profits: list[float], rooms: list[int]) -> None:
        self.profits = np.array(profits)
        self.ordinals = np.arange(len(profits), dtype=np.int32)[::-1].copy()
        self.available = np.array(rooms, np.int64)
        self.running = RunningSharing(self.profits, self.ordinals)
        self.running.reset(self.available, VERSION)

    def order(self, lots: int, excluded: list[int]) -> bool:
        """Checks one order, and subtracts its lots; returns whether `RunningSharing` allocated them."""
        free = self.available.copy()
        free[excluded] = 0
        expected = Sharing(self.profits, self.ordinals).allocate(free, lots)
        if self.running.version != VERSION:
            self.running.reset(self.available, VERSION)
        shares = self.running.allocate(lots, np.array(excluded, np.intp))
        self.available[expected.indices] -= expected.lots
        if shares is None:
            self.running.version = -1
            return False
        assert shares.indices.tolist() == expected.indices.tolist()
        assert shares.lots.tolist() == expected.lots.tolist()
        self.running.take(VERSION)
        return True


@given(profits, st.data())
def test_consecutive_orders_get_the_shares_of_separate_ones(profits, data):
    rooms = data.draw(st.lists(st.integers(-2, 12), min_size=len(profits), max_size=len(profits)))
    allotment = Allotment(profits, rooms)
    indices = st.lists(st.integers(0, len(profits) - 1), max_size=3, unique=True)
    for lots, excluded in data.draw(st.lists(st.tuples(st.integers(1, 50), indices), max_size=12)):
        allotment.order(lots, excluded)


@pytest.mark.parametrize("order_lots", [1, 20, 700])
def test_orders_over_many_positions_get_the_shares_of_separate_ones(order_lots):
    random = np.random.default_rng(20251010)
    allotment = Allotment(list(random.integers(1, 4_000, 3_000) * 50.0), list(random.integers(1, 40, 3_000)))
    allocated = [allotment.order(order_lots, list(random.integers(0, 3_000, number % 3))) for number in range(300)]
    assert sum(allocated[: 20_000 // order_lots]) >= 0.99 * len(allocated[: 20_000 // order_lots])


@pytest.mark.parametrize("nearly", [math.nextafter(2.0**40, 0), 2.0**40, math.nextafter(2.0**40, math.inf)])
def test_sum_of_profits_near_a_power_of_two_is_computed_again(nearly):
    allotment = Allotment([nearly - 3_000.0, 1_000.0, 2_000.0, 0.1, 0.2, 0.3, 2.0**39], [5, 5, 5, 5, 5, 5, 1])
    for _ in range(20):
        allotment.order(1, [])
    for _ in range(5):
        allotment.order(2, [4])


def test_equal_profits_are_shared_in_the_order_of_accounts():
    allotment = Allotment([8.0] * 700, [2] * 700)
    for _ in range(40):
        assert allotment.order(30, [])


def test_lots_beyond_the_profitable_positions_are_left_to_the_general_sharing():
    assert not Allotment([1.0, 0.0], [3, 9]).order(4, [])
    assert not Allotment([0.0], [9]).order(4, [])
