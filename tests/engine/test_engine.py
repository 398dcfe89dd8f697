import asyncio
import hashlib
import sys
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import count

import asyncpg
import msgspec
import psutil
import pytest
import redis
from commands import environment_of, fundsvc
from conftest import administrator, with_section
from eventually import eventually
from exposed import sample_sum
from ledgers import TS, fill, listing

from fundsvc.core.checks import check_mark
from fundsvc.core.contracts import partition_of
from fundsvc.core.events import AdlFill, Listing, Mark, Position, Rate
from fundsvc.core.fund.chain import GENESIS, Entry, link
from fundsvc.engine.engine import Engine, NotSettling
from fundsvc.metrics import Metrics
from fundsvc.store.database import open_pool
from fundsvc.store.gaps import Gaps
from fundsvc.store.rows import COLUMNS
from fundsvc.streams.announcer import announcement_key
from fundsvc.streams.client import StreamFault, faults, stream_key
from fundsvc.streams.producer import Producer
from fundsvc.streams.source import Source
from fundsvc.wire.codec import encode

KEY = stream_key(0)
STOP_SECONDS_MAX = 3.0
LEASE_SECONDS = 0.6
SYMBOLS = [f"SYMBOL{number}" for number in range(24)]

STORED = [name for name in Entry.__struct_fields__ if name in COLUMNS]
"""The fields of an entry that the database has."""


class Running:
    """An engine that runs in this process."""

    def __init__(self, config):
        self.metrics = Metrics()
        self.stop = asyncio.Event()
        self.engine = Engine(config, self.metrics)
        self.task = asyncio.create_task(self.engine.run(self.stop))

    def count(self, name, **labels):
        """The sum of a metric over all its labels, or over those with the given ones."""
        return sample_sum(self.metrics, name, **labels)

    async def finish(self):
        """Stops the engine; returns the duration in seconds."""
        started = time.monotonic()
        self.stop.set()
        await self.task
        return time.monotonic() - started


@asynccontextmanager
async def running(config):
    """Runs an engine and stops it at the end; raises the error that ended it."""
    engine = Running(config)
    try:
        yield engine
    finally:
        await engine.finish()


@pytest.fixture
def quick(config):
    """Short leases, so that takeovers are quick."""
    return with_section(config, "engine", lease_seconds=LEASE_SECONDS, rollup_seconds=0.05)


@pytest.fixture
def producer(config, client):
    return Producer(client, config.stream.partitions)


@pytest.fixture
def ledger(config):
    """Queries the ledger over a new connection each time, so that a restart of the server does not matter."""

    async def ask(statement, *parameters):
        connection = await asyncpg.connect(config.database.dsn)
        try:
            return await connection.fetchval(statement, *parameters)
        finally:
            connection.terminate()

    return ask


async def settled(ledger, number, seconds=15.0):
    """Waits until the ledger has `number` entries; fails if it has more."""
    await eventually(lambda: has_entries(ledger, number), seconds)
    await check_chains(ledger, number)


async def has_entries(ledger, number):
    return await ledger("SELECT count(*) FROM entries") >= number


async def check_chains(ledger, number):
    """Checks that all entries are gapless and linked, end at their heads, and are `number` in all."""
    columns = ", ".join(f"e.{name}" for name in (*STORED, "hash"))
    text = await ledger(
        f"SELECT json_agg(json_build_array({columns}, f.head) ORDER BY e.symbol, e.entry)"
        " FROM entries e JOIN funds f USING (symbol)"
    )
    heads = {}
    previous = {}
    for *fields, digest, head in msgspec.json.decode(text or b"[]"):
        named = dict(zip(STORED, fields, strict=True))
        entry = Entry(**named | {"seal": bytes.fromhex(named["seal"].removeprefix("\\x"))})
        expected = link(previous.get(entry.symbol, GENESIS), entry)
        assert digest == "\\x" + expected.hex(), f"{entry.symbol} {entry.entry}"
        previous[entry.symbol] = expected
        heads[entry.symbol] = head
        number -= 1
    assert {symbol: "\\x" + digest.hex() for symbol, digest in previous.items()} == heads
    assert number == 0


def fills(numbers, symbol="AAA"):
    return [fill(symbol, number, number % 11 - 4) for number in numbers]


async def test_engine_settles_events_and_updates_rollups_and_metrics(quick, producer, ledger):
    async with running(quick) as engine:
        await producer.append([listing("AAA"), *(fill("AAA", seq, 1) for seq in range(1, 1001))])
        await settled(ledger, 1000)
        await eventually(lambda: engine.count("fundsvc_entries_total", symbol="AAA", kind="surplus") == 1000)
        assert engine.count("fundsvc_balance", symbol="AAA", currency="USDT") == 1000
        assert engine.count("fundsvc_commit_seconds_count") >= 1
        await eventually(lambda: ledger("SELECT sum(fills) = 1000 FROM rollups"))
        await producer.append(fill("AAA", seq, 1) for seq in range(900, 1001))
        await eventually(lambda: engine.count("fundsvc_duplicates_total", symbol="AAA") == 101)
    await check_chains(ledger, 1000)


async def test_lag_is_measured_while_the_ledger_is_locked(config, producer, ledger, owner_connection):
    async with running(config) as engine:
        await producer.append([listing("AAA"), *fills([1])])
        await settled(ledger, 1)
        async with owner_connection.transaction():
            await owner_connection.execute("LOCK TABLE entries IN SHARE MODE")
            await producer.append(fills(range(2, 12)), per_message=1)
            await eventually(lambda: engine.count("fundsvc_stream_lag_messages", partition="0") == 10)
            assert engine.count("fundsvc_stream_lag_seconds", partition="0") > 0
        await eventually(lambda: engine.count("fundsvc_stream_lag_messages", partition="0") == 0)
        assert engine.count("fundsvc_stream_lag_seconds", partition="0") == 0


@pytest.mark.parametrize("partitions", [4])
async def test_two_engines_share_partitions_and_a_stopping_engine_releases_its_own(quick, producer, ledger):
    assert {partition_of(symbol, 4) for symbol in SYMBOLS} == {0, 1, 2, 3}
    await producer.append(listing(symbol) for symbol in SYMBOLS)
    async with running(quick) as first, running(quick) as second:
        await eventually(lambda: first.count("fundsvc_partition_owned") == second.count("fundsvc_partition_owned") == 2)
        await producer.append(fill(symbol, seq, 1) for seq in range(1, 101) for symbol in SYMBOLS)
        await settled(ledger, 2400)
        assert first.count("fundsvc_entries_total") + second.count("fundsvc_entries_total") == 2400
        assert min(first.count("fundsvc_entries_total"), second.count("fundsvc_entries_total")) >= 100
        assert await second.finish() < STOP_SECONDS_MAX
        assert not await ledger("SELECT count(*) FROM engines WHERE engine = $1", second.engine.name)
        await producer.append(fill(symbol, seq, 1) for seq in range(101, 111) for symbol in SYMBOLS)
        await settled(ledger, 2640, 5)
        assert await ledger("SELECT count(*) FROM partitions WHERE owner = $1", first.engine.name) == 4
    assert await ledger("SELECT count(*) FROM partitions WHERE owner IS NULL") == 4


async def test_killed_engine_is_replaced_within_five_seconds(config, producer, ledger):
    first = Running(config)
    await producer.append([listing("AAA"), *fills([1])])
    await settled(ledger, 1)
    async with running(config) as second:
        first.task.cancel()
        await asyncio.wait([first.task])
        assert await ledger("SELECT owner FROM partitions") == first.engine.name
        await producer.append(fills([2]))
        await settled(ledger, 2, 5)
        assert second.count("fundsvc_partition_epoch", partition="0") == 2


async def test_deletion_of_the_stream_during_reading_is_detected(config, client, producer, ledger):
    async with running(config) as engine:
        await producer.append([listing("AAA"), *fills(range(1, 101))], per_message=1)
        await settled(ledger, 100)
        await client.delete(KEY)
        await eventually(lambda: engine.count("fundsvc_stream_regressions_total", partition="0"))
        await producer.append([listing("AAA"), *fills(range(1, 121))], per_message=1)
        await settled(ledger, 120)
        await eventually(lambda: engine.count("fundsvc_duplicates_total", symbol="AAA") == 100)


@pytest.mark.parametrize("restarts", [1, 2])
@pytest.mark.parametrize("deleted", [[5], [5, 6, 7], [1, 7]], ids=["one", "the last", "the first and the last"])
async def test_settled_messages_deleted_before_the_tail_was_lost_are_no_gap(
    config, client, producer, ledger, deleted, restarts
):
    """The stream is read again up to the message before the deleted ones. A later load must not take them for unsettled."""
    async with running(config):
        await producer.append([listing("AAA"), *fills(range(1, 10))], per_message=1)
        await settled(ledger, 9)
    messages = [key for key, _ in await client.xrange(KEY)]
    for number in deleted:
        await client.xdel(KEY, messages[number])
    left = [(key, fields) for key, fields in await client.xrange(KEY) if key < messages[min(set(deleted) - {1})]]
    async with client.pipeline(transaction=True) as pipeline:
        pipeline.delete(KEY)
        for key, fields in left:
            pipeline.xadd(KEY, fields, id=key)
        pipeline.execute_command("XSETID", KEY, messages[7], "ENTRIESADDED", 8, "MAXDELETEDID", messages[max(deleted)])
        await pipeline.execute()
    for _ in range(restarts):
        async with running(config) as engine:
            await eventually(lambda: ledger_at(ledger, left[-1][0]))
            assert not engine.count("fundsvc_partition_halted", partition="0")
    async with running(config) as engine:
        await producer.append(fills(range(6, 21)), per_message=1)
        await settled(ledger, 20)
        assert not engine.count("fundsvc_stream_gaps_total", partition="0")
    assert await ledger("SELECT count(*) FROM stream_gaps WHERE acknowledged_at IS NULL") == 0


async def ledger_at(ledger, message):
    return await ledger("SELECT last_id FROM partitions") == message.decode()


@pytest.mark.parametrize("first_id", ["1-1", "9999999999999-1"], ids=["ids behind the offset", "ids beyond the offset"])
async def test_stream_without_its_tail_is_read_from_the_start(config, client, producer, ledger, first_id):
    async with running(config):
        await producer.append([listing("AAA"), *fills(range(1, 101))], per_message=1)
        await settled(ledger, 100)
    await client.delete(KEY)
    await client.xadd(KEY, {"json": msgspec.json.encode(fills(range(51, 111)))}, id=first_id)
    async with running(config) as engine:
        await settled(ledger, 110)
        await eventually(lambda: engine.count("fundsvc_duplicates_total", symbol="AAA") == 50)
        assert engine.count("fundsvc_stream_regressions_total", partition="0") == 1
    async with running(config) as engine:
        await client.xadd(KEY, {"json": msgspec.json.encode(fills([111]))}, id=first_id.replace("-1", "-2"))
        await settled(ledger, 111)
        assert engine.count("fundsvc_stream_regressions_total", partition="0") == 0
        assert engine.count("fundsvc_duplicates_total", symbol="AAA") == 0


async def test_trimming_drops_old_messages_but_keeps_uncommitted_ones(config, client, producer, ledger, owner_connection):
    config = with_section(config, "engine", book_seconds=0.1)
    hasty = with_section(config, "stream", retention_hours=1e-9)
    async with running(config):
        await producer.append([listing("AAA"), *fills(range(1, 1000))], per_message=1)
        await settled(ledger, 999)
        await eventually(lambda: ledger("SELECT b.last_id = p.last_id FROM books b, partitions p"))
    offset = await ledger("SELECT last_id FROM partitions")
    source = Source(client, 0)
    async with owner_connection.transaction():
        await owner_connection.execute("LOCK TABLE entries IN SHARE MODE")
        await producer.append(fills(range(1000, 2000)), per_message=1)
        async with running(hasty):
            await eventually(lambda: shorter(source, 1999))
            left = await ids_in(source)
            assert left.index(offset) <= 100
            assert len(left) == left.index(offset) + 1001
    async with running(hasty):
        await settled(ledger, 1999)


async def test_stream_is_trimmed_by_size_up_to_the_offset_and_the_saved_books(config, client, producer, ledger):
    config = with_section(config, "engine", book_seconds=0.1)
    async with running(config):
        await producer.append([listing("AAA"), *fills(range(1, 1000))], per_message=1)
        await settled(ledger, 999)
        await eventually(lambda: ledger("SELECT b.last_id = p.last_id FROM books b, partitions p"))
    saved = await ledger("SELECT last_id FROM books")
    async with running(with_section(config, "engine", book_seconds=3600)) as engine:
        await producer.append(fills(range(1000, 1500)), per_message=1)
        await settled(ledger, 1499)
        assert engine.count("fundsvc_stream_bytes", partition="0") > 10_000
    bounded = with_section(config, "stream", retention_bytes=1)
    async with running(with_section(bounded, "engine", book_seconds=3600)) as engine:
        source = Source(client, 0)
        await eventually(lambda: shorter(source, 1500))
        left = await ids_in(source)
        assert left.index(saved) <= 100
        assert len(left) == left.index(saved) + 501
        assert engine.count("fundsvc_stream_retention_bytes") == 1


async def test_retention_uses_the_clock_of_the_stream_server(config, client, producer, ledger, monkeypatch):
    """The host's clock is 400 days ahead: no message is old, no round is late, and no policy event is from the future."""
    config = with_section(with_section(config, "engine", book_seconds=0.1), "adl", ack_seconds=0.3)
    dry = [listing("BBB"), Mark("BBB", "1000", TS), Position("BBB", "anna", -50, "2000", "90000000", TS), fill("BBB", 1, -5)]
    async with running(config):
        await producer.append([listing("AAA"), *fills(range(1, 1000)), *dry], per_message=1)
        await eventually(lambda: has_entries(ledger, 1000))
        await eventually(lambda: ledger("SELECT bool_and(b.last_id = p.last_id) FROM books b, partitions p"))
    ahead, now, now_ns = 400 * 86_400, time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: now() + ahead)
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + ahead * 1_000_000_000)
    other = msgspec.structs.replace(config.policy.default, rounds_max=7)
    async with running(with_section(config, "policy", default=other)) as engine:
        await eventually(lambda: ledger("SELECT max(version) = 2 FROM policies"))
        await eventually(lambda: engine.count("fundsvc_adl_announced_again_total", partition="0"))
        assert await client.xlen(KEY) >= 1004
        assert await ledger("SELECT count(*) FROM rejected") == 0
        assert await ledger("SELECT (round, state) = (1, 'open') FROM adl_orders WHERE symbol = 'BBB'")
        assert engine.count("fundsvc_stream_lag_seconds", partition="0") == 0


async def test_messages_after_a_gap_are_not_settled(config, client, producer, ledger):
    async with running(config):
        await producer.append([listing("AAA"), *fills(range(1, 11))], per_message=1)
        await settled(ledger, 10)
    await producer.append(fills(range(11, 31)), per_message=1)
    await client.xtrim(KEY, maxlen=10, approximate=False)
    async with running(config) as engine:
        await eventually(lambda: engine.count("fundsvc_partition_halted", partition="0"))
        assert await ledger("SELECT entry FROM funds") == 10
        assert await ledger("SELECT messages FROM stream_gaps") == 10
        # After the stream is deleted and everything is sent again, the gap needs no acknowledgement.
        await client.delete(KEY)
        await producer.append(fills(range(11, 31)), per_message=1)
        await settled(ledger, 30)


GONE = {
    "deleted in the middle": lambda client, ids: client.xdel(KEY, *ids[1:3]),
    "the first": lambda client, ids: client.xdel(KEY, ids[0]),
    "the last": lambda client, ids: client.xdel(KEY, ids[-1]),
    "all": lambda client, ids: client.xdel(KEY, *ids),
    "trimmed": lambda client, ids: client.xtrim(KEY, maxlen=1, approximate=False),
    "trimmed whole": lambda client, ids: client.xtrim(KEY, maxlen=0, approximate=False),
}
LEFT = {"deleted in the middle": 2, "the first": 3, "the last": 3, "all": 0, "trimmed": 1, "trimmed whole": 0}


async def with_a_gap(config, client, producer, ledger, how):
    """Four unsettled messages, some of which are missing."""
    async with running(config):
        await producer.append([listing("AAA"), *fills(range(1, 11))], per_message=1)
        await settled(ledger, 10)
    ids = (await producer.append(fills(range(11, 51)), per_message=10))[0]
    await GONE[how](client, ids)
    return ids


@pytest.mark.parametrize("how", GONE)
async def test_gap_is_reported_once_with_its_ids_and_skipped_with_continue(config, client, producer, ledger, how):
    config = with_section(config, "stream", on_gap="continue")
    await with_a_gap(config, client, producer, ledger, how)
    async with running(config) as engine:
        await settled(ledger, 10 + 10 * LEFT[how])
        await eventually(lambda: engine.count("fundsvc_stream_lag_messages", partition="0") == 0)
        await producer.append(fills([60]))
        await settled(ledger, 11 + 10 * LEFT[how])
        await eventually(lambda: engine.count("fundsvc_stream_lag_messages", partition="0") == 0)
        assert engine.count("fundsvc_partition_halted", partition="0") == 0
        assert engine.count("fundsvc_stream_gaps_total", partition="0") == 1
    async with running(config) as engine:
        await producer.append(fills([61]))
        await settled(ledger, 12 + 10 * LEFT[how])
        assert engine.count("fundsvc_stream_gaps_total", partition="0") == 0
    assert await ledger("SELECT messages FROM stream_gaps") == 4 - LEFT[how]
    assert await ledger("SELECT count(*) FROM stream_gaps") == 1


@pytest.mark.parametrize("how", GONE)
async def test_gap_halts_its_partition_until_acknowledged(config, client, producer, ledger, how):
    ids = await with_a_gap(config, client, producer, ledger, how)
    async with running(config) as engine:
        await eventually(lambda: engine.count("fundsvc_partition_halted", partition="0"))
        reason = await eventually(lambda: ledger("SELECT halted FROM partitions WHERE halted <> ''"))
        gone = {"deleted in the middle": ids[2], "the first": ids[0]}.get(how, ids[-1])
        assert gone in reason
        assert f"{4 - LEFT[how]} messages" in reason
        assert "fundsvc stream acknowledge-gap 0" in reason
        with pytest.raises(NotSettling, match="acknowledge-gap"):
            await engine.engine.check()
        assert await ledger("SELECT entry FROM funds") == 10
        (gap,) = (await fundsvc(config, "stream", "gaps", 0, "--json")).result
        assert (gap["messages"], gap["untilId"], gap["acknowledgedAt"]) == (4 - LEFT[how], gone, None)
        assert [(await fundsvc(config, "stream", "acknowledge-gap", 0)).code for _ in range(2)] == [0, 1]
        await settled(ledger, 10 + 10 * LEFT[how])
        await producer.append(fills([60]))
        await settled(ledger, 11 + 10 * LEFT[how])
        await eventually(lambda: engine.count("fundsvc_partition_halted", partition="0") == 0)
        await eventually(lambda: engine.count("fundsvc_stream_lag_messages", partition="0") == 0)
        assert engine.count("fundsvc_stream_gaps_total", partition="0") == 1


async def test_deletion_of_messages_at_run_time_is_a_gap(config, client, producer, ledger, owner_connection):
    async with running(config) as engine:
        await producer.append([listing("AAA"), *fills([1])])
        await settled(ledger, 1)
        async with owner_connection.transaction():
            await owner_connection.execute("LOCK TABLE entries IN SHARE MODE")
            ids = (await producer.append(fills(range(2, 60_002)), per_message=100))[0]
            await client.xdel(KEY, *ids[500:502])
        await eventually(lambda: ledger("SELECT halted <> '' FROM partitions"))
        assert await ledger("SELECT messages FROM stream_gaps") == 2
        assert await ledger("SELECT seq < 50002 FROM funds")
        async with open_pool(config.database.dsn, 1) as pool:
            await Gaps(pool, 0).acknowledge()
        await settled(ledger, 60_001 - 200)
        await eventually(lambda: engine.count("fundsvc_stream_lag_messages", partition="0") == 0)


async def test_messages_that_arrive_during_counting_are_not_part_of_the_gap(config, client, producer, ledger):
    async def append_on():
        for seq in count(10_000):
            await producer.append(fills([seq]))

    async with running(config):
        await producer.append([listing("AAA"), *fills([1])])
        await settled(ledger, 1)
    ids = (await producer.append(fills(range(2, 8_002)), per_message=1))[0]
    await client.xdel(KEY, *ids[4000:4005])
    appending = asyncio.create_task(append_on())
    async with running(config):
        await eventually(lambda: ledger("SELECT halted <> '' FROM partitions"))
        appending.cancel()
    assert await ledger("SELECT messages FROM stream_gaps") == 5


async def test_repeated_loads_within_an_acknowledged_gap_count_its_messages_once(
    config, client, producer, ledger, owner_connection
):
    """Each refused event reloads the partition; some of them are between the deleted messages."""
    await owner_connection.execute("ALTER TABLE entries ADD CHECK (seq < 100 OR seq % 3 > 0)")
    async with running(config):
        await producer.append([listing("AAA"), *fills(range(1, 11))])
        await settled(ledger, 10)
    ids = (await producer.append(fills(range(100, 140)), per_message=1))[0]
    gone = ids[:38:4]
    await client.xdel(KEY, *gone)
    assert (await fundsvc(config, "stream", "gaps", 0)).code == 0
    async with running(config) as engine:
        await eventually(lambda: ledger("SELECT halted <> '' FROM partitions"))
        assert (await fundsvc(config, "stream", "acknowledge-gap", 0)).code == 0
        left = [100 + place for place, one in enumerate(ids) if one not in gone]
        await settled(ledger, 10 + sum(seq % 3 > 0 for seq in left), 60)
        await eventually(lambda: engine.count("fundsvc_stream_lag_messages", partition="0") == 0)
        assert engine.count("fundsvc_stream_regressions_total", partition="0") == 0
    added = (await client.xinfo_stream(KEY))["entries-added"]
    assert await ledger("SELECT messages FROM partitions") == added


async def test_deletion_of_settled_messages_is_no_gap(config, client, producer, ledger):
    async with running(config) as engine:
        ids = (await producer.append([listing("AAA"), *fills(range(1, 11))], per_message=1))[0]
        await settled(ledger, 10)
        await client.xdel(KEY, *ids[2:5])
        await producer.append(fills([11]))
        await settled(ledger, 11)
        await client.xdel(KEY, ids[-1])
    async with running(config) as engine:
        await producer.append(fills([12]))
        await settled(ledger, 12)
        assert engine.count("fundsvc_stream_gaps_total", partition="0") == 0


@pytest.mark.parametrize("size", [1000, 200_000], ids=["small ones", "large ones"])
async def test_full_stream_server_recovers_by_trimming(config, client, producer, ledger, size):
    """An order is open, so the engine has a round to announce, but the server accepts no more data."""
    hasty = with_section(config, "stream", retention_hours=1e-9)
    async with running(with_section(config, "engine", book_seconds=0.1)):
        await producer.append([listing("AAA"), Mark("AAA", "1000", TS), Position("AAA", "anna", -10, "2000", "100", TS)])
        await producer.append_bodies(0, "json", [b" " * size + encode([fill("AAA", 1, 1)])] * (20_000_000 // size))
        await producer.append([fill("AAA", 2, -500)])
        await settled(ledger, 2)
        await eventually(lambda: ledger("SELECT b.last_id = p.last_id FROM books b, partitions p"))
        assert await ledger("SELECT state FROM adl_orders") == "open"
    await client.delete(announcement_key(0))
    try:
        used = (await client.info("memory"))["used_memory"]
        await client.config_set("maxmemory", used - 1_000_000)
        with pytest.raises(StreamFault):
            await producer.append([fill("AAA", 3, 1)])
        async with running(hasty):
            await eventually(lambda: announced(client))
            await producer.append([fill("AAA", 3, 1)])
            await settled(ledger, 3)
    finally:
        await client.config_set("maxmemory", 0)


async def announced(client):
    return await client.xlen(announcement_key(0))


@pytest.mark.parametrize("what", ["large messages", "unlisted", "listings"])
async def test_memory_is_bounded_for_all_legal_messages(config, client, producer, ledger, what):
    await producer.append([listing("AAA"), *fills([1])])
    if what == "large messages":
        events = [msgspec.json.encode(fill("AAA", seq, 1)) for seq in range(2, 10_002)]
        padding = b" " * ((1_500_000 - sum(map(len, events))) // len(events))
        body, number = b"[" + (b"," + padding).join(events) + b"]", 150
    elif what == "unlisted":
        body, number = encode([fill("NONE", seq, 1) for seq in range(10_000)]), 60
    else:
        body, number = encode([listing("AAA", notes="x" * 100_000)] * 15), 100
    for _ in range(number):
        await client.xadd(KEY, {"json": body})
    await producer.append(fills([20_000]))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fundsvc", "engine", env=environment_of(config), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        peak, done = 0, False
        while not done:
            peak = max(peak, psutil.Process(process.pid).memory_info().rss)
            done = await ledger("SELECT seq = 20000 FROM funds")
            await asyncio.sleep(0.02)
    finally:
        process.terminate()
        await process.wait()
    assert peak < 300_000_000


async def test_oversized_message_is_rejected_and_dropped_from_the_stream(quick, client, producer, ledger):
    body = b"[" + b"x" * 40_000_000
    async with running(quick) as engine:
        await producer.append([listing("AAA"), *fills([1])])
        with redis.Redis.from_url(quick.stream.url) as other:
            huge = other.xadd(KEY, {"json": body}).decode()
        await producer.append(fills([2]))
        await settled(ledger, 2)
        assert await ledger("SELECT (stream_id, reason, body) = ($1, 'too_large', $2) FROM rejected", huge, body[:1000])
        assert hashlib.sha256(body).hexdigest() in await ledger("SELECT detail FROM rejected")

        async def is_gone():
            return await client.xrange(KEY, huge, huge) == []

        await eventually(is_gone)
        await producer.append(fills([3]))
        await settled(ledger, 3)
        assert engine.count("fundsvc_stream_gaps_total", partition="0") == 0


async def test_message_with_many_rejections_keeps_the_epochs_of_two_engines(quick, producer, ledger):
    """Work that blocks the loop for longer than the lease must not move the partition between engines again and again."""
    async with running(quick) as first, running(quick) as second:
        await eventually(lambda: first.count("fundsvc_partition_owned") or second.count("fundsvc_partition_owned"))
        await producer.append([fill("NONE", seq, 1) for seq in range(1, 4001)], per_message=4000)
        await producer.append([listing("AAA"), *fills([1])])
        await settled(ledger, 1)
        assert await ledger("SELECT count(*) FROM rejected") == 4000
        assert await ledger("SELECT epoch FROM partitions") == 1


async def test_lease_survives_a_loop_that_is_blocked_longer_than_the_lease(quick, producer, ledger):
    async with running(quick):
        await producer.append([listing("AAA"), *fills([1])])
        await settled(ledger, 1)
        ends = time.monotonic() + 3 * LEASE_SECONDS
        while time.monotonic() < ends:
            sum(range(1000))
        await producer.append(fills([2]))
        await settled(ledger, 2)
        assert await ledger("SELECT lease_until > clock_timestamp() FROM partitions")
        assert await ledger("SELECT epoch FROM partitions") == 1


async def test_stuck_partition_loses_its_lease(quick, producer, ledger, monkeypatch):
    monkeypatch.setattr("fundsvc.engine.leases.STANDSTILL_SECONDS", 1.5)
    async with running(quick) as engine:
        await producer.append([listing("AAA"), *fills([1])])
        await settled(ledger, 1)
        await asyncio.sleep(2)
        assert await ledger("SELECT epoch FROM partitions") == 1, "an idle one takes steps"
        stuck = asyncio.Event()
        monkeypatch.setattr(Source, "read_with_state", lambda *_: stuck.wait())
        await producer.append(fills([2]))  # ends the wait for messages
        await eventually(lambda: ledger("SELECT lease_until < clock_timestamp() FROM partitions"))
        await eventually(lambda: not engine.count("fundsvc_partition_owned"))


@pytest.mark.parametrize("how", ["statement_timeout", "transaction_timeout"])
async def test_commit_that_exceeds_the_timeout_is_divided(quick, producer, ledger, owner_connection, how):
    """The server's timeout cancels large transactions; smaller batches must succeed."""
    name = await owner_connection.fetchval("SELECT current_database()")
    await owner_connection.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.002); RETURN NEW; END $$"
    )
    await owner_connection.execute("CREATE TRIGGER slow BEFORE INSERT ON entries FOR EACH ROW EXECUTE FUNCTION slow()")
    await owner_connection.execute(f"ALTER DATABASE {name} SET {how} = '500ms'")
    await producer.append([listing("AAA"), *fills(range(1, 601))], per_message=600)
    async with running(quick) as engine:
        await settled(ledger, 600, 60)
        assert engine.count("fundsvc_faults_total", part="database") < 30
        assert await ledger("SELECT count(*) FROM rejected") == 0


async def ids_in(source):
    ids = ["0-0"]
    while messages := await source.read(ids[-1]):
        ids += [message.stream_id for message in messages]
    return ids[1:]


async def shorter(source, length):
    return (await source.state()).length < length


def nested(depth):
    value = {}
    for _ in range(depth):
        value = {"x": value}
    return value


SPECIFICATION = {"settleCurrency": "USDT", "multiplier": 1, "isInverse": False}
POISON = [
    {"json": b""},
    {"json": b"["},
    {"json": b"\xff\xfe\x00"},
    {"json": b"[" * 100_000},
    {"json": b'{"type":"fill"}'},
    {"json": b'{"type":"fill","symbol":"AAA","seq":1e30}'},
    {"json": b'[1,null,"x",{"type":"\\u0000"}]'},
    {"json": msgspec.json.encode(Listing(SPECIFICATION | {"symbol": "P\0"}))},
    {
        "json": b'{"type":"contract","contract":'
        b'{"symbol":"P","settleCurrency":"USDT","multiplier":1e999999999,"isInverse":false}}'
    },
    {
        "json": b'{"type":"contract","contract":{"symbol":"P1","settleCurrency":"USDT","multiplier":1,"isInverse":false,'
        b'"maxPrice":1e999999999,"big":' + b"9" * 400 + b',"nul":"\\u0000","inf":1e999}}'
    },
    {"json": msgspec.json.encode(Listing(SPECIFICATION | {"symbol": "P2"} | nested(500)))},
    {"msgpack": b"\xc1"},
    {"msgpack": b"\xdd\xff\xff\xff\xff"},
    {
        "msgpack": msgspec.msgpack.encode(
            Listing(
                SPECIFICATION
                | {
                    "symbol": "P3",
                    "ext": msgspec.msgpack.Ext(5, b"x"),
                    "raw": b"\xff",
                    "keys": {(1, 2): 3},
                    "nan": float("nan"),
                }
            )
        )
    },
    {"nothing": b"of ours"},
    {b"\xff\x00": b"\xff"},
    {"json": b"{}", "replayOf": "\x00-\x00/1"},
    {"json": b"{}", "replayOf": b"\xff\xff"},
    {"json": b"{}", "replayOf": "1-0/99999999999999999999"},
    {"json": msgspec.json.encode([fill("NONE", 1, 1), fill("AAA", 2**63 - 1, 1), Mark("AAA", "-1", 1)])},
    {"json": msgspec.json.encode(fill("AAA\0", 1, 1))},
    {"json": msgspec.json.encode(msgspec.structs.replace(fill("AAA", 5, 1), account="\0", trade_id="\ufffe"))},
    {"json": msgspec.json.encode(msgspec.structs.replace(fill("AAA", 5, 1), lots=2**63 - 1, price="9223372.036854775807"))},
    {"json": msgspec.json.encode([Position("AAA", "\0", -(2**63), "x", "y", 0), AdlFill("AAA", 1, 1, "\0", 1, 1)])},
    {"json": msgspec.json.encode(Rate("\0", "0", 0))},
]


async def test_poison_message_does_not_stop_the_stream(config, client, producer, ledger):
    async with running(config) as engine:
        await producer.append([listing("AAA")])
        for number, fields in enumerate(POISON, 1):
            symbol = f"OK{number}"
            await client.xadd(KEY, fields)
            await producer.append([listing(symbol), fill(symbol, 1, 1)])
            await eventually(lambda symbol=symbol: ledger("SELECT 1 FROM entries WHERE symbol = $1", symbol), 5)
        assert not engine.task.done()
        assert engine.count("fundsvc_faults_total") == 0
        assert await ledger("SELECT count(*) FROM rejected") >= len(POISON) - 4


@contextmanager
def frozen(servers, server):
    """A server that neither answers nor closes its connections."""
    members = [server.process, *server.process.children(recursive=True)]
    try:
        to_each(members, psutil.Process.suspend)
        yield
    finally:
        to_each(members, psutil.Process.resume)


def to_each(processes, act):
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # the backend ends when its client disconnects
            act(process)


@contextmanager
def stopped(servers, server):
    server.kill()
    try:
        yield
    finally:
        servers.start()


@pytest.mark.parametrize("part", ["postgres", "valkey"])
async def test_restart_of_a_server_loses_no_event(quick, client, producer, ledger, servers, part):
    async with running(quick) as engine:
        await producer.append([listing("AAA"), *fills(range(1, 5001))], per_message=10)
        await eventually(lambda: has_entries(ledger, 1))
        server = getattr(servers, part)
        await asyncio.to_thread(server.stop)
        label = {"postgres": "database", "valkey": "stream"}[part]
        await eventually(lambda: engine.count("fundsvc_faults_total", part=label))
        await asyncio.to_thread(servers.start)
        await eventually(lambda: reachable(client))
        await producer.append(fills(range(5001, 5011)))
        await settled(ledger, 5010)


async def reachable(client):
    """Whether the client has detected the lost connection and opened another."""
    try:
        with faults():
            return await client.ping()
    except StreamFault:
        return False


async def test_repeatedly_terminated_database_sessions_lose_no_event(quick, producer, ledger, owner_connection):
    async with running(quick) as engine:
        await producer.append([listing("AAA")])
        for start in range(1, 20_001, 2000):
            await producer.append(fills(range(start, start + 2000)), per_message=10)
            await eventually(lambda start=start: has_entries(ledger, start))
            assert await owner_connection.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name LIKE 'fundsvc engine %'"
            )
        await settled(ledger, 20_000)
        assert engine.count("fundsvc_faults_total", part="database") > 0


async def test_ownership_survives_a_lost_lease_connection(config, producer, ledger, owner_connection):
    async with running(config) as engine:
        await producer.append([listing("AAA"), *fills([1])])
        await settled(ledger, 1)
        await owner_connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'fundsvc leases'"
        )
        await eventually(lambda: engine.count("fundsvc_faults_total", part="database"))
        await producer.append(fills([2]))
        await settled(ledger, 2)
        await eventually(lambda: ledger("SELECT lease_until > now() + interval '1 second' FROM partitions"))
        assert await ledger("SELECT epoch FROM partitions") == 1


async def test_replaced_owner_stops_reading_and_can_own_the_partition_again(quick, producer, ledger, owner_connection):
    async with running(quick) as engine:
        await producer.append([listing("AAA"), *fills([1])])
        await settled(ledger, 1)
        await owner_connection.execute(
            "UPDATE partitions SET owner = 'other', epoch = epoch + 1, lease_until = clock_timestamp() + interval '1 second'"
        )
        await eventually(lambda: not engine.count("fundsvc_partition_owned"))
        await producer.append(fills([2]))
        await settled(ledger, 2)
        assert engine.count("fundsvc_partition_epoch", partition="0") == 3


@pytest.mark.parametrize("table", ["funds", "partitions", "entries"])
async def test_engine_retries_until_a_missing_table_exists(quick, producer, ledger, owner_connection, table):
    async with running(quick) as engine:
        await producer.append([listing("AAA"), *fills([1])])
        await settled(ledger, 1)
        await owner_connection.execute(f"ALTER TABLE {table} RENAME TO renamed")
        await producer.append(fills([2]))
        await eventually(lambda: engine.count("fundsvc_faults_total", part="database"))
        with pytest.raises(NotSettling):
            await engine.engine.check()
        await owner_connection.execute(f"ALTER TABLE renamed RENAME TO {table}")
        await settled(ledger, 2)
        await eventually(lambda: is_well(engine))


async def is_well(engine):
    try:
        await engine.engine.check()
    except NotSettling:
        return False
    return True


@pytest.mark.parametrize("how", ["database", "reload", "rights", "transaction_timeout", "schema"])
async def test_engine_recovers_from_changes_of_the_database_by_an_operator(quick, producer, ledger, owner_connection, how):
    """Reads continue meanwhile, no event is lost, and settlement resumes without help."""
    name = await owner_connection.fetchval("SELECT current_database()")
    change, back = {
        "database": (f"ALTER DATABASE {name} SET default_transaction_read_only = on", f"ALTER DATABASE {name} RESET ALL"),
        "reload": ("ALTER SYSTEM SET default_transaction_read_only = on", "ALTER SYSTEM RESET default_transaction_read_only"),
        "rights": ("REVOKE INSERT ON entries FROM fundsvc_service", "GRANT INSERT ON entries TO fundsvc_service"),
        "transaction_timeout": (
            f"ALTER DATABASE {name} SET transaction_timeout = '1ms'",
            f"ALTER DATABASE {name} RESET ALL",
        ),
        "schema": ("REVOKE USAGE ON SCHEMA public FROM public", "GRANT USAGE ON SCHEMA public TO public"),
    }[how]
    async with running(quick) as engine:
        await producer.append([listing("AAA"), *fills([1])])
        await settled(ledger, 1)
        await owner_connection.execute("SET default_transaction_read_only = off")
        await owner_connection.execute("SET transaction_timeout = 0")
        await change_for_all(owner_connection, change)
        await producer.append(fills([2]))
        await eventually(lambda: engine.count("fundsvc_faults_total", part="database"))
        await asyncio.sleep(1)
        assert not engine.task.done()
        await change_for_all(owner_connection, back)
        await producer.append(fills([3]))
        await settled(ledger, 3)
        await eventually(lambda: is_well(engine))
        assert engine.count("fundsvc_partition_halted", partition="0") == 0
        assert await ledger("SELECT count(*) FROM rejected") == 0


async def change_for_all(connection, statement):
    """Changes a setting and terminates the sessions that began before."""
    await connection.execute(statement)
    await connection.execute("SELECT pg_reload_conf()")
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'fundsvc%' AND pid <> pg_backend_pid()"
    )


@pytest.mark.parametrize("right", ["xread", "xinfo", "xtrim", "xadd", "type"])
async def test_engine_recovers_from_changes_of_the_stream_by_an_operator(quick, client, producer, ledger, right):
    async with running(quick) as engine:
        await producer.append([listing("AAA"), *fills([1])])
        await settled(ledger, 1)
        if right == "type":
            await client.rename(KEY, "away")
            await client.set(KEY, "no stream")
        else:
            await client.execute_command("ACL", "SETUSER", "default", f"-{right}")
        if right in {"xread", "xinfo", "type"}:
            await eventually(lambda: engine.count("fundsvc_faults_total", part="stream"))
        await asyncio.sleep(1)
        assert not engine.task.done()
        if right == "type":
            await client.rename("away", KEY)
        else:
            await client.execute_command("ACL", "SETUSER", "default", f"+{right}")
        await producer.append(fills([2]))
        await settled(ledger, 2)
        await eventually(lambda: is_well(engine))


@pytest.mark.parametrize("partitions", [2])
@pytest.mark.parametrize("how", ["type", "rights"])
async def test_invalid_stream_key_affects_only_its_partition(quick, client, producer, ledger, how):
    first, other = (next(symbol for symbol in SYMBOLS if partition_of(symbol, 2) == number) for number in range(2))
    async with running(quick) as engine:
        await producer.append([listing(first), listing(other), fill(first, 1, 1), fill(other, 1, 1)])
        await settled(ledger, 2)
        if how == "type":
            await client.rename(KEY, "{0}away")
            await client.set(KEY, "no stream")
        else:
            await client.execute_command("ACL", "SETUSER", "default", "resetkeys", "~{0}away", f"~{stream_key(1)}*", "~*1}:adl")
        try:
            await eventually(lambda: engine.count("fundsvc_faults_total", part="stream"))
            await producer.append([fill(other, 2, 1)])
            await settled(ledger, 3)
            with pytest.raises(NotSettling, match=r"^partition 0: [^;]+$"):
                await engine.engine.check()
            assert not engine.task.done()
            assert engine.count("fundsvc_partition_halted") == 0
        finally:
            if how == "type":
                await client.rename("{0}away", KEY)
            else:
                await client.execute_command("ACL", "SETUSER", "default", "allkeys")
        await producer.append([fill(first, 2, 1)])
        await settled(ledger, 4)
        await eventually(lambda: is_well(engine))


async def test_engine_retries_until_a_missing_database_exists(quick, producer, ledger, owner_connection, servers):
    """The database is renamed (3D000), as during a restore."""
    name = await owner_connection.fetchval("SELECT current_database()")
    async with running(quick) as engine:
        await producer.append([listing("AAA"), *fills([1])])
        await settled(ledger, 1)
        async with administrator(servers) as connection:
            await owner_connection.close()
            await rename_database(connection, name, f"{name}_away")
            try:
                await producer.append(fills([2]))
                await eventually(lambda: engine.count("fundsvc_faults_total", part="database") > 1)
                await asyncio.sleep(1)
                assert not engine.task.done()
            finally:
                await rename_database(connection, f"{name}_away", name)
        await settled(ledger, 2)
        await eventually(lambda: is_well(engine))
        assert engine.count("fundsvc_partition_halted", partition="0") == 0


async def rename_database(connection, name, other):
    """Terminates the database's sessions repeatedly, until it can be renamed."""
    while True:
        await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        with suppress(asyncpg.ObjectInUseError):
            await connection.execute(f"ALTER DATABASE {name} RENAME TO {other}")
            return


@pytest.mark.parametrize("rights", ["SELECT ON funds", "UPDATE ON partitions", "INSERT ON entries", "INSERT ON rejected"])
async def test_engine_retries_until_revoked_rights_are_granted(quick, producer, ledger, owner_connection, rights):
    async with running(quick) as engine:
        await producer.append([listing("AAA"), *fills([1])])
        await settled(ledger, 1)
        await owner_connection.execute(f"REVOKE {rights} FROM fundsvc_service")
        await change_for_all(owner_connection, "SELECT 1")
        await producer.append([fill("NONE", 1, 1), *fills([2])])
        await eventually(lambda: engine.count("fundsvc_faults_total", part="database"))
        assert not engine.task.done()
        await owner_connection.execute(f"GRANT {rights} TO fundsvc_service")
        await settled(ledger, 2)
        await eventually(lambda: is_well(engine))
        assert await ledger("SELECT (count(*), max(reason)) = (1, 'unknown_symbol') FROM rejected")


@pytest.mark.parametrize("bad", [1, 2, 700, 1000])
async def test_event_that_only_the_database_refuses_is_rejected_alone(quick, producer, ledger, owner_connection, bad):
    await owner_connection.execute(f"ALTER TABLE entries ADD CHECK (trade_id <> 'trade-{bad}')")
    async with running(quick) as engine:
        await producer.append([listing("AAA"), *fills(range(1, 1001))], per_message=300)
        await eventually(lambda: ledger("SELECT true FROM rejected"), 30)
        await settled(ledger, 999)
        assert await ledger("SELECT reason FROM rejected") == "database_refused"
        assert "CheckViolationError" in await ledger("SELECT detail FROM rejected")
        assert f"trade-{bad}" in (await ledger("SELECT body FROM rejected")).decode()
        assert engine.count("fundsvc_partition_halted", partition="0") == 0


@pytest.mark.parametrize("per_message", [1, 150])
async def test_each_event_that_only_the_database_refuses_costs_two_loads(
    quick, producer, ledger, owner_connection, loads, per_message
):
    await owner_connection.execute("ALTER TABLE entries ADD CHECK (seq % 21 <> 0)")
    await producer.append([listing("AAA"), *fills(range(1, 421))], per_message=per_message)
    async with running(quick) as engine:
        await settled(ledger, 400, 60)
        await eventually(lambda: ledger("SELECT count(*) = 20 FROM rejected WHERE reason = 'database_refused'"))
        assert len(loads) <= 1 + 20 * 2 + 5
        assert engine.count("fundsvc_partition_halted", partition="0") == 0


async def test_refused_event_after_new_terms_is_rejected_with_its_neighbours(quick, producer, ledger, owner_connection, loads):
    """The events after such a listing are written with it, so the cause among them is unknown."""
    await owner_connection.execute("ALTER TABLE entries ADD CHECK (seq <> 2)")
    relisted = [listing("AAA"), Mark("AAA", "7", TS), listing("AAA", multiplier=7), *fills([1, 2, 3])]
    async with running(quick) as engine:
        await producer.append([*relisted, listing("BBB")], per_message=10)
        await producer.append(fills([4, 5]))
        await eventually(lambda: ledger("SELECT count(*) = 2 FROM entries WHERE seq > 3"))
        assert await ledger("SELECT array_agg(event_seq ORDER BY position) FROM rejected") == [1, 2, 3, None]
        assert await ledger("SELECT multiplier = 7 FROM contracts WHERE symbol = 'AAA'")
        assert len(loads) <= 5
        assert engine.count("fundsvc_partition_halted", partition="0") == 0


async def test_foreign_row_causes_rejection_of_the_conflicting_event(quick, producer, ledger, owner_connection):
    async with running(quick):
        await producer.append([listing("AAA"), *fills([1])])
        await settled(ledger, 1)
        await owner_connection.execute(
            "INSERT INTO contracts SELECT 'BBB', partition, settle_currency, settle_decimals, price_decimals, multiplier,"
            " is_inverse, specification FROM contracts"
        )
        await producer.append([listing("CCC"), *fills([2, 3])])
        await settled(ledger, 3)


@pytest.mark.parametrize("partitions", [2])
async def test_internal_error_halts_only_its_partition(quick, producer, ledger, monkeypatch):
    first, other = (next(symbol for symbol in SYMBOLS if partition_of(symbol, 2) == number) for number in range(2))
    monkeypatch.setattr("fundsvc.engine.attempts.HALTED_SECONDS_MIN", 0.1)
    broken = asyncio.Event()
    broken.set()

    def mistaken(event, contract):
        if broken.is_set():
            raise KeyError("mistaken")
        return check_mark(event, contract)

    monkeypatch.setattr("fundsvc.core.market.check_mark", mistaken)
    async with running(quick) as engine:
        await producer.append([listing(first), listing(other), fill(first, 1, 1), Mark(first, "1", TS), fill(first, 2, 1)])
        await eventually(lambda: engine.count("fundsvc_partition_halted", partition="0"))
        await producer.append([fill(other, 1, 1)])
        await eventually(lambda: ledger("SELECT entry FROM funds WHERE symbol = $1", other))
        assert engine.count("fundsvc_partition_halted", partition="1") == 0
        with pytest.raises(NotSettling, match="partition 0: KeyError"):
            await engine.engine.check()
        assert "KeyError" in await eventually(lambda: ledger("SELECT halted FROM partitions WHERE partition = 0"))
        broken.clear()
        await eventually(lambda: ledger("SELECT entry = 2 FROM funds WHERE symbol = $1", first))
        await eventually(lambda: ledger("SELECT halted = '' FROM partitions WHERE partition = 0"))
        assert engine.count("fundsvc_partition_halted", partition="0") == 0


async def test_failing_periodic_task_does_not_affect_settlement(quick, producer, ledger, owner_connection):
    async with running(quick) as engine:
        await producer.append([listing("AAA"), *fills([1])])
        await settled(ledger, 1)
        await owner_connection.execute("ALTER TABLE rollups RENAME TO renamed")
        async with owner_connection.transaction():
            await owner_connection.execute("LOCK TABLE renamed, targets")
            await producer.append(fills(range(2, 1001)))
            await settled(ledger, 1000)
        await owner_connection.execute("ALTER TABLE renamed RENAME TO rollups")
        await eventually(lambda: ledger("SELECT sum(fills) = 1000 FROM rollups"))
        assert engine.count("fundsvc_faults_total", part="database") == 0
        assert await ledger("SELECT epoch FROM partitions") == 1


@pytest.mark.parametrize("away", [frozen, stopped])
@pytest.mark.parametrize("part", ["postgres", "valkey"])
@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
async def test_engine_stops_within_three_seconds_without_its_servers(config, producer, ledger, servers, away, part, busy):
    engine = Running(config)
    await producer.append([listing("AAA"), *fills([1])])
    await settled(ledger, 1)
    with away(servers, getattr(servers, part)):
        if busy and part == "postgres":
            await producer.append(fills([2]))
        if busy and away is stopped:
            await eventually(lambda: engine.count("fundsvc_faults_total"))
        assert engine.count("fundsvc_partition_owned") == 1
        assert await engine.finish() < STOP_SECONDS_MAX


async def test_engine_stops_at_once_with_its_servers(config, producer, ledger):
    engine = Running(config)
    await producer.append([listing("AAA"), *fills(range(1, 3000))])
    await settled(ledger, 2999)
    assert await engine.finish() < 1.0
    assert await ledger("SELECT count(*) FROM partitions WHERE owner IS NULL") == 1
    assert await ledger("SELECT count(*) FROM engines") == 0


async def test_engine_waits_for_servers_that_start_later(config, producer, ledger, servers):
    servers.postgres.stop()
    try:
        engine = Running(config)
        await eventually(lambda: engine.count("fundsvc_faults_total", part="database") > 1)
    finally:
        servers.start()
    await producer.append([listing("AAA"), *fills([1])])
    await settled(ledger, 1)
    await engine.finish()


async def test_stopped_engine_leaves_no_connection(config, producer, ledger):
    await producer.append([listing("AAA"), *fills([1])])  # The producer's connection exists from here on.
    before = len(psutil.Process().net_connections("unix"))
    async with running(config):
        await settled(ledger, 1)
    await eventually(lambda: len(psutil.Process().net_connections("unix")) == before)
