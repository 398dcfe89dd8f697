"""The positions of one side of an ADL book, in columns."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fundsvc.core.adl.account_order import AccountOrder, Ordinals
from fundsvc.core.adl.book_parts import SidePart
from fundsvc.core.adl.candidates import Candidates
from fundsvc.core.adl.directory import NONE, Directory
from fundsvc.core.adl.ranking import (
    ROWS_MAX,
    Columns,
    Floats,
    Integers,
    Leaders,
    Ranking,
    blocks,
    keys_of,
    numbers_of,
    rank_all,
    rank_leaders,
    uncertain_rows,
)
from fundsvc.core.adl.rows import ENTRY_PRICE, FIELDS, LOTS, MARGIN, PROMISED, Rows
from fundsvc.core.adl.valuation import Rank, SideName, Valuation, ValuedPosition
from fundsvc.core.contracts import Contract
from fundsvc.core.events import Reason, Rejection

ROWS_PER_STEP = 200
"""Positions restored per step: 0.4 to 2 ms, because the positions of a large book are not in the processor's cache."""

ROWS_AT_ONCE = 32
"""From this number of rows on, numpy reads and writes them as columns; fewer are accessed one by one."""

GONE_MIN = 1000
"""When more accounts than this, and than are left, lost their rows since a save, the next save is whole."""

ROWS_FREED_MAX = 5000
"""Most rows that the end of a snapshot frees. Further closed rows stay assigned to their accounts."""


class Side:
    """The positions of one side, one row per account. Ranking uses floats per lot; everything else uses exact integers.

    A closed row is freed for another account when no open order is promised lots of it and it has no sequence. `promises`
    counts the changes of promised lots. `changes_all` is whether all rows may have changed since the book was last saved.
    """

    def __init__(self, contract: Contract, name: SideName) -> None:
        self.valuation = Valuation(contract, name)
        self.changes_all = False
        self._lot_value = self.valuation.lot_value
        self._gone: set[str] = set()  # accounts whose rows were freed since the book was last saved
        self._clear()

    def _clear(self) -> None:
        self.open = self.lots = self.promises = 0
        self._directory = Directory()
        self._account_order = AccountOrder(self._directory.accounts)
        self._rows = Rows()
        self._seen: bytearray | None = None
        self._legs: bytearray | None = None
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

    @property
    def room(self) -> int:
        """The number of accounts that may be added before the rows need larger memory."""
        return len(self._rows) - len(self.accounts)

    def prefetch(self, accounts: Sequence[str]) -> None:
        """Loads the rows of these accounts into the processor's cache, which makes `set` and `close` faster."""
        rows = self._directory.prefetch(accounts)
        for column in (self._rows.exact, self._rows.entry, self._rows.margin_per_lot):
            column.take(rows, axis=0)

    def set(self, account: str, lots: int, entry_price: int, margin: int) -> int:
        """Sets the account's position; returns its row.

        Raises Rejection if the side is full.
        """
        row = self._directory.find(account)
        if row == NONE:
            row = self._add(account)
        numbers, cell = self._rows, FIELDS * row
        cells = numbers.exact_at
        held = cells[cell]
        if not held:
            self.open += 1
        self.lots += lots - held
        cells[cell] = lots
        cells[cell + 1] = entry_price
        cells[cell + 2] = margin
        numbers.entry_at[row] = self._lot_value(entry_price)
        numbers.margin_per_lot_at[row] = margin / lots
        numbers.changed_at[row] = 1
        self._columns = self._ranking = self._leaders = self._all_candidates = None
        if self._seen is not None:
            self._mark_row_seen(row)
        return row

    def close(self, account: str) -> None:
        """Closes the account's position, if it has one."""
        row = self._directory.find(account)
        if row != NONE and self._rows.exact_at[FIELDS * row]:
            self._close(row)
            self._free_if_idle(row)

    def reduce(self, account: str, lots: int) -> None:
        """Subtracts lots and their share of the margin from a position. Its return and leverage do not change."""
        row = self._directory.find(account)
        held, entry_price, margin, _ = (0, 0, 0, 0) if row == NONE else self._rows.exact[row].tolist()
        if held > lots:
            self.set(account, held - lots, entry_price, margin * (held - lots) // held)
        elif held:
            self.close(account)

    def promise(self, account: str, lots: int) -> None:
        """Promises lots of an account to an open order; negative lots withdraw a promise."""
        row = self._directory.find(account)
        if row == NONE:
            row = self._add(account)
        self._rows.exact_at[FIELDS * row + PROMISED] += lots
        self.promises += 1
        if lots < 0:
            self._release(row)

    def promise_rows(self, rows: Sequence[int], lots: Sequence[int]) -> None:
        """Promises lots of distinct rows to an open order."""
        self.promises += 1
        if len(rows) < ROWS_AT_ONCE:
            cells = self._rows.exact_at
            for row, promised in zip(rows, lots, strict=True):
                cells[FIELDS * row + PROMISED] += promised
        else:
            for block in blocks(len(rows)):
                self._rows.promised[rows[block]] += lots[block]

    def ordinals(self, rows: NDArray[np.integer]) -> Ordinals:
        """Returns the ordinals of the accounts of rows, as of the last ranking."""
        ordinals: Ordinals = self._account_order.ordinals[rows]
        return ordinals

    def seq_of(self, account: str) -> int:
        """Returns the sequence of an account's last position, 0 if there is none."""
        if self._rows.seq is None:
            return 0
        row = self._directory.find(account)
        return 0 if row == NONE else int(self._rows.seq[row])

    def remember(self, account: str, seq: int) -> None:
        """Stores the sequence of an account's last position, open or closed."""
        row = self._directory.find(account)
        if row == NONE:
            row = self._add(account)
        self._rows.add_seq()[row] = seq
        self._rows.changed_at[row] = 1

    def mark_seen(self, account: str) -> None:
        """Marks the account's row, if it has one, as contained in the current snapshot."""
        row = self._directory.find(account)
        if row != NONE:
            self._mark_row_seen(row)

    def set_leg(self, account: str, *, is_leg: bool) -> None:
        """Sets whether the open position of an account is one leg in hedge mode or its whole position.

        Until `has_legs`, every position is a whole one.
        """
        if self._legs is None:
            self._legs = bytearray(len(self._rows))
        row = self._directory.find(account)
        if row >= len(self._legs):
            self._legs.extend(bytes(len(self._rows) - len(self._legs)))
        self._legs[row] = is_leg
        self._rows.changed_at[row] = 1

    @property
    def has_legs(self) -> bool:
        """Whether a position of the side has ever been one leg in hedge mode."""
        return self._legs is not None

    def is_leg(self, row: int) -> bool:
        """Returns whether a row is one leg of an account in hedge mode."""
        return self._legs is not None and row < len(self._legs) and bool(self._legs[row])

    def begin_snapshot(self) -> None:
        """Begins a snapshot: no row is marked as contained in it."""
        self.changes_all = True
        self._seen = bytearray(len(self._rows))

    def end_snapshot(self) -> None:
        """Ends a snapshot: closes every position that it does not contain."""
        if self._seen is None:
            return
        self.changes_all = True
        seen = np.frombuffer(self._seen.ljust(len(self._rows), b"\0"), np.uint8)
        rows = np.flatnonzero((self._rows.lots > 0) & (seen == 0))
        self._seen = None
        self.lots -= sum(numbers_of(self._rows.lots[rows]))
        self._rows.lots[rows] = 0
        self._rows.entry[rows] = np.nan
        self.open -= len(rows)
        self._forget()
        for row in rows[:ROWS_FREED_MAX].tolist():
            self._free_if_idle(row)

    def row_of(self, account: str) -> int:
        """Returns the row of an account's open position, or NONE."""
        row = self._directory.find(account)
        return row if row != NONE and self._rows.exact_at[FIELDS * row] else NONE

    def has_row(self, account: str) -> bool:
        """Returns whether an account has a row, open or closed."""
        return self._directory.find(account) != NONE

    def columns(self, mark: int) -> Columns:
        """Returns the inputs of a ranking at a mark; cached until a position or the mark changes."""
        if self._columns is None or self._columns[0] != mark:
            rows = len(self.accounts)
            entry, margin = self._rows.entry[:rows], self._rows.margin_per_lot[:rows]
            columns = Columns(entry, margin, self._lot_value(mark), self.valuation.direction)
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
        promised: Integers = self._rows.promised[rows]
        return promised

    def promised_at(self, row: int) -> int:
        """Returns the promised lots of a row."""
        return self._rows.exact_at[FIELDS * row + PROMISED]

    def limit(self, row: int) -> int:
        """Returns the last price at which closing a row leaves no deficit; see `Valuation.limit`."""
        cell = FIELDS * row
        cells = self._rows.exact_at
        return self.valuation.limit(cells[cell], cells[cell + 1], cells[cell + 2])

    def stakes(self, rows: NDArray[np.integer]) -> tuple[Floats, Floats]:
        """Returns, per lot of each row: margin - direction x entry value, and margin + entry value."""
        entry, margin = self._rows.entry[rows], self._rows.margin_per_lot[rows]
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
            cells = self._rows.exact_at
            first = [FIELDS * row for row in rows]
            return [cells[cell] for cell in first], [cells[cell + 1] for cell in first], [cells[cell + 2] for cell in first]
        lots: list[int] = []
        entry_prices: list[int] = []
        margins: list[int] = []
        for block in blocks(len(rows)):
            columns = self._rows.exact[rows[block]].T.tolist()
            lots += columns[LOTS]
            entry_prices += columns[ENTRY_PRICE]
            margins += columns[MARGIN]
        return lots, entry_prices, margins

    def sizes(self) -> Integers:
        """Returns a view of the open lots of every row, 0 without a position. It changes with the book."""
        return self._rows.lots[: len(self.accounts)]

    def lots_of(self, rows: NDArray[np.integer]) -> Integers:
        """Returns the open lots of rows."""
        lots: Integers = self._rows.lots[rows]
        return lots

    def profits(self, rows: NDArray[np.integer], mark: int) -> Floats:
        """Returns the unrealised PnL of rows at a mark, up to a common factor."""
        entry_price = self._rows.entry_price[rows]
        moves = mark - entry_price if self.valuation.gains_when_rising else entry_price - mark
        profits: Floats = moves.astype(np.float64) * self._rows.lots[rows]
        return profits / entry_price if self.valuation.is_inverse else profits

    def kept_rows(self) -> NDArray[np.intp]:
        """Returns the rows that are saved: those with an open position or a sequence."""
        lots, seq = self._rows.lots, self._rows.seq
        return np.flatnonzero(lots > 0 if seq is None else (lots > 0) | (seq > 0))

    def changed_rows(self) -> NDArray[np.intp]:
        """Returns the rows that changed since the book was last saved, closed ones included, without freed ones."""
        return np.flatnonzero(self._rows.changed[: len(self.accounts)])

    def gone(self) -> list[str]:
        """Returns the accounts whose rows were freed since the book was last saved; some may have another row since."""
        return sorted(self._gone)

    def forget_changes(self) -> None:
        """Begins to record changes since a save of the book."""
        self.changes_all = False
        self._gone.clear()
        self._rows.changed[:] = 0

    def save(self, rows: NDArray[np.intp]) -> SidePart:
        """Returns the saved form of some rows."""
        lots, entry_price, margin = (
            column[rows].astype("<i8").tobytes() for column in (self._rows.lots, self._rows.entry_price, self._rows.margin)
        )
        seq = b"" if self._rows.seq is None else self._rows.seq[rows].astype("<i8").tobytes()
        names = [self.accounts[row] for row in numbers_of(rows)]
        seen = self._seen
        named = None if seen is None else bytes(seen[row] if row < len(seen) else 0 for row in numbers_of(rows))
        legs = b"" if self._legs is None else bytes(map(self.is_leg, numbers_of(rows)))
        return SidePart(names, lots, entry_price, margin, seq, named, legs)

    def restore(self, saved: SidePart) -> Iterator[None]:
        """Restores the positions of a saved part, ROWS_PER_STEP per step. Nothing else may write the side between the steps."""
        yield from self._rows.reserve(len(self.accounts) + len(saved.accounts))
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
            else:
                self.close(account)
        for account, is_leg in zip(part.accounts, part.legs, strict=False):
            if (is_leg or self.has_legs) and self.row_of(account) != NONE:
                self.set_leg(account, is_leg=bool(is_leg))
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
                seen.extend(bytes(len(self._rows) - len(seen)))
            seen[row] = named
            self._rows.changed_at[row] = 1

    def _close(self, row: int) -> None:
        self.open -= 1
        self.lots -= self._rows.exact_at[FIELDS * row]
        self._rows.exact_at[FIELDS * row] = 0
        self._rows.entry_at[row] = math.nan
        self._rows.changed_at[row] = 1
        self._columns = self._ranking = self._leaders = self._all_candidates = None

    def _release(self, row: int) -> None:
        """Makes withdrawn lots of a row available to candidates again."""
        for candidates in (self._leaders, self._all_candidates):
            if candidates is not None:
                candidates.start = 0
        self._free_if_idle(row)

    def _free_if_idle(self, row: int) -> None:
        """Frees a row without a position, promised lots and a sequence."""
        cells, cell, seq = self._rows.exact_at, FIELDS * row, self._rows.seq
        if cells[cell] or cells[cell + PROMISED] or (seq is not None and seq[row]):
            return
        account = self.accounts[row]
        self._gone.add(account)
        if self._directory.used == 1:
            self._clear_rows()
        else:
            self._rows.changed_at[row] = 0
            self._directory.remove(account)
        if len(self._gone) > GONE_MIN + self._directory.used:
            self._gone.clear()
            self.changes_all = True

    def _clear_rows(self) -> None:
        """Releases the memory of an empty side."""
        seen = self._seen
        self._clear()
        self._seen = None if seen is None else bytearray(len(self._rows))

    def _exact_equities(self, columns: Columns, mark: int) -> Floats | None:
        """Returns the exact equity per lot of rows within the rounding error of 0, NaN in others; None if there are none."""
        rows = uncertain_rows(columns).tolist()
        if not rows:
            return None
        equities = np.full(len(columns.entry), np.nan)
        for row in rows:
            equity, unit = self._equity(row, mark)
            equities[row] = equity / (unit * self._rows.exact_at[FIELDS * row])
        return equities

    def _equity(self, row: int, price: int) -> tuple[int, int]:
        lots, entry_price, margin, _ = self._rows.exact[row].tolist()
        return self.valuation.equity(lots, entry_price, margin, price)

    def _add(self, account: str) -> int:
        if not self._directory.has_room(ROWS_MAX):
            raise Rejection(
                Reason.OUT_OF_RANGE, f"a side of a book has at most {ROWS_MAX} accounts, and {account!r} would be one more"
            )
        row = self._directory.add(account)
        deque(self._rows.reserve(row + 1), maxlen=0)
        return row
