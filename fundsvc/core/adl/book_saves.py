"""How a book is saved: whole at first, then only what changed, until the saved rows are twice as many as those of the book.

A save therefore costs in proportion to the positions that changed: all saves of a book write at most about twice the rows that
changed. Restoring a book reads at most about twice its rows.
"""

from typing import NamedTuple

import msgspec

from fundsvc.core.adl.book import Book
from fundsvc.core.adl.book_parts import BookPart

ROWS_PER_SAVE_MIN = 16
"""A save of fewer changes counts as this many rows, because each one is read and deleted separately."""

ROWS_MIN = 128
"""A book with fewer rows than half of this is saved whole as often as one with so many."""


class Saved(NamedTuple):
    """The encoded parts of a save, their rows, and the number of the first part; 0 replaces all parts saved before.

    `parts` is None if nothing changed.
    """

    first: int
    parts: list[bytes] | None
    rows: int


class BookSaves:
    """The saves of one book."""

    def __init__(self) -> None:
        self._parts = self._rows = 0

    def count(self, part: BookPart) -> None:
        """Counts a saved part from which the book is restored."""
        self._rows += max(ROWS_PER_SAVE_MIN, part.rows) if part.changes else part.rows

    def restored(self, book: Book, parts: int) -> None:
        """Continues after a book was restored from so many parts; with 0 the next save is whole."""
        self._parts = parts
        book.forget_changes()

    def take(self, book: Book) -> Saved:
        """Returns what to save of a book, and begins to record its further changes."""
        changed, kept = book.changed, book.kept
        rows = self._rows + max(ROWS_PER_SAVE_MIN, changed)
        is_whole = not self._parts or book.changes_all or rows > max(ROWS_MIN, 2 * kept)
        parts = [msgspec.msgpack.encode(part) for part in (book.save() if is_whole else book.save_changes())]
        first = 0 if is_whole else self._parts
        self._parts, self._rows = first + len(parts), kept if is_whole else rows
        book.forget_changes()
        return Saved(first, parts, kept if is_whole else changed)
