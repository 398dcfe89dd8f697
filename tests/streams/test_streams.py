import asyncio
import hashlib
import signal
import socket
import subprocess
import tracemalloc
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest
import redis
from eventually import eventually
from ledgers import fill, listing
from ports import free_port
from redis.exceptions import DataError, ResponseError
from tcp_proxy import proxied

from fundsvc.config.settings import StreamConfig
from fundsvc.core.contracts import partition_of
from fundsvc.core.events import Mark, Rate
from fundsvc.local.servers import valkey_binary
from fundsvc.streams.client import StreamFault, faults, open_client, stream_key
from fundsvc.streams.idle import IdleStreams
from fundsvc.streams.producer import Producer
from fundsvc.streams.source import EMPTY, Source, StreamState, id_order
from fundsvc.streams.survey import Survey
from fundsvc.wire.codec import Message, decode

FILLS = [fill("AAA", seq, seq) for seq in range(1, 251)]
KEY = stream_key(0)


@pytest.fixture
def source(client):
    return Source(client, 0)


@pytest.fixture
def producer(client):
    return Producer(client, 1)


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("per_message", [1, 100])
async def test_source_returns_events_in_order_of_append(source, producer, codec, per_message):
    ids = await producer.append(FILLS, codec, per_message)
    messages = await read_all(source)
    assert [message.stream_id for message in messages] == ids[0]
    assert sorted(ids[0], key=id_order) == ids[0]
    assert {message.codec for message in messages} == {codec}
    assert [event for message in messages for event in decode(message)] == FILLS
    assert max(len(decode(message)) for message in messages) == per_message


async def read_all(source):
    messages = []
    while more := await source.read(messages[-1].stream_id if messages else "0-0"):
        messages += more
    return messages


async def test_read_continues_after_an_id_and_is_bounded(source, producer):
    ids = (await producer.append(FILLS, per_message=50))[0]
    assert [m.stream_id for m in await source.read("0-0", 2, 10)] == ids[:2]
    assert [m.stream_id for m in await source.read(ids[1], 2, 10)] == ids[2:4]
    assert await source.read(ids[-1], 2, 10) == []


async def test_blocking_read_returns_a_new_message_at_once(source, producer, client):
    waiting = asyncio.create_task(source.read("0-0", 10, 60_000))
    await eventually(lambda: blocked_clients(client))
    ids = await producer.append(FILLS[:1])
    assert [m.stream_id for m in await asyncio.wait_for(waiting, 5)] == ids[0]


async def blocked_clients(client):
    return (await client.info("clients"))["blocked_clients"]


async def test_state_describes_the_stream(source, producer, client):
    assert await source.state() == EMPTY
    assert await source.read_with_state("0-0", 1) == ([], EMPTY)
    ids = (await producer.append(FILLS, per_message=50))[0]
    assert await source.state() == StreamState(ids[-1], 5, 5, ids[0], ids[-1], "0-0")
    await client.xdel(KEY, ids[-1])
    messages, state = await source.read_with_state(ids[0], 1)
    assert state == await source.state() == StreamState(ids[-1], 5, 4, ids[0], ids[-2], ids[-1])
    assert [message.stream_id for message in messages] == ids[1:-1]


async def test_trim_never_deletes_messages_that_are_not_below(source, producer):
    ids = (await producer.append(FILLS * 4, per_message=1))[0]
    for keep in (0, 1, 99, 100, 101, 512, 999):
        await source.trim(ids[keep])
        left = [message.stream_id for message in await read_all(source)]
        assert left == ids[len(ids) - len(left) :]
        assert len(left) >= len(ids) - keep
    assert len(left) < 200
    assert await source.state() == StreamState(ids[-1], 1000, len(left), left[0], ids[-1], "0-0")


async def test_one_trim_deletes_more_than_the_server_deletes_at_once(source, client):
    async with client.pipeline(transaction=False) as pipeline:
        for number in range(1, 25_001):
            pipeline.xadd(KEY, {"json": b"{}"}, id=f"{number}-1")
        await pipeline.execute()
    await source.trim("24001-1")
    assert 1_000 <= (await source.state()).length < 1_100


async def test_stream_shrinks_to_its_limit_but_keeps_what_is_needed(source, client):
    async with client.pipeline(transaction=False) as pipeline:
        for number in range(1, 4_001):
            pipeline.xadd(KEY, {"json": b"x" * 1000}, id=f"{number}-1")
        await pipeline.execute()
    size = await source.bytes()
    assert 4_000_000 < size < 6_000_000
    assert await source.shrink("3001-1", 2 * size) == size
    assert (await source.state()).length == 4_000
    assert await source.shrink("3001-1", size // 2) <= size * 0.55
    assert 1_800 < (await source.state()).length <= 2_100
    assert await source.shrink("3001-1", 1_000) > 1_000_000
    state = await source.state()
    assert 1_000 <= state.length < 1_100
    assert int(state.first_id.split("-")[0]) <= 3001


async def test_stream_that_does_not_exist_has_no_bytes(source):
    assert await source.bytes() == 0
    assert await source.shrink("7-0", 10) == 0


@pytest.mark.parametrize("small", [0, 2000], ids=["from the first read on", "after small ones"])
async def test_read_is_bounded_by_bytes_after_messages_of_any_size(client, producer, small):
    source = Source(client, 0, message_bytes_max=5_000_000)
    await producer.append_bodies(0, "json", [b"{}"] * small)
    after = "0-0"
    while messages := await source.read(after):
        after = messages[-1].stream_id
    for _ in range(15):
        await producer.append_bodies(0, "json", [b"x" * 1_500_000] * 4)
    tracemalloc.start()
    try:
        sizes = []
        while messages := await source.read(after, 1000):
            sizes.append(sum(len(message.body) for message in messages))
            after = messages[-1].stream_id
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()
    assert sum(sizes) >= 60 * 1_500_000
    assert max(sizes) <= 16_000_000
    assert len(sizes) < 60


@pytest.mark.parametrize("size", [1_000_001, 20_000_000])
async def test_oversized_message_is_reduced_to_its_beginning(client, producer, size):
    body = b"x" * size
    await producer.append_bodies(0, "json", [b"{}", body, b"{}"])
    source = Source(client, 0, message_bytes_max=1_000_000)
    _, large, _ = await read_all(source)
    assert large.body == body[:1000]
    assert hashlib.sha256(body).hexdigest() in large.too_large


HUGE = 60_000_000
HUGE_MESSAGES = {
    "alone": {"json": b"x" * HUGE},
    "msgpack": {"msgpack": b"x" * HUGE},
    "a replay": {"json": b"x" * HUGE, "replayOf": "1-1/0"},
    "another field": {"xml": b"x" * HUGE},
    "several fields": {"json": b"{}", "b": b"x" * HUGE, "c": b"y" * (HUGE // 10)},
    "a long name": {b"x" * HUGE: b"{}"},
    "many fields": {f"field {number}": b"x" * 10 for number in range(300_000)},
}


@pytest.mark.parametrize(("how", "method"), [*((how, "read") for how in HUGE_MESSAGES), ("alone", "read_with_state")])
async def test_huge_message_is_never_completely_in_memory(config, client, producer, how, method):
    fields = HUGE_MESSAGES[how]
    (first,) = await producer.append_bodies(0, "json", [b"{}"])
    huge = add(config, fields)
    (last,) = await producer.append_bodies(0, "json", [b"{}"])
    source = Source(client, 0, message_bytes_max=1_000_000)
    found, after = [], "0-0"
    tracemalloc.start()
    try:
        while len(found) < 3:
            found += await source.read(after) if method == "read" else (await source.read_with_state(after))[0]
            after = found[-1].stream_id
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()
    assert [message.stream_id for message in found] == [first, huge, last]
    assert [bool(message.too_large) for message in found] == [False, True, False]
    assert len(found[1].body) <= 1000
    if how != "many fields":
        assert f"{HUGE} bytes, sha256 {hashlib.sha256(b'x' * HUGE).hexdigest()}" in found[1].too_large
    assert found[1].replay_of == fields.get("replayOf", "")
    if how in {"alone", "msgpack", "a replay"}:
        assert (found[1].codec, found[1].body) == (next(iter(fields)), b"x" * 1000)


def add(config, fields):
    """Adds a message through a client without a time limit."""
    with redis.Redis.from_url(config.stream.url) as client:
        return client.xadd(KEY, fields).decode()


@pytest.mark.parametrize("place", ["first", "last"])
async def test_huge_message_affects_neither_other_messages_nor_the_state(config, client, producer, place):
    """The state of a stream contains its first and its last message."""
    source = Source(client, 0, message_bytes_max=5_000_000)
    body = b"x" * 4_900_000
    for huge in (True, False) if place == "first" else (False, True):
        if huge:
            oversized = add(config, {"json": b"y" * 40_000_000})
        else:
            (large,) = await producer.append_bodies(0, "json", [body])
    ids = sorted([large, oversized], key=id_order)
    tracemalloc.start()
    try:
        state = await source.state()
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()
    assert state == StreamState(ids[1], 2, 2, ids[0], ids[1], "0-0")
    found, after = [], "0-0"
    while len(found) < 2:
        messages, looked = await source.read_with_state(after)
        assert looked == state
        found += messages
        after = found[-1].stream_id
    assert next(message for message in found if message.stream_id == large) == Message(large, "json", body)
    await source.drop_oversized("0-0")
    assert await source.state() == state
    await source.drop_oversized(oversized)
    assert await source.state() == StreamState(ids[1], 2, 1, large, large, oversized)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"json": b"{}"}, Message("1-1", "json", b"{}")),
        ({"msgpack": b"\x80"}, Message("1-1", "msgpack", b"\x80")),
        ({"json": b""}, Message("1-1", "json", b"")),
        ({"json": b"{}", "replayOf": "7-7/3"}, Message("1-1", "json", b"{}", "7-7/3")),
        ({"json": b"{}", "replayOf": b"\xff/3"}, Message("1-1", "json", b"{}", "\ufffd/3")),
    ],
)
async def test_message_has_codec_and_body_of_its_field(source, client, fields, expected):
    await client.xadd(KEY, fields, id="1-1")
    assert await source.read("0-0", 1, 10) == [expected]


@pytest.mark.parametrize(
    "fields",
    [
        [b"xml", b"<a/>"],
        [b"", b""],
        [b"JSON", b"{}"],
        [b"\xff\x00", b"\xff"],
        [b"json", b"{}", b"more", b"{}"],
        [b"json", b"{}", b"msgpack", b"\x80"],
        [b"replayOf", b"7-7/3", b"json", b"{}"],
        [b"json", b"{}", b"replayOf", b"7-7/3", b"x", b"y"],
    ],
)
async def test_message_with_other_fields_has_no_codec_and_keeps_them(source, client, fields):
    await client.execute_command("XADD", KEY, "1-1", *fields)
    (message,) = await source.read("0-0", 1, 10)
    assert (message.stream_id, message.codec, message.replay_of) == ("1-1", "", "")
    assert msgspec.msgpack.decode(message.body) == fields


async def test_producer_routes_contracts_to_their_partition_and_rates_to_all(client):
    symbols = [f"SYMBOL{number}" for number in range(20)]
    events = [event for symbol in symbols for event in (listing(symbol), fill(symbol, 1, 1), Mark(symbol, "1", 1))]
    ids = await Producer(client, 4).append([*events, Rate("XBT", "100", 1)])
    assert set(ids) == {0, 1, 2, 3}
    for partition in range(4):
        messages = await Source(client, partition).read("0-0", 100, 10)
        found = [event for message in messages for event in decode(message)]
        assert found[-1] == Rate("XBT", "100", 1)
        assert [event for event in events if home_of(event) == partition] == found[:-1]


def home_of(event):
    return partition_of(event.contract["symbol"] if hasattr(event, "contract") else event.symbol, 4)


async def test_replay_names_the_rejected_event(source, producer):
    await producer.append_replay(0, "json", b"{}", "5-0/3")
    (message,) = await source.read("0-0", 1, 10)
    assert (message.codec, message.body, message.replay_of) == ("json", b"{}", "5-0/3")


@contextmanager
def valkey(directory, *arguments):
    """A separate server in a directory, for tests that stop or break it."""
    with (Path(directory) / "log").open("ab") as log:
        process = subprocess.Popen([valkey_binary(), *map(str, arguments)], cwd=directory, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def answer(port, *command):
    """Returns a server's reply to a command; None while it does not listen."""
    with redis.Redis(port=port) as connection, suppress(redis.ConnectionError):
        return connection.execute_command(*command)


async def check_streams(config):
    async with open_client(config) as client:
        producer, source = Producer(client, 4), Source(client, partition_of("AAA", 4))
        await eventually(lambda: reachable(source))
        for codec in ("json", "msgpack"):
            await producer.append([Rate("XBT", "1", 1), *FILLS], codec, per_message=10)
        messages = await read_all(source)
        fills = [event for message in messages for event in decode(message) if not isinstance(event, Rate)]
        assert fills == FILLS * 2
        assert await source.read(messages[-1].stream_id, 10, 10) == []
        first, last = messages[0].stream_id, messages[-1].stream_id
        state = StreamState(last, len(messages), len(messages), first, last, "0-0")
        survey = Survey(client)
        survey.add(source)
        await survey.run()
        assert survey.seen(source, 0.0).state == state
        async with IdleStreams(client) as idle:
            empty = stream_key(9)
            assert await asyncio.gather(idle.wait(source.key, "0-0"), idle.wait(empty, "0-0")) == [True, False]
        assert await source.state() == state
        assert await source.read_with_state(last, 10) == ([], state)
        await source.trim(messages[-1].stream_id)
        await producer.append_replay(partition_of("AAA", 4), "json", b"{}", "1-0/0")
        assert (await source.read(messages[-1].stream_id, 10, 10))[0].replay_of == "1-0/0"


async def reachable(source):
    try:
        await source.state()
    except StreamFault:
        return False
    return True


async def test_client_uses_the_master_of_the_sentinels(tmp_path):
    port, watch = free_port(), free_port()
    (tmp_path / "sentinel.conf").write_text(f"port {watch}\nsentinel monitor fundsvc 127.0.0.1 {port} 1\n")
    with valkey(tmp_path, "--port", port, "--save", ""), valkey(tmp_path, "sentinel.conf", "--sentinel"):
        await check_streams(StreamConfig(mode="sentinel", sentinels=(f"127.0.0.1:{watch}",)))


async def test_unknown_master_name_is_a_fault(tmp_path):
    watch = free_port()
    (tmp_path / "sentinel.conf").write_text(f"port {watch}\n")
    with valkey(tmp_path, "sentinel.conf", "--sentinel"):
        async with open_client(StreamConfig(mode="sentinel", sentinels=(f"127.0.0.1:{watch}",))) as client:
            with pytest.raises(StreamFault):
                await Source(client, 0).state()


@pytest.fixture
async def cluster(tmp_path):
    """A cluster of one node without slots: its process and its port."""
    port, bus = free_port(), free_port()
    with valkey(tmp_path, "--port", port, "--save", "", "--cluster-enabled", "yes", "--cluster-port", bus) as process:
        await eventually(lambda: answer(port, "PING"))
        yield process, port


async def test_cluster_keeps_each_partition_in_one_slot(cluster):
    _, port = cluster
    config = StreamConfig(mode="cluster", url=f"redis://127.0.0.1:{port}")
    async with open_client(config) as client:
        assert not await reachable(Source(client, 0)), "a cluster that is down is a fault"
    answer(port, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    await eventually(lambda: b"cluster_state:ok" in answer(port, "CLUSTER", "INFO"))
    await check_streams(config)
    async with open_client(config) as client:
        source = Source(client, 9, message_bytes_max=1_000_000)
        await Producer(client, 10).append_bodies(9, "json", [b"x" * 20_000_000])
        (message,) = await source.read("0-0")
        assert message.too_large
        assert (await source.state()).last_id == message.stream_id


async def test_dead_cluster_is_a_fault_at_once(cluster):
    process, port = cluster
    answer(port, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    async with open_client(StreamConfig(mode="cluster", url=f"redis://127.0.0.1:{port}")) as client:
        source = Source(client, 0)
        await eventually(lambda: reachable(source))
        waiting = asyncio.create_task(source.read("0-0", 10, 5000))
        await eventually(lambda: answer(port, "INFO", "clients")["blocked_clients"])
        process.kill()
        with pytest.raises(StreamFault):
            await asyncio.wait_for(waiting, 3)
        with pytest.raises(StreamFault):
            await asyncio.wait_for(source.read("0-0", 10, 10), 3)


async def test_refused_connection_is_a_fault():
    async with open_client(StreamConfig(url=f"redis://127.0.0.1:{free_port()}")) as client:
        with pytest.raises(StreamFault):
            await Source(client, 0).read("0-0", 1, 10)
    async with open_client(StreamConfig(url="unix:///nowhere/valkey.sock")) as client:
        with pytest.raises(StreamFault):
            await Producer(client, 1).append(FILLS)


async def test_server_death_during_a_blocking_read_is_a_fault_and_reading_resumes(tmp_path):
    port = free_port()
    async with open_client(StreamConfig(url=f"redis://127.0.0.1:{port}")) as client:
        source = Source(client, 0)
        with valkey(tmp_path, "--port", port) as process:
            await eventually(lambda: reachable(source))
            waiting = asyncio.create_task(source.read("0-0", 10, 60_000))
            await eventually(lambda: answer(port, "INFO", "clients")["blocked_clients"])
            process.kill()
            with pytest.raises(StreamFault):
                await asyncio.wait_for(waiting, 3)
        with valkey(tmp_path, "--port", port):
            await eventually(lambda: reachable(source))


async def test_loading_server_is_a_fault(tmp_path):
    port = free_port()
    with valkey(tmp_path, "--port", port):
        await eventually(lambda: answer(port, "PING"))
        answer(port, "MSET", *(word for number in range(3000) for word in (f"key{number}", "x" * 100)))
        answer(port, "SAVE")
    slowly = ("--key-load-delay", 2_000, "--loading-process-events-interval-bytes", 1024)
    with valkey(tmp_path, "--port", port, *slowly):
        await eventually(lambda: listens(port))
        async with open_client(StreamConfig(url=f"redis://127.0.0.1:{port}")) as client:
            with pytest.raises(StreamFault, match="Loading"):
                await Source(client, 0).state()
            with pytest.raises(StreamFault, match="Loading"):
                await Producer(client, 1).append(FILLS)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_silent_server_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr("fundsvc.streams.client.REPLY_SECONDS_MAX", 0.2)
    port = free_port()
    with valkey(tmp_path, "--port", port) as process:
        async with open_client(StreamConfig(url=f"redis://127.0.0.1:{port}")) as client:
            await eventually(lambda: reachable(Source(client, 0)))
            process.send_signal(signal.SIGSTOP)
            with pytest.raises(StreamFault):
                await asyncio.wait_for(Source(client, 0).read("0-0", 1, 10), 5)


async def test_full_server_replica_and_server_without_replicas_are_faults(tmp_path):
    port = free_port()
    with valkey(tmp_path, "--port", port):
        async with open_client(StreamConfig(url=f"redis://127.0.0.1:{port}")) as client:
            producer = Producer(client, 1)
            await eventually(lambda: reachable(Source(client, 0)))
            for setting, value, back in (("maxmemory", 1, 0), ("min-replicas-to-write", 1, 0)):
                answer(port, "CONFIG", "SET", setting, value)
                with pytest.raises(StreamFault):
                    await producer.append(FILLS)
                with pytest.raises(StreamFault):
                    await producer.append_replay(0, "json", b"{}", "1-0/0")
                answer(port, "CONFIG", "SET", setting, back)
            answer(port, "REPLICAOF", "127.0.0.1", free_port())
            with pytest.raises(StreamFault):
                await producer.append(FILLS)


async def test_key_of_another_type_is_a_fault(client, source):
    await client.set(KEY, "no stream")
    for call in (source.read("0-0", 1, 10), source.read_with_state("0-0", 10), source.state()):
        with pytest.raises(StreamFault, match="WRONGTYPE"):
            await call


BODIES = [b"x" * 1000] * 2000


def length(port):
    return answer(port, "XLEN", KEY)


@pytest.mark.parametrize("append", ["events", "bodies", "after"])
async def test_full_server_refuses_an_append_atomically(tmp_path, append):
    """The server has room for about half of the messages."""
    port = free_port()
    with valkey(tmp_path, "--port", port, "--save", ""):
        async with open_client(StreamConfig(url=f"redis://127.0.0.1:{port}")) as client:
            await eventually(lambda: reachable(Source(client, 0)))
            producer = Producer(client, 1)
            known = await producer.version(0)
            send = {
                "events": lambda: producer.append([fill("AAA", seq, seq) for seq in range(1, 20_002)]),
                "bodies": lambda: producer.append_bodies(0, "json", BODIES),
                "after": lambda: producer.append_after(known, 0, "json", BODIES),
            }[append]
            used = (await client.info("memory"))["used_memory"]
            for room in (0, 100_000, 500_000, 1_000_000):
                answer(port, "CONFIG", "SET", "maxmemory", used + room)
                try:
                    await send()
                except StreamFault:
                    assert length(port) == 0
                else:  # The server checks before the first message, and then accepts all.
                    assert length(port) >= 201
                    answer(port, "DEL", KEY)
            answer(port, "CONFIG", "SET", "maxmemory", 0)
            await send()
            assert length(port) == (201 if append == "events" else 2000)


async def test_interrupted_append_is_atomic(tmp_path):
    port = free_port()
    with valkey(tmp_path, "--port", port, "--save", ""):
        await eventually(lambda: answer(port, "PING"))
        async with proxied(port) as proxy, open_client(StreamConfig(url=f"redis://127.0.0.1:{proxy.port}")) as client:
            producer = Producer(client, 1)
            for kept in (1000, 100_000, 1_500_000):
                await producer.version(0)
                proxy.cut_after(kept)
                with pytest.raises(StreamFault):
                    await producer.append_bodies(0, "json", BODIES)
                assert length(port) == 0
            await producer.append_bodies(0, "json", BODIES)
            assert length(port) == 2000


@pytest.mark.parametrize("mode", ["single", "cluster"])
@pytest.mark.parametrize("fsync", [True, False])
async def test_append_waits_for_replicas_and_the_disk(tmp_path, mode, fsync):
    port, bus = free_port(), free_port()
    cluster = ("--cluster-enabled", "yes", "--cluster-port", bus) if mode == "cluster" else ()
    with valkey(tmp_path, "--port", port, "--save", "", *cluster):
        if mode == "cluster":
            await eventually(lambda: answer(port, "CLUSTER", "ADDSLOTSRANGE", 0, 16383))
            await eventually(lambda: b"cluster_state:ok" in answer(port, "CLUSTER", "INFO"))
        config = StreamConfig(mode=mode, url=f"redis://127.0.0.1:{port}", replicas_min=0 if fsync else 1, fsync=fsync)
        async with open_client(config) as client:
            await eventually(lambda: reachable(Source(client, 0)))
            producer = Producer.configured(client, config)
            reason = "WAITAOF" if fsync else "0 of 1 replicas"
            sends = (
                lambda: producer.append(FILLS[:1]),
                lambda: producer.append_replay(0, "json", b"{}", "1-0/0"),
                lambda: producer.append_after(standing, 0, "json", [b"{}"]),
            )
            for send in sends:
                standing = await producer.version(0)
                with pytest.raises(StreamFault, match=reason):
                    await send()
            if fsync:
                answer(port, "CONFIG", "SET", "appendonly", "yes")
                await producer.append(FILLS[:1])
                await producer.append_after(await producer.version(0), 0, "json", [b"{}"])


async def test_replica_confirms_an_append(tmp_path):
    port, other = free_port(), free_port()
    (tmp_path / "replica").mkdir()
    replica = ("--port", other, "--save", "", "--appendonly", "yes", "--replicaof", "127.0.0.1", port)
    with (
        valkey(tmp_path, "--port", port, "--save", "", "--appendonly", "yes"),
        valkey(tmp_path / "replica", *replica) as process,
    ):
        await eventually(lambda: (answer(other, "INFO", "replication") or {}).get("master_link_status") == "up", 30)
        config = StreamConfig(url=f"redis://127.0.0.1:{port}", replicas_min=1, fsync=True)
        async with open_client(config) as client:
            producer = Producer.configured(client, config)
            await producer.append(FILLS[:1])
            assert answer(other, "XLEN", KEY) == 1
            process.kill()
            with pytest.raises(StreamFault, match="0 of 1 replicas"):
                await producer.append(FILLS[:1])


@pytest.mark.parametrize("rights", ["-xread", "-xinfo", "-xtrim", "-xadd", "resetkeys"])
async def test_lost_rights_are_a_fault(tmp_path, rights):
    port = free_port()
    with valkey(tmp_path, "--port", port):
        await eventually(lambda: answer(port, "PING"))
        answer(port, "ACL", "SETUSER", "engine", "on", ">secret", "~*", "+@all")
        async with open_client(StreamConfig(url=f"redis://engine:secret@127.0.0.1:{port}")) as client:
            source, producer = Source(client, 0), Producer(client, 1)
            await producer.append(FILLS)
            answer(port, "ACL", "SETUSER", "engine", rights)
            calls = {"-xinfo": source.read_with_state, "-xtrim": source.trim, "-xadd": lambda _: producer.append(FILLS)}
            with pytest.raises(StreamFault):
                await calls.get(rights, source.read)("1-0")


def test_programming_error_is_not_a_fault():
    for mistake in (DataError("no"), ResponseError("wrong number of arguments for 'xread' command"), ValueError("no")):
        with pytest.raises(type(mistake)), faults():
            raise mistake
    for answered in ("OOM command not allowed", "MISCONF no disk", "LOADING", "CROSSSLOT Keys", "NOAUTH", "something new"):
        with pytest.raises(StreamFault), faults():
            raise ResponseError(answered)


def test_write_to_a_just_lost_connection_is_a_fault():
    with pytest.raises(StreamFault), faults():
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")
    with pytest.raises(RuntimeError, match="other"), faults():
        raise RuntimeError("other")


def test_stream_ids_compare_as_numbers():
    assert sorted(["10-2", "9-1", "10-10", "10"], key=id_order) == ["9-1", "10", "10-2", "10-10"]
