import math
import random
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from builders import INVERSE, LINEAR, ONE, UNIT
from hypothesis import assume, given
from hypothesis import strategies as st

from fundsvc.core.adl import book as book_module
from fundsvc.core.adl import ranking as ranking_module
from fundsvc.core.adl import side as side_module
from fundsvc.core.adl.book import Book
from fundsvc.core.adl.book_parts import BookPart, SidePart
from fundsvc.core.adl.book_saves import BookSaves
from fundsvc.core.adl.directory import NONE
from fundsvc.core.adl.ranking import BLOCK_ROWS
from fundsvc.core.adl.rows import GROWTH, Rows
from fundsvc.core.adl.side import Side
from fundsvc.core.adl.valuation import Rank
from fundsvc.core.contracts import Contract
from fundsvc.core.events import Reason, Rejection
from fundsvc.core.numbers import INT64_MAX

PRICE = 10**12
SIDES = st.sampled_from(["long", "short"])
CONTRACTS = st.sampled_from([LINEAR, INVERSE, UNIT])
ACCOUNTS = st.sampled_from([f"a{number}" for number in range(12)])
SMALL = st.tuples(
    ACCOUNTS,
    st.integers(0, 40),
    st.integers(1, 120).map(lambda price: price * PRICE),
    st.integers(0, 400).map(lambda margin: margin * 10**7),
)
HOSTILE = st.tuples(
    ACCOUNTS,
    st.integers(0, INT64_MAX) | st.sampled_from([0, 1, INT64_MAX]),
    st.integers(1, INT64_MAX) | st.sampled_from([1, INT64_MAX]),
    st.integers(0, INT64_MAX) | st.sampled_from([0, INT64_MAX]),
)
MARKS = st.integers(1, 120).map(lambda price: price * PRICE)


def side_of(contract: Contract, name: str, positions) -> Side:
    side = Side(contract, name)
    for account, lots, entry_price, margin in positions:
        if lots:
            side.set(account, lots, entry_price, margin)
        else:
            side.close(account)
    return side


def value(contract: Contract, lots: int, price: int) -> Fraction:
    """Returns the value of lots at a price, by the handbook's formula."""
    quoted = Fraction(price, 10**contract.price_decimals)
    atoms = Fraction(contract.multiplier) * 10**contract.settle_decimals * lots
    return atoms / quoted if contract.is_inverse else atoms * quoted


def exact(contract: Contract, name: str, lots: int, entry_price: int, margin: int, mark: int) -> tuple[Fraction, ...] | None:
    """Returns (uPnL, return, leverage, score) by their definitions, as fractions; None without equity."""
    entry, worth = value(contract, lots, entry_price), value(contract, lots, mark)
    gain = (worth - entry) * (1 if (name == "long") != contract.is_inverse else -1)
    if margin + gain <= 0:
        return None
    leverage = worth / (margin + gain)
    returned = gain / entry
    return gain, returned, leverage, returned * leverage if gain > 0 else returned / leverage


@given(CONTRACTS, SIDES, st.lists(SMALL, max_size=30), MARKS)
def test_ranking_equals_its_definition(contract, name, positions, mark):
    side = side_of(contract, name, positions)
    held = {account: rest for account, *rest in positions}
    known = {account: exact(contract, name, *rest, mark) for account, rest in held.items() if rest[0]}
    scores = {account: numbers[3] for account, numbers in known.items() if numbers}
    distinct = sorted(set(scores.values()))
    # Scores that agree in their first 28 bits are ties by definition. The scores here are equal or clearly different.
    assume(all(above - below > abs(above) * 2**-26 for below, above in pairwise(distinct)))
    queue = sorted(scores, key=lambda account: (-scores[account], account))
    assert [side.accounts[row] for row in side.ranking(mark).rows] == queue
    for account in held:
        rank = side.rank_of(account, mark)
        assert rank == (Rank(queue.index(account) + 1, len(queue)) if account in queue else None)
    for account, numbers in known.items():
        position = side.valued(side.row_of(account), mark)
        if numbers:
            assert position.unrealised_pnl == math.floor(numbers[0])
            assert (position.return_on_entry, position.leverage, position.score) == pytest.approx([*map(float, numbers[1:])])
        else:
            assert math.isinf(position.leverage)


@given(CONTRACTS, SIDES, st.lists(SMALL, max_size=30, unique_by=lambda position: position[0]), MARKS, st.data())
def test_order_of_positions_does_not_affect_the_queue(contract, name, positions, mark, data):
    other = data.draw(st.permutations(positions))
    queues = []
    for arrived in (positions, other):
        side = side_of(contract, name, arrived)
        queues.append([side.valued(row, mark) for row in side.ranking(mark).rows])
        gainers = [position.account for position in queues[-1] if position.score > 0]
        assert [side.accounts[row] for row in side.leaders(mark, 3).rows] == gainers[:3]
    assert queues[0] == queues[1]


@given(CONTRACTS, SIDES, st.lists(HOSTILE, max_size=15), st.integers(1, INT64_MAX) | st.sampled_from([1, INT64_MAX]))
def test_positions_and_marks_up_to_64_bits_are_ranked(contract, name, positions, mark):
    side = side_of(contract, name, positions)
    ranking = side.ranking(mark)
    for rank, row in enumerate(ranking.rows, 1):
        assert side.rank_of(side.accounts[row], mark) == Rank(rank, len(ranking.rows))
    gainers = int(side.columns(mark).gainers().sum())
    assert list(side.leaders(mark, 4).rows) == list(ranking.rows[: min(4, gainers)])
    for row in np.flatnonzero(side.lots_of(np.arange(len(side.accounts)))):
        position = side.valued(int(row), mark)
        assert abs(position.unrealised_pnl) <= INT64_MAX
        assert not math.isnan(position.score)
    assert np.isfinite(side.profits(ranking.rows, mark)).all()


def rows_of(book: Book) -> list[list[tuple]]:
    """Returns the saved position of each account, by side."""
    parts = list(book.save())
    return [
        sorted(row for side in sides for row in _rows(side)) for sides in ([p.long for p in parts], [p.short for p in parts])
    ]


def _rows(side: SidePart) -> Iterator[tuple]:
    columns = (np.frombuffer(column, "<i8") for column in (side.lots, side.entry_price, side.margin, side.seq))
    return zip(side.accounts, *columns, side.seen or side.accounts, strict=True)


def owners_of(book: Book) -> dict[str, str]:
    """Returns the saved owner of each account."""
    return {account: owner for part in book.save() for account, owner in part.owners.items()}


@pytest.mark.parametrize("is_snapshot", [False, True])
def test_book_is_restored_from_its_parts(monkeypatch, is_snapshot):
    monkeypatch.setattr(book_module, "ROWS_PER_PART", 4)
    for module in (book_module, side_module):
        monkeypatch.setattr(module, "ROWS_PER_STEP", 3)
    book = Book(UNIT)
    for number in range(10):
        book.set(f"a{number}", number - 2, (100 + number) * PRICE, 7, owner=f"owner {number % 3}")
        book.remember(f"a{number}", "BOTH", number)
    if is_snapshot:
        book.begin_snapshot()
        for number in (4, 9):
            book.mark_seen(f"a{number}", "BOTH")
    parts = list(book.save())
    assert [(len(part.long.accounts), len(part.owners)) for part in parts] == [(4, 4), (4, 4), (0, 1)]
    again = Book(UNIT)
    for part in parts:
        deque(again.restore(part), maxlen=0)
    assert (rows_of(again), owners_of(again)) == (rows_of(book), owners_of(book))
    again.end_snapshot()
    assert again.open == (2 if is_snapshot else 9)


def test_a_step_restores_few_positions_or_owners(monkeypatch):
    book = Book(UNIT)
    for number in range(20):
        book.set(f"a{number}", 1 if number % 2 else -1, PRICE, 7, owner=f"owner {number}")
        book.remember(f"a{number}", "BOTH", number)
    (part,) = book.save()
    for module in (book_module, side_module):
        monkeypatch.setattr(module, "ROWS_PER_STEP", 3)
    again = Book(UNIT)
    steps = [again.open + len(owners_of(again)) for _ in again.restore(part)]
    assert max(after - before for before, after in pairwise([0, *steps, 40])) <= 3
    assert (rows_of(again), owners_of(again)) == (rows_of(book), owners_of(book))


class Saves:
    """The saved parts of a book, as the ledger keeps them, and their rows."""

    def __init__(self):
        self.parts = []
        self.written = 0

    def take(self, saves, book):
        saved = saves.take(book)
        self.parts[saved.first :] = saved.parts
        self.written += saved.rows

    def restored(self):
        book, saves = Book(UNIT), BookSaves()
        parts = [msgspec.msgpack.decode(part, type=BookPart) for part in self.parts]
        for part in parts:
            saves.count(part)
            deque(book.restore(part), maxlen=0)
        saves.restored(book, len(parts))
        return book, saves


def change(book, dice, seq):
    """Changes a book in one of all ways in which events change it."""
    account, leg = f"a{dice.randrange(40)}", dice.choice(("BOTH", "BOTH", "BOTH", "LONG", "SHORT"))
    match dice.choices(range(6), (60, 12, 6, 2, 2, 2))[0]:
        case 0:
            lots = dice.choice((0, 0, 1, -1)) * dice.randrange(1, 9)
            lots = abs(lots) if leg != "BOTH" else lots
            book.set(
                account, lots, dice.randrange(1, 99) * PRICE, dice.randrange(99), leg, dice.choice(("", "", "x", "y", "z"))
            )
            if dice.random() < 0.3:
                book.remember(account, leg, seq)
        case 1:
            book.reduce(dice.choice(("long", "short")), account, dice.randrange(1, 9))
        case 2:
            book.mark_seen(account, leg)
        case 3:
            book.begin_snapshot()
        case 4:
            book.end_snapshot()
        case 5:
            side = book.sides[dice.choice(("long", "short"))]
            side.promise(account, 3)
            side.promise(account, -3)


def contents(book):
    """All that saving must keep, without the order of rows."""
    found = []
    for part in book.save():
        for side in (part.long, part.short):
            lots, entry_prices, margins = (
                np.frombuffer(column, "<i8") for column in (side.lots, side.entry_price, side.margin)
            )
            seqs = np.frombuffer(side.seq, "<i8") if side.seq else np.zeros(len(lots), int)
            seen, legs = side.seen or bytes(len(lots)), side.legs or bytes(len(lots))
            rows = zip(side.accounts, lots, entry_prices, margins, seqs, seen, legs, strict=True)
            # Only the sequence of a closed position means something.
            found += [(side is part.long, *(row if row[1] else (row[0], row[4]))) for row in rows]
    owned = {account: sorted(book.owners.of_same(account)) for account in book.owners.by_account()}
    return sorted(found), owned, dict(book.owners.by_account()), book.stale, book.open


@pytest.mark.parametrize("seed", range(60))
def test_book_is_restored_from_a_save_and_its_changes(seed, monkeypatch):
    monkeypatch.setattr(book_module, "ROWS_PER_PART", 5)
    monkeypatch.setattr(side_module, "GONE_MIN", 3)
    dice = random.Random(seed)
    undisturbed, book, saves, kept = Book(UNIT), Book(UNIT), BookSaves(), Saves()
    changes = 0
    for seq in range(1, 400):
        again = dice.random()
        for one in (undisturbed, book):
            change(one, random.Random(again), seq)
        if dice.random() < 0.15:
            kept.take(saves, book)
            changes += any(msgspec.msgpack.decode(part, type=BookPart).changes for part in kept.parts)
            assert contents(kept.restored()[0]) == contents(undisturbed)
            if dice.random() < 0.3:
                book, saves = kept.restored()
    assert changes > 5


def test_saves_write_in_proportion_to_the_changes():
    book, saves, kept = Book(UNIT), BookSaves(), Saves()
    for number in range(5_000):
        book.set(f"a{number}", 1, PRICE, 7)
    kept.take(saves, book)
    assert kept.written == 5_000
    for number in range(500):
        for account in range(20):
            book.set(f"a{(number * 20 + account) % 5_000}", 2 + number, PRICE, 7)
        kept.take(saves, book)
    assert kept.written <= 5_000 + 2 * 10_000
    assert sum(part.rows for part in (msgspec.msgpack.decode(part, type=BookPart) for part in kept.parts)) <= 2 * 5_000


def test_growing_book_is_not_saved_again():
    book, saves, kept = Book(UNIT), BookSaves(), Saves()
    for number in range(1_000):
        book.set(f"a{number}", 1, PRICE, 7)
        if number % 20 == 0:
            kept.take(saves, book)
    assert kept.written < 1_000


@pytest.mark.parametrize("lots", [1, -1, 0], ids=["long", "short", "closed"])
def test_book_is_large_by_its_rows_open_or_closed(monkeypatch, lots):
    monkeypatch.setattr(book_module, "LARGE_ROWS", 3)
    book = Book(UNIT)
    for number in range(4):
        assert not book.is_large
        book.set(f"a{number}", lots or 1, PRICE, 7)
        book.remember(f"a{number}", "BOTH", 1)
        if not lots:
            book.set(f"a{number}", 0, 0, 0)
    assert book.is_large


@pytest.mark.parametrize("has_seq", [False, True])
def test_rows_grow_a_block_at_a_time_and_keep_their_numbers(has_seq):
    rows = Rows()
    for _ in rows.reserve(2 * BLOCK_ROWS):
        pass
    rows.exact[:], rows.entry[:], rows.margin_per_lot[:] = 7, 8, 9
    if has_seq:
        rows.add_seq()[:] = 6
    steps = sum(1 for _ in rows.reserve(2 * BLOCK_ROWS + 1))
    assert steps == 3
    assert len(rows) == 2 * BLOCK_ROWS * GROWTH
    known, new = slice(2 * BLOCK_ROWS), slice(2 * BLOCK_ROWS, None)
    assert (rows.exact[known] == 7).all()
    assert not rows.exact[new].any()
    assert (rows.entry[known] == 8).all()
    assert np.isnan(rows.entry[new]).all()
    assert (rows.margin_per_lot[known] == 9).all()
    assert (rows.seq is not None) == has_seq
    assert not has_seq or ((rows.seq[known] == 6).all() and not rows.seq[new].any())
    assert list(rows.reserve(len(rows))) == []


@pytest.mark.parametrize("has_seq", [False, True])
def test_restoring_allocates_rows_in_steps_of_their_own(monkeypatch, has_seq):
    """A step that restores positions must not also copy all columns."""
    book = Book(UNIT)
    for number in range(1000):
        book.set(f"a{number}", 1, PRICE, 7)
        if has_seq:
            book.remember(f"a{number}", "LONG", number + 1)
    again, copied = Book(UNIT), []
    monkeypatch.setattr(ranking_module, "BLOCK_ROWS", 64)
    for part in book.save():
        side = again.sides["long"]
        before = side.open, len(side.accounts)
        for _ in again.restore(part):
            after = side.open, len(side.accounts)
            copied.append(after == before)
            before = after
    assert sum(copied) >= 1000 // 64
    assert again.sides["long"].lots == 1000
    assert all(again.seq_of(f"a{number}", "LONG") == has_seq * (number + 1) for number in range(1000))


@given(st.lists(st.tuples(ACCOUNTS, st.integers(-(2**62), 2**62)), max_size=40), st.booleans())
def test_lots_of_a_side_are_the_sum_of_its_positions(positions, is_snapshot):
    book = Book(UNIT)
    if is_snapshot:
        book.begin_snapshot()
    for account, lots in positions:
        book.set(account, lots, PRICE, 1)
    if is_snapshot:
        book.begin_snapshot()
        for account, _ in positions[::2]:
            book.mark_seen(account, "BOTH")
        book.end_snapshot()
    for account, _ in positions[::3]:
        book.sides["short"].reduce(account, 5)
    assert [side.lots for side in book.sides.values()] == [sum(side.sizes().tolist()) for side in book.sides.values()]


@given(CONTRACTS, st.lists(st.tuples(SMALL, st.booleans()), max_size=40), MARKS)
def test_restored_book_has_the_same_ranking(contract, positions, mark):
    book = Book(contract)
    for (account, lots, entry_price, margin), is_long in positions:
        book.set(account, lots if is_long else -lots, entry_price, margin)
    again = Book(contract)
    deque(again.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(next(book.save())), type=BookPart)), maxlen=0)
    assert again.open == book.open
    for name, side in book.sides.items():
        other = again.sides[name]
        queues = [[s.valued(row, mark) for row in s.ranking(mark).rows] for s in (side, other)]
        assert queues[0] == queues[1]


@given(st.lists(st.tuples(ACCOUNTS, st.integers(-9, 9)), max_size=40))
def test_account_has_only_its_last_position(events):
    book, last = Book(UNIT), {}
    for account, lots in events:
        book.set(account, lots, 100 * PRICE, ONE)
        last[account] = lots
    held = {account: lots for account, lots in last.items() if lots}
    assert book.open == len(held)
    for account, lots in last.items():
        found = [(name, int(book.sides[name].lots_of(np.array([row]))[0])) for name, row in book.positions(account)]
        assert found == ([("long" if lots > 0 else "short", abs(lots))] if lots else [])


def test_ranks_change_with_positions_and_marks():
    side = side_of(UNIT, "long", [("a", 1, 100 * PRICE, 50 * ONE), ("b", 1, 100 * PRICE, 40 * ONE)])
    assert side.rank_of("a", 110 * PRICE) == Rank(2, 2)
    assert side.rank_of("a", 59 * PRICE) == Rank(1, 1)
    assert side.rank_of("b", 60 * PRICE) is None
    side.set("a", 1, 100 * PRICE, 30 * ONE)
    assert side.rank_of("a", 110 * PRICE) == Rank(1, 2)
    side.close("b")
    side.close("b")
    assert side.rank_of("a", 110 * PRICE) == Rank(1, 1)
    assert side.rank_of("b", 110 * PRICE) is None
    assert side.rank_of("nobody", 110 * PRICE) is None
    assert (side.open, side.row_of("b"), side.row_of("nobody")) == (1, NONE, NONE)


def test_reduced_position_keeps_its_return_and_leverage():
    side = side_of(UNIT, "long", [("a", 10, 100 * PRICE, 500 * ONE)])
    before = side.valued(side.row_of("a"), 110 * PRICE)
    side.reduce("a", 4)
    after = side.valued(side.row_of("a"), 110 * PRICE)
    assert (after.lots, after.margin) == (6, 300 * ONE)
    assert (after.return_on_entry, after.leverage) == (before.return_on_entry, before.leverage)
    side.reduce("nobody", 1)
    side.reduce("a", 7)
    side.reduce("a", 1)
    assert (side.open, side.row_of("a")) == (0, NONE)


@pytest.mark.parametrize(
    ("ranked", "lights"),
    [(1, [5]), (2, [5, 3]), (5, [5, 4, 3, 2, 1]), (7, [5, 5, 4, 3, 3, 2, 1]), (10, [5, 5, 4, 4, 3, 3, 2, 2, 1, 1])],
)
def test_first_fifth_of_the_queue_has_five_lights(ranked, lights):
    assert [Rank(rank, ranked).lights for rank in range(1, ranked + 1)] == lights
    assert Rank(ranked, ranked).percentile == 1


def test_full_side_rejects_a_further_account_and_still_accepts_known_ones(monkeypatch):
    monkeypatch.setattr(side_module, "ROWS_MAX", 3)
    side = side_of(UNIT, "long", [(name, 1, 100 * PRICE, ONE) for name in "abc"])
    with pytest.raises(Rejection) as rejection:
        side.set("d", 1, 100 * PRICE, ONE)
    assert rejection.value.reason == Reason.OUT_OF_RANGE
    side.set("a", 2, 100 * PRICE, ONE)
    assert [side.accounts[row] for row in side.ranking(110 * PRICE).rows] == ["a", "b", "c"]


def test_growing_side_keeps_all_positions():
    side = side_of(UNIT, "short", [(f"a{number:04d}", number + 1, 100 * PRICE, ONE) for number in range(1000)])
    assert side.open == 1000
    assert [int(lots) for lots in side.lots_of(np.arange(1000))] == list(range(1, 1001))
    assert len(side.ranking(90 * PRICE).rows) == 1000


LEGS = st.sampled_from(["BOTH", "LONG", "SHORT"])


@given(st.lists(st.tuples(ACCOUNTS, LEGS, st.integers(0, 3), st.booleans()), max_size=30))
def test_position_has_the_last_leg_of_its_events(steps):
    book, named = Book(LINEAR), {}
    for account, leg, lots, is_short in steps:
        side = "short" if leg == "SHORT" or (leg == "BOTH" and is_short) else "long"
        book.set(account, -lots if side == "short" else lots, PRICE, 0, leg)
        if leg == "BOTH":
            named.pop((account, "long"), None)
            named.pop((account, "short"), None)
        named.pop((account, side), None)
        if lots:
            named[account, side] = leg
    assert legs_of(book) == expected_legs(named)
    other = Book(LINEAR)
    for _ in other.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(next(book.save())), type=BookPart)):
        pass
    assert legs_of(other) == legs_of(book)


def legs_of(book):
    accounts = {account for side in book.sides.values() for account in side.accounts}
    return {(account, name): book.leg_of(name, row) for account in accounts for name, row in book.positions(account)}


def expected_legs(named):
    """A leg of an account with two legs is never `BOTH`."""
    other = {"long": "short", "short": "long"}
    return {(account, side): side.upper() if (account, other[side]) in named else leg for (account, side), leg in named.items()}


def test_reduction_keeps_the_leg_of_a_position():
    book = Book(LINEAR)
    book.set("h", 10, PRICE, 0, "LONG")
    book.sides["long"].reduce("h", 4)
    assert legs_of(book) == {("h", "long"): "LONG"}


def test_book_without_legs_is_restored():
    book = Book(LINEAR)
    book.set("a", 10, PRICE, 0)
    old = [side[:6] for side in msgspec.msgpack.decode(msgspec.msgpack.encode(next(book.save())))[:2]]
    other = Book(LINEAR)
    for _ in other.restore(msgspec.msgpack.decode(msgspec.msgpack.encode([*old, False, -1]), type=BookPart)):
        pass
    assert legs_of(other) == {("a", "long"): "BOTH"}
