"""The pipeline in a small world of its own, where every await may fail before or after it had its effect."""

import asyncio
import random
import time
from contextlib import asynccontextmanager
from types import MappingProxyType

import pytest
from eventually import eventually
from ledgers import fill, listing

from fundsvc.concurrency.exclusive import Exclusive
from fundsvc.core.batch import Batch, BookState, Offset, Place
from fundsvc.core.events import Mark, Position, Rate, Reason
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.partition import Partition
from fundsvc.core.sequences import Applied, Facts, content_of_entry
from fundsvc.engine.pipeline import EVENTS_PER_BATCH_MAX, BatchBound, Pipeline, Reading
from fundsvc.store.rows import copy_rows
from fundsvc.wire.codec import Message, encode

SEEDS = 400
ROWS_MAX = 7
MESSAGES_PER_READ = 10
EVENTS_PER_MESSAGE_MAX = 4


class Crash(Exception):
    """The process, the network or a server failed."""


class Weather:
    """Decides which awaits fail; fair weather has none that do."""

    def __init__(self, dice=None, chance=0.0):
        self._dice = dice
        self._chance = chance

    async def through(self, effect):
        """Has an effect somewhere between two suspensions, unless it fails before; it may fail after."""
        await self._suspend()
        result = effect()
        await self._suspend()
        return result

    async def _suspend(self):
        if self._dice is None:
            await asyncio.sleep(0)
            return
        for _ in range(self._dice.randrange(4)):
            await asyncio.sleep(0)
        if self._dice.random() < self._chance:
            raise Crash


class FakeSource:
    """A stream that has all its messages."""

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


class FakeLedger:
    """What PostgreSQL promises: a batch is written whole or not at all, and only from the offset it says it continues."""

    def __init__(self, last_id, weather=None):
        self.weather = weather or Weather()
        self.complete = asyncio.Event()
        self.commits = []
        self.entries, self.hashes, self.orders = [], [], []
        self.listings, self.funds, self.rejected, self.settled = {}, {}, {}, {}
        self.offset = Offset("0-0", 0)
        self.inside = 0
        self._last_id = last_id

    def load(self):
        funds = []
        for symbol, contract in self.listings.items():
            state = self.funds[symbol]
            funds.append(Fund(contract, state))
        return Partition(0, 1, funds, {"USDT": 8}, 10)

    def contents(self):
        return (
            self.offset.last_id,
            self.entries,
            self.hashes,
            self.orders,
            self.listings,
            self.funds,
            self.rejected,
            self.settled,
        )

    async def is_open(self, stream_id, position):
        key = stream_id, position
        return await self.weather.through(lambda: key in self.rejected and key not in self.settled)

    async def facts(self, wanted):
        return await self.weather.through(
            lambda: self._facts([(symbol, seq) for symbol, seqs in wanted.items() for seq in seqs])
        )

    def _facts(self, keys):
        applied = {(entry.symbol, entry.seq): content_of_entry(entry) for entry in self.entries}
        refused = [event.identity[2] for event in self.rejected.values() if event.identity]
        return Facts({key: applied.get(key, Applied.NEVER) for key in keys}, refused)

    def prepare(self, batch):
        """Keeps the entries as they are."""

    async def commit(self, batch, before, after):
        await self.weather.through(lambda: self._write(batch, before, after))

    def _write(self, batch, before, after):
        assert before == self.offset, "somebody else moved the offset"
        assert len({(event.stream_id, event.position) for event in batch.rejected}) == len(batch.rejected)
        self.commits.append(len(batch.entries) + len(batch.rejected))
        self.entries += batch.entries
        self.hashes += batch.hashes
        self.orders += batch.orders
        self.listings |= {symbol: contract for symbol, (contract, _) in batch.listings.items()}
        self.funds |= {state.symbol: state for state in batch.funds}
        self.rejected |= {(event.stream_id, event.position): event for event in batch.rejected}
        self.settled |= {(stream_id, position): entry for stream_id, position, _, entry in batch.replayed}
        self.offset = after
        self.inside += after.events > 0
        if after.last_id == self._last_id:
            self.complete.set()


def order(stream_id):
    milliseconds, sequence = stream_id.split("-")
    return int(milliseconds), int(sequence)


def message(number, *events, body=None, replay_of=""):
    return Message(f"{number}-0", "json", encode(events) if body is None else body, replay_of)


async def nowhere(committed):
    pass


def pipeline_of(source, ledger, announce=nowhere, bound=None, refused=MappingProxyType({}), slice_seconds=0.0025):
    offset = ledger.offset
    return Pipeline(
        ledger.load(),
        source,
        ledger,
        announce,
        exclusive=Exclusive(),
        stored=offset,
        start=offset,
        bound=bound or BatchBound(ROWS_MAX),
        slice_seconds=slice_seconds,
        refused=refused,
    )


async def settle(messages, weather=None):
    """The ledger after all messages, through however many crashes."""
    weather = weather or Weather()
    ledger, bound = FakeLedger(messages[-1].stream_id, weather), BatchBound(ROWS_MAX)
    while not ledger.complete.is_set():
        pipeline = pipeline_of(FakeSource(messages, weather), ledger, bound=bound)
        try:
            await pipeline.run(ledger.complete)
        except* Crash:
            if pipeline.writing:
                bound.shrink(pipeline.writing)
    return ledger


@asynccontextmanager
async def running(pipeline):
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(pipeline.run(stop))
        yield stop, task
        stop.set()


def story(dice):
    """Messages as engines and operators send them: fills of three contracts, repeated ones, garbage, late replays."""
    sequences = dict.fromkeys(("AAA", "BBB", "LATE"), 0)
    messages = [message(1, listing("AAA"), listing("BBB"))]
    rejected = []
    for number in range(2, 42):
        if number == 20:
            messages.append(message(number, listing("LATE")))
        elif dice.random() < 0.1:
            messages.append(message(number, body=dice.choice([b"[", b"{}", b"[]", b'[1,{"type":"mark"}]'])))
        elif number > 20 and rejected and dice.random() < 0.4:
            messages.append(Message(f"{number}-0", "json", *dice.choice(rejected)))
        else:
            events = [some_fill(dice, sequences) for _ in range(dice.randint(1, EVENTS_PER_MESSAGE_MAX))]
            messages.append(message(number, *events))
            late = [(encode([e]), f"{number}-0/{i}") for i, e in enumerate(events) if e.symbol == "LATE" and number < 20]
            rejected += late
    return messages


def some_fill(dice, sequences):
    symbol = dice.choice(list(sequences))
    if not sequences[symbol] or dice.random() < 0.8:
        sequences[symbol] += dice.randint(1, 3)
    return fill(symbol, sequences[symbol], dice.randint(-9, 9))


async def test_any_schedule_of_crashes_gives_the_undisturbed_ledger():
    replayed = shortfalls = inside = 0
    for seed in range(SEEDS):
        messages = story(random.Random(seed))
        undisturbed = await settle(messages)
        dice = random.Random(-seed)
        disturbed = await settle(messages, Weather(dice, dice.choice([0.01, 0.05, 0.2])))
        assert disturbed.contents() == undisturbed.contents(), f"seed {seed}"
        numbers = [(entry.symbol, entry.entry) for entry in disturbed.entries]
        assert len(set(numbers)) == len(numbers), f"seed {seed}"
        fills = [(entry.symbol, entry.seq) for entry in disturbed.entries]
        assert len(set(fills)) == len(fills), f"seed {seed}: a fill was settled twice"
        replayed += sum(entry is not None for entry in disturbed.settled.values())
        shortfalls += len(disturbed.orders)
        inside += disturbed.inside
    assert inside > SEEDS, "commits ended inside messages"
    assert replayed > SEEDS / 10
    assert shortfalls > SEEDS


async def test_batches_stay_bounded_while_a_commit_takes_long():
    garbage = [message(number, body=b"[") for number in range(1001, 1501)]
    fills = [message(number, fill("AAA", number, 1), fill("AAA", number, 1)) for number in range(2, 1001)]
    ledger = FakeLedger("1500-0", Weather(random.Random(1)))
    source = FakeSource([message(1, listing("AAA")), *fills, *garbage], Weather())
    await pipeline_of(source, ledger).run(ledger.complete)
    assert len(ledger.entries) == len(fills)
    assert len(ledger.rejected) == len(garbage)
    assert max(ledger.commits) == ROWS_MAX


class Gate:
    """A ledger's weather that holds effects back until it is opened."""

    def __init__(self):
        self.opened = asyncio.Event()
        self.waiting = 0

    async def through(self, effect):
        self.waiting += 1
        await self.opened.wait()
        return effect()


async def test_a_commit_runs_while_more_is_settled_and_stop_finishes_what_is_in_hand():
    ledger = FakeLedger("", Gate())
    source = FakeSource([message(1, listing("AAA"))], Weather())
    pipeline = pipeline_of(source, ledger)
    async with running(pipeline) as (stop, task):
        await eventually(lambda: ledger.weather.waiting)
        source.messages.append(message(2, fill("AAA", 1, 5)))
        reads = source.reads
        await eventually(lambda: source.reads > reads + 1)
        stop.set()
        await eventually(lambda: not pipeline._reading)
        assert not task.done()
        ledger.weather.opened.set()
        await asyncio.wait_for(task, 5)
    assert [entry.seq for entry in ledger.entries] == [1]
    assert ledger.offset == Offset("2-0", 2)


async def test_a_lone_fill_is_committed_while_the_source_waits_for_more():
    class Quiet(FakeSource):
        async def read(self, after, block_ms):
            if after.last_id != "0-0":
                await asyncio.Event().wait()
            return await super().read(after, block_ms)

    ledger = FakeLedger("1-0")
    source = Quiet([message(1, listing("AAA"), fill("AAA", 1, 5))], Weather())
    task = asyncio.create_task(pipeline_of(source, ledger).run(asyncio.Event()))
    await eventually(lambda: ledger.entries)
    task.cancel()
    await asyncio.wait([task])


async def test_what_the_source_the_ledger_or_the_announcement_raises_ends_the_run():
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


async def test_what_was_committed_is_announced_in_order():
    announced = []

    async def announce(committed):
        announced.append(committed)

    messages = [message(1, listing("AAA")), *(message(number, fill("AAA", number, 1)) for number in range(2, 40))]
    ledger = FakeLedger("39-0")
    await pipeline_of(FakeSource(messages, Weather()), ledger, announce).run(ledger.complete)
    assert [entry for committed in announced for entry in committed.batch.entries] == ledger.entries
    assert announced[-1].offset == ledger.offset
    assert all(min(committed.durations) >= 0 for committed in announced)


LATE = fill("LATE", 1, 5)


async def test_a_replay_is_settled_once_however_often_it_is_sent():
    replays = [message(number, LATE, replay_of="1-0/0") for number in (4, 5, 6)]
    ledger = await settle([message(1, LATE), message(2, listing("LATE")), message(3, fill("LATE", 9, 1)), *replays])
    assert [entry.seq for entry in ledger.entries] == [9, 1]
    assert ledger.settled == {("1-0", 0): ledger.entries[1]}


async def test_a_fill_that_was_rejected_twice_is_settled_by_one_replay():
    replays = [message(4, LATE, replay_of="1-0/0"), message(5, LATE, replay_of="2-0/0")]
    ledger = await settle([message(1, LATE), message(2, LATE), message(3, listing("LATE")), *replays])
    assert [entry.seq for entry in ledger.entries] == [1]
    assert ledger.settled == {("1-0", 0): ledger.entries[0], ("2-0", 0): None}


async def test_a_fill_that_the_engine_sent_again_is_not_settled_by_a_replay():
    replay = message(4, LATE, replay_of="1-0/0")
    ledger = await settle([message(1, LATE), message(2, listing("LATE")), message(3, LATE, fill("LATE", 2, 1)), replay])
    assert [entry.seq for entry in ledger.entries] == [1, 2]
    assert ledger.settled == {("1-0", 0): None}


async def test_a_replay_that_is_refused_again_stays_open_under_its_first_name():
    replays = [message(number, LATE, replay_of="1-0/0") for number in (2, 3)]
    ledger = await settle([message(1, LATE), *replays])
    assert list(ledger.rejected) == [("1-0", 0)]
    assert not ledger.settled


async def test_a_replay_of_several_events_is_refused_whole():
    both = message(3, LATE, fill("LATE", 2, 1), replay_of="1-0/0")
    ledger = await settle([message(1, body=b"["), message(2, listing("LATE")), both])
    assert not ledger.entries
    assert "one by one" in ledger.rejected["1-0", 0].detail


@pytest.mark.parametrize(
    "state",
    [Mark("LATE", "7", 1), Position("LATE", "anna", 5, "7", "1", 1), Rate("LATE", "7", 1)],
    ids=type,
)
async def test_a_state_is_not_replayed_over_what_came_after_it(state):
    newer = [Mark("LATE", "8", 2), Position("LATE", "anna", -3, "8", "1", 2)]
    refused = message(1, body=encode([state]).replace(b'"7"', b'"-"'))
    messages = [refused, message(2, listing("LATE"), *newer), message(3, state, replay_of="1-0/0")]
    ledger = await settle(messages)
    assert {key: event.reason for key, event in ledger.rejected.items()} == {("1-0", 0): Reason.SUPERSEDED}
    assert "let the matching engine send it again" in ledger.rejected["1-0", 0].detail
    assert not ledger.settled
    pipeline = pipeline_of(FakeSource(messages, Weather()), fresh := FakeLedger("3-0"))
    await pipeline.run(fresh.complete)
    book = pipeline._partition.book("LATE")
    assert (book.mark, [side for side, _ in book.positions("anna")]) == (8 * 10**12, ["short"])


@pytest.mark.parametrize("name", ["", "x", "1-0", "1-0/", "1-0/-1", "1-0/9999999999", "\0-0/1", "\u0661-0/1", "1-0/1\n"])
async def test_a_replay_that_names_nothing_is_rejected_itself(name):
    ledger = await settle([message(1, LATE), message(2, LATE, replay_of=name or " ")])
    assert ledger.rejected["2-0", 0].reason == Reason.UNDECODABLE
    assert not ledger.settled


async def test_a_replay_of_what_was_never_rejected_does_nothing():
    ledger = await settle([message(1, listing("LATE")), message(2, LATE, replay_of="1-0/7")])
    assert not ledger.entries
    assert not ledger.rejected


async def test_a_commit_ends_inside_a_message_and_a_restart_goes_on_there():
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


async def test_events_of_another_message_are_not_taken_for_those_that_are_settled():
    """The message that was settled in part is gone, and another has come in its place."""
    ledger = FakeLedger("9-0")
    source = FakeSource([message(1, listing("AAA"))], Weather())
    ledger._last_id = "1-0"
    await pipeline_of(source, ledger).run(ledger.complete)
    ledger.complete.clear()
    ledger._last_id, ledger.offset = "9-0", Offset("1-0", 1, 2, "2-0")
    source.messages.append(message(9, *(fill("AAA", seq, 1) for seq in (1, 2, 3))))
    await pipeline_of(source, ledger).run(ledger.complete)
    assert [entry.seq for entry in ledger.entries] == [1, 2, 3]


async def test_a_batch_that_failed_is_never_tried_again_whole():
    """Progress is monotone: the ledger takes no more than a few events at once, and gets everything."""

    class Slow(FakeLedger):
        async def commit(self, batch, before, after):
            self.tried.append(batch.events)
            if batch.events > 3:
                raise Crash
            await super().commit(batch, before, after)

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


async def test_a_refused_batch_is_written_in_parts_down_to_its_event_and_batches_grow_again():
    """The ledger refuses two events of a thousand; each of them costs a few refusals, and the rest is written at once."""

    class Refusing(FakeLedger):
        async def commit(self, batch, before, after):
            self.tried.append(batch.events)
            if any(entry.seq in (100, 700) for entry in batch.entries):
                raise Crash
            await super().commit(batch, before, after)

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
    assert list(refused) == [Place("2-0", 99), Place("2-0", 699)]
    assert refusals <= 8
    assert bound.events_max > 250
    assert len(ledger.tried) < 120


def test_parts_of_a_refused_batch_do_not_grow_before_all_of_it_is_written():
    bound = BatchBound(10_000)
    bound.narrow(Batch(events=160))
    for _ in range(16):
        assert bound.events_max == 10
        bound.grow(Batch(events=10))
    bound.grow(Batch(events=10))
    assert bound.events_max == 20


def test_books_are_left_out_only_while_a_batch_with_books_failed_lately():
    bound = BatchBound(10_000)
    bound.shrink(Batch(events=8))
    assert bound.takes_books
    bound.shrink(Batch(events=4, books=[BookState("AAA", 1, None, 0, 0, None, 0)]))
    while bound.events_max < EVENTS_PER_BATCH_MAX:
        assert not bound.takes_books
        bound.grow(Batch(events=1))
    assert bound.takes_books


async def test_an_event_that_the_database_refused_is_rejected_in_its_place():
    messages = [message(1, listing("AAA")), message(2, *(fill("AAA", seq, 1) for seq in (1, 2, 3)))]
    messages.append(message(3, fill("AAA", 4, 1), replay_of="2-0/1"))
    refused = {Place("2-0", 1): "no", Place("3-0", 0): "again"}
    ledger = FakeLedger("3-0")
    await pipeline_of(FakeSource(messages, Weather()), ledger, refused=refused).run(ledger.complete)
    assert [entry.seq for entry in ledger.entries] == [1, 3]
    (rejected,) = ledger.rejected.values()
    assert (rejected.reason, rejected.detail, rejected.position) == (Reason.DATABASE_REFUSED, "again", 1)


async def test_books_are_kept_where_a_message_ends_and_a_new_unit_of_prices_is_never_cut_off_from_its_message():
    relisted = [Mark("AAA", "7", 1), listing("AAA", tickSize="0.5", maxPrice=10**9), Position("AAA", "anna", 5, "7", "1", 1)]
    large = message(2, *relisted, *(Mark("AAA", str(price), 1) for price in range(1, 300)))
    messages = [message(1, listing("AAA")), large, message(3, *(Mark("AAA", "9", 1) for _ in range(50)))]
    bound = BatchBound(ROWS_MAX)
    bound.events_max = 5

    class Watching(FakeLedger):
        async def commit(self, batch, before, after):
            assert not (batch.books and after.events)
            assert not (after.events > 1 and after.partial_id == "2-0"), "but before the contract is listed anew"
            self.kept += [kept.symbol for kept in batch.books]
            bound.events_max = 5
            await super().commit(batch, before, after)

    ledger = Watching("3-0")
    ledger.kept = []
    await pipeline_of(FakeSource(messages, Weather()), ledger, bound=bound).run(ledger.complete)
    assert ledger.inside
    assert "AAA" in ledger.kept


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("kind", ["unlisted", "fills", "known", "marks"])
async def test_the_loop_is_held_for_a_bounded_time_by_a_legal_message_of_any_size(codec, kind):
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
    assert sorted(holds)[-3] < 0.03, "give or take what else the machine does"
    assert sum(holds) < 3


@asynccontextmanager
async def watched_loop():
    """For how long the loop was held each time, in seconds of the processor: what other processes take does not count."""
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
