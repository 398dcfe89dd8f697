"""Loads the saved books of a partition while it settles already, and first those for which an event waits.

First, the stream is read from the first message after which a book was saved, up to the offset at which the partition was
loaded. Then each book is restored. Restoring a book takes short steps; between them the pipeline runs, and what arrives for the
book is postponed (see `fundsvc.core.awaited_books`). If an event needs a book, that one is loaded before all others.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial

from fundsvc.concurrency.exclusive import Exclusive
from fundsvc.core.batch import Offset, StoredBook
from fundsvc.core.partition import Partition
from fundsvc.readmodel.book_recovery import BookRecovery

PARTS_AT_ONCE = 100
"""Parts of small books that one query reads: at most a few MB, mostly far less."""

Read = Callable[[Sequence[str]], Awaitable[Iterable[StoredBook]]]
"""Reads the saved books of some contracts."""

_DONE = object()
"""Marks the end of an iterator."""


class BookLoader:
    """Loads the books of a partition. `saved` are its books without positions, `read` reads their positions.

    `recovery` is that of the same books, `offset` the one at which the partition was loaded. `exclusive` gives access to the
    partition. Calls `count_step` for each step. `loaded` is set once all books are loaded.
    """

    def __init__(
        self,
        state: Partition,
        exclusive: Exclusive,
        recovery: BookRecovery,
        offset: Offset,
        saved: Sequence[StoredBook],
        read: Read,
        count_step: Callable[[], None],
    ) -> None:
        self.loaded = asyncio.Event()
        self._state = state
        self._exclusive = exclusive
        self._recovery = recovery
        self._offset = offset
        self._saved = saved
        self._read = read
        self._count_step = count_step
        self._tail_read = asyncio.Event()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._wanted: set[str] = set()
        self._none_wanted = asyncio.Event()
        self._none_wanted.set()

    async def run(self) -> None:
        """Loads all books; raises StoreFault or StreamFault."""
        await self._recovery.run_part(self._offset)
        self._tail_read.set()
        for books in _groups(self._saved):
            left = [book for book in books if book.symbol in self._state.awaited]
            with_positions = [book.symbol for book in left if book.parts]
            found = {book.symbol: book for book in (await self._read(with_positions) if with_positions else ())}
            for book in left:
                await self._load(found.get(book.symbol, book))
        self.loaded.set()

    async def load(self, symbol: str) -> None:
        """Loads the book of one contract before all others, if it is awaited. `run` must be running."""
        self._wanted.add(symbol)
        self._none_wanted.clear()
        try:
            await self._tail_read.wait()
            for book in await self._read([symbol]) if symbol in self._state.awaited else ():
                await self._load(book)
        finally:
            self._wanted.discard(symbol)
            if not self._wanted:
                self._none_wanted.set()

    async def _load(self, book: StoredBook) -> None:
        """Restores a book and applies what was postponed for it, unless another task has done so."""
        async with self._locks[book.symbol]:
            if book.symbol in self._state.awaited:
                await self._run_steps(book.symbol, self._state.restore(book))
                await self._run_steps(book.symbol, self._state.complete(book.symbol))

    async def _run_steps(self, symbol: str, steps: Iterator[None]) -> None:
        """Runs steps; yields to the loop after each, and pauses while another book is wanted."""
        step: object = None
        while step is not _DONE:
            if symbol not in self._wanted:
                await self._none_wanted.wait()
            step = await self._exclusive.run(partial(next, steps, _DONE))
            self._count_step()
            await asyncio.sleep(0)


def _groups(saved: Iterable[StoredBook]) -> Iterator[list[StoredBook]]:
    """Divides books into groups that are read together; a large book is alone."""
    group: list[StoredBook] = []
    parts = 0
    for book in saved:
        if group and parts + book.parts > PARTS_AT_ONCE:
            yield group
            group, parts = [], 0
        group.append(book)
        parts += book.parts
    if group:
        yield group
