"""The ADL book of a contract: its open positions by side, and its mark price."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal

from fundsvc.core.adl.book_parts import NOTHING_KNOWN, ROWS_PER_PART, BookPart, closed_rows
from fundsvc.core.adl.directory import NONE
from fundsvc.core.adl.owners import Owners
from fundsvc.core.adl.side import ROWS_PER_STEP, Side
from fundsvc.core.adl.valuation import SideName
from fundsvc.core.contracts import Contract

Leg = Literal["BOTH", "LONG", "SHORT"]

LARGE_ROWS = 20_000
"""A book with more rows is large: ranking or reading all of it takes several milliseconds."""


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

    def set(self, account: str, lots: int, entry_price: int, margin: int, leg: Leg = "BOTH", owner: str = "") -> None:
        """Sets the account's position: positive lots are long, negative short, 0 closes it.

        `BOTH` is the whole position of an account; `LONG` and `SHORT` are one leg and do not change the other. An empty `owner`
        leaves the owner as it is.
        """
        if leg == "BOTH":
            side, other = (self._long, self._short) if lots > 0 else (self._short, self._long)
        else:
            side, other = (self._long if leg == "LONG" else self._short), None
        if lots:
            side.set(account, abs(lots), entry_price, margin)
            if side.has_legs or leg != "BOTH":
                side.set_leg(account, is_leg=leg != "BOTH")
        else:
            side.close(account)
        if other is not None and other.open:
            other.close(account)
        if owner:
            self.owners.assign(account, owner)
        if self.owners:
            self._note_owner(account)

    def reduce(self, name: SideName, account: str, lots: int) -> None:
        """Subtracts lots from an account's position on a side."""
        self.sides[name].reduce(account, lots)
        self._note_owner(account)

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
        self.owners.note_all(self._is_open)
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
        """Whether ranking, saving or extending the book may hold the event loop for too long. Closed rows take time, too."""
        return len(self._long.accounts) + len(self._short.accounts) > LARGE_ROWS

    def may_copy(self, accounts: int) -> bool:
        """Whether adding up to so many accounts may copy a large side to larger memory."""
        return any(side.room < accounts and len(side.accounts) + accounts > LARGE_ROWS for side in self.sides.values())

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
        owned = self.owners.by_account()
        owners, long, short = iter(owned.items()), self._long.kept_rows(), self._short.kept_rows()
        for first in range(0, max(1, len(long), len(short), len(owned)), ROWS_PER_PART):
            rows = slice(first, first + ROWS_PER_PART)
            sides = self._long.save(long[rows]), self._short.save(short[rows])
            yield BookPart(*sides, self.stale, self.known_ms, dict(islice(owners, ROWS_PER_PART)))

    def save_changes(self) -> Iterator[BookPart]:
        """Yields what changed since the book was last saved, like `save`. First the accounts whose rows were freed."""
        gone = self._long.gone(), self._short.gone()
        for first in range(0, max(map(len, gone)), ROWS_PER_PART):
            long_gone, short_gone = (closed_rows(accounts[first : first + ROWS_PER_PART]) for accounts in gone)
            yield BookPart(long_gone, short_gone, self.stale, self.known_ms, changes=True)
        by_account = self.owners.by_account()
        owners = iter([(account, by_account.get(account, "")) for account in sorted(self.owners.changed)])
        long, short = self._long.changed_rows(), self._short.changed_rows()
        for first in range(0, max(1, len(long), len(short), len(self.owners.changed)), ROWS_PER_PART):
            rows = slice(first, first + ROWS_PER_PART)
            sides = self._long.save(long[rows]), self._short.save(short[rows])
            yield BookPart(*sides, self.stale, self.known_ms, dict(islice(owners, ROWS_PER_PART)), changes=True)

    @property
    def changes_all(self) -> bool:
        """Whether the next save must be whole, because all positions may have changed."""
        return self._long.changes_all or self._short.changes_all

    @property
    def changed(self) -> int:
        """The number of rows that a save of the changes contains."""
        return sum(len(side.changed_rows()) + len(side.gone()) for side in self.sides.values())

    @property
    def kept(self) -> int:
        """The number of rows that a whole save contains."""
        return len(self._long.kept_rows()) + len(self._short.kept_rows())

    def forget_changes(self) -> None:
        """Begins to record changes since a save of the book."""
        self.owners.changed.clear()
        for side in self.sides.values():
            side.forget_changes()

    def restore(self, saved: BookPart) -> Iterator[None]:
        """Restores the positions of a saved part, ROWS_PER_STEP per step."""
        self.stale, self.known_ms = saved.stale, saved.known_ms
        yield from self._long.restore(saved.long)
        yield from self._short.restore(saved.short)
        for named, (account, owner) in enumerate(saved.owners.items(), 1):
            self.owners.restore(account, owner)
            self._note_saved(account)
            if named % ROWS_PER_STEP == 0:
                yield
        accounts = (*saved.long.accounts, *saved.short.accounts) if self.owners else ()
        for number, account in enumerate(accounts, 1):
            self._note_saved(account)
            if number % ROWS_PER_STEP == 0:
                yield

    def _is_open(self, account: str) -> bool:
        return any(side.row_of(account) != NONE for side in self.sides.values())

    def _note_owner(self, account: str) -> None:
        if account in self.owners:
            self.owners.note(account, is_open=self._is_open(account))

    def _note_saved(self, account: str) -> None:
        if account in self.owners:
            self.owners.note_saved(account, is_open=self._is_open(account))

    def _sides_of(self, leg: Leg) -> Sequence[Side]:
        match leg:
            case "LONG":
                return (self._long,)
            case "SHORT":
                return (self._short,)
            case _:
                return self._long, self._short
