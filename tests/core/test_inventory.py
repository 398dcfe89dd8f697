"""The valuation of an inventory and the order in which lots leave it, compared with direct computations."""

from fractions import Fraction

import pytest
from builders import INVERSE, LINEAR, UNIT, a_fund
from hypothesis import given
from hypothesis import strategies as st

from fundsvc.core.fund.inventory import Inventory, TrancheState
from fundsvc.core.numbers import INT64_MAX

PRICES = st.integers(1, 100) | st.integers(10**12, 10**14) | st.integers(1, INT64_MAX)
LOTS = st.integers(1, 20) | st.integers(1, 2**60)
CONTRACTS = st.sampled_from([UNIT, LINEAR, INVERSE])
SIDES = st.sampled_from(["long", "short"])
TRANCHES = st.lists(st.tuples(SIDES, LOTS, PRICES), max_size=8)


def inventory(contract, tranches, mark=None) -> Inventory:
    """An inventory with these tranches: (side, lots, price), the oldest first."""
    rows = [
        TrancheState(contract.symbol, side, entry, lots, price, 0, forced=False)
        for entry, (side, lots, price) in enumerate(tranches, 1)
    ]
    made = Inventory(contract, a_fund(contract).worth, rows)
    if mark is not None:
        made.reprice(mark)
    return made


def worth(contract, side, lots, price, mark) -> int:
    return a_fund(contract).worth("sell" if side == "long" else "buy", lots, mark, price)


@given(CONTRACTS, TRANCHES, st.lists(PRICES, min_size=1, max_size=3), st.data())
def test_worth_is_the_sum_of_the_worths_rounded_down_one_by_one(contract, tranches, marks, data):
    held = inventory(contract, tranches, marks[0])
    lots = {entry: lots for entry, (_, lots, _) in enumerate(tranches, 1)}
    promised = dict.fromkeys(lots, 0)
    for mark in marks:
        held.reprice(mark)
        for entry, (side, _, _) in enumerate(tranches, 1):
            if lots[entry] and data.draw(st.booleans()):
                more = data.draw(st.integers(-promised[entry], lots[entry] - promised[entry]))
                if more:
                    held.of(side).promise(entry, more)
                    promised[entry] += more
                closed = data.draw(st.integers(0, lots[entry] - promised[entry]))
                if closed:
                    held.of(side).close(entry, closed)
                    lots[entry] -= closed
            if data.draw(st.booleans()):
                assert held.of(side).free_worth >= held.of(side).free_worth_min
        for name in ("long", "short"):
            ours = [(entry, price) for entry, (side, _, price) in enumerate(tranches, 1) if side == name]
            holding = held.of(name)
            assert holding.lots == sum(lots[entry] for entry, _ in ours)
            assert [*holding.tranches] == [entry for entry, _ in ours if lots[entry]]
            least = holding.free_worth_min
            free = sum(worth(contract, name, lots[entry] - promised[entry], price, mark) for entry, price in ours)
            assert holding.unrealised == sum(worth(contract, name, lots[entry], price, mark) for entry, price in ours)
            assert holding.free_worth == free
            assert free - 2 * len(ours) - 1 <= least <= free
            losing = [
                (Fraction(-worth_of_lot(contract, name, price, mark)), -entry)
                for entry, price in ours
                if lots[entry] > promised[entry] and worth_of_lot(contract, name, price, mark) < 0
            ]
            worst = holding.worst()
            assert (worst.entry if worst else None) == (-max(losing)[1] if losing else None)
            if worst:
                assert_fewest_lots(contract, holding, worst, mark, data.draw(st.integers(1, 10**12)))


def worth_of_lot(contract, side, price, mark) -> Fraction:
    """The worth of a lot, not rounded."""
    numerator, denominator = contract.value_factor()
    move = Fraction(mark - price if side == "long" else price - mark)
    return move * numerator / denominator / (mark * price if contract.is_inverse else 1)


def assert_fewest_lots(contract, holding, tranche, mark, atoms):
    before = worth(contract, holding.name, tranche.free, tranche.price, mark)
    lots = holding.lots_to_gain(tranche, atoms)
    assert 1 <= lots <= tranche.free
    gains = [worth(contract, holding.name, tranche.free - n, tranche.price, mark) - before for n in (lots - 1, lots)]
    assert gains[0] < atoms
    assert gains[1] >= atoms or lots == tranche.free


@given(TRANCHES, st.data())
def test_unwinding_takes_free_lots_first_and_the_oldest_first(tranches, data):
    held = inventory(UNIT, tranches).long
    free, promised = {}, {}
    for entry, tranche in held.tranches.items():
        promised[entry] = data.draw(st.integers(0, tranche.lots))
        free[entry] = tranche.lots - promised[entry]
        if promised[entry]:
            held.promise(entry, promised[entry])
    if not held.lots:
        return
    wanted = data.draw(st.integers(1, held.lots))
    pieces = held.pieces(wanted)
    taken = {piece.tranche.entry: piece for piece in pieces}
    assert [*taken] == sorted(taken)
    rest = wanted
    for lots, name in ((free, "free"), (promised, "promised")):
        for entry in sorted(lots):
            expected = min(rest, lots[entry])
            assert (getattr(taken[entry], name) if entry in taken else 0) == expected
            rest -= expected
    assert sum(piece.lots for piece in pieces) == wanted


@pytest.mark.parametrize("contract", [UNIT, INVERSE])
def test_a_side_without_lots_is_worth_nothing_at_every_mark(contract):
    held = inventory(contract, [("long", 3, 10**13)])
    assert (held.unrealised, held.free_worth_min) == (0, 0)
    held.reprice(10**12)
    held.long.close(1, 3)
    assert (held.unrealised, held.free_worth_min, held.losses) == (0, 0, 0)
    held.reprice(2 * 10**12)
    assert (held.unrealised, held.free_worth_min, held.losses) == (0, 0, 0)


def test_the_heap_does_not_grow_with_closed_tranches():
    held = inventory(UNIT, []).long
    for entry in range(1, 2000):
        from_one = inventory(UNIT, [("long", 1, entry)]).long.tranches[1]
        from_one.entry = entry
        held.add(from_one)
        held.close(entry, 1)
    assert len(held.heap) < 200
