"""What topics tell: every change once, in order, beginning where the client asks."""

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

from fundsvc.api.fund_cache import CachedFunds
from fundsvc.api.websocket import entries
from fundsvc.api.websocket.endpoints import websocket_endpoints
from fundsvc.metrics import Metrics
from fundsvc.readmodel.adl_books import following
from fundsvc.readmodel.ledger_tail import tailing
from fundsvc.store.adl import Deleveragings
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


async def test_balances_come_as_they_are_and_as_they_change(service, ledger):
    async with service.connected() as client:
        await client.subscribe(f"{BALANCE}:AAA,BBB")
        for symbol in ("AAA", "BBB"):
            told = await client.data(f"{BALANCE}:{symbol}", "balance.change")
            assert told == await service.data(f"{FUNDS}/{symbol}")
        await ledger.settle([fill("BBB", 1, 7)])
        told = await client.data(f"{BALANCE}:BBB", "balance.change")
        assert (told["balance"], told["entry"]) == ("7", 1)
        assert told == await service.data(f"{FUNDS}/BBB")


async def test_all_balances_are_those_of_contracts_listed_later_too(service, ledger):
    async with service.connected() as client:
        await client.subscribe(f"{BALANCE}:all")
        assert [(await client.next())["topic"] for _ in range(2)] == [f"{BALANCE}:AAA", f"{BALANCE}:BBB"]
        await ledger.settle([listing("CCC"), fill("CCC", 1, 7)])
        told = await client.data(f"{BALANCE}:CCC", "balance.change")
        assert told["balance"] == "7"


async def test_entries_come_as_the_history_has_them(service, ledger):
    async with service.connected() as client:
        await client.subscribe(f"{ENTRY}:AAA,BBB")
        await ledger.settle([fill("AAA", 2, -3), fill("BBB", 1, -4), fill("AAA", 3, 9)])
        told = [await client.next() for _ in range(3)]
        assert {message["subject"] for message in told} == {"entry"}
        for symbol, first in (("AAA", 1), ("BBB", 0)):
            page = await service.data(f"{FUNDS}/{symbol}/history", params={"offset": first, "forward": "true"})
            assert [message["data"] for message in told if message["topic"] == f"{ENTRY}:{symbol}"] == page["dataList"]


async def entries_of(client, last):
    """The numbers of the entries that a client is told of, up to one."""
    told = []
    while not told or told[-1] < last:
        told.append((await client.data(f"{ENTRY}:AAA", "entry"))["entry"])
    return told


@pytest.mark.parametrize("after", [0, 1, 17, 40])
async def test_what_was_missed_is_replayed_and_then_goes_live(service, ledger, after, monkeypatch):
    monkeypatch.setattr(entries, "CATCH_UP_ENTRIES", 7)
    await ledger.settle([fill("AAA", seq, 1) for seq in range(2, 41)])
    await eventually(lambda: shows(service, "AAA", 40))
    async with service.connected() as client:
        await client.subscribe(f"{ENTRY}:AAA", after=after)
        await ledger.settle([fill("AAA", seq, 1) for seq in range(41, 44)])
        assert await entries_of(client, 43) == list(range(after + 1, 44))


@pytest.mark.parametrize("seed", range(4))
async def test_no_entry_is_missed_or_told_twice_however_clients_come_and_go(service, ledger, seed, monkeypatch):
    """Clients subscribe, leave and go on from where they were, while entries are settled, at moments that chance chooses."""
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

    async def listen(lives):
        told = []
        while not told or told[-1] < last:
            after = told[-1] if told else 0
            async with service.connected() as client:
                await client.say(id="s", type="subscribe", topic=f"{ENTRY}:AAA", after=after)
                enough = last if settled.is_set() or lives == 0 else min(last, after + chance.randrange(1, 60))
                told += await entries_of(client, enough)
                if chance.random() < 0.5:
                    await client.say(id="u", type="unsubscribe", topic=f"{ENTRY}:AAA")
            lives -= 1
        return told

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(settle())
        listeners = [tasks.create_task(listen(lives)) for lives in (0, 2, 5, 9)]
    for listener in listeners:
        assert listener.result() == list(range(1, last + 1))


async def test_a_client_that_knows_more_than_this_process_waits_for_it(service, ledger):
    async with service.connected() as client:
        await client.subscribe(f"{ENTRY}:AAA", after=3)
        await ledger.settle([fill("AAA", seq, 1) for seq in range(2, 6)])
        assert await entries_of(client, 5) == [4, 5]


async def test_a_client_that_subscribes_again_begins_again(service, ledger):
    async with service.connected() as client:
        for _ in range(3):
            await client.subscribe(f"{ENTRY}:AAA", after=0)
            assert await entries_of(client, 1) == [1]
        await ledger.settle([fill("AAA", 2, 1)])
        assert await entries_of(client, 2) == [2]
        assert (await client.ask(id="1", type="ping"))["type"] == "pong"


@asynccontextmanager
async def market(config):
    """An engine, what feeds it, and the service beside it."""
    async with running(config), open_client(config.stream) as client, serving(config) as service:
        producer = Producer(client, 1)
        await producer.append(BEGINNING)
        await eventually(lambda: shows(service, SYMBOL, 0))
        await eventually(lambda: ranked(service))
        yield service, producer


async def ranked(service):
    async with service.http.get(f"/api/v1/adl/{SYMBOL}/queue") as answer:
        return answer.status == 200 and (await answer.json())["data"]["short"]


async def test_a_replay_waits_for_a_database_that_is_away(config, servers):
    async with market(config) as (service, producer):
        await producer.append([fill(SYMBOL, seq, 1) for seq in range(1, 4)])
        await eventually(lambda: shows(service, SYMBOL, 3))
        async with service.connected() as client, service.connected() as listener:
            await listener.subscribe(f"{ENTRY}:{SYMBOL}")
            with stopped(servers, servers.postgres):
                await client.subscribe(f"{ENTRY}:{SYMBOL}", after=0)
                await producer.append([fill(SYMBOL, seq, 1) for seq in range(4, 7)])
            for told, first in ((client, 1), (listener, 4)):
                for entry in range(first, 7):
                    assert (await told.data(f"{ENTRY}:{SYMBOL}", "entry"))["entry"] == entry


async def test_orders_come_when_they_are_open_and_when_they_begin_advance_and_end(config):
    topic = f"{ORDER}:{SYMBOL}"
    async with market(config) as (service, producer), service.connected() as client:
        await client.subscribe(topic)
        await producer.append([shortfall(1)])
        told = await client.data(topic, "order.change")
        assert (told["adl"], told["state"], told["lotsTaken"]) == (1, "open", 0)
        assert "secret" not in str(told)
        await producer.append([executed(2, 1, "secret-anna", 20)])
        told = await client.data(topic, "order.change")
        assert (told["state"], told["lotsTaken"], told["rounds"][0]["executed"]) == ("open", 20, 20)
        async with service.connected() as late:
            await late.subscribe(topic)
            assert await late.data(topic, "order.change") == told
        await producer.append([executed(3 + number, 1, *left) for number, left in enumerate(LEFT)])
        told = await client.data(topic, "order.change")
        while told["state"] == "open":
            told = await client.data(topic, "order.change")
        (order,) = (await service.data(f"/api/v1/adl/{SYMBOL}/orders"))["dataList"]
        assert told == order


LEFT = (("secret-anna", 30), ("secret-bert", 30), ("secret-carl", 15), ("secret-emil", 5))
"""What the first order asks after anna's first 20 lots."""


async def test_an_account_is_told_of_its_positions_and_of_their_lights_as_they_change(config):
    async with market(config) as (service, producer), service.connected(signed("trader", account="secret-anna")) as client:
        await client.subscribe(POSITION, privateChannel=True)
        first = await client.next()
        assert (first["topic"], first["subject"], first["channelType"]) == (POSITION, "position.lights", "private")
        shown = await service.data("/api/v1/adl/positions", headers=bearer("trader", account="secret-anna"))
        told = first["data"]
        assert told["lights"] == 5
        assert {**told, "ts": 0, "lastId": ""} == {**shown["positions"][0], "ts": 0, "lastId": ""}
        # Five better ones come, so that anna's is not among the first fifth any more.
        await producer.append([position(f"secret-better-{number}", -10, 41000, "0.1") for number in range(5)])
        told = await client.data(POSITION, "position.lights")
        while told["lights"] == 5:
            told = await client.data(POSITION, "position.lights")
        assert told["rank"] == 6
        await producer.append([position("secret-anna", 0)])
        told = await client.data(POSITION, "position.lights")
        assert (told["lots"], told["lights"], told["rank"]) == (0, None, None)


async def test_a_client_goes_on_from_the_time_of_its_last_reduction_though_the_engines_clock_is_ahead(config):
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


async def test_an_account_is_told_that_it_was_deleveraged_where_when_by_how_much_and_why(config):
    anna, bert = (signed("trader", account=account) for account in ("secret-anna", "secret-bert"))
    async with market(config) as (service, producer), service.connected(anna) as client, service.connected(bert) as other:
        for each in (client, other):
            await each.subscribe(POSITION, privateChannel=True)
        await client.data(POSITION, "position.lights")
        await producer.append([shortfall(1), executed(2, 1, "secret-anna", 20)])
        told = await deleveraged(client)
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
        assert {name: told[name] for name in wanted} == wanted
        assert "account" not in told
        before = time.time_ns() // 1_000_000 - 60_000
        await producer.append([executed(3, 1, "secret-anna", 30)])
        assert (await deleveraged(client))["executed"] == 50
        await producer.append([executed(4, 1, "secret-bert", 30)])
        assert (await deleveraged(other))["executed"] == 30
        assert await nothing_more(client)
        # A client that reconnects with `after` receives what it missed.
        for token, lots in ((anna, 50), (bert, 30)):
            async with service.connected(token) as late:
                await late.subscribe(POSITION, privateChannel=True, after=before)
                assert (await deleveraged(late))["executed"] == lots
                assert await nothing_more(late)


async def deleveraged(client):
    while (message := await client.next())["subject"] != "position.deleveraged":
        pass
    assert message["channelType"] == "private"
    return message["data"]


async def nothing_more(client):
    """Whether no reduction was sent to a client until now: the pong follows everything that was sent before it."""
    await client.say(id="p", type="ping")
    subjects = []
    while (message := await client.next())["type"] != "pong":
        subjects.append(message["subject"])
    return "position.deleveraged" not in subjects


async def test_public_topics_name_no_account(config):
    async with market(config) as (service, producer), service.connected() as client:
        for topic in (ENTRY, ORDER, BALANCE):
            await client.subscribe(f"{topic}:{SYMBOL}")
        await producer.append([LISTING, mark(39000), shortfall(1), executed(2, 1, "secret-anna", 20), ended(3, 1)])
        told = [await client.next() for _ in range(4)]
        assert {message["subject"] for message in told} == {"balance.change", "entry", "order.change"}
        assert b"secret" not in msgspec.json.encode(told)


async def test_topics_receive_changes_only_while_they_are_open(config):
    def answer_of(fund):
        raise AssertionError(f"no client requests {fund.symbol}")

    metrics = Metrics()
    async with (
        open_pool(config.database.dsn, 2) as pool,
        open_client(config.stream) as client,
        following(config, pool, client, metrics) as follower,
        tailing(config, metrics) as tail,
    ):
        ledger = Deleveragings(pool)
        async with websocket_endpoints(config, tail, CachedFunds(tail, answer_of), Reader(pool), ledger, follower, metrics):
            assert len(tail.listeners) == 4
        assert tail.listeners == []
