"""Keeps the ADL books in memory in a process that settles nothing: the books that the engines saved, then the streams' events.

A partition's books are loaded once one of its contracts has had a position or its fund an inventory; until then only its offset
is read. After a fault the books keep their state and the time of that state until the next attempt succeeds. Nothing is
written.
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
from fundsvc.core.adl.book import Book
from fundsvc.core.adl.order import AdlOrder
from fundsvc.core.adl.preview import Preview, RequestSize, TakeoverPreview, preview, preview_takeover
from fundsvc.core.adl.queue import Section, sections
from fundsvc.core.adl.ranking import Ranking
from fundsvc.core.adl.side import Side
from fundsvc.core.adl.valuation import Rank, SideName
from fundsvc.core.batch import Offset, StoredBook
from fundsvc.core.contracts import Contract, partition_of
from fundsvc.core.events import Fill, Takeover
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.partition import Partition
from fundsvc.core.policy import Eligible, Policy
from fundsvc.logs.faults import Outage
from fundsvc.metrics import Metrics
from fundsvc.readmodel.book_recovery import BookRecovery
from fundsvc.readmodel.inventories import TRANCHES_MANY
from fundsvc.store.adl import AdlReader
from fundsvc.store.database import Pool, StoreFault
from fundsvc.store.writer import STREAM_START
from fundsvc.streams.client import StreamClient, StreamFault
from fundsvc.streams.source import Source, id_order

RECORDS_MANY = 100
"""Decoding more records of open orders takes milliseconds."""

_DONE = object()
"""Marks the end of an iterator."""

RELOAD_SECONDS = 10.0
"""The pause before books are loaded again after an internal error; loading a large one takes seconds."""

log = structlog.get_logger()

Queue = dict[SideName, list[Section]]
"""The sections of the queue, by side."""


Result = TypeVar("Result")


class NotFollowed(Exception):
    """The books of a partition are not loaded yet, or are being reloaded. The caller may retry shortly."""


class BookView(NamedTuple):
    """A contract's book as of message `last_id`, the last one settled at `ts` (ms). Valid only until the reader returns."""

    contract: Contract
    book: Book
    last_id: str
    ts: int


class AdlBooks:
    """Keeps the books of all partitions up to date.

    Tasks other than `run` access books with `read` and `read_all`. These run in `worker` if a book is large.
    """

    def __init__(
        self, config: Config, pool: Pool, client: StreamClient, metrics: Metrics, worker: Executor | None = None
    ) -> None:
        self._seconds = config.http.book_seconds
        self._mark_seconds_max = config.adl.mark_seconds_max
        self._metrics = metrics
        self._ledger = AdlReader(pool)
        self._partitions = [
            FollowedPartition(config, self._ledger, _source(config, client, number), number, Exclusive(worker))
            for number in range(config.stream.partitions)
        ]
        self._ranked_sides: dict[tuple[str, SideName], _RankedSide] = {}

    async def run(self) -> None:
        """Updates the books periodically until cancelled. Retries after faults."""
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
        """Updates all books, or those of one partition, to the ledger's offset; raises StoreFault or StreamFault at the end."""
        now = time.time_ns() // 1_000_000
        offsets = await self._ledger.offsets()
        faults: list[StoreFault | StreamFault] = []
        for partition in self._partitions if only is None else [self._partitions[only]]:
            if partition.number not in offsets:
                continue  # The cell that holds it is away.
            try:
                await partition.step(offsets[partition.number], now)
            except (StoreFault, StreamFault) as fault:
                faults.append(fault)
            except Exception:  # an internal error in one partition must not affect the others
                log.exception("internal error", part="books", partition=partition.number)
                partition.reset()
        if faults:
            raise faults[0]

    def view(self, contract: Contract, partition: int) -> BookView:
        """Returns a listed contract's book, empty if it never had a position; raises NotFollowed."""
        return self._partitions[partition].view(contract)

    def book(self, symbol: str, partition: int) -> Book | None:
        """Returns a contract's book, or None if it never had a mark or a position. Do not keep it. Raises NotFollowed."""
        return self._partitions[partition].book(symbol)

    def exclusive(self, partition: int) -> Exclusive:
        """Returns the object that gives access to the books of a partition."""
        return self._partitions[partition].exclusive

    def size(self, symbol: str) -> int:
        """Returns the number of open positions of a contract; raises NotFollowed."""
        book = self.book(symbol, partition_of(symbol, len(self._partitions)))
        return book.open if book else 0

    def mark(self, symbol: str) -> int | None:
        """Returns the live mark of a contract, None before the first; raises NotFollowed."""
        book = self.book(symbol, partition_of(symbol, len(self._partitions)))
        return book.mark if book else None

    def views(self) -> list[BookView]:
        """Returns all books that have had a mark or a position; raises NotFollowed."""
        return [view for partition in self._partitions for view in partition.views()]

    async def read(
        self, contract: Contract, partition: int, read: Callable[[BookView], Result], *, is_long: bool = False
    ) -> Result:
        """Returns the result of `read` for a listed contract's book; the result must not refer to the book. Raises NotFollowed.

        A thread runs `read` if `is_long` or if the book is large. One call at a time runs for each partition.
        """
        followed = self._partitions[partition]
        return await followed.exclusive.run(
            lambda: read(followed.view(contract)), is_long=is_long or followed.is_large(contract.symbol)
        )

    async def read_all(self, read: Callable[[BookView], Iterable[Result]]) -> list[Result]:
        """Returns the results of `read` for all books that have had a mark or a position; see `read`. Raises NotFollowed."""
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
        request_size: RequestSize = int,
    ) -> Result:
        """Computes what a fill would do under a policy to the current fund and the loaded book; returns `answer` of that.

        See `core.preview` for `request_size`.

        Raises Rejection if the fill could not be settled, NotFollowed, or StoreFault.
        """

        def compute(fund: Fund, orders: Iterable[AdlOrder], view: BookView) -> Result:
            return answer(preview(fund, view.book, orders, fill, request_size), view)

        return await self._previewed(contract, partition, policy, compute)

    async def preview_takeover(
        self,
        contract: Contract,
        partition: int,
        policy: Policy,
        takeover: Takeover,
        rate: int | None,
        answer: Callable[[TakeoverPreview, BookView], Result],
        request_size: RequestSize = int,
    ) -> Result:
        """Computes what a takeover would do; see `preview`, and `core.preview` for `rate`."""

        def compute(fund: Fund, orders: Iterable[AdlOrder], view: BookView) -> Result:
            return answer(preview_takeover(fund, view.book, orders, takeover, rate, request_size), view)

        return await self._previewed(contract, partition, policy, compute)

    async def _previewed(
        self,
        contract: Contract,
        partition: int,
        policy: Policy,
        compute: Callable[[Fund, Iterable[AdlOrder], BookView], Result],
    ) -> Result:
        """Returns the result of `compute` for a contract's fund under a policy, its open orders and its book."""
        stored = await self._ledger.stored_fund(partition, contract.symbol)
        orders = await self._ledger.open_orders(partition, contract.symbol)

        def read(view: BookView) -> Result:
            fund = stored.restored(policy)
            if view.book.mark is None:
                view.book.mark = stored.mark  # The books of the partition are not loaded, because they have no positions.
            if fund.inventory is not None and view.book.mark is not None:
                fund.inventory.reprice(view.book.mark)
            return compute(fund, iter(orders.decoded()), view)

        is_long = len(orders.records) > RECORDS_MANY or len(stored.tranches) > TRANCHES_MANY
        return await self.read(contract, partition, read, is_long=is_long)

    def queue(self, view: BookView, eligible: Eligible) -> Queue:
        """Returns the queue of each side by lights, empty without a mark. Ranks again only after a change.

        `eligible` are the positions that ADL may reduce by the contract's policy.
        """
        mark = view.book.mark
        if mark is None:
            return {}
        return {name: self._sections(view, name, mark, eligible) for name in view.book.sides}

    def is_mark_stale(self, view: BookView) -> bool:
        """Whether the mark of a book is older than `adl.mark_seconds_max`."""
        return view.book.is_mark_old(time.time_ns() // 1_000_000, self._mark_seconds_max)

    def rank(self, view: BookView, name: SideName, account: str, eligible: Eligible) -> Rank | None:
        """Returns the rank of an account's position among those of its side that ADL may reduce; None if ADL may not reduce it.

        It may not without a mark, without equity, and, by `eligible`, without a profit.
        """
        side, mark = view.book.sides[name], view.book.mark
        if mark is None:
            return None
        gainers = self._ranked(view.contract.symbol, name, side, mark).ranking.gainers
        rank = side.rank_of(account, mark)
        if rank is None or eligible == "all":
            return rank
        return Rank(rank.rank, gainers) if rank.rank <= gainers else None

    def _sections(self, view: BookView, name: SideName, mark: int, eligible: Eligible) -> list[Section]:
        symbol, side = view.contract.symbol, view.book.sides[name]
        known = self._ranked(symbol, name, side, mark)
        if known.eligible != eligible:
            found = sections(side, mark, eligible)
            known = self._ranked_sides[symbol, name] = known._replace(eligible=eligible, sections=found)
        return known.sections

    def _ranked(self, symbol: str, name: SideName, side: Side, mark: int) -> "_RankedSide":
        """Returns the side's current ranking, and measures the duration of a new one."""
        started = time.perf_counter()
        ranking = side.ranking(mark)
        known = self._ranked_sides.get((symbol, name))
        if known is None or known.ranking is not ranking:
            self._metrics.rank_seconds.observe(time.perf_counter() - started)
            known = self._ranked_sides[symbol, name] = _RankedSide(ranking, None, [])
        return known

    def _set_age_metric(self) -> None:
        oldest_ms = min(partition.confirmed_ms for partition in self._partitions)
        if oldest_ms:
            self._metrics.books_age_seconds.set(max(0.0, time.time() - oldest_ms / 1000))


def _read_each(followed: "FollowedPartition", read: Callable[[BookView], Iterable[Result]]) -> list[Result]:
    return [found for view in followed.views() for found in read(view)]


def _source(config: Config, client: StreamClient, number: int) -> Source:
    return Source(client, number, message_bytes_max=config.stream.message_bytes_max)


class FollowedPartition:
    """The books of one partition. `confirmed_ms` is when they last agreed with the ledger's offset, 0 if never.

    `exclusive` gives access to them.
    """

    def __init__(self, config: Config, ledger: AdlReader, source: Source, number: int, exclusive: Exclusive) -> None:
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
        """Drops the books; they are loaded again after RELOAD_SECONDS."""
        self._followed, self._loaded = None, False
        self._paused_until = time.monotonic() + RELOAD_SECONDS

    async def step(self, offset: Offset, now: int) -> None:
        """Updates the books to `offset`, the ledger's offset at the time `now` (ms); raises StoreFault or StreamFault."""
        if time.monotonic() < self._paused_until:
            return
        if self._followed and offset != self._offset and not await self._advance(self._followed, offset):
            # The stream does not contain what the ledger has settled.
            log.warning("books reloaded", partition=self.number)
            # Dropped before the new ones are loaded, so that memory contains them once.
            self._followed, self._loaded = None, False
        if not self._followed and (not self._loaded or offset != self._offset):
            self._followed = await self._load(offset)
            self._loaded = True
        self._offset = offset
        self.confirmed_ms = now

    def view(self, contract: Contract) -> BookView:
        """Returns a contract's book; raises NotFollowed."""
        return BookView(contract, self.book(contract.symbol) or Book(contract), self._last_id(), self.confirmed_ms)

    def views(self) -> list[BookView]:
        """Returns all books that have had a mark or a position; raises NotFollowed."""
        last_id, followed = self._last_id(), self._loaded_books()
        books = followed.partition.books() if followed else ()
        return [BookView(contract, book, last_id, self.confirmed_ms) for contract, book in books]

    def book(self, symbol: str) -> Book | None:
        """Returns a contract's book, or None if it never had a mark or a position; raises NotFollowed."""
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
            raise NotFollowed("the ADL books are being loaded: retry in a few seconds")
        return self._followed

    async def _load(self, offset: Offset) -> "_LoadedBooks | None":
        """Loads the saved books and updates them to an offset; returns None if nothing needs them."""
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
        # Earlier releases leave books beyond the offset after a stream lost its tail; they read the remaining stream again.
        end = id_order(offset.last_id)
        kept = [book._replace(last_id=STREAM_START) if id_order(book.last_id) > end else book for book in kept]
        rejected = partial(self._ledger.rejected_places, self.number)
        recovery = BookRecovery(partition, self.exclusive, self._source, kept, rejected, self._ledger.reduced_sides)
        await recovery.run(offset.last_id)
        return _LoadedBooks(partition, recovery, offset.messages - recovery.messages)

    async def _advance(self, followed: "_LoadedBooks", offset: Offset) -> bool:
        """Updates the books to an offset. Returns False if the stream lacked messages or a contract changed its terms.

        A wrong number of messages means that the stream lost its tail, or dropped messages before this process read them.
        """
        recovery = followed.recovery
        await recovery.run(offset.last_id)
        if recovery.messages != offset.messages - followed.messages_before:
            return False
        return not recovery.listed or await self._admit_listed(followed)

    async def _admit_listed(self, followed: "_LoadedBooks") -> bool:
        """Adds newly listed contracts, and closes those that a listing ended; returns False if the terms of another changed."""
        partition = followed.partition
        funds = await self._funds()
        new = [fund for fund in funds if partition.contract(fund.contract.symbol) is None]
        for fund in new:
            await self.exclusive.run(partial(partition.admit, fund))
        kept = await self._ledger.books(self.number, [fund.contract.symbol for fund in new])
        await self._restore(partition, kept)
        await followed.recovery.include(kept)
        for fund in funds:
            if fund.closing is not None:
                await self.exclusive.run(partial(partition.end, fund.contract.symbol, fund.closing))
        followed.recovery.listed = False
        return all(partition.contract(fund.contract.symbol) == fund.contract for fund in funds)

    async def _restore(self, partition: Partition, kept: Iterable[StoredBook]) -> None:
        """Restores books in steps, as a million positions take seconds; yields to the loop after each step."""
        for book in kept:
            steps, step = partition.restore(book), None
            while step is not _DONE:
                step = await self.exclusive.run(partial(next, steps, _DONE))
                await asyncio.sleep(0)

    async def _funds(self) -> list[Fund]:
        return await self._ledger.funds(self.number, self._config.policy.of)


class _RankedSide(NamedTuple):
    """A ranking of a side, and the sections of its `eligible` positions; None before they were computed."""

    ranking: Ranking
    eligible: Eligible | None
    sections: list[Section]


class _LoadedBooks(NamedTuple):
    """Books in memory, and their recovery. `messages_before` is the number of messages that recovery did not have to read."""

    partition: Partition
    recovery: BookRecovery
    messages_before: int


@asynccontextmanager
async def open_adl_books(config: Config, pool: Pool, client: StreamClient, metrics: Metrics) -> AsyncIterator[AdlBooks]:
    """Provides an AdlBooks and updates its books in the background."""
    with single_thread_executor("fundsvc reading") as worker:
        async with asyncio.TaskGroup() as tasks:
            books = AdlBooks(config, pool, client, metrics, worker)
            task = tasks.create_task(keep_running("books", books.run, log))
            try:
                yield books
            finally:
                task.cancel()
