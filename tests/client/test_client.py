"""The client settles every event once and reads every entry once, while servers are killed and emptied."""

import asyncio
import time
from contextlib import asynccontextmanager
from functools import partial

import pytest
from conftest import with_section
from escalations import BEGINNING, SYMBOL, ended, executed, shortfall
from eventually import eventually
from ledgers import fill, listing
from ports import free_port
from served import contract, served
from served import fill as raw_fill
from tokens import signed, with_secret

from fundsvc.api.answers import FundAnswer
from fundsvc.api.websocket import endpoints
from fundsvc.api.websocket import entries as server_entries
from fundsvc.client import topics
from fundsvc.client.api import ApiError, Unavailable, open_api
from fundsvc.client.producer import producing
from fundsvc.client.rounds import instructed_rounds
from fundsvc.core.events import Rate
from fundsvc.readmodel import ledger_tail
from fundsvc.streams.client import open_client, stream_key


@pytest.fixture
def config(config):
    """The service has the same address after a restart."""
    config = with_section(with_secret(config), "http", port=free_port(), tail_seconds=0.005)
    return with_section(with_section(config, "adl", ack_seconds=0.2), "engine", lease_seconds=0.6)


@asynccontextmanager
async def connected(config, role="engine", **claims):
    async with open_api(f"http://127.0.0.1:{config.http.port}", signed(role, **claims)) as api:
        yield api


@asynccontextmanager
async def producer_of(config, **options):
    async with (
        connected(config, sub="engine") as api,
        open_client(config.stream) as stream,
        producing(stream, api, **options) as producer,
    ):
        yield producer


def service_of(config):
    return served(config, config.http.port)


async def sequences(service):
    return [row["seq"] for row in await service.pool.fetch("SELECT seq FROM entries ORDER BY entry")]


async def test_producer_sends_what_an_emptied_stream_lost_again(config, servers, client, exits):
    async with service_of(config):
        producer = await exits.enter_async_context(producer_of(config))
        await producer.send(listing("AAA"), *(fill("AAA", seq, 1) for seq in range(1, 1001)))
        await producer.settled()
    await producer.send(*(fill("AAA", seq, 1) for seq in range(1001, 3001)))
    await eventually(lambda: has_messages(client, 2))
    await client.flushall()
    servers.valkey.kill()
    await asyncio.to_thread(servers.start, postgres=False)
    await producer.send(*(fill("AAA", seq, 1) for seq in range(3001, 4001)))
    async with service_of(config) as service:
        await producer.settled()
        assert await sequences(service) == list(range(1, 4001))
        assert await service.reasons() == []
        assert producer.resumptions == 1


async def test_every_event_is_settled_once_while_the_stream_server_is_killed(config, servers):
    async with service_of(config) as service, producer_of(config, unsettled_max=1000) as producer:
        sending = asyncio.create_task(producer.send(listing("AAA"), *(fill("AAA", seq, 1) for seq in range(1, 5001))))
        for settled in (500, 1500, 3000):
            await eventually(partial(has_settled, service, settled), seconds=20)
            servers.valkey.kill()
            await asyncio.to_thread(servers.start, postgres=False)
        await sending
        await producer.settled()
        assert await sequences(service) == list(range(1, 5001))
        assert await service.reasons() == []
        assert producer.resumptions == 3


async def has_settled(service, seq):
    return (await service.pool.fetchval("SELECT max(seq) FROM entries") or 0) >= seq


@pytest.mark.parametrize("partitions", [4])
async def test_producer_sends_contracts_to_their_partitions(config):
    symbols = ("AAA", "BBB", "CCC", "DDD", "EEE")
    async with service_of(config) as service, producer_of(config) as producer:
        await producer.send(*map(listing, symbols), Rate("USDT", "1", 0))
        await producer.send(*(fill(symbol, seq, 1) for seq in range(1, 101) for symbol in symbols))
        await producer.settled()
        assert await service.reasons() == []
        assert await sequences(service) == sorted([*range(1, 101)] * len(symbols))


async def has_messages(client, count):
    return await client.xlen(stream_key(0)) > count


async def test_producer_waits_while_too_much_is_unsettled(config):
    async with service_of(config) as service, producer_of(config, unsettled_max=50) as producer:
        await producer.send(listing("AAA"))
        await producer.settled()
        await service.engine.finish()
        sending = asyncio.create_task(producer.send(*(fill("AAA", seq, 1) for seq in range(1, 201))))
        await asyncio.sleep(0.5)
        assert (sending.done(), producer.unsettled) == (False, 50)
        async with served(config) as again:
            await sending
            await producer.settled()
            assert await sequences(again) == list(range(1, 201))


async def test_rounds_are_yielded_once_and_acknowledged_when_the_next_is_requested(config):
    async with service_of(config) as service, producer_of(config) as producer:
        await producer.send(*BEGINNING, shortfall(1))
        rounds = producer.rounds()
        first = await anext(rounds)
        await eventually(lambda: announced_again(service))
        assert (first.adl, first.round, first.lots) == (1, 1, 100)
        async with producer_of(config) as restarted:
            assert await anext(restarted.rounds()) == first
        await producer.send(executed(2, 1, first.allocations[0].account, 5), ended(3, 1))
        second = await anext(rounds)
        assert (second.adl, second.round, second.lots) == (1, 2, 95)
        waiting = asyncio.create_task(anext(rounds))
        await eventually(lambda: acknowledged(service))
        waiting.cancel()


async def test_rounds_arrive_over_http_alone(config):
    async with service_of(config) as service, connected(config, sub="engine") as api:
        await api.post([*BEGINNING, shortfall(1)])
        rounds = instructed_rounds(api)
        first = await anext(rounds)
        answer = await api.post([executed(2, 1, first.allocations[0].account, 5), ended(3, 1)])
        assert (answer.accepted, answer.rejected) == (2, [])
        second = await anext(rounds)
        assert [(each.adl, each.round, each.lots) for each in (first, second)] == [(1, 1, 100), (1, 2, 95)]
        assert await service.reasons() == []


async def announced_again(service):
    return len(await service.announced()) > 1


async def acknowledged(service):
    return await service.pool.fetchval("SELECT acknowledged FROM adl_orders WHERE adl = 1 AND round = 2")


async def test_entries_continue_after_the_service_has_restarted(config):
    async with connected(config) as api:
        entries = topics.entries(api, "AAA")
        async with service_of(config) as service:
            await service.append(contract("AAA"), *(raw_fill("AAA", seq) for seq in range(1, 4)))
            await service.fund("AAA")  # the API shows the contract
            assert [(await anext(entries)).entry for _ in range(3)] == [1, 2, 3]
        async with service_of(config) as service:
            await service.append(*(raw_fill("AAA", seq) for seq in range(4, 9)))
            assert [(await anext(entries)).entry for _ in range(5)] == list(range(4, 9))


async def test_client_reconnects_after_the_delay_of_a_stopping_service(config, monkeypatch):
    monkeypatch.setattr(endpoints, "stop_reason", lambda _: "the service stops: reconnect in 2000 ms")
    requested = []
    async with connected(config) as api:
        request = api.request

        async def noted(*arguments, **options):
            requested.append(time.monotonic())
            return await request(*arguments, **options)

        monkeypatch.setattr(api, "request", noted)
        entries = topics.entries(api, "AAA")
        async with service_of(config) as service:
            await service.append(contract("AAA"), raw_fill("AAA", 1))
            await service.fund("AAA")
            assert (await anext(entries)).entry == 1
            following = asyncio.ensure_future(anext(entries))
        stopped, before = time.monotonic(), len(requested)
        await eventually(lambda: len(requested) > before)
        following.cancel()
    assert requested[before] - stopped > 1.0


NEW = contract("AAA", status="Open")


async def life_of(service, first, entries):
    """Writes so many entries to the present generation of AAA, from a sequence on, and closes it."""
    ended = {"type": "settle", "symbol": "AAA", "seq": first + entries, "price": "100", "ts": 1}
    await service.append(NEW, *(raw_fill("AAA", seq) for seq in range(first, first + entries)), ended)


async def test_entries_continue_over_generations_that_began_while_disconnected(config):
    async with connected(config) as api:
        entries = topics.entries(api, "AAA")

        async def following(count):
            return [((one := await anext(entries)).generation, one.entry) for _ in range(count)]

        async with service_of(config) as service:
            await service.append(NEW, raw_fill("AAA", 1), raw_fill("AAA", 2))
            await service.fund("AAA")  # the API shows the contract
            assert await following(1) == [(1, 1)]
        async with service_of(config) as service:
            await life_of(service, 3, 3)
            await life_of(service, 10, 1)
            await life_of(service, 20, 2)
            assert await following(7) == [*((1, entry) for entry in range(2, 6)), (2, 1), (3, 1), (3, 2)]
            await life_of(service, 30, 2)
            assert await following(2) == [(4, 1), (4, 2)]
        async with service_of(config) as service:
            await service.append(NEW, raw_fill("AAA", 40))
            assert await following(1) == [(5, 1)]
        await entries.aclose()


async def test_entries_are_complete_when_a_generation_begins_before_all_of_the_one_before_are_read(config, monkeypatch):
    monkeypatch.setattr(ledger_tail, "ENTRIES_PER_STEP_MAX", 3)
    async with service_of(config) as service, connected(config) as api:
        await service.append(NEW, raw_fill("AAA", 1))
        await service.fund("AAA")
        entries = topics.entries(api, "AAA")
        assert (await anext(entries)).entry == 1
        ended = {"type": "settle", "symbol": "AAA", "seq": 40, "price": "100", "ts": 1}
        await service.append(*(raw_fill("AAA", seq) for seq in range(2, 31)), ended, NEW, raw_fill("AAA", 41))
        async with asyncio.timeout(20):
            found = [((one := await anext(entries)).generation, one.entry) for _ in range(30)]
        assert found == [*((1, entry) for entry in range(2, 31)), (2, 1)]
        await entries.aclose()


async def test_entries_after_one_that_never_appears_end_with_an_error(config, monkeypatch):
    monkeypatch.setattr(server_entries, "AHEAD_RETRIES_MAX", 1)
    async with service_of(config) as service, connected(config) as api:
        await service.append(NEW, raw_fill("AAA", 1))
        await service.fund("AAA")
        with pytest.raises(ApiError, match="after is 9: the last entry of AAA is 1"):
            await anext(topics.entries(api, "AAA", 9))


async def test_reader_pages_through_entries_and_orders(config):
    async with service_of(config) as service, connected(config, "risk") as api, producer_of(config) as producer:
        await producer.send(*BEGINNING, *(shortfall(seq, 100, 39100) for seq in range(1, 601)), shortfall(601, 9000, 30000))
        await producer.settled()
        assert (await service.fund(SYMBOL))["entry"] == 601  # the API shows it
        assert [entry.entry async for entry in api.entries(SYMBOL)] == list(range(1, 602))
        assert [entry.entry async for entry in api.entries(SYMBOL, 598)] == [599, 600, 601]
        assert [order.adl async for order in api.orders(SYMBOL)] == [1]
        assert [fund.symbol for fund in await api.funds()] == [SYMBOL]
        first = await anext(topics.funds(api, SYMBOL))
        assert isinstance(first, FundAnswer)
        with pytest.raises(ApiError) as caught:
            await api.fund("NONE")
        assert (caught.value.status, caught.value.code) == (404, "404000")
        with pytest.raises(ApiError, match="NONE"):
            await anext(topics.entries(api, "NONE"))
        assert service.count("fundsvc_sequence_gaps_total") == 0


async def test_token_is_renewed_for_each_request(config):
    tokens = iter([signed("engine", sub="engine", exp=1), signed("engine", sub="engine")])
    async with service_of(config), open_api(f"http://127.0.0.1:{config.http.port}", lambda: next(tokens)) as api:
        with pytest.raises(ApiError, match="expired"):
            await api.cursor()
        assert (await api.cursor()).contracts == []


async def test_an_unreachable_service_is_unavailable(config):
    async with connected(config) as api:
        with pytest.raises(Unavailable):
            await api.cursor()
