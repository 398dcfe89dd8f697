"""The live ADL books of a process that settles nothing: as the engines kept them, then what the streams say was settled since.

A partition is followed once one of its contracts has had a position; until then nothing but its offset is looked at. What is
away is asked for again; meanwhile the books stay what they were, and say when that was. Nothing is ever written.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple, TypeVar

import structlog

from fundsvc.concurrency.background import keep_running
from fundsvc.concurrency.exclusive import Exclusive, single_thread_executor
from fundsvc.config.settings import Config
from fundsvc.core.adl.book import Book, Side
from fundsvc.core.adl.preview import AskedOf, Preview, preview
from fundsvc.core.adl.queue import Section, sections
from fundsvc.core.adl.ranking import Ranking
from fundsvc.core.adl.valuation import Rank, SideName
from fundsvc.core.batch import KeptBook, Offset
from fundsvc.core.contracts import Contract, partition_of
from fundsvc.core.events import Fill
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.partition import Partition
from fundsvc.core.policy import Policy
from fundsvc.logs.faults import Outage
from fundsvc.metrics import Metrics
from fundsvc.readmodel.book_recovery import BookRecovery
from fundsvc.store.adl import Deleveragings
from fundsvc.store.database import Pool, StoreFault
from fundsvc.store.writer import STREAM_START
from fundsvc.streams.client import Client, StreamFault
from fundsvc.streams.source import Source, id_order

RECORDS_MANY = 100
"""More records of open orders take milliseconds to decode."""

_DONE = object()
"""What an iterator gives at its end."""

RELOAD_SECONDS = 10.0
"""After a mistake of ours books are loaded anew so much later: a large one takes seconds."""

log = structlog.get_logger()

Queue = dict[SideName, list[Section]]
"""The sections of each side."""


Result = TypeVar("Result")


class NotFollowed(Exception):
    """The books of a partition are not loaded yet, or being loaded anew; ask again shortly."""


class BookView(NamedTuple):
    """A contract's book, not to be kept: as it was after message `last_id`, which was the last one settled at `ts` (ms)."""

    contract: Contract
    book: Book
    last_id: str
    ts: int


class Follower:
    """Follows the books of all partitions.

    Tasks beside `run` read books with `read` and `read_all`, which run in `worker` where the books are large.
    """

    def __init__(self, config: Config, pool: Pool, client: Client, metrics: Metrics, worker: Executor | None = None) -> None:
        self._seconds = config.http.book_seconds
        self._mark_seconds_max = config.adl.mark_seconds_max
        self._metrics = metrics
        self._ledger = Deleveragings(pool)
        self._partitions = [
            FollowedPartition(config, self._ledger, _source(config, client, number), number, Exclusive(worker))
            for number in range(config.stream.partitions)
        ]
        self._ranked_sides: dict[tuple[str, SideName], _RankedSide] = {}

    async def run(self) -> None:
        """Follows until cancelled, through every fault."""
        outage = Outage(log, "books")
        while True:
            try:
                await self.step()
                outage.over()
            except (StoreFault, StreamFault) as fault:
                outage.note(fault)
            self._set_age_metric()
            await asyncio.sleep(self._seconds)

    async def step(self, only: int | None = None) -> None:
        """Brings all books, or those of one partition, to where the ledger is; raises StoreFault or StreamFault at the end."""
        now = time.time_ns() // 1_000_000
        offsets = await self._ledger.offsets()
        faults: list[StoreFault | StreamFault] = []
        for partition in self._partitions if only is None else [self._partitions[only]]:
            try:
                await partition.step(offsets[partition.number], now)
            except (StoreFault, StreamFault) as fault:
                faults.append(fault)
            except Exception:  # a mistake of ours in one partition leaves the others, and who shows them, alone
                log.exception("mistake", part="books", partition=partition.number)
                partition.reset()
        if faults:
            raise faults[0]

    def view(self, contract: Contract, partition: int) -> BookView:
        """A listed contract's book, empty if it never had a position; raises NotFollowed."""
        return self._partitions[partition].view(contract)

    def book(self, symbol: str, partition: int) -> Book | None:
        """A contract's book, not to be kept, if it is known to have had a mark or a position; raises NotFollowed."""
        return self._partitions[partition].book(symbol)

    def size(self, symbol: str) -> int:
        """How many positions are open in a contract; raises NotFollowed."""
        book = self.book(symbol, partition_of(symbol, len(self._partitions)))
        return book.open if book else 0

    def views(self) -> list[BookView]:
        """All books that have had a mark or a position; raises NotFollowed."""
        return [view for partition in self._partitions for view in partition.views()]

    async def read(
        self, contract: Contract, partition: int, read: Callable[[BookView], Result], *, is_long: bool = False
    ) -> Result:
        """What `read` returns for a listed contract's book, which must not refer to the book; raises NotFollowed.

        It runs in a thread where it is long or the book is large. One such call runs at a time.
        """
        followed = self._partitions[partition]
        return await followed.exclusive.run(
            lambda: read(followed.view(contract)), is_long=is_long or followed.is_large(contract.symbol)
        )

    async def read_all(self, read: Callable[[BookView], Iterable[Result]]) -> list[Result]:
        """What `read` gives for all books that have had a mark or a position, in the way of `read`; raises NotFollowed."""
        found = []
        for followed in self._partitions:
            found += await followed.exclusive.run(partial(_read_each, followed, read), is_long=followed.has_large())
        return found

    async def preview(
        self,
        contract: Contract,
        partition: int,
        policy: Policy,
        fill: Fill,
        answer: Callable[[Preview, BookView], Result],
        asked_of: AskedOf = int,
    ) -> Result:
        """The answer to what a fill would do under a policy, to the fund as it stands and the book as it is shown.

        See `core.preview` for `asked_of`.

        Raises Rejection when it could not be settled, NotFollowed, or StoreFault.
        """
        (fund,) = await self._ledger.funds(partition, lambda _: policy, contract.symbol)
        orders = await self._ledger.open_orders(partition, contract.symbol)

        def read(view: BookView) -> Result:
            return answer(preview(fund, view.book, orders.decoded(), fill, asked_of), view)

        return await self.read(contract, partition, read, is_long=len(orders.records) > RECORDS_MANY)

    def queue(self, view: BookView) -> Queue:
        """The queue of each side by lights, empty before there is a mark; ranked anew only when something has changed."""
        mark = view.book.mark
        if mark is None:
            return {}
        return {name: self._sections(view, name, mark) for name in view.book.sides}

    def is_mark_stale(self, view: BookView) -> bool:
        """Whether the mark of a book is older than `adl.mark_seconds_max`."""
        return view.book.is_mark_old(time.time_ns() // 1_000_000, self._mark_seconds_max)

    def rank(self, view: BookView, name: SideName, account: str) -> Rank | None:
        """Where an account's position stands on a side; None without a mark, or where the position has no equity."""
        side, mark = view.book.sides[name], view.book.mark
        if mark is None:
            return None
        self._ranked(view.contract.symbol, name, side, mark)
        return side.rank_of(account, mark)

    def _sections(self, view: BookView, name: SideName, mark: int) -> list[Section]:
        symbol, side = view.contract.symbol, view.book.sides[name]
        known = self._ranked(symbol, name, side, mark)
        if known.sections is None:
            known = self._ranked_sides[symbol, name] = known._replace(sections=sections(side, mark))
        return known.sections or []

    def _ranked(self, symbol: str, name: SideName, side: Side, mark: int) -> "_RankedSide":
        """The side's ranking, which is another object once it is another; notes how long that took."""
        started = time.perf_counter()
        ranking = side.ranking(mark)
        known = self._ranked_sides.get((symbol, name))
        if known is None or known.ranking is not ranking:
            self._metrics.rank_seconds.observe(time.perf_counter() - started)
            known = self._ranked_sides[symbol, name] = _RankedSide(ranking, None)
        return known

    def _set_age_metric(self) -> None:
        oldest_ms = min(partition.confirmed_ms for partition in self._partitions)
        if oldest_ms:
            self._metrics.books_age_seconds.set(max(0.0, time.time() - oldest_ms / 1000))


def _read_each(followed: "FollowedPartition", read: Callable[[BookView], Iterable[Result]]) -> list[Result]:
    return [found for view in followed.views() for found in read(view)]


def _source(config: Config, client: Client, number: int) -> Source:
    return Source(client, number, message_bytes_max=config.stream.message_bytes_max)


class FollowedPartition:
    """The books of one partition; `confirmed_ms` is when they were last known to be where the ledger is, 0 for never.

    `exclusive` gives access to them.
    """

    def __init__(self, config: Config, ledger: Deleveragings, source: Source, number: int, exclusive: Exclusive) -> None:
        self.number = number
        self.exclusive = exclusive
        self.confirmed_ms = 0
        self._config = config
        self._ledger = ledger
        self._source = source
        self._offset = Offset(STREAM_START, 0)
        self._loaded = False
        self._paused_until = 0.0
        self._followed: _LoadedBooks | None = None

    def reset(self) -> None:
        """Forgets the books, and loads them again after some seconds."""
        self._followed, self._loaded = None, False
        self._paused_until = time.monotonic() + RELOAD_SECONDS

    async def step(self, offset: Offset, now: int) -> None:
        """Follows to an offset that was the ledger's at a time (ms); raises StoreFault or StreamFault."""
        if time.monotonic() < self._paused_until:
            return
        if self._followed and offset != self._offset and not await self._advance(self._followed, offset):
            # The stream does not hold what the ledger has settled.
            log.warning("books loaded anew", partition=self.number)
            # Dropped before others take their place, so that there is one copy of them.
            self._followed, self._loaded = None, False
        if not self._followed and (not self._loaded or offset != self._offset):
            self._followed = await self._load(offset)
            self._loaded = True
        self._offset = offset
        self.confirmed_ms = now

    def view(self, contract: Contract) -> BookView:
        """A contract's book; raises NotFollowed."""
        return BookView(contract, self.book(contract.symbol) or Book(contract), self._last_id(), self.confirmed_ms)

    def views(self) -> list[BookView]:
        """All books that have had a mark or a position; raises NotFollowed."""
        last_id, followed = self._last_id(), self._loaded_books()
        books = followed.partition.books() if followed else ()
        return [BookView(contract, book, last_id, self.confirmed_ms) for contract, book in books]

    def book(self, symbol: str) -> Book | None:
        """A contract's book, if it is known to have had a mark or a position; raises NotFollowed."""
        followed = self._loaded_books()
        return followed.partition.book(symbol) if followed else None

    def is_large(self, symbol: str) -> bool:
        """Whether a contract's book is loaded and large."""
        book = self._followed.partition.book(symbol) if self._followed else None
        return book is not None and book.is_large

    def has_large(self) -> bool:
        """Whether any loaded book is large."""
        return self._followed is not None and any(book.is_large for _, book in self._followed.partition.books())

    def _last_id(self) -> str:
        followed = self._loaded_books()
        return followed.recovery.read_to if followed else self._offset.last_id

    def _loaded_books(self) -> "_LoadedBooks | None":
        if not self._loaded:
            raise NotFollowed("the ADL books are being loaded, ask again shortly")
        return self._followed

    async def _load(self, offset: Offset) -> "_LoadedBooks | None":
        """The books as they were kept, brought to an offset; None if none of them ever held a position."""
        if not await self._ledger.has_positions(self.number):
            return None
        kept = await self._ledger.books(self.number)
        config = self._config
        partition = Partition(
            self.number,
            config.stream.partitions,
            await self._funds(),
            config.currency.decimals,
            config.currency.decimals_default,
            config.policy.of,
        )
        await self._restore(partition, kept)
        # A book kept beyond the offset is of a stream that lost its tail: the engine reads all that is left once more.
        end = id_order(offset.last_id)
        kept = [book._replace(last_id=STREAM_START) if id_order(book.last_id) > end else book for book in kept]
        rejected = partial(self._ledger.rejected_places, self.number)
        recovery = BookRecovery(partition, self.exclusive, self._source, kept, rejected, self._ledger.reduced_sides)
        await recovery.run(offset.last_id)
        return _LoadedBooks(partition, recovery, offset.messages - recovery.messages)

    async def _advance(self, followed: "_LoadedBooks", offset: Offset) -> bool:
        """Goes on to an offset; says whether the stream held all that lies between, and no contract changed its terms.

        Another number of messages means that the stream lost its tail, or dropped what we had not read yet.
        """
        recovery = followed.recovery
        await recovery.run(offset.last_id)
        if recovery.messages != offset.messages - followed.messages_before:
            return False
        return not recovery.listed or await self._admit_listed(followed)

    async def _admit_listed(self, followed: "_LoadedBooks") -> bool:
        """Takes in the contracts that were listed; False if one of the others is not what it was."""
        partition = followed.partition
        funds = await self._funds()
        new = [fund for fund in funds if partition.contract(fund.contract.symbol) is None]
        for fund in new:
            await self.exclusive.run(partial(partition.admit, fund))
        kept = await self._ledger.books(self.number, [fund.contract.symbol for fund in new])
        await self._restore(partition, kept)
        await followed.recovery.include(kept)
        followed.recovery.listed = False
        return all(partition.contract(fund.contract.symbol) == fund.contract for fund in funds)

    async def _restore(self, partition: Partition, kept: Iterable[KeptBook]) -> None:
        """Restores books in slices: a million positions take seconds, and others have work on this loop."""
        for book in kept:
            steps, step = partition.restore(book), None
            while step is not _DONE:
                step = await self.exclusive.run(partial(next, steps, _DONE))
                await asyncio.sleep(0)

    async def _funds(self) -> list[Fund]:
        return await self._ledger.funds(self.number, self._config.policy.of)


class _RankedSide(NamedTuple):
    """A ranking of a side, and its sections once somebody has asked for them."""

    ranking: Ranking
    sections: list[Section] | None


class _LoadedBooks(NamedTuple):
    """Books in memory, and what brings them up to date; `messages_before` is how many messages it did not have to read."""

    partition: Partition
    recovery: BookRecovery
    messages_before: int


@asynccontextmanager
async def open_follower(config: Config, pool: Pool, client: Client, metrics: Metrics) -> AsyncIterator[Follower]:
    """A follower that follows."""
    with single_thread_executor("fundsvc reading") as worker:
        async with asyncio.TaskGroup() as tasks:
            follower = Follower(config, pool, client, metrics, worker)
            task = tasks.create_task(keep_running("books", follower.run, log))
            try:
                yield follower
            finally:
                task.cancel()
