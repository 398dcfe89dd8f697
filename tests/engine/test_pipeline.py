"""The pipeline in a fake world, where every await may fail before or after its effect."""

import asyncio
import os
import random
import time
from contextlib import asynccontextmanager
from functools import partial
from itertools import starmap
from types import MappingProxyType

import msgspec
import pytest
from escalations import ranks
from eventually import eventually
from ledgers import TS, fill, listing
from msgspec.structs import replace

from fundsvc.concurrency.exclusive import Exclusive
from fundsvc.core import partition as partition_module
from fundsvc.core.adl.book_parts import BookPart
from fundsvc.core.adl.order import AdlOrder, RoundProgress
from fundsvc.core.adl.records import order_of, terms_of
from fundsvc.core.batch import Batch, BookState, EventPlace, Offset, StoredBook
from fundsvc.core.checkpoints import Checkpoints
from fundsvc.core.events import (
    AdlAck,
    AdlEnd,
    AdlFill,
    AdlTimeout,
    Fill,
    Mark,
    PolicyChange,
    Position,
    Rate,
    Reason,
    Rejection,
    Settle,
    Snapshot,
    Takeover,
    Unwind,
)
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.partition import Partition
from fundsvc.core.policy import DrawdownGuard, Policy
from fundsvc.core.sequences import (
    Applied,
    Facts,
    WithoutIds,
    content_of_end,
    content_of_entry,
    content_of_execution,
    content_of_takeover,
    content_of_unwind,
)
from fundsvc.engine.batch_bound import EVENTS_PER_BATCH_MAX, BatchBound
from fundsvc.engine.book_loading import BookLoader
from fundsvc.engine.pipeline import Pipeline
from fundsvc.engine.settling import Reading, SettlingContext
from fundsvc.readmodel.book_recovery import BookRecovery
from fundsvc.store.rows import copy_rows
from fundsvc.wire.codec import Message, encode

SEEDS = int(os.environ.get("SEEDS", "120"))
ROWS_MAX = 7
MESSAGES_PER_READ = 10
EVENTS_PER_MESSAGE_MAX = 4
SIDES = ("sell", "sell", "sell", "buy")
ACCOUNTS = [f"account-{number}" for number in range(12)]
GUARDED = Policy(drawdown_guard=DrawdownGuard(start=0.3, stop=0.1), eligible="all")


class Crash(Exception):
    """The process, the network or a server failed."""


class Weather:
    """Decides which awaits fail. Without dice none fails."""

    def __init__(self, dice=None, chance=0.0):
        self._dice = dice
        self._chance = chance

    async def through(self, effect):
        """Calls `effect` between two suspensions, each of which may fail."""
        await self._suspend()
        result = effect()
        await self._suspend()
        return result

    def milder(self):
        """A tenth of the failures, for work that awaits more often and would otherwise hardly ever succeed."""
        return Weather(self._dice, self._chance / 10)

    async def _suspend(self):
        if self._dice is None:
            await asyncio.sleep(0)
            return
        for _ in range(self._dice.randrange(4)):
            await asyncio.sleep(0)
        if self._dice.random() < self._chance:
            raise Crash


class FakeSource:
    """A stream that holds all its messages."""

    def __init__(self, messages, weather):
        self.messages = messages
        self._weather = weather
        self.reads = 0

    async def read(self, after, block_ms):
        self.reads += 1
        return await self._weather.through(lambda: self._after(after.last_id))

    def _after(self, last_id):
        messages = [m for m in self.messages if order(m.stream_id) > order(last_id)]
        return Reading(messages[:MESSAGES_PER_READ], len(self.messages) if len(messages) <= MESSAGES_PER_READ else None)


class FakeRecoverySource:
    """The same stream, as the recovery of books reads it."""

    def __init__(self, messages, weather):
        self._messages = messages
        self._weather = weather

    async def read(self, after, count=MESSAGES_PER_READ):
        return await self._weather.through(lambda: self._after(after)[:count])

    def _after(self, last_id):
        return [m for m in self._messages if order(m.stream_id) > order(last_id)]


class FakeLedger:
    """The promises of PostgreSQL: a batch is written completely or not at all, and only if it continues the stored offset."""

    def __init__(self, last_id, weather=None, policy=None):
        self.weather = weather or Weather()
        self.complete = asyncio.Event()
        self.commits = []
        self.entries, self.hashes, self.records, self.rounds, self.policies = [], [], [], [], []
        self.orders, self.listings, self.funds, self.suspended, self.rates, self.books = {}, {}, {}, {}, {}, {}
        self.rejected, self.settled, self.settled_by = {}, {}, {}
        self.tranches, self.holdings = {}, {}
        self.offset = Offset("0-0", 0)
        self.inside = self.waits = self.postponed = 0
        self.held = set()  # contracts whose books cannot be read yet
        self._policy = policy or Policy()
        self.last_id = last_id

    def load(self):
        """The partition without its books and open orders."""
        policy_of = self.policies[-1].of if self.policies else lambda _: self._policy
        funds = []
        for symbol, contract in self.listings.items():
            suspended = self.suspended.get(symbol, False)
            fund = Fund(contract, self.funds[symbol], policy_of(symbol), suspended=suspended)
            holdings = [row for row in self.holdings.values() if row.symbol == symbol]
            if holdings:
                fund.restore_inventory([row for row in self.tranches.values() if row.symbol == symbol], holdings)
            funds.append(fund)
        rates = self.rates.values()
        return Partition(0, 1, funds, {"USDT": 8}, 10, lambda _: self._policy, policies=self.policies, rates=rates)

    def begin(self, messages):
        """The partition as a session begins with it: without its books but with its open orders, and what loads the books."""
        partition, saved, weather = self.load(), [self._saved(symbol) for symbol in self.listings], self.weather.milder()
        partition.await_books([one._replace(book=None) for one in saved])
        source, exclusive = FakeRecoverySource(messages, weather), Exclusive()
        recovery = BookRecovery(partition, exclusive, source, saved, self._rejected_places, self._reduced_sides)

        async def read(symbols):
            if self.held:
                await eventually(lambda: not self.held & {*symbols})
            self.postponed += sum(len(journal.later) for journal in partition.awaited.values())
            return await weather.through(lambda: [self._saved(symbol) for symbol in symbols])

        for state in self.orders.values():
            if state.state == "open":
                partition.reopen(self._reopened(state))
        return partition, BookLoader(partition, exclusive, recovery, self.offset, saved, read, int), exclusive

    async def load_book(self, books, symbol):
        """Loads a book for which an event waits."""
        self.waits += 1
        await books.load(symbol)

    async def load_all(self, messages):
        """The partition once all its books are loaded."""
        partition, books, _ = self.begin(messages)
        await books.run()
        assert not partition.awaited
        return partition

    def _saved(self, symbol):
        last_id, state = self.books.get(symbol, ("0-0", BookState(symbol, 0, None, 0, 0, None, 0)))
        parts = map(partial(msgspec.msgpack.decode, type=BookPart), state.parts) if state.parts else None
        mark = state.mark, state.mark_ts, state.mark_seq
        return StoredBook(symbol, last_id, state.seq, *mark, parts, state.mark_ts_max, len(state.parts or ()))

    def _reopened(self, state):
        order = AdlOrder(**{name: value for name, value in state._asdict().items() if name != "recovered"})
        for record in (one.record for one in self.records):
            if (record.symbol, record.adl) == (order.symbol, order.adl):
                match record.kind:
                    case "order" | "round":
                        order.end_round()
                        order.progress = RoundProgress(terms_of(record.kind, record.body))
                    case "execution":
                        order.progress.execute(record.account, record.lots)
        return order

    def contents(self):
        """Everything that is stored, except the books: when these are saved depends on the batches."""
        ledger = "offset entries hashes orders records rounds policies listings funds suspended rates tranches"
        return {name: getattr(self, name) for name in (*ledger.split(), "holdings", "rejected", "settled", "settled_by")}

    async def is_open(self, stream_id, position):
        key = stream_id, position
        return await self.weather.through(lambda: key in self.rejected and key not in self.settled)

    async def _rejected_places(self, stream_ids):
        return {EventPlace(*key): self.settled_by.get(key) for key in self.rejected if key[0] in stream_ids}

    async def _reduced_sides(self, keys):
        return {key: self.orders[key].reduce for key in keys if key in self.orders}

    async def facts(self, wanted):
        return await self.weather.through(
            lambda: self._facts([(symbol, seq) for symbol, seqs in wanted.items() for seq in seqs])
        )

    def _facts(self, keys):
        applied = {}
        for entry in self.entries:
            key = entry.symbol, entry.seq
            if entry.kind in ("refund", "cover", "deleverage") or entry.forced:
                applied.setdefault(key, Applied.UNVERIFIED)
            elif entry.kind == "takeover" or entry.closes:
                applied[key] = self._content_of_lots(entry)
            else:
                applied[key] = content_of_entry(entry)
        for record in (one.record for one in self.records):
            key = record.symbol, record.seq
            if record.kind == "execution":
                applied[key] = content_of_execution(record.adl, record.account, record.lots, record.ts)
            elif record.kind == "order" and record.seq and not isinstance(applied.get(key), int):
                order = order_of(record.body)
                if order.origin == "takeover":
                    side = "sell" if order.reduce == "short" else "buy"
                    applied[key] = WithoutIds(
                        content_of_takeover(side, order.lots, order.price, "", "", order.account, record.ts)
                    )
            elif record.kind in ("round", "end") and not isinstance(applied.get(key), int | WithoutIds):
                applied[key] = content_of_end(record.adl, record.ts)
        refused = [event.identity[2] for event in self.rejected.values() if event.identity]
        return Facts({key: applied.get(key, Applied.NEVER) for key in keys}, refused)

    def _content_of_lots(self, entry):
        """The content of the takeover or unwind of an entry."""
        if entry.closes:
            pieces = [one for one in self.entries if (one.symbol, one.seq) == (entry.symbol, entry.seq) and one.closes]
            lots = sum(one.lots for one in pieces if one.kind != "deleverage")
            return content_of_unwind(entry.side, lots, entry.price, entry.trade_id, entry.order_id, entry.ts)
        rest = sum(
            one.lots
            for one in self.orders.values()
            if (one.symbol, one.cause, one.origin) == (entry.symbol, entry.entry, "takeover")
        )
        ids = entry.trade_id, entry.order_id, entry.account
        return content_of_takeover(entry.side, entry.lots + rest, entry.price, *ids, entry.ts)

    def prepare(self, batch):
        """Keeps the entries as they are."""

    async def commit(self, batch, before, after, saving):
        await self.weather.through(lambda: self._write(batch, before, after))

    def _write(self, batch, before, after):
        assert before == self.offset, "another owner moved the offset"
        assert len({(event.stream_id, event.position) for event in batch.rejected}) == len(batch.rejected)
        assert not (batch.books and after.events), "books are saved where a message ends"
        self.commits.append(len(batch.entries) + len(batch.rejected))
        self.entries += batch.entries
        self.hashes += batch.hashes
        self.records += batch.records
        self.rounds += batch.rounds
        self.policies += batch.policies
        self.orders |= batch.orders
        newer = {currency: rate for currency, rate in batch.rates.items() if rate.ts >= self._rate_ts(currency)}
        self.rates |= newer
        self.suspended |= batch.suspensions
        self.listings |= {symbol: contract for symbol, (contract, _) in batch.listings.items()}
        self.funds |= {state.symbol: state for state in batch.funds}
        for row in batch.tranches:
            self.tranches[row.symbol, row.entry] = row
            if not row.lots:
                del self.tranches[row.symbol, row.entry]
        self.holdings |= {(row.symbol, row.side): row for row in batch.holdings}
        for book in batch.books:
            _, known = self.books.get(book.symbol, (None, None))
            before = known.parts or [] if known and (book.first or not book.parts) else []
            assert book.first in (0, len(before)), "parts follow those saved before"
            self.books[book.symbol] = after.last_id, book._replace(parts=[*before, *(book.parts or ())] or None)
        for event in batch.rejected:
            known = self.rejected.get((event.stream_id, event.position), event)
            self.rejected[event.stream_id, event.position] = replace(event, identity=event.identity or known.identity)
        self.settled |= {(stream_id, position): entry for stream_id, position, _, entry in batch.replayed}
        self.settled_by |= {(stream_id, position): settled_by for stream_id, position, settled_by, _ in batch.replayed}
        self.offset = after
        self.inside += after.events > 0
        if after.last_id == self.last_id:
            self.complete.set()

    def _rate_ts(self, currency):
        return self.rates[currency].ts if currency in self.rates else 0


def order(stream_id):
    milliseconds, sequence = stream_id.split("-")
    return int(milliseconds), int(sequence)


def message(number, *events, body=None, replay_of=""):
    return Message(f"{number}-0", "json", encode(events) if body is None else body, replay_of)


async def nowhere(committed):
    pass


def pipeline_of(source, ledger, announce=nowhere, bound=None, refused=MappingProxyType({}), slice_seconds=0.0025, begun=None):
    offset = ledger.offset
    partition, books, exclusive = begun or (ledger.load(), None, Exclusive())
    return Pipeline(
        partition,
        source,
        ledger,
        announce,
        SettlingContext(exclusive, offset, offset, bound or BatchBound(ROWS_MAX), slice_seconds, refused, Checkpoints()),
        partial(ledger.load_book, books) if books else None,
    )


async def settle(messages, weather=None, policy=None):
    """The ledger after all messages, and the partition in memory, after any number of crashes."""
    weather = weather or Weather()
    ledger, bound = FakeLedger(messages[-1].stream_id, weather, policy), BatchBound(ROWS_MAX)

    async def save_books(_committed):
        if len(ledger.commits) % 5 == 0:
            await pipeline.request_books()

    while not ledger.complete.is_set():
        partition, books, _ = begun = ledger.begin(messages)
        pipeline = pipeline_of(FakeSource(messages, weather), ledger, save_books, bound, begun=begun)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(books.run())
                await asyncio.wait([tasks.create_task(pipeline.run(ledger.complete))])
        except* Crash:
            if pipeline.writing:
                bound.shrink(pipeline.writing)
    return ledger, partition


@asynccontextmanager
async def running(pipeline):
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(pipeline.run(stop))
        yield stop, task
        stop.set()


class Story:
    """Messages as matching engines and operators send them. A partition that receives the same events knows the open orders."""

    def __init__(self, dice):
        self.messages = []
        self._dice = dice
        self._sequences = dict.fromkeys(("AAA", "BBB", "LATE"), 0)
        self._sent = []
        self._rejected = []
        self._policies = 0
        self._shadow = Partition(0, 1, [], {"USDT": 8}, 10, lambda _: GUARDED)

    def write(self):
        """Fills of three contracts, one of them listed late; ADL, books, rates, policies; repeated events, garbage, replays."""
        beginning = []
        for symbol in ("AAA", "BBB"):
            beginning += [listing(symbol), Mark(symbol, "1000", TS), *self._crowd(symbol)]
        self._send(1, beginning)
        for number in range(2, 62):
            if number == 20:
                self._send(number, [listing("LATE")])
            elif self._dice.random() < 0.05:
                self._append(number, self._dice.choice([b"[", b"{}", b"[]", b'[1,{"type":"mark"}]']))
            elif number > 20 and self._rejected and self._dice.random() < 0.2:
                self._append(number, *self._dice.choice(self._rejected))
            elif self._sent and self._dice.random() < 0.1:
                self._send(number, [self._dice.choice(self._sent)])
            else:
                self._send(number, [self._event(number) for _ in range(self._dice.randint(1, EVENTS_PER_MESSAGE_MAX))])
        return self.messages

    def _append(self, number, body, replay_of=""):
        self.messages.append(Message(f"{number}-0", "json", body, replay_of))

    def _send(self, number, events):
        self._append(number, encode(events))
        for position, event in enumerate(events):
            if getattr(event, "symbol", None) == "LATE" and number < 20:
                self._rejected.append((encode([event]), f"{number}-0/{position}"))
            try:
                self._shadow.apply(event, number)
            except Rejection:
                continue

    def _crowd(self, symbol):
        return [self._position(symbol, account) for account in ACCOUNTS[:8]]

    def _event(self, number):
        symbol = self._dice.choice(list(self._sequences))
        ts = TS + number * 10_000
        match self._dice.choices(range(8), (40, 12, 12, 22, 4, 2, 10, 8))[0]:
            case 1:
                event = self._position(symbol, self._dice.choice(ACCOUNTS))
            case 2:
                event = Mark(symbol, str(self._dice.randint(900, 1100)), ts)
            case 3 if orders := self._open_orders():
                event = self._adl_event(self._dice.choice(orders), number)
            case 4:
                event = Rate("BTC", str(self._dice.randint(1, 9)), TS + number)
            case 5:
                self._policies += 1
                event = PolicyChange(self._policies, GUARDED, {"AAA": Policy(allocation="pro_rata")}, TS + number)
            case 6:
                lots, price, side = self._dice.randint(1, 20), self._dice.randint(950, 1050), self._dice.choice(SIDES)
                event = Takeover(symbol, self._seq(symbol), side, lots, str(price), ts, account=ACCOUNTS[0])
            case 7:
                lots, price, side = self._dice.randint(1, 30), self._dice.randint(950, 1050), self._dice.choice(SIDES)
                event = Unwind(symbol, self._seq(symbol), side, lots, str(price), ts)
            case _:
                event = self._fill(symbol)
        self._sent.append(event)
        return event

    def _position(self, symbol, account):
        lots, price = self._dice.randint(-30, 10), self._dice.randint(900, 1100)
        return Position(symbol, account, lots, str(price), str(self._dice.randint(10, 3000)), TS)

    def _fill(self, symbol):
        lots, points = self._dice.randint(1, 20), self._dice.randint(-9, 9)
        return Fill(symbol, self._seq(symbol), "sell", lots, str(1000 + points), "1000", TS, account=ACCOUNTS[0])

    def _seq(self, symbol):
        """Mostly a new sequence, with gaps; sometimes that of the event before."""
        if not self._sequences[symbol] or self._dice.random() < 0.8:
            self._sequences[symbol] += self._dice.randint(1, 3)
        return self._sequences[symbol]

    def _open_orders(self):
        funds = self._shadow.funds()
        numbers = [(fund.contract.symbol, adl) for fund in funds for adl in range(1, fund.adl + 1)]
        return [order for key in numbers if (order := self._shadow.open_order(*key))]

    def _adl_event(self, order, number):
        symbol, adl = order.symbol, order.adl
        match self._dice.choices(range(5), (60, 15, 10, 10, 5))[0]:
            case 1:
                return AdlEnd(symbol, self._seq(symbol), adl, TS)
            case 2:
                return AdlAck(symbol, adl, order.round, TS)
            case 3:
                return AdlTimeout(symbol, adl, order.round, TS)
            case 4:
                return Snapshot(symbol, self._dice.choice(("begin", "end")), TS)
            case _:
                rests = [(account, lots) for account, lots in order.progress.rests() if lots]
                account, lots = self._dice.choice(rests or [(ACCOUNTS[0], 1)])
                return AdlFill(symbol, self._seq(symbol), adl, account, self._dice.randint(1, lots), TS)


def memory_of(partition):
    """All that a partition has in memory: funds, inventories, books with their ranks, open orders with their allocations."""
    return {
        "books": {contract.symbol: book_of(book) for contract, book in partition.books() if book.mark or book.open},
        "orders": [
            (order.state_row(), list(order.progress.rests()), order.failures, order.times_requested)
            for fund in partition.funds()
            for adl in range(1, fund.adl + 1)
            if (order := partition.open_order(fund.contract.symbol, adl))
        ],
        "funds": [(fund.state(), fund.open_in_adl, fund.policy, fund.suspended) for fund in partition.funds()],
        "inventories": [inventory_of(fund.inventory) for fund in partition.funds() if fund.inventory],
        "policies": partition.policy_version,
    }


def inventory_of(inventory):
    tranches = [
        [(one.entry, one.lots, one.price, one.ts, one.forced, one.promised) for one in side.tranches.values()]
        for side in inventory.sides()
    ]
    return inventory.states(), tranches, inventory.mark, inventory.unrealised, inventory.free_worth


def book_of(book):
    positions = {account: [_position(book, name, row) for name, row in book.positions(account)] for account in ACCOUNTS}
    return book.mark, book.mark_ts, book.mark_ts_max, book.stale, positions, ranks(book) if book.mark else None


def _position(book, name, row):
    return name, *(int(number) for (number,) in book.sides[name].inputs([row]))


async def test_any_schedule_of_crashes_gives_the_undisturbed_ledger_and_memory():
    seen = dict.fromkeys(("replayed", "inside", "orders", "executions", "rounds", "done", "guards", "rates", "policies"), 0)
    seen |= dict.fromkeys(("waits", "postponed", "takeovers", "unwinds", "forced", "deleveraged", "relieved", "unwound"), 0)
    for seed in range(SEEDS):
        messages = Story(random.Random(seed)).write()
        undisturbed, memory = await settle(messages, policy=GUARDED)
        dice = random.Random(-seed)
        disturbed, _ = await settle(messages, Weather(dice, dice.choice([0.01, 0.05, 0.2])), GUARDED)
        assert disturbed.contents() == undisturbed.contents(), f"seed {seed}"
        disturbed.weather = Weather()
        assert memory_of(await disturbed.load_all(messages)) == memory_of(memory), f"seed {seed}"
        numbers = [(entry.symbol, entry.entry) for entry in disturbed.entries]
        assert len(set(numbers)) == len(numbers), f"seed {seed}"
        of_events = [entry for entry in disturbed.entries if entry.kind not in ("refund", "cover", "deleverage")]
        fills = [(entry.symbol, entry.seq, entry.closes) for entry in of_events if not entry.forced]
        assert len(set(fills)) == len(fills), f"seed {seed}: an event was settled twice"
        kinds = [one.record.kind for one in disturbed.records]
        seen["replayed"] += sum(entry is not None for entry in disturbed.settled.values())
        seen["inside"] += disturbed.inside
        seen["waits"] += disturbed.waits
        seen["postponed"] += disturbed.postponed
        seen["orders"] += len(disturbed.orders)
        seen["executions"] += kinds.count("execution")
        seen["rounds"] += kinds.count("round")
        seen["done"] += sum(state.state == "done" for state in disturbed.orders.values())
        seen["guards"] += sum(state.guard is not None for state in disturbed.funds.values())
        seen["rates"] += len(disturbed.rates)
        seen["policies"] += len(disturbed.policies)
        lots = [(entry.kind, bool(entry.closes), entry.forced) for entry in disturbed.entries]
        seen["takeovers"] += lots.count(("takeover", False, False))
        seen["forced"] += lots.count(("takeover", False, True))
        seen["unwinds"] += sum(closes and kind != "deleverage" for kind, closes, _ in lots)
        seen["deleveraged"] += sum(kind == "deleverage" for kind, *_ in lots)
        seen["relieved"] += sum(state.origin == "inventory" for state in disturbed.orders.values())
        seen["unwound"] += sum(state.unwound > 0 for state in disturbed.orders.values())
    assert min(seen.values()) > SEEDS / 10, seen


BOOKS = [
    message(1, *(event for symbol in ("AAA", "BBB") for event in (listing(symbol), Mark(symbol, "900", TS)))),
    message(2, *(Position(symbol, ACCOUNTS[1], -30, "1000", "3000", TS) for symbol in ("AAA", "BBB"))),
]
PAID = Fill("AAA", 1, "sell", 4, "1010", "1000", TS)


async def restarted(messages):
    """A ledger of BOOKS with saved books, and a restart with these messages added, that loads no book before it may."""
    ledger = FakeLedger("2-0")
    pipeline = pipeline_of(FakeSource(BOOKS, Weather()), ledger)
    await pipeline.request_books()
    await pipeline.run(ledger.complete)
    assert set(ledger.books) == {"AAA", "BBB"}
    ledger.held, ledger.complete = {"AAA", "BBB"}, asyncio.Event()
    messages = [*BOOKS, *messages]
    ledger.last_id = messages[-1].stream_id
    partition, books, _ = begun = ledger.begin(messages)
    return ledger, partition, books, pipeline_of(FakeSource(messages, Weather()), ledger, begun=begun)


@asynccontextmanager
async def loading(books):
    task = asyncio.create_task(books.run())
    yield
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize(
    ("event", "waits"),
    [
        (PAID, False),
        (Mark("AAA", "950", TS + 1), False),
        (Position("AAA", ACCOUNTS[2], 5, "1000", "30", TS), False),
        (Snapshot("AAA", "begin", TS), False),
        (Rate("BTC", "5", TS), False),
        (listing("AAA"), False),
        (AdlAck("AAA", 1, 1, TS), False),
        (Fill("AAA", 1, "sell", 4, "990", "1000", TS), True),
        (Takeover("AAA", 1, "sell", 4, "1000", TS), True),
        (Unwind("AAA", 1, "sell", 4, "1000", TS), True),
        (AdlFill("AAA", 1, 1, ACCOUNTS[1], 4, TS), True),
        (AdlEnd("AAA", 1, 1, TS), True),
        (Settle("AAA", 1, "1000", TS), True),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, bool) else None,
)
async def test_event_waits_for_the_book_of_its_contract_only_if_it_may_read_it(event, waits):
    ledger, partition, books, pipeline = await restarted([message(3, event), message(4, Mark("BBB", "7", TS))])
    async with loading(books):
        running = asyncio.create_task(pipeline.run(ledger.complete))
        if waits:
            await eventually(lambda: ledger.waits)
            assert ledger.offset.last_id == "2-0"
            ledger.held = {"BBB"}
        await asyncio.wait_for(running, 5)
        assert ("AAA" in partition.awaited) != waits
        assert "BBB" in partition.awaited


async def test_postponed_events_are_in_the_book_once_it_is_loaded():
    sent = [
        Mark("AAA", "800", TS),
        Position("AAA", ACCOUNTS[1], -7, "990", "300", TS),
        Position("AAA", ACCOUNTS[2], -5, "1", "1", TS),
    ]
    escalated = Fill("AAA", 1, "sell", 4, "990", "1000", TS)
    ledger, partition, books, pipeline = await restarted([message(3, *sent), message(4, escalated)])
    ledger.held = set()
    async with loading(books):
        await pipeline.run(ledger.complete)
    (round_,) = ledger.rounds
    assert (round_.accounts, round_.lots) == ([ACCOUNTS[1]], [4])
    assert partition.book("AAA").open == 2


async def test_events_wait_for_their_book_when_too_many_are_postponed(monkeypatch):
    monkeypatch.setattr(partition_module, "POSTPONED_MAX", 3)
    sent = [Position("AAA", account, -7, "990", "30", TS) for account in ACCOUNTS]
    ledger, partition, books, pipeline = await restarted([message(3, *sent)])
    async with loading(books):
        running = asyncio.create_task(pipeline.run(ledger.complete))
        await eventually(lambda: ledger.waits)
        assert len(partition.awaited["AAA"]) == 3
        ledger.held = {"BBB"}
        await asyncio.wait_for(running, 5)
    assert partition.book("AAA").open == len(ACCOUNTS)


OPENED = (
    message(1, listing("AAA"), Mark("AAA", "900", TS), Position("AAA", ACCOUNTS[1], -30, "1000", "3000", TS)),
    *(message(seq + 1, Fill("AAA", seq, "sell", 4, "990", "1000", TS, account=ACCOUNTS[0])) for seq in (1, 2)),
)
"""Two ADL orders that each reduce 4 lots of one position."""


@pytest.mark.parametrize(
    "events",
    [
        [
            (4, AdlFill("AAA", 3, 1, ACCOUNTS[1], 4, TS)),
            (5, AdlEnd("AAA", 4, 1, TS)),
            (6, AdlFill("AAA", 4, 2, ACCOUNTS[1], 4, TS)),
        ],
        [
            (4, AdlFill("AAA", 3, 1, ACCOUNTS[1], 4, TS)),
            (5, AdlEnd("AAA", 9, 1, TS)),
            (6, AdlFill("AAA", 4, 2, ACCOUNTS[1], 4, TS)),
        ],
        [
            (4, AdlFill("AAA", 3, 1, ACCOUNTS[1], 3, TS)),
            (5, AdlEnd("AAA", 9, 1, TS)),
            (6, AdlFill("AAA", 4, 2, ACCOUNTS[1], 4, TS)),
        ],
    ],
    ids=["same_sequence", "higher_sequence", "end_of_an_open_order"],
)
async def test_books_are_recovered_around_ends_that_change_nothing(events):
    messages = [*OPENED, *starmap(message, enumerate(events, 4))]
    ledger, settled = await settle(messages)
    assert memory_of(await ledger.load_all(messages)) == memory_of(settled)


async def test_repeated_event_that_a_replay_settled_is_not_applied_to_a_recovered_book():
    early = AdlFill("AAA", 3, 1, ACCOUNTS[2], 4, TS)  # the first round does not request this account
    second = Position("AAA", ACCOUNTS[2], -30, "950", "3000", TS)
    messages = [
        *OPENED,
        message(4, second, early),
        message(5, AdlEnd("AAA", 9, 1, TS)),
        message(6, early, replay_of="4-0/1"),
        message(7, early),
    ]
    ledger, settled = await settle(messages)
    assert ledger.orders["AAA", 1].state == "done"
    assert memory_of(await ledger.load_all(messages)) == memory_of(settled)


async def test_batches_stay_bounded_during_a_long_commit():
    garbage = [message(number, body=b"[") for number in range(1001, 1501)]
    fills = [message(number, fill("AAA", number, 1), fill("AAA", number, 1)) for number in range(2, 1001)]
    ledger = FakeLedger("1500-0", Weather(random.Random(1)))
    source = FakeSource([message(1, listing("AAA")), *fills, *garbage], Weather())
    await pipeline_of(source, ledger).run(ledger.complete)
    assert len(ledger.entries) == len(fills)
    assert len(ledger.rejected) == len(garbage)
    assert max(ledger.commits) == ROWS_MAX


class BlockedWeather:
    """Holds all effects back until `opened` is set."""

    def __init__(self):
        self.opened = asyncio.Event()
        self.waiting = 0

    async def through(self, effect):
        self.waiting += 1
        await self.opened.wait()
        return effect()


async def test_commit_overlaps_with_settling_and_stop_commits_settled_events():
    ledger = FakeLedger("", BlockedWeather())
    source = FakeSource([message(1, listing("AAA"))], Weather())
    pipeline = pipeline_of(source, ledger)
    async with running(pipeline) as (stop, task):
        await eventually(lambda: ledger.weather.waiting)
        source.messages.append(message(2, fill("AAA", 1, 5)))
        reads = source.reads
        await eventually(lambda: source.reads > reads + 1)
        stop.set()
        for _ in range(20):
            await asyncio.sleep(0)  # The reader ends.
        assert not task.done()
        ledger.weather.opened.set()
        await asyncio.wait_for(task, 5)
    assert [entry.seq for entry in ledger.entries] == [1]
    assert ledger.offset == Offset("2-0", 2)


class QuietSource(FakeSource):
    """Waits for ever after its first messages."""

    async def read(self, after, block_ms):
        if after.last_id != "0-0":
            await asyncio.Event().wait()
        return await super().read(after, block_ms)


async def test_stop_ends_a_read_that_waits_for_messages():
    ledger = FakeLedger("", Weather())
    pipeline = pipeline_of(QuietSource([message(1, listing("AAA"))], Weather()), ledger)
    async with running(pipeline) as (stop, task):
        await eventually(lambda: ledger.offset == Offset("1-0", 1))
        stop.set()
        await asyncio.wait_for(task, 5)


async def test_single_fill_is_committed_while_the_source_waits():
    ledger = FakeLedger("1-0")
    source = QuietSource([message(1, listing("AAA"), fill("AAA", 1, 5))], Weather())
    task = asyncio.create_task(pipeline_of(source, ledger).run(asyncio.Event()))
    await eventually(lambda: ledger.entries)
    task.cancel()
    await asyncio.wait([task])


async def test_errors_of_source_ledger_and_announcement_end_the_run():
    async def fails(_committed):
        raise KeyError

    messages = [message(1, listing("AAA"))]
    ledger = FakeLedger("1-0")
    with pytest.raises(ExceptionGroup) as group:
        await pipeline_of(FakeSource(messages, Weather()), ledger, announce=fails).run(asyncio.Event())
    assert group.group_contains(KeyError)
    ledger = FakeLedger("1-0", Weather(random.Random(1), 1))
    with pytest.raises(ExceptionGroup) as group:
        await pipeline_of(FakeSource(messages, Weather()), ledger).run(asyncio.Event())
    assert group.group_contains(Crash)
    with pytest.raises(ExceptionGroup) as group:
        await pipeline_of(FakeSource(messages, Weather(random.Random(1), 1)), ledger).run(asyncio.Event())
    assert group.group_contains(Crash)


async def test_committed_batches_are_announced_in_order():
    announced = []

    async def announce(committed):
        announced.append(committed)

    messages = [message(1, listing("AAA")), *(message(number, fill("AAA", number, 1)) for number in range(2, 40))]
    ledger = FakeLedger("39-0")
    await pipeline_of(FakeSource(messages, Weather()), ledger, announce).run(ledger.complete)
    assert [entry for committed in announced for entry in committed.written.entries] == ledger.entries
    assert announced[-1].offset == ledger.offset
    assert all(min(committed.durations) >= 0 for committed in announced)


LATE = fill("LATE", 1, 5)


async def test_repeated_replay_is_settled_once():
    replays = [message(number, LATE, replay_of="1-0/0") for number in (4, 5, 6)]
    ledger, _ = await settle([message(1, LATE), message(2, listing("LATE")), message(3, fill("LATE", 9, 1)), *replays])
    assert [entry.seq for entry in ledger.entries] == [9, 1]
    assert ledger.settled == {("1-0", 0): ledger.entries[1]}


async def test_fill_rejected_twice_is_settled_by_one_replay():
    replays = [message(4, LATE, replay_of="1-0/0"), message(5, LATE, replay_of="2-0/0")]
    ledger, _ = await settle([message(1, LATE), message(2, LATE), message(3, listing("LATE")), *replays])
    assert [entry.seq for entry in ledger.entries] == [1]
    assert ledger.settled == {("1-0", 0): ledger.entries[0], ("2-0", 0): None}


async def test_fill_sent_again_is_not_settled_by_a_replay():
    replay = message(4, LATE, replay_of="1-0/0")
    ledger, _ = await settle([message(1, LATE), message(2, listing("LATE")), message(3, LATE, fill("LATE", 2, 1)), replay])
    assert [entry.seq for entry in ledger.entries] == [1, 2]
    assert ledger.settled == {("1-0", 0): None}


async def test_replay_rejected_again_stays_open_under_its_first_place():
    replays = [message(number, LATE, replay_of="1-0/0") for number in (2, 3)]
    ledger, _ = await settle([message(1, LATE), *replays])
    assert list(ledger.rejected) == [("1-0", 0)]
    assert not ledger.settled


async def test_replay_of_several_events_is_rejected():
    both = message(3, LATE, fill("LATE", 2, 1), replay_of="1-0/0")
    ledger, _ = await settle([message(1, body=b"["), message(2, listing("LATE")), both])
    assert not ledger.entries
    assert "one by one" in ledger.rejected["1-0", 0].detail


@pytest.mark.parametrize(
    "state",
    [Mark("LATE", "7", 1), Position("LATE", "anna", 5, "7", "1", 1), Rate("LATE", "7", 1)],
    ids=type,
)
async def test_replayed_state_does_not_replace_a_newer_one(state):
    newer = [Mark("LATE", "8", 2), Position("LATE", "anna", -3, "8", "1", 2)]
    refused = message(1, body=encode([state]).replace(b'"7"', b'"-"'))
    messages = [refused, message(2, listing("LATE"), *newer), message(3, state, replay_of="1-0/0")]
    ledger, _ = await settle(messages)
    assert {key: event.reason for key, event in ledger.rejected.items()} == {("1-0", 0): Reason.SUPERSEDED}
    assert "let the matching engine send it again" in ledger.rejected["1-0", 0].detail
    assert not ledger.settled
    fresh = FakeLedger("3-0")
    partition = fresh.load()
    await pipeline_of(FakeSource(messages, Weather()), fresh, begun=(partition, None, Exclusive())).run(fresh.complete)
    book = partition.book("LATE")
    assert (book.mark, [side for side, _ in book.positions("anna")]) == (8 * 10**12, ["short"])


@pytest.mark.parametrize("name", ["", "x", "1-0", "1-0/", "1-0/-1", "1-0/9999999999", "\0-0/1", "\u0661-0/1", "1-0/1\n"])
async def test_replay_with_an_invalid_place_is_rejected(name):
    ledger, _ = await settle([message(1, LATE), message(2, LATE, replay_of=name or " ")])
    assert ledger.rejected["2-0", 0].reason == Reason.UNDECODABLE
    assert not ledger.settled


async def test_replay_of_an_event_never_rejected_has_no_effect():
    ledger, _ = await settle([message(1, listing("LATE")), message(2, LATE, replay_of="1-0/7")])
    assert not ledger.entries
    assert not ledger.rejected


async def test_restart_continues_inside_a_message():
    refused = fill("NONE", 1, 1)
    large = message(2, *(fill("AAA", seq, 1) for seq in range(1, 20)), refused, fill("AAA", 20, 1))
    messages = [message(1, listing("AAA")), large, message(3, fill("AAA", 21, 1))]
    ledger = FakeLedger("3-0")
    while not ledger.complete.is_set():
        stop, before = asyncio.Event(), ledger.offset
        pipeline = pipeline_of(FakeSource(messages, Weather()), ledger)
        task = asyncio.create_task(pipeline.run(stop))
        await eventually(lambda before=before: ledger.offset != before)
        task.cancel()
        await asyncio.wait([task])
    assert ledger.inside >= 2
    assert [entry.seq for entry in ledger.entries] == list(range(1, 22))
    assert list(ledger.rejected) == [("2-0", 19)]
    assert ledger.offset.messages == 3


async def test_partial_offset_does_not_apply_to_another_message():
    """The partly settled message is missing, and another one follows."""
    ledger = FakeLedger("9-0")
    source = FakeSource([message(1, listing("AAA"))], Weather())
    ledger.last_id = "1-0"
    await pipeline_of(source, ledger).run(ledger.complete)
    ledger.complete.clear()
    ledger.last_id, ledger.offset = "9-0", Offset("1-0", 1, 2, "2-0")
    source.messages.append(message(9, *(fill("AAA", seq, 1) for seq in (1, 2, 3))))
    await pipeline_of(source, ledger).run(ledger.complete)
    assert [entry.seq for entry in ledger.entries] == [1, 2, 3]


async def test_failed_batch_is_not_repeated_whole():
    """The ledger accepts only a few events at once; all events are settled."""

    class Slow(FakeLedger):
        async def commit(self, batch, before, after, saving):
            self.tried.append(batch.events)
            if batch.events > 3:
                raise Crash
            await super().commit(batch, before, after, saving)

    messages = [message(1, listing("AAA")), message(2, *(fill("AAA", seq, 1) for seq in range(1, 1000)))]
    ledger, bound = Slow("2-0"), BatchBound(10_000)
    ledger.tried = []
    while not ledger.complete.is_set():
        pipeline = pipeline_of(FakeSource(messages, Weather()), ledger, bound=bound)
        try:
            await pipeline.run(ledger.complete)
        except* Crash:
            bound.shrink(pipeline.writing)
            assert bound.events_max == pipeline.writing.events // 2
    assert len(ledger.entries) == 999
    assert ledger.tried.count(1000) <= 1


@pytest.mark.parametrize("per_message", [1, 2, 10])
@pytest.mark.parametrize("answer", [fill("AAA", 2, 1), AdlFill("AAA", 2, 1, "anna", 1, TS), AdlEnd("AAA", 2, 1, TS)])
async def test_repetition_of_an_event_that_the_database_refuses_is_a_duplicate(answer, per_message):
    """The repetition comes before the first event is committed as rejected, so the ledger does not know it yet."""
    events = [listing("AAA"), fill("AAA", 1, 1), answer, fill("AAA", 3, 1), answer, answer, fill("AAA", 4, 1)]
    parts = [events[first : first + per_message] for first in range(0, len(events), per_message)]
    place = EventPlace(f"{2 // per_message + 1}-0", 2 % per_message)
    messages = list(starmap(message, ((number, *part) for number, part in enumerate(parts, 1))))
    ledger = FakeLedger(messages[-1].stream_id)
    await pipeline_of(FakeSource(messages, Weather()), ledger, refused={place: "no"}).run(ledger.complete)
    assert {tuple(key): event.reason for key, event in ledger.rejected.items()} == {tuple(place): Reason.DATABASE_REFUSED}
    assert [entry.seq for entry in ledger.entries] == [1, 3, 4]


async def test_refused_batch_is_narrowed_to_its_event_and_batches_grow_again():
    """The ledger refuses two events of a thousand. Each costs a few refusals; the others are written in large batches."""

    class Refusing(FakeLedger):
        async def commit(self, batch, before, after, saving):
            self.tried.append(batch.events)
            if any(entry.seq in (100, 700) for entry in batch.entries):
                raise Crash
            await super().commit(batch, before, after, saving)

    messages = [message(1, listing("AAA")), message(2, *(fill("AAA", seq, 1) for seq in range(1, 1001)))]
    ledger, bound, refused, refusals = Refusing("2-0"), BatchBound(10_000), {}, 0
    ledger.tried = []
    while not ledger.complete.is_set():
        pipeline = pipeline_of(FakeSource(messages, Weather()), ledger, bound=bound, refused=refused, slice_seconds=1.0)
        try:
            await pipeline.run(ledger.complete)
        except* Crash:
            refusals += 1
            if pipeline.writing.events > 1:
                bound.narrow(pipeline.writing)
            else:
                refused[pipeline.writing.place] = "no"
    assert len(ledger.entries) == 998
    assert list(refused) == [EventPlace("2-0", 99), EventPlace("2-0", 699)]
    assert refusals <= 8
    assert bound.events_max > 250
    assert len(ledger.tried) < 120


def test_parts_of_a_refused_batch_do_not_grow_before_it_is_written():
    bound = BatchBound(10_000)
    bound.narrow(Batch(events=160))
    for _ in range(16):
        assert bound.events_max == 10
        bound.grow(Batch(events=10))
    bound.grow(Batch(events=10))
    assert bound.events_max == 20


def test_books_are_left_out_after_a_batch_with_books_failed():
    bound = BatchBound(10_000)
    bound.shrink(Batch(events=8))
    assert bound.takes_books
    bound.shrink(Batch(events=4, books=[BookState("AAA", 1, None, 0, 0, None, 0)]))
    while bound.events_max < EVENTS_PER_BATCH_MAX:
        assert not bound.takes_books
        bound.grow(Batch(events=1))
    assert bound.takes_books


async def test_event_refused_by_the_database_is_rejected_at_its_place():
    messages = [message(1, listing("AAA")), message(2, *(fill("AAA", seq, 1) for seq in (1, 2, 3)))]
    messages.append(message(3, fill("AAA", 4, 1), replay_of="2-0/1"))
    refused = {EventPlace("2-0", 1): "no", EventPlace("3-0", 0): "again"}
    ledger = FakeLedger("3-0")
    await pipeline_of(FakeSource(messages, Weather()), ledger, refused=refused).run(ledger.complete)
    assert [entry.seq for entry in ledger.entries] == [1, 3]
    (rejected,) = ledger.rejected.values()
    assert (rejected.reason, rejected.detail, rejected.position) == (Reason.DATABASE_REFUSED, "again", 1)


async def test_books_are_saved_at_message_ends_and_new_price_units_are_not_cut():
    relisted = [Mark("AAA", "7", 1), listing("AAA", tickSize="0.5", maxPrice=10**9), Position("AAA", "anna", 5, "7", "1", 1)]
    large = message(2, *relisted, *(Mark("AAA", str(price), 1) for price in range(1, 300)))
    messages = [message(1, listing("AAA")), large, message(3, *(Mark("AAA", "9", 1) for _ in range(50)))]
    bound = BatchBound(ROWS_MAX)
    bound.events_max = 5

    class Watching(FakeLedger):
        async def commit(self, batch, before, after, saving):
            assert not (batch.books and after.events)
            assert not (after.events > 1 and after.partial_id == "2-0"), "only before the contract is relisted"
            self.kept += [kept.symbol for kept in batch.books]
            bound.events_max = 5
            await super().commit(batch, before, after, saving)

    ledger = Watching("3-0")
    ledger.kept = []
    await pipeline_of(FakeSource(messages, Weather()), ledger, bound=bound).run(ledger.complete)
    assert ledger.inside
    assert "AAA" in ledger.kept


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("kind", ["unlisted", "fills", "known", "marks"])
async def test_message_of_any_legal_size_holds_the_loop_for_a_bounded_time(codec, kind):
    events = {
        "unlisted": [fill("NONE", seq, 1) for seq in range(1, 10_001)],
        "fills": [fill("AAA", seq, seq % 7 - 2) for seq in range(1, 10_001)],
        "known": [fill("AAA", seq, seq % 7 - 2) for seq in range(1, 10_001)],
        "marks": [Mark("AAA", "7", 1)] * 10_000,
    }[kind]
    messages = [message(1, listing("AAA")), Message("2-0", codec, encode(events, codec))]
    messages += [Message("3-0", codec, encode(events, codec))] * (kind == "known")
    ledger = FakeLedger(messages[-1].stream_id)
    pipeline = pipeline_of(FakeSource(messages, Weather()), ledger, bound=BatchBound(10_000))
    ledger.prepare = lambda batch: batch.pack(copy_rows)
    async with watched_loop() as holds:
        await pipeline.run(ledger.complete)
    assert ledger.offset.messages == len(messages)
    assert sorted(holds)[-3] < 0.03, "except for the two longest holds, as the machine may be busy"
    assert sum(holds) < 3


@asynccontextmanager
async def watched_loop():
    """Measures each hold of the loop, in seconds of CPU time of its thread, so that other processes do not count."""
    holds = []

    async def watch():
        while True:
            started = time.thread_time()
            await asyncio.sleep(0)
            holds.append(time.thread_time() - started)

    task = asyncio.create_task(watch())
    try:
        yield holds
    finally:
        task.cancel()
