"""The ADL book of a contract: its open positions by side, in columns, and its mark price."""

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
"""Rows allocated for a new side."""

NOTHING_KNOWN = -1
"""A time before every message of a stream."""

GROWTH = 1.25
"""Growth of a full side. Empty rows add at most a quarter to the memory per position."""

ROWS_PER_STEP = 200
"""Positions restored per step: 0.4 to 2 ms, because the positions of a large book are not in the processor's cache."""

ROWS_PER_PART = 4096
"""Positions of each side in a part of a saved book: 200 to 400 kB, which take a millisecond to encode or send."""

CELL_BYTES = 8

ROWS_AT_ONCE = 32
"""From this number of rows on, numpy reads and writes them as columns; fewer are accessed one by one."""

LARGE_POSITIONS = 20_000
"""A book with more positions is large: ranking or reading all of it takes several milliseconds."""

ROWS_FREED_MAX = 5000
"""Most rows that the end of a snapshot frees. Further closed rows stay assigned to their accounts."""

_FIELDS = 4
"""Exact integers of a row: lots, entry price, margin, promised lots."""

_LOTS, _ENTRY_PRICE, _MARGIN, _PROMISED = range(_FIELDS)


class SidePart(msgspec.Struct, array_like=True, frozen=True):
    """The saved columns of a side, or a part of them: little-endian 64-bit integers, one row per position.

    `seq` is empty if no position has a sequence; closed rows with a sequence are saved with 0 lots. During a snapshot `seen`
    has one byte per row, 1 if the snapshot contains the row, else it is None. `legs` has one byte per row, 1 if the row is one
    leg of an account in hedge mode; it is empty if there is none.
    """

    accounts: list[str]
    lots: bytes
    entry_price: bytes
    margin: bytes
    seq: bytes = b""
    seen: bytes | None = None
    legs: bytes = b""

    def part(self, first: int, last: int) -> "SidePart":
        """Returns the rows from `first` up to, not including, `last`, or up to the end."""
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
    """A part of a saved book. Restoring all parts in order restores the book.

    `owners` contains the owner of each account for which the matching engine named one.
    """

    long: SidePart
    short: SidePart
    stale: bool = False
    known_ms: int = NOTHING_KNOWN
    owners: dict[str, str] = {}


class Candidates:
    """Positions in the order of rank, with cached inputs of allocations; valid until a position of the side changes.

    `rows[0]` has rank 1 unless `ranks` contains other ranks. `ranked` is the number of positions of the side with a rank,
    `gainers` the number of leading rows with a profit, `complete` whether these are all gainers of the side. All lots of rows
    before `start` are promised.
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
        """The unrealised PnL of each candidate, up to a common factor."""
        return self._side.profits(self.rows, self.mark)

    @cached_property
    def ordinals(self) -> Ordinals:
        """The ordinal of the account of each candidate."""
        return self._side.ordinals(self.rows)

    def sharing(self, last: int) -> Sharing:
        """Returns the sharing of lots by profit among the first `last` candidates; cached."""
        if self._sharing is None or self._sharing[0] != last:
            self._sharing = last, Sharing(self.profits[:last], self.ordinals[:last])
        return self._sharing[1]

    @cached_property
    def _stakes(self) -> tuple[Floats, Floats]:
        """Per lot: the equity at price value 0, and the sum of the values it is computed from; see `Side.stakes`."""
        return self._side.stakes(self.rows)

    def _leaves_all_solvent(self, part: slice, price: int) -> bool:
        """Returns whether all candidates of a part certainly survive a price, without checking each."""
        valuation = self._side.valuation
        return 0 < part.stop <= self.gainers and valuation.direction * valuation.lot_value(price) > self._safe

    @cached_property
    def _safe(self) -> float:
        """The limit of direction times lot value above which every gainer certainly survives, including rounding errors."""
        base, scale = (column[: self.gainers] for column in self._stakes)
        safe = np.max(scale * (2 * ROUNDING_ERROR) - base)
        return float(safe + abs(safe) * (2 * ROUNDING_ERROR))

    def rank_at(self, index: int) -> int:
        """Returns the rank of a candidate."""
        return index + 1 if self._ranks is None else int(self._ranks[index])

    def ranks_of(self, indices: NDArray[np.integer]) -> list[int]:
        """Returns the ranks of some candidates."""
        return numbers_of(indices + 1 if self._ranks is None else self._ranks[indices])

    def free_at(self, index: int) -> int:
        """Returns the lots of a candidate that are not promised to an open order."""
        return self.held_at(index) - self._side.promised_at(self.row_at(index))

    def free(self, part: slice) -> Integers:
        """Returns the lots of each candidate that are not promised; negative if more are promised than it holds."""
        return self.held[part] - self._side.promised(self.rows[part])

    def solvent(self, part: slice, price: int) -> Integers:
        """Returns the lots of each candidate that are not promised; 0 if the price would bankrupt the position."""
        free = self.free(part)
        if not self._leaves_all_solvent(part, price):
            free[~self.survivors(part, price)] = 0
        return free

    def survives(self, index: int, price: int) -> bool:
        """Returns whether closing a candidate at a price leaves no deficit: margin + PnL at the price >= 0."""
        limit = self._limits.get(index)
        if limit is None:
            limit = self._limits[index] = self._side.limit(self.row_at(index))
        return self._side.valuation.survives(limit, price)

    def survivors(self, part: slice, price: int) -> Mask:
        """Returns `survives` for the candidates of a part: by floats, and by integers within their rounding error."""
        base, scale = self._stakes
        value = self._side.valuation.lot_value(price)
        slack = base[part] + self._side.valuation.direction * value
        survives: Mask = slack >= 0
        for index in np.flatnonzero(np.abs(slack) <= (scale[part] + value) * ROUNDING_ERROR).tolist():
            survives[index] = self.survives(index + part.start, price)
        return survives


class Side:
    """The positions of one side, one row per account. Ranking uses floats per lot; everything else uses exact integers.

    Memoryviews read and write single cells, in a third of the time of numpy's scalars. The integers of a row are adjacent,
    because the row of a changed position is rarely in the processor's cache; the inputs of rankings are columns. A closed row
    is freed for another account when no open order is promised lots of it and it has no sequence.
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
        """Invalidates the cached columns, ranking and candidates."""
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
        """Loads the rows of these accounts into the processor's cache, which makes `set` and `close` faster."""
        rows = self._directory.prefetch(accounts)
        for column in (self._exact, self._entry, self._margin_per_lot):
            column.take(rows, axis=0)

    def set(self, account: str, lots: int, entry_price: int, margin: int) -> int:
        """Sets the account's position; returns its row.

        Raises Rejection if the side is full.
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
        """Subtracts lots and their share of the margin from a position. Its return and leverage do not change."""
        row = self._directory.find(account)
        held, entry_price, margin, _ = (0, 0, 0, 0) if row == NONE else self._exact[row].tolist()
        if held > lots:
            self.set(account, held - lots, entry_price, margin * (held - lots) // held)
        elif held:
            self.close(account)

    def promise(self, account: str, lots: int) -> None:
        """Promises lots of an account to an open order; negative lots withdraw a promise."""
        row = self._directory.find(account)
        if row == NONE:
            row = self._add(account)
        self._exact_at[_FIELDS * row + _PROMISED] += lots
        if lots < 0:
            self._release(row)

    def promise_rows(self, rows: Sequence[int], lots: Sequence[int]) -> None:
        """Promises lots of distinct rows to an open order."""
        if len(rows) < ROWS_AT_ONCE:
            cells = self._exact_at
            for row, promised in zip(rows, lots, strict=True):
                cells[_FIELDS * row + _PROMISED] += promised
        else:
            for block in blocks(len(rows)):
                self._promised[rows[block]] += lots[block]

    def ordinals(self, rows: NDArray[np.integer]) -> Ordinals:
        """Returns the ordinals of the accounts of rows, as of the last ranking."""
        ordinals: Ordinals = self._account_order.ordinals[rows]
        return ordinals

    def seq_of(self, account: str) -> int:
        """Returns the sequence of an account's last position, 0 if there is none."""
        if self._seq is None:
            return 0
        row = self._directory.find(account)
        return 0 if row == NONE else int(self._seq[row])

    def remember(self, account: str, seq: int) -> None:
        """Stores the sequence of an account's last position, open or closed."""
        row = self._directory.find(account)
        if row == NONE:
            row = self._add(account)
        if self._seq is None:
            self._seq = np.zeros(len(self._exact), np.int64)
        self._seq[row] = seq

    def mark_seen(self, account: str) -> None:
        """Marks the account's row, if it has one, as contained in the current snapshot."""
        row = self._directory.find(account)
        if row != NONE:
            self._mark_row_seen(row)

    def set_leg(self, account: str, *, is_leg: bool) -> None:
        """Sets whether the open position of an account is one leg in hedge mode or its whole position."""
        if self._legs is None:
            if not is_leg:
                return
            self._legs = bytearray(len(self._exact))
        row = self._directory.find(account)
        if row >= len(self._legs):
            self._legs.extend(bytes(len(self._exact) - len(self._legs)))
        self._legs[row] = is_leg

    def is_leg(self, row: int) -> bool:
        """Returns whether a row is one leg of an account in hedge mode."""
        return self._legs is not None and row < len(self._legs) and bool(self._legs[row])

    def begin_snapshot(self) -> None:
        """Begins a snapshot: no row is marked as contained in it."""
        self._seen = bytearray(len(self._exact))

    def end_snapshot(self) -> None:
        """Ends a snapshot: closes every position that it does not contain."""
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
        """Returns the row of an account's open position, or NONE."""
        row = self._directory.find(account)
        return row if row != NONE and self._exact_at[_FIELDS * row] else NONE

    def has_row(self, account: str) -> bool:
        """Returns whether an account has a row, open or closed."""
        return self._directory.find(account) != NONE

    def columns(self, mark: int) -> Columns:
        """Returns the inputs of a ranking at a mark; cached until a position or the mark changes."""
        if self._columns is None or self._columns[0] != mark:
            rows = len(self.accounts)
            columns = Columns(self._entry[:rows], self._margin_per_lot[:rows], self._lot_value(mark), self.valuation.direction)
            self._columns = mark, columns._replace(equity=self._exact_equities(columns, mark))
        return self._columns[1]

    def ranking(self, mark: int) -> Ranking:
        """Returns all ranked positions at a mark; cached until a position or the mark changes."""
        if self._ranking is None or self._ranking[0] != mark:
            self._account_order.update(self._directory.renamed)
            self._ranking = mark, rank_all(self.columns(mark), self._account_order)
        return self._ranking[1]

    def leaders(self, mark: int, count: int) -> Candidates:
        """Returns at least the first `count` gainers at a mark, or all; cached until a position or the mark changes."""
        known = self._leaders
        if known is None or known.mark != mark or not (known.complete or len(known) >= count):
            found = rank_leaders(self.columns(mark), self.accounts, count)
            complete = len(found.rows) < count
            self._leaders = known = Candidates(self, mark, found, len(found.rows), complete=complete)
        return known

    def all_candidates(self, mark: int) -> Candidates:
        """Returns all ranked positions at a mark; cached until a position or the mark changes."""
        known = self._all_candidates
        if known is None or known.mark != mark:
            ranking = self.ranking(mark)
            gainers = int(np.count_nonzero(self.columns(mark).gainers()))
            found = Leaders(ranking.rows, len(ranking.rows))
            self._all_candidates = known = Candidates(self, mark, found, gainers, complete=True)
        return known

    def candidates_of(self, mark: int, accounts: Iterable[str]) -> Candidates:
        """Returns the ranked positions of some accounts at a mark, in the order of rank."""
        ranks = {account: rank.rank for account in accounts if (rank := self.rank_of(account, mark))}
        names = sorted(ranks, key=ranks.__getitem__)
        rows = np.array([self._directory.find(name) for name in names], np.int64)
        gainers = int(np.count_nonzero(self.columns(mark).of(rows).gainers()))
        found = Leaders(rows, len(self.ranking(mark).rows))
        order = np.array([ranks[name] for name in names], np.int64)
        return Candidates(self, mark, found, gainers, complete=True, ranks=order)

    def promised(self, rows: NDArray[np.integer]) -> Integers:
        """Returns the promised lots of rows."""
        promised: Integers = self._promised[rows]
        return promised

    def promised_at(self, row: int) -> int:
        """Returns the promised lots of a row."""
        return self._exact_at[_FIELDS * row + _PROMISED]

    def limit(self, row: int) -> int:
        """Returns the last price at which closing a row leaves no deficit; see `Valuation.limit`."""
        cell = _FIELDS * row
        cells = self._exact_at
        return self.valuation.limit(cells[cell], cells[cell + 1], cells[cell + 2])

    def stakes(self, rows: NDArray[np.integer]) -> tuple[Floats, Floats]:
        """Returns, per lot of each row: margin - direction x entry value, and margin + entry value."""
        entry, margin = self._entry[rows], self._margin_per_lot[rows]
        return margin - self.valuation.direction * entry, margin + entry

    def rank_of(self, account: str, mark: int) -> Rank | None:
        """Returns the rank of an account at a mark; None without a position or positive equity. Fast after a ranking."""
        row = self.row_of(account)
        if row == NONE:
            return None
        keys = self.ranking(mark).keys
        one = slice(row, row + 1)
        (key,) = keys_of(self.columns(mark).of(one), self._account_order.ordinals[one])
        before = int(np.searchsorted(keys, key))
        return Rank(before + 1, len(keys)) if before < len(keys) else None

    def valued(self, row: int, mark: int) -> ValuedPosition:
        """Returns a position valued at a mark."""
        (lots,), (entry_price,), (margin,) = self.inputs([row])
        return self.valuation.valued(self.accounts[row], lots, entry_price, margin, mark)

    def names(self, rows: Sequence[int]) -> list[str]:
        """Returns the accounts of some rows."""
        return list(map(self._directory.accounts.__getitem__, rows))

    def inputs(self, rows: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        """Returns the lots, entry prices and margins of some rows."""
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
        """Returns a view of the open lots of every row, 0 without a position. It changes with the book."""
        return self._lots[: len(self.accounts)]

    def lots_of(self, rows: NDArray[np.integer]) -> Integers:
        """Returns the open lots of rows."""
        lots: Integers = self._lots[rows]
        return lots

    def profits(self, rows: NDArray[np.integer], mark: int) -> Floats:
        """Returns the unrealised PnL of rows at a mark, up to a common factor."""
        entry_price = self._entry_price[rows]
        moves = mark - entry_price if self.valuation.gains_when_rising else entry_price - mark
        profits: Floats = moves.astype(np.float64) * self._lots[rows]
        return profits / entry_price if self.valuation.is_inverse else profits

    def kept_rows(self) -> NDArray[np.intp]:
        """Returns the rows that are saved: those with an open position or a sequence."""
        return np.flatnonzero(self._lots > 0 if self._seq is None else (self._lots > 0) | (self._seq > 0))

    def save(self, rows: NDArray[np.intp]) -> SidePart:
        """Returns the saved form of some rows."""
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
        """Restores the positions of a saved part, ROWS_PER_STEP per step."""
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
        """Makes withdrawn lots of a row available to candidates again."""
        for candidates in (self._leaders, self._all_candidates):
            if candidates is not None:
                candidates.start = 0
        self._free_if_idle(row)

    def _free_if_idle(self, row: int) -> None:
        """Frees a row without a position, promised lots and a sequence."""
        cell = _FIELDS * row
        if self._exact_at[cell] or self._exact_at[cell + _PROMISED] or (self._seq is not None and self._seq[row]):
            return
        if self._directory.used == 1:
            self._clear_rows()
        else:
            self._directory.remove(self.accounts[row])

    def _clear_rows(self) -> None:
        """Releases the memory of an empty side."""
        seen = self._seen
        self._clear()
        self._seen = None if seen is None else bytearray(len(self._exact))

    def _exact_equities(self, columns: Columns, mark: int) -> Floats | None:
        """Returns the exact equity per lot of rows within the rounding error of 0, NaN in others; None if there are none."""
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
            raise Rejection(
                Reason.OUT_OF_RANGE, f"a side of a book has at most {ROWS_MAX} accounts, and {account!r} would be one more"
            )
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
    """The open positions of a contract, and its mark price in the contract's units (None before the first one).

    `mark_ts` is the matching engine's time of the mark (ms), `mark_ts_max` the latest of any mark, `mark_seq` the mark's
    sequence, 0 without one. `stale` is whether the stream regressed since the last snapshot, so that the book may contain
    closed positions. Messages up to the stream's time `known_ms` (ms) were settled before the regression; reading them again
    does not change the book. `owners` groups accounts.
    """

    def __init__(self, contract: Contract) -> None:
        self.mark: int | None = None
        self.mark_ts = 0
        self.mark_ts_max = 0
        self.mark_seq = 0
        self.stale = False
        self.known_ms = NOTHING_KNOWN
        self.owners = Owners()
        self._long, self._short = Side(contract, "long"), Side(contract, "short")
        self.sides: dict[SideName, Side] = {"long": self._long, "short": self._short}

    def is_mark_old(self, now_ms: int, seconds_max: float) -> bool:
        """Returns whether the mark is more than `seconds_max` older than `now_ms`, by the matching engine's clock."""
        return self.mark is not None and now_ms - self.mark_ts > seconds_max * 1000

    def prefetch(self, accounts: Sequence[str]) -> None:
        """Prefetches the rows of accounts whose positions are set next. Changes nothing."""
        for side in self.sides.values():
            if side.open:
                side.prefetch(accounts)

    def set(self, account: str, lots: int, entry_price: int, margin: int, leg: Leg = "BOTH") -> None:
        """Sets the account's position: positive lots are long, negative short, 0 closes it.

        `BOTH` is the whole position of an account; `LONG` and `SHORT` are one leg and do not change the other.
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
        """Returns the highest sequence of an account's last positions on the sides of a leg, 0 without one."""
        return max(side.seq_of(account) for side in self._sides_of(leg))

    def remember(self, account: str, leg: Leg, seq: int) -> None:
        """Stores the sequence of an account's last position on each side of the leg where it has a row, else on the first."""
        sides = self._sides_of(leg)
        for side in [side for side in sides if side.has_row(account)] or sides[:1]:
            side.remember(account, seq)

    def mark_seen(self, account: str, leg: Leg) -> None:
        """Marks an account's position as contained in the current snapshot, without changing it."""
        for side in self._sides_of(leg):
            side.mark_seen(account)

    def begin_snapshot(self) -> None:
        """Begins a snapshot on both sides."""
        for side in self.sides.values():
            side.begin_snapshot()

    def end_snapshot(self) -> None:
        """Ends a snapshot: closes every position that it does not contain. The book is no longer stale."""
        for side in self.sides.values():
            side.end_snapshot()
        self.stale = False

    @property
    def open(self) -> int:
        """The number of open positions."""
        return self._long.open + self._short.open

    def leg_of(self, name: SideName, row: int) -> Leg:
        """Returns the leg of an open position. If both sides have one, it is `LONG` or `SHORT`, also if named `BOTH`."""
        side, other = (self._long, self._short) if name == "long" else (self._short, self._long)
        if not side.is_leg(row) and other.row_of(side.accounts[row]) == NONE:
            return "BOTH"
        return "LONG" if name == "long" else "SHORT"

    @property
    def is_large(self) -> bool:
        """Whether ranking or saving the book may hold the event loop for too long."""
        return self._long.open + self._short.open > LARGE_POSITIONS

    def positions(self, account: str) -> Iterator[tuple[SideName, int]]:
        """Yields the side and row of each open position of an account."""
        for name, side in self.sides.items():
            row = side.row_of(account)
            if row != NONE:
                yield name, row

    def save(self) -> Iterator[BookPart]:
        """Yields the positions in parts, without the mark. The book must not change meanwhile.

        Parts bound the time of each call: a call that creates or frees millions of objects would block other threads.
        """
        owned = self.owners.forget_closed(lambda account: any(side.row_of(account) != NONE for side in self.sides.values()))
        owners, long, short = iter(owned.items()), self._long.kept_rows(), self._short.kept_rows()
        for first in range(0, max(1, len(long), len(short), len(owned)), ROWS_PER_PART):
            rows = slice(first, first + ROWS_PER_PART)
            sides = self._long.save(long[rows]), self._short.save(short[rows])
            yield BookPart(*sides, self.stale, self.known_ms, dict(islice(owners, ROWS_PER_PART)))

    def restore(self, saved: BookPart) -> Iterator[None]:
        """Restores the positions of a saved part, ROWS_PER_STEP per step."""
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
