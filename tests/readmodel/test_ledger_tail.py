import asyncio
import random
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from conftest import with_section
from escalations import BEGINNING, SYMBOL, ended, executed, shortfall
from eventually import eventually
from ledgers import fill, listing, owned
from structlog.testing import capture_logs
from test_engine import running, stopped

from fundsvc.metrics import Metrics
from fundsvc.readmodel.ledger_tail import open_tail
from fundsvc.store import tail_queries
from fundsvc.store.database import StoreFault
from fundsvc.streams.client import open_client
from fundsvc.streams.producer import Producer


@pytest.fixture
def config(config):
    return with_section(with_section(config, "http", tail_seconds=0.002), "engine", lease_seconds=0.6)


class Heard:
    """Runs a tail and collects the changes that it delivers."""

    def __init__(self, tail):
        self.tail = tail
        self.changes = []
        tail.listeners.append(self.changes.append)

    def entries(self, symbol):
        return [row.entry for change in self.changes for row in change.entries if row.symbol == symbol]

    def orders(self):
        return [(order.adl, order.state, order.round, order.executed) for change in self.changes for order in change.orders]

    def funds(self, symbol):
        return [fund.entry for change in self.changes for fund in change.funds if fund.symbol == symbol]

    async def reaches(self, symbol, entry):
        await eventually(lambda: symbol in self.tail.funds and self.tail.funds[symbol].entry == entry)


@asynccontextmanager
async def heard(config):
    async with open_tail(config, Metrics()) as tail:
        yield Heard(tail)


async def test_new_and_changed_funds_are_ordered_by_symbol(config):
    async with owned(config) as owner:
        await owner.settle([listing("BBB"), fill("BBB", 1, 5)])
        async with heard(config) as seen:
            seen.tail.check()
            assert seen.tail.funds["BBB"].entry == 1
            await owner.settle([listing("AAA"), fill("BBB", 2, 7)])
            await seen.reaches("BBB", 2)
            await seen.reaches("AAA", 0)
            assert list(seen.tail.funds) == list(seen.tail.contracts) == ["AAA", "BBB"]
            assert seen.tail.funds["BBB"].balance == 12 * 10**8
            assert seen.funds("BBB") == [2]
            assert seen.entries("BBB") == []
            seen.tail.check()


async def test_relisted_contract_is_updated(config):
    async with owned(config) as owner, heard(config) as seen:
        await owner.settle([listing("AAA")])
        await seen.reaches("AAA", 0)
        await owner.settle([listing("AAA", multiplier=7)])
        await eventually(lambda: seen.tail.contracts["AAA"].multiplier == 7)


async def test_entries_of_followed_contracts_are_delivered_once_in_order(config, monkeypatch):
    monkeypatch.setattr("fundsvc.readmodel.ledger_tail.ENTRIES_PER_STEP_MAX", 7)  # pages end anywhere
    chance = random.Random(11)
    async with owned(config) as owner, heard(config) as seen:
        await owner.settle([listing("AAA"), listing("BBB"), *(fill("AAA", seq, 1) for seq in range(1, 11))])
        await seen.reaches("AAA", 10)
        await seen.reaches("BBB", 0)
        assert seen.tail.follow("AAA") == 10
        assert seen.tail.follow("BBB") == 0
        settled = {"AAA": 10, "BBB": 0}
        for _ in range(40):
            symbol, count = chance.choice(("AAA", "BBB")), chance.randrange(1, 30)
            await owner.settle(fill(symbol, settled[symbol] + number, 1) for number in range(1, count + 1))
            settled[symbol] += count
        await eventually(lambda: seen.entries("AAA")[-1:] + seen.entries("BBB")[-1:] == [settled["AAA"], settled["BBB"]])
        assert seen.entries("AAA") == list(range(11, settled["AAA"] + 1))
        assert seen.entries("BBB") == list(range(1, settled["BBB"] + 1))


async def test_contract_followed_again_is_delivered_from_its_current_entry(config):
    async with owned(config) as owner, heard(config) as seen:
        await owner.settle([listing("AAA")])
        await seen.reaches("AAA", 0)
        seen.tail.follow("AAA")
        await owner.settle([fill("AAA", 1, 1)])
        await eventually(lambda: seen.entries("AAA") == [1])
        seen.tail.leave("AAA")
        await owner.settle([fill("AAA", 2, 1)])
        await seen.reaches("AAA", 2)
        assert seen.tail.follow("AAA") == 2
        await owner.settle([fill("AAA", 3, 1)])
        await eventually(lambda: seen.entries("AAA") == [1, 3])


@asynccontextmanager
async def settling(config):
    async with running(config), open_client(config.stream) as client:
        yield Producer(client, 1)


async def test_begin_advance_and_end_of_orders_are_delivered(config):
    async with settling(config) as producer, heard(config) as seen:
        await producer.append([*BEGINNING, shortfall(1)])
        await eventually(lambda: seen.orders() == [(1, "open", 1, 0)])
        assert seen.tail.funds[SYMBOL].escalated
        await producer.append([executed(2, 1, "secret-anna", 20)])
        await eventually(lambda: seen.orders()[-1] == (1, "open", 1, 20))
        assert [order.adl for order in seen.tail.open_orders(SYMBOL)] == [1]
        await producer.append([ended(3, 1)])
        await eventually(lambda: seen.orders()[-1] == (1, "open", 2, 20))
        async with heard(config) as late:  # starts with the open orders
            assert [(order.adl, order.round, order.executed) for order in late.tail.open_orders(SYMBOL)] == [(1, 2, 20)]
        # The second order begins and ends within one batch.
        await producer.append([shortfall(4, lots=10), executed(5, 2, "secret-carl", 10)])
        await eventually(lambda: seen.orders()[-1][0] == 2 and seen.orders()[-1][1] != "open")
        assert seen.orders().count(seen.orders()[-1]) == 1
        assert [order.adl for order in seen.tail.open_orders(SYMBOL)] == [1]


@pytest.mark.parametrize("per_query", [1, 2, 500])
async def test_orders_are_read_in_parts_and_only_if_they_changed(config, monkeypatch, per_query):
    monkeypatch.setattr(tail_queries, "ORDERS_PER_QUERY", per_query)
    read = []

    async def changed(*arguments):
        found = await tail_queries.changed_orders(*arguments)
        read.extend(order.adl for order in found)
        return found

    monkeypatch.setattr("fundsvc.readmodel.ledger_tail.changed_orders", changed)
    async with settling(config) as producer, heard(config) as seen:
        await producer.append([*BEGINNING, *(shortfall(seq, lots=20) for seq in range(1, 6))])
        await eventually(lambda: [order.adl for order in seen.tail.open_orders(SYMBOL)] == [1, 2, 3, 4, 5])
        assert [adl for adl, *_ in seen.orders()] == [1, 2, 3, 4, 5]
        await producer.append([executed(6, 1, "secret-anna", 2)])
        await eventually(lambda: seen.orders()[-1] == (1, "open", 1, 2))
        assert set(read) == {1}
        async with heard(config) as late:
            assert [(order.adl, order.executed) for order in late.tail.open_orders(SYMBOL)] == [
                (1, 2),
                (2, 0),
                (3, 0),
                (4, 0),
                (5, 0),
            ]


async def test_tail_continues_without_a_gap_after_an_outage_and_logs_it_once(config, servers, monkeypatch):
    monkeypatch.setattr("fundsvc.readmodel.ledger_tail.SILENCE_SECONDS_MAX", 0.3)
    async with settling(config) as producer, heard(config) as seen:
        await producer.append([listing("AAA"), fill("AAA", 1, 1)])
        await seen.reaches("AAA", 1)
        seen.tail.follow("AAA")
        with capture_logs() as logs:
            with stopped(servers, servers.postgres):
                await producer.append([fill("AAA", seq, 1) for seq in range(2, 300)])
                await eventually(lambda: silent(seen.tail))
                assert seen.tail.funds["AAA"].entry == 1
            await seen.reaches("AAA", 299)
            await eventually(lambda: seen.entries("AAA") == list(range(2, 300)))
        seen.tail.check()
        assert [line["event"] for line in logs if line.get("part") == "tail"] == ["fault", "recovered"]


def silent(tail):
    try:
        tail.check()
    except StoreFault:
        return True
    return False


async def test_failed_read_delivers_nothing(config, monkeypatch):
    """Some statements fail; the delivered changes are the same as without failures."""
    chance = random.Random(5)
    async with owned(config) as owner, heard(config) as seen:
        for name in ("offsets", "fund_versions", "versioned_funds", "entries", "changed_orders"):
            monkeypatch.setattr(f"fundsvc.readmodel.ledger_tail.{name}", failing(name, chance))
        monkeypatch.setattr("fundsvc.readmodel.ledger_tail.RETRY_SECONDS", 0.001)
        await owner.settle([listing("AAA")])
        await seen.reaches("AAA", 0)
        seen.tail.follow("AAA")
        for seq in range(1, 101):
            await owner.settle([fill("AAA", seq, 1)])
            await asyncio.sleep(0)
        await seen.reaches("AAA", 100)
        await eventually(lambda: seen.entries("AAA") == list(range(1, 101)))
        assert all(first < second for first, second in pairwise(seen.funds("AAA")))


def failing(name, chance):
    work = getattr(tail_queries, name)

    async def sometimes(*arguments):
        if chance.random() < 0.3:
            raise TimeoutError(name)
        answer = await work(*arguments)
        if chance.random() < 0.2:
            raise TimeoutError(name)
        return answer

    return sometimes


async def test_tail_reads_only_changed_funds(config, monkeypatch):
    read = []

    async def places(*arguments):
        found = await tail_queries.fund_versions(*arguments)
        read.append(sorted(found))
        return found

    monkeypatch.setattr("fundsvc.readmodel.ledger_tail.fund_versions", places)
    symbols = [f"M{number:02d}" for number in range(40)]
    async with owned(config) as owner, heard(config) as seen:
        await owner.settle(listing(symbol) for symbol in symbols)
        await seen.reaches(symbols[-1], 0)
        read.clear()
        await owner.settle([fill("M07", 1, 1)])
        await seen.reaches("M07", 1)
        assert read == [["M07"]]


async def test_commits_of_an_older_engine_version_are_detected(config, owner_connection):
    """An older engine moves the offset without counting commits, under its own epoch."""
    async with owned(config) as owner, heard(config) as seen:
        await owner.settle([listing("AAA"), listing("BBB"), fill("AAA", 1, 1)])
        await seen.reaches("AAA", 1)
        await owner_connection.execute(
            "UPDATE funds SET balance = 7, entry = 2, commit = 0 WHERE symbol = 'AAA';"
            "UPDATE partitions SET last_id = '9999999999999-0'"
        )
        await seen.reaches("AAA", 2)
        # Its last commit and the first commit of the new engine that took over may fall between two reads.
        await owner_connection.execute(
            "UPDATE funds SET balance = 9, entry = 3, commit = 0 WHERE symbol = 'AAA';"
            "UPDATE partitions SET last_id = '9999999999999-1', epoch = epoch + 1, commits = commits + 1"
        )
        await seen.reaches("AAA", 3)
