"""The ADL book of a contract: its open positions by side, in columns, and what a position is worth at the mark."""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from fundsvc.core.adl.account_order import AccountOrder, Ordinals
from fundsvc.core.adl.allocation import Sharing
from fundsvc.core.adl.directory import NONE, Directory
from fundsvc.core.adl.owners import Owners
from fundsvc.core.adl.ranking import (
    ROUNDING_ERROR,
    ROWS_MAX,
    Columns,
    Floats,
    Integers,
    Leaders,
    Mask,
    Ranking,
    blocks,
    keys_of,
    numbers_of,
    rank_all,
    rank_leaders,
    uncertain_rows,
)
from fundsvc.core.adl.valuation import Rank, SideName, Valuation, ValuedPosition
from fundsvc.core.contracts import Contract
from fundsvc.core.events import Reason, Rejection

Leg = Literal["BOTH", "LONG", "SHORT"]

_Number = TypeVar("_Number", np.int64, np.float64)

ROWS_MIN = 16
"""A new side's room."""

NOTHING_KNOWN = -1
"""Before every message."""

GROWTH = 1.25
"""A full side's room grows by this, so that what lies empty costs a position no more than a quarter of its bytes."""

ROWS_PER_STEP = 200
"""Positions restored between two looks at the loop: 0.4 to 2 ms, as in a large book the memory of each is not in a cache."""

ROWS_PER_PART = 4096
"""Positions of a side that a part of a kept book holds: 200 to 400 kB for both, which take a millisecond to encode or send."""

CELL_BYTES = 8

ROWS_AT_ONCE = 32
"""From so many on, rows are read and written as columns."""

LARGE_POSITIONS = 20_000
"""A book with more positions is large: to rank it, or to go through it otherwise, takes several milliseconds."""

ROWS_FREED_MAX = 5000
"""Rows that the end of a snapshot frees; closed rows beyond that wait for their account."""

_FIELDS = 4
"""Exact numbers of a row: lots, entry price, margin, promised lots."""

_LOTS, _ENTRY_PRICE, _MARGIN, _PROMISED = range(_FIELDS)


class SidePart(msgspec.Struct, array_like=True, frozen=True):
    """The columns of a side as they are kept: little-endian 64-bit integers, a row per position.

    `seq` is empty where no position has a sequence; rows with a sequence are kept with 0 lots once they are closed. `seen` has
    a byte per row while a snapshot is under way, 1 where it named the row. `legs` has a byte per row, 1 where the row is one
    leg of an account in hedge mode; it is empty where none is.
    """

    accounts: list[str]
    lots: bytes
    entry_price: bytes
    margin: bytes
    seq: bytes = b""
    seen: bytes | None = None
    legs: bytes = b""

    def part(self, first: int, last: int) -> "SidePart":
        """The rows from `first` up to, not including, `last`; less where the side ends."""
        cells = slice(CELL_BYTES * first, CELL_BYTES * last)
        return SidePart(
            self.accounts[first:last],
            self.lots[cells],
            self.entry_price[cells],
            self.margin[cells],
            self.seq[cells],
            None if self.seen is None else self.seen[first:last],
            self.legs[first:last],
        )


class BookPart(msgspec.Struct, array_like=True, frozen=True):
    """A book as it is kept between restarts, or a part of it: parts that are restored one after the other are the whole.

    `owners` has the owners of accounts that were named one.
    """

    long: SidePart
    short: SidePart
    stale: bool = False
    known_ms: int = NOTHING_KNOWN
    owners: dict[str, str] = {}


class Candidates:
    """Rows in the order of rank, with what every order needs of them; valid while its side stands still.

    `rows[0]` has rank 1 unless `ranks` says otherwise. `ranked` is the number of positions with a rank, `gainers` the number of
    leading rows with a profit; `complete` says whether these are all gainers of the side. Rows before `start` have promised all
    they hold.
    """

    def __init__(
        self, side: "Side", mark: int, leaders: Leaders, gainers: int, *, complete: bool, ranks: Integers | None = None
    ) -> None:
        self.mark = mark
        self.rows = leaders.rows
        self.ranked = leaders.ranked
        self.gainers = gainers
        self.complete = complete
        self.held = side.lots_of(leaders.rows)
        self.row_at = self.rows.item
        self.held_at = self.held.item
        self.start = 0
        self._ranks = ranks
        self._side = side
        self._limits: dict[int, int] = {}
        self._sharing: tuple[int, Sharing] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def profits(self) -> Floats:
        """The unrealised PnL of each candidate, up to a factor that all have in common."""
        return self._side.profits(self.rows, self.mark)

    @cached_property
    def ordinals(self) -> Ordinals:
        """Where the account of each candidate stands in the account_order."""
        return self._side.ordinals(self.rows)

    def sharing(self, last: int) -> Sharing:
        """Shares lots by profit among the first so many candidates."""
        if self._sharing is None or self._sharing[0] != last:
            self._sharing = last, Sharing(self.profits[:last], self.ordinals[:last])
        return self._sharing[1]

    @cached_property
    def _stakes(self) -> tuple[Floats, Floats]:
        """Per lot, equity less PnL from the entry at value 0, and the values that it is the difference of."""
        return self._side.stakes(self.rows)

    def _leaves_all_solvent(self, part: slice, price: int) -> bool:
        """Whether it takes no look at each candidate to know that they all survive a price."""
        valuation = self._side.valuation
        return 0 < part.stop <= self.gainers and valuation.direction * valuation.lot_value(price) > self._safe

    @cached_property
    def _safe(self) -> float:
        """Above this lot value times the direction floats are sure that the price leaves every gainer solvent."""
        base, scale = (column[: self.gainers] for column in self._stakes)
        safe = np.max(scale * (2 * ROUNDING_ERROR) - base)
        return float(safe + abs(safe) * (2 * ROUNDING_ERROR))

    def rank_at(self, index: int) -> int:
        """The rank of a row."""
        return index + 1 if self._ranks is None else int(self._ranks[index])

    def ranks_of(self, indices: NDArray[np.integer]) -> list[int]:
        """The ranks of some rows, by their ordinals."""
        return numbers_of(indices + 1 if self._ranks is None else self._ranks[indices])

    def free_at(self, index: int) -> int:
        """The lots of a candidate that no open order waits for."""
        return self.held_at(index) - self._side.promised_at(self.row_at(index))

    def free(self, part: slice) -> Integers:
        """The lots of each candidate that no open order waits for; below 0 where more were promised than it still holds."""
        return self.held[part] - self._side.promised(self.rows[part])

    def solvent(self, part: slice, price: int) -> Integers:
        """The lots of each candidate that no open order waits for, 0 where the price would bankrupt the position."""
        free = self.free(part)
        if not self._leaves_all_solvent(part, price):
            free[~self.survivors(part, price)] = 0
        return free

    def survives(self, index: int, price: int) -> bool:
        """Whether closing a candidate at a price would leave it with no deficit: margin + PnL at the price >= 0."""
        limit = self._limits.get(index)
        if limit is None:
            limit = self._limits[index] = self._side.limit(self.row_at(index))
        return self._side.valuation.survives(limit, price)

    def survivors(self, part: slice, price: int) -> Mask:
        """The same for many candidates: by floats, and exactly where these are unsure."""
        base, scale = self._stakes
        value = self._side.valuation.lot_value(price)
        slack = base[part] + self._side.valuation.direction * value
        survives: Mask = slack >= 0
        for index in np.flatnonzero(np.abs(slack) <= (scale[part] + value) * ROUNDING_ERROR).tolist():
            survives[index] = self.survives(index + part.start, price)
        return survives


class Side:
    """The positions of one side, a row per account. Ranking reads values per lot as floats, the rest is exact.

    Single cells are written and read through memoryviews, which takes a third of the time that numpy's scalars take. The exact
    numbers of a row lie side by side, as a position that changes is rarely in the processor's cache; what is ranked lies in
    columns. A closed row is free for another account once no open order waits for its lots and no sequence must be remembered.
    """

    def __init__(self, contract: Contract, name: SideName) -> None:
        self.valuation = Valuation(contract, name)
        self._lot_value = self.valuation.lot_value
        self._clear()

    def _clear(self) -> None:
        self.open = self.lots = 0
        self._directory = Directory()
        self._account_order = AccountOrder(self._directory.accounts)
        self._seq: Integers | None = None
        self._seen: bytearray | None = None
        self._legs: bytearray | None = None
        self._exact = np.empty((0, _FIELDS), np.int64)
        self._entry: Floats = np.empty(0)
        self._margin_per_lot: Floats = np.empty(0)
        self._widen(ROWS_MIN)
        self._forget()

    def _forget(self) -> None:
        """Drops what was derived from positions that have changed."""
        self._columns: tuple[int, Columns] | None = None
        self._ranking: tuple[int, Ranking] | None = None
        self._leaders: Candidates | None = None
        self._all_candidates: Candidates | None = None

    @property
    def accounts(self) -> list[str]:
        """The account of each row."""
        return self._directory.accounts

    @property
    def used(self) -> int:
        """The number of rows that are not free."""
        return self._directory.used

    def prefetch(self, accounts: Sequence[str]) -> None:
        """Has the memory of these accounts at hand for `set` and `close`, which then need not wait for each."""
        rows = self._directory.prefetch(accounts)
        for column in (self._exact, self._entry, self._margin_per_lot):
            column.take(rows, axis=0)

    def set(self, account: str, lots: int, entry_price: int, margin: int) -> int:
        """Makes this the account's position; returns its row.

        Raises Rejection when the side has no room for another account.
        """
        row = self._directory.find(account)
        if row == NONE:
            row = self._add(account)
        cells, cell = self._exact_at, _FIELDS * row
        held = cells[cell]
        if not held:
            self.open += 1
        self.lots += lots - held
        cells[cell] = lots
        cells[cell + 1] = entry_price
        cells[cell + 2] = margin
        self._entry_at[row] = self._lot_value(entry_price)
        self._margin_per_lot_at[row] = margin / lots
        self._columns = self._ranking = self._leaders = self._all_candidates = None
        if self._seen is not None:
            self._mark_row_seen(row)
        return row

    def close(self, account: str) -> None:
        """Closes the account's position, if it has one."""
        row = self._directory.find(account)
        if row != NONE and self._exact_at[_FIELDS * row]:
            self._close(row)
            self._free_if_idle(row)

    def reduce(self, account: str, lots: int) -> None:
        """Takes lots off a position, and their share of its margin: its return and leverage stay what they were."""
        row = self._directory.find(account)
        held, entry_price, margin, _ = (0, 0, 0, 0) if row == NONE else self._exact[row].tolist()
        if held > lots:
            self.set(account, held - lots, entry_price, margin * (held - lots) // held)
        elif held:
            self.close(account)

    def promise(self, account: str, lots: int) -> None:
        """Promises lots of an account to an open order, or with negative lots takes a promise back."""
        row = self._directory.find(account)
        if row == NONE:
            row = self._add(account)
        self._exact_at[_FIELDS * row + _PROMISED] += lots
        if lots < 0:
            self._release(row)

    def promise_rows(self, rows: Sequence[int], lots: Sequence[int]) -> None:
        """Promises lots of rows, each named once, to an open order."""
        if len(rows) < ROWS_AT_ONCE:
            cells = self._exact_at
            for row, promised in zip(rows, lots, strict=True):
                cells[_FIELDS * row + _PROMISED] += promised
        else:
            for block in blocks(len(rows)):
                self._promised[rows[block]] += lots[block]

    def ordinals(self, rows: NDArray[np.integer]) -> Ordinals:
        """Where the accounts of ranked rows stand in the account_order."""
        ordinals: Ordinals = self._account_order.ordinals[rows]
        return ordinals

    def seq_of(self, account: str) -> int:
        """The sequence of an account's last position, 0 if it had none."""
        if self._seq is None:
            return 0
        row = self._directory.find(account)
        return 0 if row == NONE else int(self._seq[row])

    def remember(self, account: str, seq: int) -> None:
        """Keeps the sequence of an account's last position, open or closed."""
        row = self._directory.find(account)
        if row == NONE:
            row = self._add(account)
        if self._seq is None:
            self._seq = np.zeros(len(self._exact), np.int64)
        self._seq[row] = seq

    def mark_seen(self, account: str) -> None:
        """Notes that a snapshot names an account, if that has a row."""
        row = self._directory.find(account)
        if row != NONE:
            self._mark_row_seen(row)

    def set_leg(self, account: str, *, is_leg: bool) -> None:
        """Notes whether the open position of an account is one leg in hedge mode, or its whole position."""
        if self._legs is None:
            if not is_leg:
                return
            self._legs = bytearray(len(self._exact))
        row = self._directory.find(account)
        if row >= len(self._legs):
            self._legs.extend(bytes(len(self._exact) - len(self._legs)))
        self._legs[row] = is_leg

    def is_leg(self, row: int) -> bool:
        """Whether a row is one leg of an account in hedge mode."""
        return self._legs is not None and row < len(self._legs) and bool(self._legs[row])

    def begin_snapshot(self) -> None:
        """Begins to note the rows that a snapshot names."""
        self._seen = bytearray(len(self._exact))

    def end_snapshot(self) -> None:
        """Closes every position that the snapshot did not name."""
        if self._seen is None:
            return
        seen = np.frombuffer(self._seen.ljust(len(self._exact), b"\0"), np.uint8)
        rows = np.flatnonzero((self._lots > 0) & (seen == 0))
        self._seen = None
        self.lots -= sum(numbers_of(self._lots[rows]))
        self._lots[rows] = 0
        self._entry[rows] = np.nan
        self.open -= len(rows)
        self._forget()
        for row in rows[:ROWS_FREED_MAX].tolist():
            self._free_if_idle(row)

    def row_of(self, account: str) -> int:
        """The row of an account's open position, or NONE."""
        row = self._directory.find(account)
        return row if row != NONE and self._exact_at[_FIELDS * row] else NONE

    def has_row(self, account: str) -> bool:
        """Whether an account has a row, open or closed."""
        return self._directory.find(account) != NONE

    def columns(self, mark: int) -> Columns:
        """What the side is ranked by at a mark."""
        if self._columns is None or self._columns[0] != mark:
            rows = len(self.accounts)
            columns = Columns(self._entry[:rows], self._margin_per_lot[:rows], self._lot_value(mark), self.valuation.direction)
            self._columns = mark, columns._replace(equity=self._exact_equities(columns, mark))
        return self._columns[1]

    def ranking(self, mark: int) -> Ranking:
        """All ranked positions at a mark; kept until a position or the mark changes."""
        if self._ranking is None or self._ranking[0] != mark:
            self._account_order.update(self._directory.renamed)
            self._ranking = mark, rank_all(self.columns(mark), self._account_order)
        return self._ranking[1]

    def leaders(self, mark: int, count: int) -> Candidates:
        """At least the first `count` gainers at a mark, or all there are; kept until a position or the mark changes."""
        known = self._leaders
        if known is None or known.mark != mark or not (known.complete or len(known) >= count):
            found = rank_leaders(self.columns(mark), self.accounts, count)
            complete = len(found.rows) < count
            self._leaders = known = Candidates(self, mark, found, len(found.rows), complete=complete)
        return known

    def all_candidates(self, mark: int) -> Candidates:
        """All ranked positions at a mark; kept until a position or the mark changes."""
        known = self._all_candidates
        if known is None or known.mark != mark:
            ranking = self.ranking(mark)
            gainers = int(np.count_nonzero(self.columns(mark).gainers()))
            found = Leaders(ranking.rows, len(ranking.rows))
            self._all_candidates = known = Candidates(self, mark, found, gainers, complete=True)
        return known

    def candidates_of(self, mark: int, accounts: Iterable[str]) -> Candidates:
        """The ranked positions of some accounts at a mark, in the order of rank."""
        ranks = {account: rank.rank for account in accounts if (rank := self.rank_of(account, mark))}
        names = sorted(ranks, key=ranks.__getitem__)
        rows = np.array([self._directory.find(name) for name in names], np.int64)
        gainers = int(np.count_nonzero(self.columns(mark).of(rows).gainers()))
        found = Leaders(rows, len(self.ranking(mark).rows))
        order = np.array([ranks[name] for name in names], np.int64)
        return Candidates(self, mark, found, gainers, complete=True, ranks=order)

    def promised(self, rows: NDArray[np.integer]) -> Integers:
        """The lots of rows that open orders wait for."""
        promised: Integers = self._promised[rows]
        return promised

    def promised_at(self, row: int) -> int:
        """The lots of a row that open orders wait for."""
        return self._exact_at[_FIELDS * row + _PROMISED]

    def limit(self, row: int) -> int:
        """The last price at which closing a row leaves no deficit; see `Valuation`."""
        cell = _FIELDS * row
        cells = self._exact_at
        return self.valuation.limit(cells[cell], cells[cell + 1], cells[cell + 2])

    def stakes(self, rows: NDArray[np.integer]) -> tuple[Floats, Floats]:
        """Per lot of each row: margin less its direction times the entry value, and their sum without signs."""
        entry, margin = self._entry[rows], self._margin_per_lot[rows]
        return margin - self.valuation.direction * entry, margin + entry

    def rank_of(self, account: str, mark: int) -> Rank | None:
        """Where an account's position stands at a mark; None without a position, or without equity. Quick once ranked."""
        row = self.row_of(account)
        if row == NONE:
            return None
        keys = self.ranking(mark).keys
        one = slice(row, row + 1)
        (key,) = keys_of(self.columns(mark).of(one), self._account_order.ordinals[one])
        before = int(np.searchsorted(keys, key))
        return Rank(before + 1, len(keys)) if before < len(keys) else None

    def valued(self, row: int, mark: int) -> ValuedPosition:
        """One position at a mark, with the numbers of its rank."""
        (lots,), (entry_price,), (margin,) = self.inputs([row])
        return self.valuation.valued(self.accounts[row], lots, entry_price, margin, mark)

    def names(self, rows: Sequence[int]) -> list[str]:
        """The accounts of some rows."""
        return list(map(self._directory.accounts.__getitem__, rows))

    def inputs(self, rows: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        """The lots, entry prices and margins of some rows."""
        if len(rows) < ROWS_AT_ONCE:
            cells = self._exact_at
            first = [_FIELDS * row for row in rows]
            return [cells[cell] for cell in first], [cells[cell + 1] for cell in first], [cells[cell + 2] for cell in first]
        lots: list[int] = []
        entry_prices: list[int] = []
        margins: list[int] = []
        for block in blocks(len(rows)):
            columns = self._exact[rows[block]].T.tolist()
            lots += columns[_LOTS]
            entry_prices += columns[_ENTRY_PRICE]
            margins += columns[_MARGIN]
        return lots, entry_prices, margins

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
        moves = mark - entry_price if self.valuation.gains_when_rising else entry_price - mark
        profits: Floats = moves.astype(np.float64) * self._lots[rows]
        return profits / entry_price if self.valuation.is_inverse else profits

    def kept_rows(self) -> NDArray[np.intp]:
        """The rows of open positions and of sequences to be remembered."""
        return np.flatnonzero(self._lots > 0 if self._seq is None else (self._lots > 0) | (self._seq > 0))

    def save(self, rows: NDArray[np.intp]) -> SidePart:
        """What is kept of some rows."""
        lots, entry_price, margin = (
            column[rows].astype("<i8").tobytes() for column in (self._lots, self._entry_price, self._margin)
        )
        seq = b"" if self._seq is None else self._seq[rows].astype("<i8").tobytes()
        names = [self.accounts[row] for row in numbers_of(rows)]
        seen = self._seen
        named = None if seen is None else bytes(seen[row] if row < len(seen) else 0 for row in numbers_of(rows))
        legs = b"" if self._legs is None else bytes(map(self.is_leg, numbers_of(rows)))
        return SidePart(names, lots, entry_price, margin, seq, named, legs)

    def restore(self, saved: SidePart) -> Iterator[None]:
        """Sets the positions of a part that was kept, some at each step."""
        if saved.seen is not None and self._seen is None:
            self.begin_snapshot()
        for first in range(0, len(saved.accounts), ROWS_PER_STEP):
            self._restore(saved.part(first, first + ROWS_PER_STEP))
            yield

    def _restore(self, part: SidePart) -> None:
        columns = (np.frombuffer(data, "<i8").tolist() for data in (part.lots, part.entry_price, part.margin))
        for account, *position in zip(part.accounts, *columns, strict=True):
            if position[0]:
                self.set(account, *position)
        for account, is_leg in zip(part.accounts, part.legs, strict=False):
            if is_leg and self.row_of(account) != NONE:
                self.set_leg(account, is_leg=True)
        if part.seq:
            for account, number in zip(part.accounts, np.frombuffer(part.seq, "<i8").tolist(), strict=True):
                if number:
                    self.remember(account, number)
        self._restore_seen(part)

    def _restore_seen(self, part: SidePart) -> None:
        if part.seen is not None:
            for account, named in zip(part.accounts, part.seen, strict=True):
                row = self._directory.find(account)
                if row != NONE:
                    self._mark_row_seen(row, named)

    def _mark_row_seen(self, row: int, named: int = 1) -> None:
        seen = self._seen
        if seen is not None:
            if row >= len(seen):
                seen.extend(bytes(len(self._exact) - len(seen)))
            seen[row] = named

    def _close(self, row: int) -> None:
        self.open -= 1
        self.lots -= self._exact_at[_FIELDS * row]
        self._exact_at[_FIELDS * row] = 0
        self._entry_at[row] = math.nan
        self._columns = self._ranking = self._leaders = self._all_candidates = None

    def _release(self, row: int) -> None:
        """Offers lots again that an order does not wait for any more."""
        for candidates in (self._leaders, self._all_candidates):
            if candidates is not None:
                candidates.start = 0
        self._free_if_idle(row)

    def _free_if_idle(self, row: int) -> None:
        """Frees a row that holds nothing, promises nothing and remembers nothing."""
        cell = _FIELDS * row
        if self._exact_at[cell] or self._exact_at[cell + _PROMISED] or (self._seq is not None and self._seq[row]):
            return
        if self._directory.used == 1:
            self._clear_rows()
        else:
            self._directory.remove(self.accounts[row])

    def _clear_rows(self) -> None:
        """Gives the memory of an empty side back."""
        seen = self._seen
        self._clear()
        self._seen = None if seen is None else bytearray(len(self._exact))

    def _exact_equities(self, columns: Columns, mark: int) -> Floats | None:
        """The equity per lot of the rows that floats are unsure of; None where there are none."""
        rows = uncertain_rows(columns).tolist()
        if not rows:
            return None
        equities = np.full(len(columns.entry), np.nan)
        for row in rows:
            equity, unit = self._equity(row, mark)
            equities[row] = equity / (unit * self._exact_at[_FIELDS * row])
        return equities

    def _equity(self, row: int, price: int) -> tuple[int, int]:
        lots, entry_price, margin, _ = self._exact[row].tolist()
        return self.valuation.equity(lots, entry_price, margin, price)

    def _add(self, account: str) -> int:
        if not self._directory.has_room(ROWS_MAX):
            raise Rejection(Reason.OUT_OF_RANGE, f"a side of a book has at most {ROWS_MAX} accounts")
        row = self._directory.add(account)
        if row == len(self._exact):
            self._widen(int(row * GROWTH))
        return row

    def _widen(self, rows: int) -> None:
        more = rows - len(self._exact)
        self._exact = np.concatenate([self._exact, np.zeros((more, _FIELDS), np.int64)])
        self._lots, self._entry_price, self._margin, self._promised = self._exact.T
        self._entry = _widened(self._entry, rows, np.float64(np.nan))
        self._margin_per_lot = _widened(self._margin_per_lot, rows, np.float64(0))
        if self._seq is not None:
            self._seq = _widened(self._seq, rows, np.int64(0))
        self._exact_at: memoryview[int] = self._exact.reshape(-1).data
        self._entry_at: memoryview[float] = self._entry.data.cast("B").cast("d")
        self._margin_per_lot_at: memoryview[float] = self._margin_per_lot.data.cast("B").cast("d")


class Book:
    """The open positions of a contract, and its mark price in the contract's units (None until one came).

    `mark_ts` is the engine's time of the mark (ms), `mark_seq` its sequence, 0 without one. `stale` says that the stream lost
    its tail since the last snapshot: positions may have been closed that are still here. Messages up to the time `known_ms` of
    the stream (ms) had been settled when that was found: they are read again, and change nothing here. `owners` says which
    accounts are of the same owner.
    """

    def __init__(self, contract: Contract) -> None:
        self.mark: int | None = None
        self.mark_ts = 0
        self.mark_seq = 0
        self.stale = False
        self.known_ms = NOTHING_KNOWN
        self.owners = Owners()
        self._long, self._short = Side(contract, "long"), Side(contract, "short")
        self.sides: dict[SideName, Side] = {"long": self._long, "short": self._short}

    def is_mark_old(self, now_ms: int, seconds_max: float) -> bool:
        """Whether the mark is older than a time, by the engine's clock."""
        return self.mark is not None and now_ms - self.mark_ts > seconds_max * 1000

    def prefetch(self, accounts: Sequence[str]) -> None:
        """Says whose positions are about to be set: changes nothing, makes it quicker."""
        for side in self.sides.values():
            if side.open:
                side.prefetch(accounts)

    def set(self, account: str, lots: int, entry_price: int, margin: int, leg: Leg = "BOTH") -> None:
        """Makes this the account's position: positive lots are long, negative short, none close it.

        `BOTH` is the whole position of an account, `LONG` or `SHORT` one leg, which leaves the other as it is.
        """
        if leg == "BOTH":
            side, other = (self._long, self._short) if lots > 0 else (self._short, self._long)
        else:
            side, other = (self._long if leg == "LONG" else self._short), None
        if lots:
            side.set(account, abs(lots), entry_price, margin)
            side.set_leg(account, is_leg=leg != "BOTH")
        else:
            side.close(account)
        if other is not None and other.open:
            other.close(account)

    def seq_of(self, account: str, leg: Leg) -> int:
        """The highest sequence of an account's last positions on the sides of a leg, 0 without one."""
        return max(side.seq_of(account) for side in self._sides_of(leg))

    def remember(self, account: str, leg: Leg, seq: int) -> None:
        """Keeps the sequence of an account's last position, where the account has a row."""
        sides = self._sides_of(leg)
        for side in [side for side in sides if side.has_row(account)] or sides[:1]:
            side.remember(account, seq)

    def mark_seen(self, account: str, leg: Leg) -> None:
        """Notes that a snapshot names the position of an account, which stays as it is."""
        for side in self._sides_of(leg):
            side.mark_seen(account)

    def begin_snapshot(self) -> None:
        """Begins to note which positions a snapshot names."""
        for side in self.sides.values():
            side.begin_snapshot()

    def end_snapshot(self) -> None:
        """Closes what the snapshot did not name; the book is as the engine has it."""
        for side in self.sides.values():
            side.end_snapshot()
        self.stale = False

    @property
    def open(self) -> int:
        """How many positions are open."""
        return self._long.open + self._short.open

    def leg_of(self, name: SideName, row: int) -> Leg:
        """The leg as which the engine named an open position; one of two legs is `LONG` or `SHORT` however it was named."""
        side, other = (self._long, self._short) if name == "long" else (self._short, self._long)
        if not side.is_leg(row) and other.row_of(side.accounts[row]) == NONE:
            return "BOTH"
        return "LONG" if name == "long" else "SHORT"

    @property
    def is_large(self) -> bool:
        """Whether ranking or keeping the book may take longer than the event loop should be held."""
        return self._long.open + self._short.open > LARGE_POSITIONS

    def positions(self, account: str) -> Iterator[tuple[SideName, int]]:
        """The side and row of each of an account's open positions."""
        for name, side in self.sides.items():
            row = side.row_of(account)
            if row != NONE:
                yield name, row

    def save(self) -> Iterator[BookPart]:
        """The positions as they stand, in parts to be kept; the mark is kept beside them. The book must not change meanwhile.

        Made one by one, so that other threads wait for no call that makes or frees millions of objects.
        """
        owned = self.owners.forget_closed(lambda account: any(side.row_of(account) != NONE for side in self.sides.values()))
        owners, long, short = iter(owned.items()), self._long.kept_rows(), self._short.kept_rows()
        for first in range(0, max(1, len(long), len(short), len(owned)), ROWS_PER_PART):
            rows = slice(first, first + ROWS_PER_PART)
            sides = self._long.save(long[rows]), self._short.save(short[rows])
            yield BookPart(*sides, self.stale, self.known_ms, dict(islice(owners, ROWS_PER_PART)))

    def restore(self, saved: BookPart) -> Iterator[None]:
        """Sets the positions of a part that was kept, some at each step."""
        self.stale, self.known_ms = saved.stale, saved.known_ms
        yield from self._long.restore(saved.long)
        yield from self._short.restore(saved.short)
        for named, (account, owner) in enumerate(saved.owners.items(), 1):
            self.owners.assign(account, owner)
            if named % ROWS_PER_STEP == 0:
                yield

    def _sides_of(self, leg: Leg) -> Sequence[Side]:
        match leg:
            case "LONG":
                return (self._long,)
            case "SHORT":
                return (self._short,)
            case _:
                return self._long, self._short


def _widened(column: NDArray[_Number], rows: int, filler: _Number) -> NDArray[_Number]:
    return np.concatenate([column, np.full(rows - len(column), filler, column.dtype)])
