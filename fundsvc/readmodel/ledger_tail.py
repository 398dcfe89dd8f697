"""Keeps the funds of the ledger in memory in a process that settles nothing, and publishes changes to listeners.

The ledger is its own outbox: a contract's entry numbers have no gaps and appear in commit order, and each commit moves the
offset of its partition. The tail polls the offsets many times a second. Where an offset moved, it reads the versions of the
partition's funds, then the funds whose versions changed, and the new entries of followed contracts. Listeners receive committed
entries in order, without gaps and without repetition, also across outages of the database. Once a second the tail values the
inventories whose marks changed.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple, TypeVar

import structlog

from fundsvc.concurrency.background import keep_running
from fundsvc.concurrency.exclusive import single_thread_executor
from fundsvc.config.cells import MAIN
from fundsvc.config.settings import Config
from fundsvc.core.contracts import Contract
from fundsvc.core.generations import generation_of, named_generation
from fundsvc.logs.faults import Outage
from fundsvc.metrics import Metrics
from fundsvc.readmodel.inventories import HeldInventory, Inventories
from fundsvc.store.adl import OrderRow
from fundsvc.store.cells import CellMap
from fundsvc.store.database import CellPool, StoreFault, acquired, faults, open_pool
from fundsvc.store.freshness import Freshness
from fundsvc.store.inventories import inventory_entries, load_inventory
from fundsvc.store.reader import READ_SECONDS_MAX, EntryRow, FundRow
from fundsvc.store.tail_queries import (
    EVERY_COMMIT,
    Connection,
    FundVersion,
    Offsets,
    PartitionProgress,
    VersionedFund,
    changed_orders,
    entries,
    fund_versions,
    offsets,
    open_orders,
    orders_after,
    versioned_funds,
)

SILENCE_SECONDS_MAX = 3.0
"""After this time without an answer, the funds in memory may differ from the ledger's, and `check` fails."""

RETRY_SECONDS = 0.2
"""The pause after a fault of the database."""

MARK_SECONDS = 1.0
"""Inventories are valued at a new mark at most this often. Marks may change many times a second."""

CONNECTIONS_MAX = 2
"""One for the tail, and one to query the state of a replica."""

ENTRIES_PER_STEP_MAX = 2000
"""Bounds how long one notification holds the loop; a backlog takes several steps."""

log = structlog.get_logger()


class Change(NamedTuple):
    """New data: funds, entries of followed contracts in order, and orders that began, advanced or ended.

    A fund also counts as changed if its inventory was valued at another mark.
    """

    funds: Sequence[FundRow]
    entries: Sequence[EntryRow]
    orders: Sequence[OrderRow]


Value = TypeVar("Value")

Listener = Callable[[Change], None]
"""Called with each change after the tail's funds contain it."""


class Tail:
    """Follows the ledger. `funds` and `contracts` are ordered by ledger key. They change only while the tail's tasks run.
    `current` maps each symbol to the ledger key of its newest generation.

    `held` has the inventories of the funds that ever had one, each after the entry of its fund. A change replaces values of
    these mappings; a new key replaces the mapping. `version` grows with each change of funds or inventories.
    """

    def __init__(
        self,
        pool: CellPool,
        freshness: Freshness,
        metrics: Metrics,
        seconds: float,
        inventories: Inventories | None = None,
        cell: str = MAIN,
        known: CellMap | None = None,
    ) -> None:
        self.funds: dict[str, FundRow] = {}
        self.contracts: dict[str, Contract] = {}
        self.held: dict[str, HeldInventory] = {}
        self.current: Mapping[str, str] = {}
        self.version = 0
        self.listeners: list[Listener] = []
        self.freshness = freshness
        self._pool = pool
        self._metrics = metrics
        self._seconds = seconds
        self._inventories = inventories or Inventories(lambda _: None)
        self._cell = cell
        self._known = known
        self._read_at: float | None = None
        self._next = 0.0
        self._has_more = False
        self._offsets: dict[int, PartitionProgress] = {}
        self._places: dict[str, FundVersion] = {}
        self._orders: defaultdict[str, dict[int, OrderRow]] = defaultdict(dict)
        self._cursors: dict[str, int] = {}
        self._lagging: set[str] = set()  # followed contracts that may have undelivered entries

    async def start(self) -> None:
        """Reads the ledger once, so that `funds` is filled before `run`; raises StoreFault."""
        with faults():
            async with acquired(self._pool) as connection:
                await self._read_once(connection)

    async def run(self) -> None:
        """Follows the ledger until cancelled. Reconnects after faults."""
        outage = Outage(log, "tail", cell=self._cell) if self._known else Outage(log, "tail")
        while True:
            try:
                with faults():
                    async with acquired(self._pool) as connection:
                        while True:
                            await self._read_once(connection)
                            outage.over()
                            await self._pause()
            except StoreFault as fault:
                outage.note(fault)
                if self._known:
                    self._known.note_fault(self._cell)
            await asyncio.sleep(RETRY_SECONDS)

    async def follow_marks(self) -> None:
        """Values inventories at their new marks, and notifies the listeners, until cancelled."""
        while True:
            await asyncio.sleep(MARK_SECONDS)
            for symbol, shown, held in await self._inventories.revalue(self.held):
                # Else the tail has shown a later state meanwhile, or is about to.
                if self.held[symbol] is shown and held.entry == self.funds[symbol].entry:
                    self.held[symbol] = held
                    self.version += 1
                    self._notify(Change([self.funds[symbol]], (), ()))

    async def _pause(self) -> None:
        """Waits until `tail_seconds` have passed since the last read began; does not wait if entries are left to read."""
        self._next = max(time.monotonic(), self._next + self._seconds)
        await asyncio.sleep(0 if self._has_more else self._next - time.monotonic())

    async def _read_once(self, connection: Connection) -> None:
        """Reads changes once and notifies the listeners. After a failure the next read delivers what this one missed."""
        async with asyncio.timeout(READ_SECONDS_MAX):
            await self._read_changes(connection)
        self._read_at = time.monotonic()
        self._metrics.servers.heard(self._cell, time.time() - self.freshness.age_seconds)

    @property
    def away(self) -> tuple[str, ...]:
        """The names of cells whose funds are not shown because they are away: none, as a fault of the only one is a fault."""
        return ()

    def shown(self) -> Iterable[FundRow]:
        """Returns the funds of lists, by ledger key."""
        return self.funds.values()

    def check(self, key: str | None = None) -> None:  # noqa: ARG002 - one of several databases may fail alone
        """Raises StoreFault if the funds may be older than the last moments, or than `http.stale_seconds_max` on a replica.

        With the ledger key of a contract, only its fund matters.
        """
        if self._read_at is None or time.monotonic() > self._read_at + self._seconds + SILENCE_SECONDS_MAX:
            raise StoreFault("the database has not answered the tail of the ledger for some seconds")
        self.freshness.check()

    def check_name(self, name: str) -> None:  # noqa: ARG002 - as for `check`
        """Raises StoreFault if the contract with a public name may be unknown because the database does not answer."""
        self.check()

    def check_knows(self, moment_ms: int, key: str | None = None) -> None:  # noqa: ARG002 - as for `check`
        """Raises Behind if a moment is later than the known state and the replica is too far behind.

        With the ledger key of a contract, only its fund matters.
        """
        if moment_ms > self.as_of_ms:
            self.freshness.check()

    @property
    def as_of_ms(self) -> int:
        """The moment (ms, by the database's clock) up to which all commits are included."""
        return self.freshness.as_of_ms

    def key_of(self, name: str) -> str | None:
        """Returns the ledger key of the contract with a public name; None if it is not listed."""
        generation = named_generation(name)
        key = generation.key if generation else self.current.get(name)
        return key if key in self.funds else None

    def names_of(self, key: str) -> tuple[str, ...]:
        """Returns the public names of a contract; that of the current generation, if it is that, is first."""
        symbol, number = generation_of(key)
        return (symbol, f"{symbol}@{number}") if self.current[symbol] == key else (f"{symbol}@{number}",)

    def follow(self, key: str, after: int | None = None) -> int:
        """Starts delivery of a listed contract's entries to the listeners, if needed; returns the last delivered number.

        Delivery starts after entry `after`, by default after the last one of the fund.
        """
        self._lagging.add(key)
        return self._cursors.setdefault(key, self.funds[key].entry if after is None else after)

    def leave(self, key: str) -> None:
        """Stops delivery of a contract's entries."""
        self._cursors.pop(key, None)

    def open_orders(self, key: str) -> list[OrderRow]:
        """Returns a contract's open orders."""
        return list(self._orders.get(key, {}).values())

    def contracts_with_orders(self) -> set[str]:
        """Returns the ledger keys of the contracts that have open orders."""
        return set(self._orders)

    def _unread(self, now: Mapping[str, FundVersion]) -> dict[str, int]:
        """Returns the followed contracts that have undelivered entries, each with its last delivered entry number.

        Compares the contracts that may have some with `now`, or with the tail's funds for contracts that `now` lacks.
        """
        funds, cursors = self.funds, self._cursors
        sought = {symbol: cursors[symbol] for symbol in {*self._lagging, *now} if symbol in cursors}
        unread = {symbol: cursor for symbol, cursor in sought.items() if cursor < (now.get(symbol) or funds[symbol]).entry}
        self._lagging = set(unread)
        return unread

    async def _read_changes(self, connection: Connection) -> None:
        now = await offsets(connection)
        if self._known:
            self._known.note(self._cell, now.generations)
        if gone := self._offsets.keys() - now.settled.keys():
            self._drop(gone)
        commits = {
            partition: known.commits_until(settled) if (known := self._offsets.get(partition)) else EVERY_COMMIT
            for partition, settled in now.settled.items()
            if self._offsets.get(partition) != settled
        }
        if commits:
            await self._catch_up(connection, commits, now)
            self._offsets = now.settled
        else:
            await self._read_entries(connection, self._unread({}))
            self.freshness.observe(now.now_ms, now.as_of_ms)

    def _drop(self, partitions: Collection[int]) -> None:
        """Forgets the funds of partitions that another cell holds now."""
        gone = [key for key, fund in self.funds.items() if fund.partition in partitions]
        for key in gone:
            for known in (self.funds, self.contracts, self.held, self._places, self._orders, self._cursors):
                known.pop(key, None)
        self._lagging -= set(gone)
        self._offsets = {number: place for number, place in self._offsets.items() if number not in partitions}
        self.current = newest_generations(self.funds)
        self.version += 1

    async def _read_entries(self, connection: Connection, behind: Mapping[str, int]) -> None:
        """Reads and delivers the next undelivered entries. At most once a step, as each delivery costs a write per client."""
        self._has_more = False
        if behind:
            count = max(1, ENTRIES_PER_STEP_MAX // len(behind))
            rows = await entries(connection, behind, count)
            self._has_more = len(rows) >= count
            self._notify_of_entries(rows)

    async def _catch_up(self, connection: Connection, commits: Mapping[int, range], looked: Offsets) -> None:
        """Reads what commits of some partitions changed, updates the funds and orders, and notifies the listeners."""
        now = await fund_versions(connection, commits)
        await self._read_entries(connection, self._unread(now))
        moved = await self._moved_orders(connection, now)
        symbols = {symbol for symbol, place in now.items() if self._places.get(symbol) != place}
        symbols.update(order.symbol for order in moved)
        found = await versioned_funds(connection, symbols) if symbols else {}
        changed, held = await self._changed_inventories(connection, found)
        self.freshness.observe(looked.now_ms, looked.as_of_ms)
        self._update_funds(changed)
        self.held = _updated(self.held, held)
        self.version += 1
        # A fund may have changed again after its orders were read. Keeping the older order number reads those orders next time.
        self._places |= {symbol: stand.version._replace(adl=now[symbol].adl) for symbol, stand in changed.items()}
        for order in moved:
            self._update_order(order)
        if changed:
            self._notify(Change([stand.fund for stand in changed.values()], (), moved))

    async def _moved_orders(self, connection: Connection, now: Mapping[str, FundVersion]) -> list[OrderRow]:
        """Reads the orders that changed; of contracts that the tail did not know, the open ones."""
        known = [order for symbol in self._orders.keys() & now.keys() for order in self._orders[symbol].values()]
        after = {symbol: before.adl for symbol, place in now.items() if (before := self._before(symbol, place))}
        found = await changed_orders(connection, known)
        found += await orders_after(connection, after) if after else []
        unknown = [symbol for symbol in now if symbol not in self._places]
        fresh = await open_orders(connection, unknown) if unknown else []
        due = (order for order in (*found, *fresh) if order.adl <= now[order.symbol].adl)
        return [order for order in due if self._orders.get(order.symbol, {}).get(order.adl) != order]

    async def _changed_inventories(
        self, connection: Connection, changed: Mapping[str, VersionedFund]
    ) -> tuple[Mapping[str, VersionedFund], dict[str, HeldInventory]]:
        """Returns changed funds and their inventories, both after the same entries."""
        contracts = {symbol: stand.contract for symbol, stand in changed.items() if stand.has_inventory}
        if not contracts:
            return changed, {}
        unknown = self._inventories.unknown(contracts, {symbol: changed[symbol].fund.entry for symbol in contracts})
        for symbol in unknown:
            await self._inventories.load(contracts[symbol], await load_inventory(connection, symbol))
        if unknown:
            # The inventories may be later than the funds.
            changed = {**changed, **await versioned_funds(connection, unknown)}
        until = {symbol: changed[symbol].fund.entry for symbol in contracts}
        entries = await inventory_entries(connection, self._inventories.positions(contracts), until)
        return changed, await self._inventories.advance(until, entries)

    def _before(self, symbol: str, place: FundVersion) -> FundVersion | None:
        """Returns the known version of a contract if the contract has further orders since, else None."""
        before = self._places.get(symbol)
        return before if before and before.adl < place.adl else None

    def _update_funds(self, changed: Mapping[str, VersionedFund]) -> None:
        funds = _updated(self.funds, {symbol: stand.fund for symbol, stand in changed.items()})
        contracts = _updated(self.contracts, {symbol: stand.contract for symbol, stand in changed.items()})
        if funds is not self.funds:
            funds, contracts = dict(sorted(funds.items())), dict(sorted(contracts.items()))
            self.current = newest_generations(funds)
        self.funds, self.contracts = funds, contracts

    def _update_order(self, order: OrderRow) -> None:
        if order.state == "open":
            self._orders[order.symbol][order.adl] = order
        elif orders := self._orders.get(order.symbol):
            orders.pop(order.adl, None)
            if not orders:
                del self._orders[order.symbol]

    def _notify_of_entries(self, rows: Iterable[EntryRow]) -> None:
        """Delivers rows that continue their contract's entries. Skips others: the contract was followed again meanwhile."""
        delivered = []
        for row in rows:
            if self._cursors.get(row.symbol) == row.entry - 1:
                self._cursors[row.symbol] = row.entry
                delivered.append(row)
        if delivered:
            self._notify(Change((), delivered, ()))

    def _notify(self, change: Change) -> None:
        for listener in self.listeners:
            listener(change)


def newest_generations(keys: Iterable[str]) -> dict[str, str]:
    """Returns the ledger key of the newest generation of each symbol."""
    generations = sorted(map(generation_of, keys), key=lambda generation: generation.number)
    return {generation.symbol: generation.key for generation in generations}


def _updated(known: dict[str, Value], changed: dict[str, Value]) -> dict[str, Value]:
    """Updates values in place, which costs only the changed ones; returns a new dict if keys are new."""
    if changed.keys() <= known.keys():
        known.update(changed)
        return known
    return known | changed


MarkOf = Callable[[str], int | None]
"""Returns the live mark of a contract, or None."""


@asynccontextmanager
async def open_tail(
    config: Config, metrics: Metrics, mark_of: MarkOf = lambda _: None, cell: str = MAIN, known: CellMap | None = None
) -> AsyncIterator[Tail]:
    """Provides a tail that follows a database over its own connections. It is filled, unless the database fails.

    If the database is one of several cells, it notes in `known` which partitions `cell` has.
    """
    database = config.database
    with single_thread_executor("fundsvc inventories") as worker:
        async with (
            open_pool(database.reader_dsn or database.dsn, CONNECTIONS_MAX) as pool,
            open_pool(database.dsn, 1) as primary,
            asyncio.TaskGroup() as tasks,
        ):
            inventories = Inventories(mark_of, worker)
            freshness = Freshness(pool, primary, config.http.stale_seconds_max)
            tail = Tail(pool, freshness, metrics, config.http.tail_seconds, inventories, cell, known)
            with suppress(StoreFault):
                await tail.start()
            await freshness.refresh()
            works = {"tail": tail.run, "marks": tail.follow_marks, "freshness": freshness.run}
            running = [tasks.create_task(keep_running(name, work, log)) for name, work in works.items()]
            try:
                yield tail
            finally:
                for task in running:
                    task.cancel()
