"""How a book is saved: whole at first, then only what changed, until the changes have as many rows as the book.

A save therefore costs in proportion to the positions that changed: all saves of a book write at most about twice the rows that
changed. Restoring a book reads at most about twice its rows.
"""

from typing import NamedTuple

import msgspec

from fundsvc.core.adl.book import Book

ROWS_PER_SAVE_MIN = 16
"""A save of fewer changes counts as this many rows, because each one is read and deleted separately."""

ROWS_MIN = 64
"""A book with fewer rows is saved whole as often as one with so many."""


class Saved(NamedTuple):
    """The encoded parts of a save, their rows, and the number of the first part; 0 replaces all parts saved before.

    `parts` is None if nothing changed.
    """

    first: int
    parts: list[bytes] | None
    rows: int


class BookSaves:
    """The saves of one book. `restored` must follow if the book was restored."""

    def __init__(self) -> None:
        self._parts = self._change_rows = 0

    def restored(self, book: Book, parts: int, change_rows: int) -> None:
        """Continues after a save of so many parts, whose changes have so many rows; 0 parts make the next save whole."""
        self._parts, self._change_rows = parts, change_rows
        book.forget_changes()

    def take(self, book: Book) -> Saved:
        """Returns what to save of a book, and begins to record its further changes."""
        changed, kept = book.changed, book.kept
        changes = self._change_rows + max(ROWS_PER_SAVE_MIN, changed)
        is_whole = not self._parts or book.changes_all or changes > max(ROWS_MIN, kept)
        parts = [msgspec.msgpack.encode(part) for part in (book.save() if is_whole else book.save_changes())]
        first = 0 if is_whole else self._parts
        self._parts, self._change_rows = first + len(parts), 0 if is_whole else changes
        book.forget_changes()
        return Saved(first, parts, kept if is_whole else changed)
