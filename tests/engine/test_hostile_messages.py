"""Events that the decoder and the core accept or reject can be written to PostgreSQL, also from damaged messages."""

import random

import pytest

from fundsvc.core.batch import Offset
from fundsvc.core.events import Event, Fill, Listing, Rejected, Rejection
from fundsvc.core.fund.chain import Entry
from fundsvc.core.fund.verification import Replay
from fundsvc.core.numbers import INT64_MAX
from fundsvc.core.partition import Partition
from fundsvc.store.leases import open_leases
from fundsvc.store.writer import contract_from, open_writer
from fundsvc.wire.codec import Contents, Message, decode, encode
from tests.fuzz.messages import TOKENS

CONTRACT = {"symbol": "S1", "settleCurrency": "USDT", "multiplier": "0.001", "isInverse": False, "list": ["a", 1.5, None]}


def messages(seed: int, count: int):
    """Legal messages, each damaged in up to three places."""
    chance = random.Random(seed)
    for number in range(1, count + 1):
        codec = chance.choice(["json", "msgpack"])
        body = bytearray(encode([event(chance, number * 10 + index) for index in range(chance.randint(1, 3))], codec))
        for _ in range(chance.randint(0, 3)):
            at = chance.randrange(len(body))
            body[at : at + chance.randint(0, 3)] = chance.choice(TOKENS)
        yield Message(f"{number}-0", codec, bytes(body))


def event(chance: random.Random, seq: int) -> Event:
    if chance.random() < 0.2:
        kept = CONTRACT | {"symbol": chance.choice(["S1", "S2é", "S3"]), "note": chance.choice(["", "😀", "\u202e", "\\"])}
        return Listing(kept)
    prices = ["1", "0.000000000001", "100.5", "9223372.036854775807", "99.999999999999"]
    lots = chance.choice([1, 7, 10**6, INT64_MAX])
    text = chance.choice(["", "t-1", "é😀", "\u202e", "a" * 64, "\U0010ffff", "\ufdd0"])
    side = chance.choice(["sell", "buy"])
    return Fill(chance.choice(["S1", "S2é", "S3"]), seq, side, lots, chance.choice(prices), chance.choice(prices), seq, text)


def settle(partition: Partition, message: Message) -> None:
    """Settles a message as the pipeline does."""
    for position, decoded in enumerate(decode(message)):
        try:
            partition.apply(decoded)
        except Rejection as refused:
            body = Contents(message).raw(position)
            partition.batch.rejected.append(
                Rejected(message.stream_id, position, refused.reason, refused.detail, message.codec, body)
            )


@pytest.mark.parametrize("seed", range(3))
async def test_all_settled_and_rejected_events_can_be_written(config, service_connection, seed):
    partition = Partition(0, 1, [], {"USDT": 8}, 10)
    offset = Offset("0-0", 0)
    async with (
        open_leases(config.database.dsn, "engine", 30) as leases,
        open_writer(config.database.dsn, "engine", 0, (await leases.keep())[0]) as writer,
    ):
        settled = refused = 0
        for message in messages(seed, 2000):
            settle(partition, message)
            if message.stream_id.endswith("00-0"):
                batch, after = partition.take(), Offset(message.stream_id, offset.messages + 100)
                settled, refused = settled + len(batch.entries), refused + len(batch.rejected)
                await writer.commit(batch, offset, after)
                offset = after
    assert await service_connection.fetchval("SELECT count(*) FROM entries") == settled > 100
    assert await service_connection.fetchval("SELECT count(*) FROM rejected") == refused > 100
    for contract in await service_connection.fetch("SELECT * FROM contracts"):
        await assert_kept_exactly(service_connection, contract_from(contract))


async def assert_kept_exactly(connection, contract) -> None:
    """Checks that the rows read back have the hashes of the settled entries."""
    replay = Replay(contract)
    rows = await connection.fetch("SELECT * FROM entries WHERE symbol = $1 ORDER BY entry", contract.symbol)
    for row in rows:
        replay.follow(Entry(**{name: row[name] for name in Entry.__struct_fields__ if name in row}), row["hash"])
    assert replay.differences == []
