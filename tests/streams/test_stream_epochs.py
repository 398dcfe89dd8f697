"""A stream that lost messages: every producer must read the cursor before it posts again."""

import shutil
from contextlib import ExitStack, asynccontextmanager

import pytest
from conftest import with_section
from escalations import LISTING, SYMBOL, TS
from eventually import eventually
from ledgers import fill
from ports import free_port
from test_ingest import world_of
from test_streams import answer, valkey
from tokens import bearer

from fundsvc.streams.client import StreamFault, faults
from fundsvc.wire.codec import encode


class Stream:
    """A Valkey server whose data the test removes."""

    def __init__(self, directory):
        self.port = free_port()
        self._directory = directory
        self._kept = directory.parent / "kept"
        self._running = ExitStack()

    def start(self):
        files = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
        self._running.enter_context(valkey(self._directory, "--port", self.port, *files))

    def keep(self):
        """Copies its current files."""
        shutil.copytree(self._directory, self._kept)

    def kill(self):
        self._running.close()

    def start_empty(self):
        shutil.rmtree(self._directory)
        self._directory.mkdir()
        self.start()

    def come_back_with_the_kept_file(self):
        shutil.rmtree(self._directory)
        shutil.copytree(self._kept, self._directory)
        self.start()

    async def is_up(self):
        return answer(self.port, "PING")


@pytest.fixture
def config(config):
    return with_section(config, "engine", lease_seconds=0.6)


@pytest.fixture
async def stream(tmp_path):
    (tmp_path / "valkey").mkdir()
    stream = Stream(tmp_path / "valkey")
    stream.start()
    await eventually(stream.is_up)
    yield stream
    stream.kill()


@asynccontextmanager
async def posting(config, stream):
    async with world_of(with_section(config, "stream", url=f"redis://127.0.0.1:{stream.port}")) as world:
        yield world


async def post(world, seqs, subject="engine-1", **query):
    headers = {**bearer("engine", sub=subject), "Content-Type": "application/json"}
    body = encode([fill(SYMBOL, seq, 1, TS + seq) for seq in seqs])
    async with world.http.post("/api/v1/ingest/events", data=body, headers=headers, params=query) as answered:
        return answered.status, await answered.json()


async def begin(world):
    """Settles two fills."""
    await world.data(encode([LISTING]))
    assert (await post(world, [1, 2]))[0] == 200
    assert await world.entries() == [(SYMBOL, 1), (SYMBOL, 2)]


async def restart_without_the_tail(world, stream):
    stream.kill()
    stream.come_back_with_the_kept_file()
    await eventually(stream.is_up)


async def restart_whole(world, stream):
    stream.kill()
    stream.start()
    await eventually(stream.is_up)


async def come_back_empty(world, stream):
    stream.kill()
    stream.start_empty()
    await eventually(stream.is_up)


async def delete(world, stream):
    answer(stream.port, "DEL", "fundsvc:{0}:in")


async def flush(world, stream):
    answer(stream.port, "FLUSHALL")


LOSSES = [restart_without_the_tail, restart_whole, come_back_empty, delete, flush]


@pytest.mark.parametrize("lose", LOSSES)
@pytest.mark.parametrize("noticed", [True, False])
async def test_lost_events_are_resent_after_the_cursor_was_read(config, stream, owner_connection, lose, noticed):
    async with posting(config, stream) as world:
        await begin(world)
        stream.keep()
        async with owner_connection.transaction():  # The lock prevents settlement of the fill before its loss.
            await owner_connection.execute("LOCK TABLE entries IN SHARE MODE")
            assert (await post(world, [3]))[0] == 200
            await lose(world, stream)
            if noticed:  # Another reader detects the lost connection first.

                async def answers():
                    return answer(stream.port, "PING") and await reaches(world)

                await eventually(answers)

            async def rejected():
                status, answer = await post(world, [4])
                assert status in {409, 503}
                return status == 409 and answer

            rejection = await eventually(rejected)
            assert rejection["code"] == "409000"
            assert "/api/v1/ingest/cursor" in rejection["msg"]
            assert (await post(world, [4]))[0] == 409, "the producer has not read the cursor"
            assert (await post(world, [4], "engine-2"))[0] == 409
            cursor = await world.cursor(sub="engine-1")
            assert [(row["symbol"], row["seq"]) for row in cursor["contracts"]] == [(SYMBOL, 2)]
            assert (await post(world, [4], "engine-2"))[0] == 409, "another producer has read the cursor"
            assert (await post(world, [3, 4]))[0] == 200
        assert await eventually(lambda: has(world, 4)) == [(SYMBOL, seq) for seq in range(1, 5)]
        assert await world.kept() == []


async def reaches(world):
    try:
        with faults():
            return await world.client.ping()
    except StreamFault:
        return False


async def has(world, number):
    entries = [tuple(row) for row in await world.pool.fetch("SELECT symbol, seq FROM entries ORDER BY entry")]
    return entries if len(entries) == number else None


async def test_producer_is_identified_by_its_id_or_states_its_epoch(config, stream):
    async with posting(config, stream) as world:
        await begin(world)
        assert (await world.cursor())["streamEpoch"] == 1
        assert (await post(world, [3], streamEpoch=1))[1]["data"]["streamEpoch"] == 1
        assert (await post(world, [4], streamEpoch=2))[0] == 409
        await restart_whole(world, stream)
        await eventually(lambda: reaches(world))
        cursor = await world.cursor(sub="engine-1")
        assert cursor["streamEpoch"] == 2
        (partition,) = cursor["partitions"]
        assert partition["runId"] == (await world.client.info("server"))["run_id"]
        assert (await post(world, [4], producerId="b"))[0] == 409
        assert (await post(world, [4], streamEpoch=1))[0] == 409
        assert (await post(world, [4], "engine-9", streamEpoch=2))[0] == 200
        assert (await post(world, [5]))[1]["data"]["streamEpoch"] == 2
    async with posting(config, stream) as other:
        assert (await post(other, [6], "engine-2"))[0] == 409, "a new process knows the epoch too"
        assert (await post(other, [6]))[0] == 200


async def test_stream_replaced_while_the_service_is_down_is_detected(config, stream):
    async with posting(config, stream) as world:
        await begin(world)
    await restart_whole(None, stream)
    async with posting(config, stream) as world:
        assert (await post(world, [3]))[0] == 409
        await world.cursor(sub="engine-1")
        assert (await post(world, [3]))[0] == 200


async def test_several_processes_record_one_change_once(config, stream):
    async with posting(config, stream) as world, posting(config, stream) as other:
        await begin(world)
        assert (await post(other, [3]))[0] == 200
        await restart_whole(world, stream)
        for one in (world, other):
            await eventually(lambda one=one: reaches(one))
            assert (await post(one, [4]))[0] == 409
        cursor = await world.cursor(sub="engine-1")
        assert cursor["streamEpoch"] == 2
        assert (await post(other, [4]))[0] == 200
