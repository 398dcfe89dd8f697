"""A contract with very many positions does not make the service hold the event loop.

Engine and API run on one loop. `LARGE` is the smallest size at which each of these exceeds the bound if it runs on the loop:
ranking a side, allocating an order, saving the book, restoring it, answering the queue, and a preview. `FULL` is the size that
the service is made for. The suite runs one policy at that size; to run all of them, which takes several minutes:

    FULL_BOOKS=1 scripts/test tests/engine/test_large_books.py -m alone
"""

import asyncio
import gc
import os
import random
import sys
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from conftest import with_section
from escalations import LISTING, SYMBOL, allocated, mark, position, shortfall, written_records
from eventually import eventually
from served import served
from tokens import bearer, with_secret
from watchdog import HOLD_MS_MAX, watched

from fundsvc.app import tune_interpreter
from fundsvc.core.adl.book_parts import ROWS_PER_PART, BookPart, SidePart
from fundsvc.core.batch import StoredBook
from fundsvc.core.contracts import contract_of
from fundsvc.core.partition import Partition
from fundsvc.core.policy import Policy
from fundsvc.store.writer import IN_PARTS, STREAM_START
from fundsvc.streams.client import stream_key
from fundsvc.streams.source import id_order
from fundsvc.wire.codec import encode

pytestmark = pytest.mark.alone


class Size(NamedTuple):
    """The positions of a side, the orders opened first, and the events of the large message."""

    positions: int
    orders: int
    events: int = 10_000


FULL = Size(1_000_000, 1_000)
LARGE = FULL if os.environ.get("FULL_BOOKS") else Size(200_000, 50)


@pytest.fixture(autouse=True)
def tuned():
    """The interpreter is set as in the service: else the collector goes through all that the tests have loaded."""
    threshold, switch_seconds = gc.get_threshold(), sys.getswitchinterval()
    tune_interpreter()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)
    sys.setswitchinterval(switch_seconds)


def kept_shorts(positions):
    """The parts of a book of shorts as it is kept. Its accounts are not in the order of their names."""
    chance = np.random.default_rng(1)
    names = [f"account-{number:08}" for number in range(positions)]
    random.Random(1).shuffle(names)
    contract = contract_of(LISTING.contract, {"USDT": 8}, 10)
    lots = chance.integers(1, 100, positions)
    entry_prices = chance.integers(38_000, 42_000, positions) * 10**contract.price_decimals
    margins = chance.integers(100, 5_000, positions) * 10**contract.settle_decimals
    columns = (column.astype("<i8").tobytes() for column in (lots, entry_prices, margins))
    none, shorts = SidePart([], b"", b"", b""), SidePart(names, *columns)
    return [BookPart(none, shorts.part(first, first + ROWS_PER_PART)) for first in range(0, positions, ROWS_PER_PART)]


async def keep(connection, parts):
    """Has the only book consist of these parts."""
    rows = [(SYMBOL, number, msgspec.msgpack.encode(part)) for number, part in enumerate(parts)]
    async with connection.transaction():
        await connection.execute("UPDATE books SET body = $2 WHERE symbol = $1", SYMBOL, IN_PARTS)
        await connection.copy_records_to_table("book_parts", records=rows, columns=("symbol", "part", "body"))


def large_message(size):
    """Yields changes of positions, and between them marks and shortfalls, which rank the side again."""
    chance = random.Random(2)
    for number in range(size.events):
        if number % 500 == 250:
            yield mark(39_000 - number // 500)
        elif number % 500 == 499:
            yield shortfall(size.orders + 1 + number // 500, lots=300)
        else:
            account = f"account-{chance.randrange(size.positions):08}"
            yield position(account, -chance.randrange(1, 100), chance.randrange(38_000, 42_000), chance.randrange(100, 5_000))


async def request_repeatedly(service, stop):
    """Requests the queue and a preview that ranks all positions until `stop` is set; returns the number of rounds."""
    rounds = 0
    while not stop.is_set():
        body = {"side": "sell", "lots": 1000, "price": "38000", "bankruptcyPrice": "39000"}
        policy = {"allocation": "pro_rata", "eligible": "all"}
        async with service.http.post(
            f"/api/v1/adl/{SYMBOL}/preview", json=body | {"policy": policy}, headers=bearer()
        ) as answer:
            assert answer.status == 200, await answer.text()
            shown = (await answer.json())["data"]
            assert shown["order"]["lotsAsked"] == 1000
        queue = await service.get(f"/api/v1/adl/{SYMBOL}/queue")
        assert sum(section["positions"] for section in queue["short"]) > 0
        rounds += 1
        await asyncio.sleep(0.1)
    return rounds


async def settled(service):
    end = (await service.client.xrevrange(stream_key(0), count=1))[0][0].decode()
    await eventually(lambda: _is_settled(service.pool, end), 600)


async def _is_settled(pool, end):
    return await pool.fetchval("SELECT last_id FROM partitions WHERE partition = 0") == end


async def kept_at(pool):
    return id_order(await pool.fetchval("SELECT last_id FROM books WHERE symbol = $1", SYMBOL))


def uninterrupted(book, events, allocation):
    """Returns the ADL records of a partition with this book that applies all events without interruption."""
    partition = Partition(0, 1, [], {"USDT": 8}, 10, lambda _: Policy(allocation=allocation))
    partition.apply(LISTING)
    for _ in partition.restore(StoredBook(SYMBOL, STREAM_START, 0, None, 0, 0, book)):
        pass
    for event in events:
        partition.apply(event)
    return [sealed.record for sealed in partition.batch.records]


async def settle_large(config, owner_connection, size, allocation):
    """Runs a service with a large book, and returns its watchdog once it has checked what the service did."""
    config = with_section(with_secret(config), "policy", default=Policy(allocation=allocation))
    config = with_section(config, "http", requests_max=1_000_000)  # a preview of so many positions counts as hundreds
    config = with_section(config, "engine", book_seconds=1, lease_seconds=5)
    config = with_section(config, "adl", round_seconds=0)  # without answers, rounds must not time out
    async with served(config) as service:
        await service.append(LISTING)
    book = await asyncio.to_thread(kept_shorts, size.positions)
    await keep(owner_connection, book)
    opening = [mark(39_000), *(shortfall(number + 1, lots=300) for number in range(size.orders))]
    events = list(large_message(size))
    async with watched() as watchdog, served(config) as service:
        for message in (opening, events):
            await service.client.xadd(stream_key(0), {"json": await asyncio.to_thread(encode, message)})
        await eventually(lambda: is_loaded(service), 600)
        stop = asyncio.Event()
        requesting = asyncio.create_task(request_repeatedly(service, stop))
        await settled(service)
        before = await kept_at(service.pool)
        await eventually(lambda: is_kept_after(service.pool, before), 600)
        stop.set()
        assert await requesting
        assert await service.pool.fetchval("SELECT count(*) FROM rejected") == 0
    records = await written_records(owner_connection)
    expected = await asyncio.to_thread(uninterrupted, book, [*opening, *events], allocation)
    assert allocated(records) == allocated(expected)
    return watchdog


async def is_loaded(service):
    async with service.http.get(f"/api/v1/adl/{SYMBOL}/queue") as answer:
        return answer.status == 200 and (await answer.json())["data"]["markPrice"]


async def is_kept_after(pool, before):
    return await kept_at(pool) >= before


@pytest.mark.parametrize(("allocation", "size"), [("queue", FULL), ("capped", LARGE), ("pro_rata", LARGE)])
async def test_large_book_does_not_hold_the_loop(config, owner_connection, allocation, size):
    watchdog = await settle_large(config, owner_connection, size, allocation)
    assert watchdog.longest_ms < HOLD_MS_MAX, sorted(watchdog.holds_ms)[-20:]
