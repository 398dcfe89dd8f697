"""Topics publish every change once and in order, from where the client subscribes."""

import asyncio
import random
import time
from contextlib import asynccontextmanager

import msgspec
import pytest
from conftest import with_section
from escalations import BEGINNING, LISTING, SYMBOL, TS, ended, executed, mark, position, shortfall
from eventually import eventually
from ledgers import fill, listing, owned
from live import BALANCE, ENTRY, ORDER, POSITION, serving
from test_engine import running, stopped
from tokens import SECRET, bearer, signed

from fundsvc.api.fund_cache import FundCache
from fundsvc.api.http.shared_limits import open_limits
from fundsvc.api.websocket import entries
from fundsvc.api.websocket.endpoints import websocket_endpoints
from fundsvc.core.policy import Policy
from fundsvc.metrics import Metrics
from fundsvc.readmodel.adl_books import open_adl_books
from fundsvc.readmodel.ledger_tail import open_tail
from fundsvc.store.adl import AdlReader
from fundsvc.store.database import open_pool
from fundsvc.store.reader import Reader
from fundsvc.streams.client import open_client
from fundsvc.streams.producer import Producer

FUNDS = "/api/v1/insurance-fund"


@pytest.fixture
def config(config):
    config = with_section(with_section(config, "token", secret=SECRET), "engine", lease_seconds=0.6)
    return with_section(config, "http", port=0, tail_seconds=0.005, book_seconds=0.05, requests_max=100_000)


@pytest.fixture
async def ledger(config):
    async with owned(config) as owner:
        await owner.settle([listing("AAA"), listing("BBB"), fill("AAA", 1, 5)])
        yield owner


@pytest.fixture
async def service(config, ledger):
    async with serving(config) as service:
        await eventually(lambda: shows(service, "AAA", 1))
        yield service


async def shows(service, symbol, entry):
    async with service.http.get(f"{FUNDS}/{symbol}") as answer:
        return answer.status == 200 and (await answer.json())["data"]["entry"] == entry


async def test_balances_are_sent_at_first_and_after_each_change(service, ledger):
    async with service.connected() as client:
        await client.subscribe(f"{BALANCE}:AAA,BBB")
        for symbol in ("AAA", "BBB"):
            received = await client.data(f"{BALANCE}:{symbol}", "balance.change")
            assert received == await service.data(f"{FUNDS}/{symbol}")
        await ledger.settle([fill("BBB", 1, 7)])
        received = await client.data(f"{BALANCE}:BBB", "balance.change")
        assert (received["balance"], received["entry"]) == ("7", 1)
        assert received == await service.data(f"{FUNDS}/BBB")


async def test_subscription_to_all_balances_includes_contracts_listed_later(service, ledger):
    async with service.connected() as client:
        await client.subscribe(f"{BALANCE}:all")
        assert [(await client.next())["topic"] for _ in range(2)] == [f"{BALANCE}:AAA", f"{BALANCE}:BBB"]
        await ledger.settle([listing("CCC"), fill("CCC", 1, 7)])
        received = await client.data(f"{BALANCE}:CCC", "balance.change")
        assert received["balance"] == "7"


async def test_pushed_entries_equal_those_of_the_history(service, ledger):
    async with service.connected() as client:
        await client.subscribe(f"{ENTRY}:AAA,BBB")
        await ledger.settle([fill("AAA", 2, -3), fill("BBB", 1, -4), fill("AAA", 3, 9)])
        received = [await client.next() for _ in range(3)]
        assert {message["subject"] for message in received} == {"entry"}
        for symbol, first in (("AAA", 1), ("BBB", 0)):
            page = await service.data(f"{FUNDS}/{symbol}/history", params={"offset": first, "forward": "true"})
            assert [message["data"] for message in received if message["topic"] == f"{ENTRY}:{symbol}"] == page["dataList"]


async def entries_of(client, last):
    """Returns the numbers of the entries that a client receives, up to `last`."""
    received = []
    while not received or received[-1] < last:
        received.append((await client.data(f"{ENTRY}:AAA", "entry"))["entry"])
    return received


@pytest.mark.parametrize("after", [0, 1, 17, 40])
async def test_missed_entries_are_sent_before_live_ones(service, ledger, after, monkeypatch):
    monkeypatch.setattr(entries, "CATCH_UP_ENTRIES", 7)
    await ledger.settle([fill("AAA", seq, 1) for seq in range(2, 41)])
    await eventually(lambda: shows(service, "AAA", 40))
    async with service.connected() as client:
        await client.subscribe(f"{ENTRY}:AAA", after=after)
        await ledger.settle([fill("AAA", seq, 1) for seq in range(41, 44)])
        assert await entries_of(client, 43) == list(range(after + 1, 44))


@pytest.mark.parametrize("seed", range(4))
async def test_reconnecting_clients_receive_every_entry_once(service, ledger, seed, monkeypatch):
    """Clients subscribe, disconnect and resume at random moments while the engine settles entries."""
    monkeypatch.setattr(entries, "CATCH_UP_ENTRIES", 5)
    chance = random.Random(seed)
    last = 400
    settled = asyncio.Event()

    async def settle():
        seq = 1
        while seq < last:
            count = min(chance.randrange(1, 12), last - seq)
            await ledger.settle(fill("AAA", number, 1) for number in range(seq + 1, seq + count + 1))
            seq += count
            await asyncio.sleep(chance.choice((0, 0, 0.002, 0.01)))
        settled.set()

    async def receive(reconnects):
        received = []
        while not received or received[-1] < last:
            after = received[-1] if received else 0
            async with service.connected() as client:
                await client.send(id="s", type="subscribe", topic=f"{ENTRY}:AAA", after=after)
                until = last if settled.is_set() or reconnects == 0 else min(last, after + chance.randrange(1, 60))
                received += await entries_of(client, until)
                if chance.random() < 0.5:
                    await client.send(id="u", type="unsubscribe", topic=f"{ENTRY}:AAA")
            reconnects -= 1
        return received

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(settle())
        clients = [tasks.create_task(receive(reconnects)) for reconnects in (0, 2, 5, 9)]
    for client in clients:
        assert client.result() == list(range(1, last + 1))


async def test_subscription_ahead_of_the_tail_waits_for_it(service, ledger):
    async with service.connected() as client:
        await client.subscribe(f"{ENTRY}:AAA", after=3)
        await ledger.settle([fill("AAA", seq, 1) for seq in range(2, 6)])
        assert await entries_of(client, 5) == [4, 5]


async def test_repeated_subscription_starts_from_its_after(service, ledger):
    async with service.connected() as client:
        for _ in range(3):
            await client.subscribe(f"{ENTRY}:AAA", after=0)
            assert await entries_of(client, 1) == [1]
        await ledger.settle([fill("AAA", 2, 1)])
        assert await entries_of(client, 2) == [2]
        assert (await client.request(id="1", type="ping"))["type"] == "pong"


@asynccontextmanager
async def market(config):
    """Runs an engine and the HTTP side; yields the service and a producer for the stream."""
    async with running(config), open_client(config.stream) as client, serving(config) as service:
        producer = Producer(client, 1)
        await producer.append(BEGINNING)
        await eventually(lambda: shows(service, SYMBOL, 0))
        await eventually(lambda: has_ranking(service))
        yield service, producer


async def has_ranking(service):
    async with service.http.get(f"/api/v1/adl/{SYMBOL}/queue", headers=bearer("risk")) as answer:
        return answer.status == 200 and (await answer.json())["data"]["short"]


async def test_missed_entries_are_sent_after_a_database_outage(config, servers):
    async with market(config) as (service, producer):
        await producer.append([fill(SYMBOL, seq, 1) for seq in range(1, 4)])
        await eventually(lambda: shows(service, SYMBOL, 3))
        async with service.connected() as client, service.connected() as listener:
            await listener.subscribe(f"{ENTRY}:{SYMBOL}")
            with stopped(servers, servers.postgres):
                await client.subscribe(f"{ENTRY}:{SYMBOL}", after=0)
                await producer.append([fill(SYMBOL, seq, 1) for seq in range(4, 7)])
            for subscribed, first in ((client, 1), (listener, 4)):
                for entry in range(first, 7):
                    assert (await subscribed.data(f"{ENTRY}:{SYMBOL}", "entry"))["entry"] == entry


async def test_orders_are_sent_when_they_begin_advance_and_end(config):
    topic = f"{ORDER}:{SYMBOL}"
    async with market(config) as (service, producer), service.connected() as client:
        await client.subscribe(topic)
        await producer.append([shortfall(1)])
        received = await client.data(topic, "order.change")
        assert (received["adl"], received["state"], received["lotsTaken"]) == (1, "open", 0)
        assert "secret" not in str(received)
        await producer.append([executed(2, 1, "secret-anna", 20)])
        received = await client.data(topic, "order.change")
        assert (received["state"], received["lotsTaken"], received["rounds"][0]["executed"]) == ("open", 20, 20)
        async with service.connected() as late:
            await late.subscribe(topic)
            assert await late.data(topic, "order.change") == received
        await producer.append([executed(3 + number, 1, *left) for number, left in enumerate(LEFT)])
        received = await client.data(topic, "order.change")
        while received["state"] == "open":
            received = await client.data(topic, "order.change")
        (order,) = (await service.data(f"/api/v1/adl/{SYMBOL}/orders"))["dataList"]
        assert received == order


LEFT = (("secret-anna", 30), ("secret-bert", 30), ("secret-carl", 15), ("secret-emil", 5))
"""The allocations of the first order after anna's first 20 lots."""


async def test_account_receives_its_positions_and_changes_of_their_lights(config):
    async with market(config) as (service, producer), service.connected(signed("trader", account="secret-anna")) as client:
        await client.subscribe(POSITION, privateChannel=True)
        first = await client.next()
        assert (first["topic"], first["subject"], first["channelType"]) == (POSITION, "position.lights", "private")
        shown = await service.data("/api/v1/adl/positions", headers=bearer("trader", account="secret-anna"))
        received = first["data"]
        assert received["lights"] == 5
        assert {**received, "ts": 0, "lastId": ""} == {**shown["positions"][0], "ts": 0, "lastId": ""}
        # Five positions with higher scores push anna's out of the first fifth.
        await producer.append([position(f"secret-better-{number}", -10, 41000, "0.1") for number in range(5)])
        received = await client.data(POSITION, "position.lights")
        while received["lights"] == 5:
            received = await client.data(POSITION, "position.lights")
        assert received["rank"] == 6
        await producer.append([position("secret-anna", 0)])
        received = await client.data(POSITION, "position.lights")
        assert (received["lots"], received["lights"], received["rank"]) == (0, None, None)


async def test_after_the_last_reduction_nothing_is_missed_when_the_engines_clock_is_ahead(config):
    ahead = time.time_ns() // 1_000_000 + 120_000
    async with market(config) as (service, producer):
        async with service.connected(signed("trader", account="secret-anna")) as client:
            await client.subscribe(POSITION, privateChannel=True)
            await client.data(POSITION, "position.lights")
            await producer.append([msgspec.structs.replace(shortfall(1), ts=ahead), executed(2, 1, "secret-anna", 20)])
            last = (await deleveraged(client))["ts"]
            assert last == ahead
        await producer.append([executed(3, 1, "secret-anna", 30)])

        async def taken():
            (order,) = (await service.data(f"/api/v1/adl/{SYMBOL}/orders"))["dataList"]
            return order["lotsTaken"] == 50

        await eventually(taken)
        async with service.connected(signed("trader", account="secret-anna")) as client:
            await client.subscribe(POSITION, privateChannel=True, after=last)
            assert (await deleveraged(client))["executed"] == 50


async def test_account_receives_its_reductions_with_contract_time_lots_and_cause(config):
    anna, bert = (signed("trader", account=account) for account in ("secret-anna", "secret-bert"))
    async with market(config) as (service, producer), service.connected(anna) as client, service.connected(bert) as other:
        for each in (client, other):
            await each.subscribe(POSITION, privateChannel=True)
        await client.data(POSITION, "position.lights")
        await producer.append([shortfall(1), executed(2, 1, "secret-anna", 20)])
        received = await deleveraged(client)
        wanted = {
            "symbol": SYMBOL,
            "cause": 1,
            "executed": 20,
            "lots": 50,
            "price": "39000",
            "rank": 1,
            "ts": TS,
            "side": "short",
        }
        assert {name: received[name] for name in wanted} == wanted
        assert "account" not in received
        before = time.time_ns() // 1_000_000 - 60_000
        await producer.append([executed(3, 1, "secret-anna", 30)])
        assert (await deleveraged(client))["executed"] == 50
        await producer.append([executed(4, 1, "secret-bert", 30)])
        assert (await deleveraged(other))["executed"] == 30
        assert await no_more_reductions(client)
        # A client that reconnects with `after` receives what it missed.
        for token, lots in ((anna, 50), (bert, 30)):
            async with service.connected(token) as late:
                await late.subscribe(POSITION, privateChannel=True, after=before)
                assert (await deleveraged(late))["executed"] == lots
                assert await no_more_reductions(late)


async def deleveraged(client):
    while (message := await client.next())["subject"] != "position.deleveraged":
        pass
    assert message["channelType"] == "private"
    return message["data"]


async def no_more_reductions(client):
    """Returns whether no reduction was sent to a client until now: the pong follows everything that was sent before it."""
    await client.send(id="p", type="ping")
    subjects = []
    while (message := await client.next())["type"] != "pong":
        subjects.append(message["subject"])
    return "position.deleveraged" not in subjects


async def test_public_topics_do_not_contain_accounts(config):
    async with market(config) as (service, producer), service.connected() as client:
        for topic in (ENTRY, ORDER, BALANCE):
            await client.subscribe(f"{topic}:{SYMBOL}")
        await producer.append([LISTING, mark(39000), shortfall(1), executed(2, 1, "secret-anna", 20), ended(3, 1)])
        received, awaited = [], {"balance.change", "entry", "order.change"}
        while awaited:  # Each topic sends as many messages as it sees changes; `next` fails after a time without a message.
            received.append(await client.next())
            awaited.discard(received[-1]["subject"])
        assert b"secret" not in msgspec.json.encode(received)


async def test_topics_receive_changes_only_while_they_are_open(config):
    def answer_of(fund):
        raise AssertionError(f"no client requests {fund.symbol}")

    metrics = Metrics()
    async with (
        open_pool(config.database.dsn, 2) as pool,
        open_client(config.stream) as client,
        open_adl_books(config, pool, client, metrics) as books,
        open_tail(config, metrics) as tail,
        open_limits(config, client) as limits,
    ):
        ledger = AdlReader(pool)
        async with websocket_endpoints(
            config, tail, FundCache(tail, answer_of), Reader(pool), ledger, books, metrics, lambda _: Policy(), limits
        ):
            assert len(tail.listeners) == 5
        assert tail.listeners == []
