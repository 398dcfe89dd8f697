"""The ADL book of a contract: its open positions by side, in columns, and what a position is worth at the mark."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from fundsvc.core.alphabet import Alphabet
from fundsvc.core.contracts import Contract
from fundsvc.core.directory import NONE, Directory
from fundsvc.core.events import Reason, Rejection
from fundsvc.core.numbers import INT64_MAX
from fundsvc.core.ranking import ROWS_MAX, Columns, Floats, Integers, Leaders, Ranking, keys_of, rank_all, rank_leaders

SideName = Literal["long", "short"]

_Number = TypeVar("_Number", np.int64, np.float64)

LIGHTS = 5
"""Five lights lit: deleveraged first."""

ROWS_MIN = 16
"""A new side's room."""

GROWTH = 1.25
"""A full side's room grows by this, so that what lies empty costs a position no more than a quarter of its bytes."""


class Rank(NamedTuple):
    """Where a position stands among the `ranked` of its side, 1 first."""

    rank: int
    ranked: int

    @property
    def lights(self) -> int:
        """5 - floor((rank - 1) x 5 / n): five lights are deleveraged first."""
        return LIGHTS - (self.rank - 1) * LIGHTS // self.ranked

    @property
    def percentile(self) -> float:
        """Rank / n, above 0 and at most 1."""
        return self.rank / self.ranked


class Standing(NamedTuple):
    """A position with every number that its rank comes from, so that it can be recomputed by hand.

    Prices are in the contract's units, `margin` and `unrealised_pnl` (rounded down, and at most 64 bits) in atoms;
    `return_on_entry` is uPnL / entry value, `leverage` mark value / equity, infinite where there is no equity.
    """

    account: str
    lots: int
    entry_price: int
    margin: int
    mark_price: int
    unrealised_pnl: int
    return_on_entry: float
    leverage: float
    score: float


class SavedSide(msgspec.Struct, array_like=True, frozen=True):
    """The columns of a side as they are kept: little-endian 64-bit integers, a row per open position."""

    accounts: list[str]
    lots: bytes
    entry_price: bytes
    margin: bytes


class SavedBook(msgspec.Struct, array_like=True, frozen=True):
    """A book as it is kept between restarts."""

    long: SavedSide
    short: SavedSide


class Side:
    """The positions of one side, a row per account. Ranking reads values per lot as floats, the rest is exact.

    Single cells are written and read through memoryviews, which takes a third of the time that numpy's scalars take. The exact
    numbers of a row lie side by side, as a position that changes is rarely in the processor's cache; what is ranked lies in
    columns.
    """

    def __init__(self, contract: Contract, name: SideName) -> None:
        self.open = 0
        self._is_inverse = contract.is_inverse
        self._gains_when_rising = name == "long"
        self._direction = 1 if self._gains_when_rising != contract.is_inverse else -1
        self._numerator, self._denominator = contract.value_factor()
        self._directory = Directory()
        self._alphabet = Alphabet(self._directory.accounts)
        self._ranking: tuple[int, Ranking] | None = None
        self._exact = np.empty((0, 3), np.int64)
        self._entry: Floats = np.empty(0)
        self._margin_per_lot: Floats = np.empty(0)
        self._widen(ROWS_MIN)

    @property
    def accounts(self) -> list[str]:
        """The account of each row."""
        return self._directory.accounts

    def expect(self, accounts: Sequence[str]) -> None:
        """Has the memory of these accounts at hand for `set` and `close`, which then need not wait for each."""
        rows = self._directory.expect(accounts)
        for column in (self._exact, self._entry, self._margin_per_lot):
            column.take(rows, axis=0)

    def set(self, account: str, lots: int, entry_price: int, margin: int) -> None:
        """Makes this the account's position; raises Rejection when the side has no room for another account."""
        row = self._directory.find(account)
        if row == NONE:
            row = self._add(account)
        cells, cell = self._exact_at, 3 * row
        if not cells[cell]:
            self.open += 1
        cells[cell] = lots
        cells[cell + 1] = entry_price
        cells[cell + 2] = margin
        self._entry_at[row] = self._lot_value(entry_price)
        self._margin_per_lot_at[row] = margin / lots
        self._ranking = None

    def close(self, account: str) -> None:
        """Closes the account's position, if it has one."""
        row = self._directory.find(account)
        if row != NONE and self._exact_at[3 * row]:
            self.open -= 1
            self._exact_at[3 * row] = 0
            self._entry_at[row] = math.nan
            self._ranking = None

    def reduce(self, account: str, lots: int) -> None:
        """Takes lots off a position, and their share of its margin: its return and leverage stay what they were."""
        row = self._directory.find(account)
        held, entry_price, margin = (0, 0, 0) if row == NONE else self._exact[row].tolist()
        if held > lots:
            self.set(account, held - lots, entry_price, margin * (held - lots) // held)
        elif held:
            self.close(account)

    @property
    def lots(self) -> int:
        """All open lots; summed by halves, as the sum may not fit 64 bits."""
        high, low = int((self._lots >> 32).sum()), int((self._lots & 0xFFFF_FFFF).sum())
        return (high << 32) + low

    def row_of(self, account: str) -> int:
        """The row of an account's open position, or NONE."""
        row = self._directory.find(account)
        return row if row != NONE and self._exact_at[3 * row] else NONE

    def columns(self, mark: int) -> Columns:
        """What the side is ranked by at a mark."""
        rows = len(self.accounts)
        return Columns(self._entry[:rows], self._margin_per_lot[:rows], self._lot_value(mark), self._direction)

    def ranking(self, mark: int) -> Ranking:
        """All ranked positions at a mark; kept until a position or the mark changes."""
        if self._ranking is None or self._ranking[0] != mark:
            self._alphabet.update()
            self._ranking = mark, rank_all(self.columns(mark), self._alphabet)
        return self._ranking[1]

    def leaders(self, mark: int, count: int) -> Leaders:
        """The first `count` gainers at a mark, or all there are."""
        return rank_leaders(self.columns(mark), self.accounts, count)

    def rank_of(self, account: str, mark: int) -> Rank | None:
        """Where an account's position stands at a mark; None without a position, or without equity. Quick once ranked."""
        row = self._directory.find(account)
        if row == NONE:
            return None
        keys = self.ranking(mark).keys
        one = slice(row, row + 1)
        (key,) = keys_of(self.columns(mark).of(one), self._alphabet.places[one])
        before = int(np.searchsorted(keys, key))
        return Rank(before + 1, len(keys)) if before < len(keys) else None

    def standing(self, row: int, mark: int) -> Standing:
        """One position at a mark, with the numbers of its rank."""
        return next(self.standings([row], mark))

    def standings(self, rows: Sequence[int], mark: int) -> Iterator[Standing]:
        """Positions at a mark, with the numbers of their ranks."""
        is_inverse, gains_when_rising, numerator = self._is_inverse, self._gains_when_rising, self._numerator
        value = self._lot_value(mark)
        columns = (column[rows].tolist() for column in (self._lots, self._entry_price, self._margin))
        for row, lots, entry_price, margin in zip(rows, *columns, strict=True):
            move = mark - entry_price if gains_when_rising else entry_price - mark
            worth = move * lots * numerator
            unit = self._denominator * mark * entry_price if is_inverse else self._denominator
            equity = margin + worth / unit
            returned = move / (mark if is_inverse else entry_price)
            leverage = value * lots / equity if equity > 0 else math.inf
            score = returned * leverage if move > 0 else returned / leverage
            pnl = worth // unit
            if not -INT64_MAX <= pnl <= INT64_MAX:
                pnl = INT64_MAX if pnl > 0 else -INT64_MAX
            yield Standing(self.accounts[row], lots, entry_price, margin, mark, pnl, returned, leverage, score)

    def sizes(self) -> Integers:
        """The open lots of every row, 0 where there is no position; they change with the book."""
        return self._lots[: len(self.accounts)]

    def lots_of(self, rows: NDArray[np.integer]) -> Integers:
        """The open lots of rows."""
        lots: Integers = self._lots[rows]
        return lots

    def profits(self, rows: NDArray[np.integer], mark: int) -> Floats:
        """The unrealised PnL of rows at a mark, up to a factor that all have in common."""
        entry_price = self._entry_price[rows]
        moves = mark - entry_price if self._gains_when_rising else entry_price - mark
        profits: Floats = moves.astype(np.float64) * self._lots[rows]
        return profits / entry_price if self._is_inverse else profits

    def save(self) -> SavedSide:
        """The open positions, to be kept."""
        rows = np.flatnonzero(self._lots)
        columns = (column[rows].astype("<i8").tobytes() for column in (self._lots, self._entry_price, self._margin))
        return SavedSide([self.accounts[row] for row in rows.tolist()], *columns)

    def restore(self, saved: SavedSide) -> None:
        """Sets the positions that were kept."""
        columns = (np.frombuffer(data, "<i8").tolist() for data in (saved.lots, saved.entry_price, saved.margin))
        for account, lots, entry_price, margin in zip(saved.accounts, *columns, strict=True):
            self.set(account, lots, entry_price, margin)

    def _lot_value(self, price: int) -> float:
        """What a lot is worth at a price, in atoms; the quotient of integers is the float nearest to it."""
        if self._is_inverse:
            return self._numerator / (self._denominator * price)
        return price * self._numerator / self._denominator

    def _add(self, account: str) -> int:
        row = len(self.accounts)
        if row == ROWS_MAX:
            raise Rejection(Reason.OUT_OF_RANGE, f"a side of a book has at most {ROWS_MAX} accounts")
        if row == len(self._exact):
            self._widen(int(row * GROWTH))
        return self._directory.add(account)

    def _widen(self, rows: int) -> None:
        self._exact = np.concatenate([self._exact, np.zeros((rows - len(self._exact), 3), np.int64)])
        self._lots, self._entry_price, self._margin = self._exact.T
        self._entry = _widened(self._entry, rows, np.float64(np.nan))
        self._margin_per_lot = _widened(self._margin_per_lot, rows, np.float64(0))
        self._exact_at: memoryview[int] = self._exact.reshape(-1).data
        self._entry_at: memoryview[float] = self._entry.data.cast("B").cast("d")
        self._margin_per_lot_at: memoryview[float] = self._margin_per_lot.data.cast("B").cast("d")


class Book:
    """The open positions of a contract, and its mark price in the contract's units (None until one came)."""

    def __init__(self, contract: Contract) -> None:
        self.mark: int | None = None
        self._long, self._short = Side(contract, "long"), Side(contract, "short")
        self.sides: dict[SideName, Side] = {"long": self._long, "short": self._short}

    def expect(self, accounts: Sequence[str]) -> None:
        """Says whose positions are about to be set: changes nothing, makes it quicker."""
        for side in self.sides.values():
            if side.open:
                side.expect(accounts)

    def set(self, account: str, lots: int, entry_price: int, margin: int) -> None:
        """Makes this the account's whole position: positive lots are long, negative short, none close it."""
        side, other = (self._long, self._short) if lots > 0 else (self._short, self._long)
        if lots:
            side.set(account, abs(lots), entry_price, margin)
        else:
            side.close(account)
        if other.open:
            other.close(account)

    @property
    def open(self) -> int:
        """How many positions are open."""
        return self._long.open + self._short.open

    def positions(self, account: str) -> Iterator[tuple[SideName, int]]:
        """The side and row of an account's open position, if it has one."""
        for name, side in self.sides.items():
            row = side.row_of(account)
            if row != NONE:
                yield name, row

    def save(self) -> SavedBook:
        """The positions as they stand, to be kept; the mark is kept beside them."""
        return SavedBook(self.sides["long"].save(), self.sides["short"].save())

    def restore(self, saved: SavedBook) -> None:
        """Sets the positions that were kept."""
        self.sides["long"].restore(saved.long)
        self.sides["short"].restore(saved.short)


def _widened(column: NDArray[_Number], rows: int, filler: _Number) -> NDArray[_Number]:
    return np.concatenate([column, np.full(rows - len(column), filler, column.dtype)])
