"""The ADL book of a contract: its open positions by side, in columns, and what a position is worth at the mark."""

from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from fundsvc.core.contracts import Contract
from fundsvc.core.directory import NONE, Directory
from fundsvc.core.ranking import Floats, Rows, rank_all, rank_leaders

SideName = Literal["long", "short"]

_Number = TypeVar("_Number", np.int64, np.float64)

LIGHTS = 5
"""Five lights lit: deleveraged first."""

ROWS_MIN = 16
"""A new side's room; it doubles when it is full."""


class Standing(NamedTuple):
    """A position with every number that its rank comes from, so that it can be recomputed by hand.

    Prices are in the contract's units, `margin` and `unrealised_pnl` in atoms; `return_on_entry` is uPnL / entry value, `leverage`
    mark value / equity.
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
    """The positions of one side, a row per account. `entry` and `margin_per_lot` are what ranking reads; the rest is exact."""

    def __init__(self, contract: Contract, name: SideName) -> None:
        self.lots = np.zeros(ROWS_MIN, np.int64)
        self.entry_price = np.zeros(ROWS_MIN, np.int64)
        self.margin = np.zeros(ROWS_MIN, np.int64)
        self._entry: Floats = np.zeros(ROWS_MIN)
        self._margin_per_lot: Floats = np.full(ROWS_MIN, -np.inf)
        self._directory = Directory()
        self._contract = contract
        self._gains_when_rising = name == "long"
        self._direction = 1 if self._gains_when_rising != contract.is_inverse else -1
        self._numerator, self._denominator = contract.value_factor()
        self._factor = self._numerator / self._denominator
        self._order: tuple[int, Rows] | None = None
        self.open = 0

    @property
    def accounts(self) -> list[str]:
        """The account of each row."""
        return self._directory.accounts

    def set(self, account: str, lots: int, entry_price: int, margin: int) -> None:
        """Makes this the account's position; no lots close it."""
        row = self._directory.add(account) if lots else self._directory.find(account)
        if row == NONE:
            return
        if row == len(self.lots):
            self._widen()
        self.open += bool(lots) - bool(self.lots[row])
        self.lots[row] = lots
        self.entry_price[row] = entry_price
        self.margin[row] = margin
        if lots:
            self._entry[row] = self._lot_value(entry_price)
        self._margin_per_lot[row] = margin / lots if lots else -np.inf
        self._order = None

    def lots_of(self, account: str) -> int:
        """The open lots of an account."""
        row = self._directory.find(account)
        return 0 if row == NONE else int(self.lots[row])

    def reduce(self, account: str, lots: int) -> None:
        """Takes lots off a position, and their share of its margin: its return and leverage stay what they were."""
        row = self._directory.find(account)
        held = 0 if row == NONE else int(self.lots[row])
        left = max(0, held - lots)
        if held:
            self.set(account, left, int(self.entry_price[row]), int(self.margin[row]) * left // held)

    def ranking(self, mark: int) -> Rows:
        """The rows of all ranked positions at a mark, rank 1 first; kept until a position or the mark changes."""
        if self._order is None or self._order[0] != mark:
            self._order = mark, rank_all(*self._columns(mark), self.accounts)
        return self._order[1]

    def leaders(self, mark: int, count: int) -> Rows:
        """The rows of the first `count` gainers at a mark, or all there are, rank 1 first."""
        return rank_leaders(*self._columns(mark), self.accounts, count)

    def ranked(self, mark: int) -> int:
        """How many positions have a rank at a mark."""
        entry, margin, value, direction = self._columns(mark)
        return int(np.count_nonzero(margin + (value - entry) * direction > 0))

    def standing(self, row: int, mark: int) -> Standing:
        """One position at a mark, with the numbers of its rank."""
        lots, entry_price, margin = int(self.lots[row]), int(self.entry_price[row]), int(self.margin[row])
        entry, value = self._lot_value(entry_price) * lots, self._lot_value(mark) * lots
        gain = (value - entry) * self._direction
        returned = gain / entry
        leverage = value / (margin + gain) if margin + gain > 0 else float("inf")
        score = returned * leverage if gain > 0 else returned / leverage
        pnl = self._unrealised_pnl(lots, entry_price, mark)
        return Standing(self.accounts[row], lots, entry_price, margin, mark, pnl, returned, leverage, score)

    def gains(self, rows: Rows, mark: int) -> Floats:
        """The unrealised PnL of rows at a mark, in atoms, as floats."""
        per_lot = (self._lot_value(mark) - self._entry[rows]) * self._direction
        return np.asarray(per_lot * self.lots[rows], np.float64)

    def row_of(self, account: str) -> int:
        """The row of an account, or NONE."""
        return self._directory.find(account)

    def save(self) -> SavedSide:
        """The open positions, to be kept."""
        rows = np.flatnonzero(self.lots)
        columns = (column[rows].astype("<i8").tobytes() for column in (self.lots, self.entry_price, self.margin))
        return SavedSide([self.accounts[row] for row in rows], *columns)

    def restore(self, saved: SavedSide) -> None:
        """Sets the positions that were kept."""
        columns = (np.frombuffer(data, "<i8").tolist() for data in (saved.lots, saved.entry_price, saved.margin))
        for account, lots, entry_price, margin in zip(saved.accounts, *columns, strict=True):
            self.set(account, lots, entry_price, margin)

    def _columns(self, mark: int) -> tuple[Floats, Floats, float, int]:
        rows = len(self.accounts)
        return self._entry[:rows], self._margin_per_lot[:rows], self._lot_value(mark), self._direction

    def _lot_value(self, price: int) -> float:
        """What a lot is worth at a price, in atoms."""
        return self._factor / price if self._contract.is_inverse else self._factor * price

    def _unrealised_pnl(self, lots: int, entry_price: int, mark: int) -> int:
        """Exact, rounded towards minus infinity; the formula of `Fund.worth` with the entry for the bankruptcy price."""
        move = mark - entry_price if self._gains_when_rising else entry_price - mark
        denominator = self._denominator * mark * entry_price if self._contract.is_inverse else self._denominator
        return move * lots * self._numerator // denominator

    def _widen(self) -> None:
        self.lots, self.entry_price, self.margin = (
            _doubled(column, np.int64(0)) for column in (self.lots, self.entry_price, self.margin)
        )
        self._entry = _doubled(self._entry, np.float64(0))
        self._margin_per_lot = _doubled(self._margin_per_lot, np.float64(-np.inf))


class Book:
    """The open positions of a contract, and its mark price in the contract's units (None until one came)."""

    def __init__(self, contract: Contract) -> None:
        self.mark: int | None = None
        self.sides: dict[SideName, Side] = {"long": Side(contract, "long"), "short": Side(contract, "short")}

    def set(self, account: str, lots: int, entry_price: int, margin: int) -> None:
        """Makes this the account's whole position: positive lots are long, negative short, none close it."""
        self.sides["long"].set(account, max(lots, 0), entry_price, margin)
        self.sides["short"].set(account, max(-lots, 0), entry_price, margin)

    @property
    def open(self) -> int:
        """How many positions are open."""
        return sum(side.open for side in self.sides.values())

    def positions(self, account: str) -> Iterator[tuple[SideName, int]]:
        """The side and row of an account's open position, if it has one."""
        for name, side in self.sides.items():
            if side.lots_of(account):
                yield name, side.row_of(account)

    def save(self) -> SavedBook:
        """The positions as they stand, to be kept; the mark is kept beside them."""
        return SavedBook(self.sides["long"].save(), self.sides["short"].save())

    def restore(self, saved: SavedBook) -> None:
        """Sets the positions that were kept."""
        self.sides["long"].restore(saved.long)
        self.sides["short"].restore(saved.short)


def lights(rank: int, ranked: int) -> int:
    """5 - floor((rank - 1) x 5 / n): five lights are deleveraged first."""
    return LIGHTS - (rank - 1) * LIGHTS // ranked


def _doubled(column: NDArray[_Number], filler: _Number) -> NDArray[_Number]:
    return np.concatenate([column, np.full(len(column), filler, column.dtype)])
