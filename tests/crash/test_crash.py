"""The short form of the crash test, and tests of stream driver faults that it found."""

import asyncio
import random
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fundsvc.api.ingest import NDJSON, read_submission
from fundsvc.config.settings import StreamConfig
from fundsvc.core.contracts import partition_of
from fundsvc.core.events import Reason, Rejection
from fundsvc.local.servers import EmbeddedServers
from fundsvc.streams.client import StreamFault, open_client
from fundsvc.streams.producer import Producer
from fundsvc.streams.source import Source
from tests.crash.exchange import write_escalations
from tests.crash.letters import CONTRACTS, Letter, element_of, listing_of, rejected_element, write_letters
from tests.crash.oracle import rejections
from tests.crash.poison import BEYOND_LETTERS, BY_STATE, POISON, Destination
from tests.crash.run import run_escalations, run_lost_tails, run_short
from tests.crash.verdict import reasons_for, reasons_of
from tests.crash.world import PARTITIONS

NOW_MS = 1_800_000_000_000


def test_ledger_after_disturbances_equals_the_undisturbed_one():
    asyncio.run(run_short(seed=1))


def test_letters_cover_every_rejection_reason():
    found = rejections(write_letters(1, PARTITIONS, 5000, None), PARTITIONS, NOW_MS)
    found += rejections(write_escalations(1, PARTITIONS, 5000), PARTITIONS, NOW_MS)
    assert found.keys() | {Reason.DATABASE_REFUSED, *BEYOND_LETTERS} == set(Reason)
    assert POISON.keys() | {*BY_STATE, *BEYOND_LETTERS} == set(Reason)


@pytest.mark.parametrize("reason", POISON)
def test_poison_is_rejected_with_its_reason_in_both_codecs(reason):
    chance, destination = random.Random(1), Destination(CONTRACTS[0][0], partition_of(CONTRACTS[0][0], PARTITIONS), PARTITIONS)
    letters = [
        Letter(
            destination.partition, field, [rejected_element(POISON[reason](chance, destination), destination.symbol, reason)]
        )
        for field in ("json", "msgpack")
        for _ in range(50)
    ]
    listed = Letter(destination.partition, "json", [element_of(listing_of(CONTRACTS[0]))])
    expected = {} if reason is Reason.DATABASE_REFUSED else {reason: len(letters)}
    assert rejections([listed, *letters], PARTITIONS, NOW_MS) == expected


async def test_invalid_lines_that_the_api_appends_are_recognized_as_garbage():
    """The API appends them as one message, including large ones."""
    chance, destination = random.Random(1), Destination(CONTRACTS[0][0], partition_of(CONTRACTS[0][0], PARTITIONS), PARTITIONS)
    kinds = (Reason.TOO_LARGE, Reason.TOO_LARGE, Reason.UNDECODABLE)
    invalid = [rejected_element(POISON[reason](chance, destination), destination.symbol, reason) for reason in kinds]
    letter = Letter(destination.partition, "json", [*invalid, element_of(listing_of(CONTRACTS[0]))])
    lines = [element.raw("json") for element in letter.elements]
    submission = await read_submission(NDJSON, b"\n".join(lines))
    assert [isinstance(event, Rejection) for event in submission.events] == [True, True, True, False]
    garbage = reasons_of([letter])
    assert reasons_for(b"\n".join(lines[:3]), garbage) >= {Reason.TOO_LARGE, Reason.UNDECODABLE}
    assert reasons_for(lines[0], garbage) >= {Reason.TOO_LARGE}
    assert not reasons_for(lines[3], garbage)
    assert not reasons_for(b"\n".join(lines), garbage)


def test_adl_after_disturbances_equals_the_undisturbed_one():
    asyncio.run(run_escalations(seed=2))


def test_adl_continues_after_streams_lost_messages():
    asyncio.run(run_lost_tails(seed=3))


async def test_producer_raises_stream_fault_after_its_idle_connection_was_lost():
    async with valkey() as (servers, client):
        producer = Producer(client, 1)
        await producer.append_bodies(0, "json", [b"[]"])
        servers.valkey.kill()
        await asyncio.to_thread(servers.start, postgres=False)  # meanwhile the loop receives the close of the connection
        with pytest.raises(StreamFault):
            await producer.append_bodies(0, "json", [b"[]"])
        assert await producer.append_bodies(0, "json", [b"[]"])


async def test_reader_ends_when_it_is_cancelled_at_any_moment():
    async def read_on(source):
        while True:
            await source.read("0-0", 1, 1)

    async with valkey() as (_, client):
        await Producer(client, 1).append_bodies(0, "json", [b"[]"])
        for turns_of_the_loop in range(100):
            reader = asyncio.create_task(read_on(Source(client, 0)))
            for _ in range(turns_of_the_loop):
                await asyncio.sleep(0)
            reader.cancel()
            _, still_reading = await asyncio.wait([reader], timeout=1)
            assert not still_reading, f"cancelled after {turns_of_the_loop} turns of the loop"


@asynccontextmanager
async def valkey():
    with tempfile.TemporaryDirectory(prefix="crash-") as directory:
        servers = EmbeddedServers(Path(directory))
        servers.start(postgres=False)
        try:
            async with open_client(StreamConfig(url=servers.stream_url)) as client:
                yield servers, client
        finally:
            servers.stop()
