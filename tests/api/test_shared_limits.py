"""Limits over several API processes: windows, connections and connection tokens that share their counts in Valkey."""

import asyncio
import random
import time
from contextlib import asynccontextmanager

import aiohttp
import pytest
from conftest import with_section
from eventually import eventually
from live import serving
from structlog.testing import capture_logs
from tcp_proxy import proxied
from tokens import signed, with_secret

from fundsvc.api.http import shared_limits
from fundsvc.api.http.shared_limits import EAGER_SHARE, SharedSlots, SharedWindow, open_limits
from fundsvc.config.settings import StreamConfig
from fundsvc.streams.client import StreamFault, open_client
from fundsvc.streams.shared_counts import claim

LIMIT, PROCESSES = 1000, 3


class Process:
    """What one process counts of requests."""

    def __init__(self, client, limit=LIMIT, seconds=60.0):
        self.due = asyncio.Event()
        self.window = SharedWindow("requests", limit, seconds, client, self.due)

    async def report_if_due(self):
        if self.due.is_set():
            self.due.clear()
            await self.window.report()


@pytest.mark.parametrize("amounts", [(1,), (1, 7, 15)])
async def test_clients_exceed_a_limit_by_what_is_not_reported_at_most(client, amounts):
    processes = [Process(client) for _ in range(PROCESSES)]
    choose, granted, refusals = random.Random(1), 0, 0
    while refusals < 50:
        process, amount = choose.choice(processes), choose.choice(amounts)
        if process.window.take("anna", amount):
            granted += amount
            refusals = 0
        else:
            refusals += 1
        await process.report_if_due()
    unreported = LIMIT * EAGER_SHARE + max(amounts)
    assert LIMIT - max(amounts) < granted <= LIMIT + (PROCESSES - 1) * unreported
    for process in processes:
        assert process.window.take("bert")


async def test_window_ends_for_all_processes_at_once(client):
    one, other = Process(client, limit=10, seconds=0.5), Process(client, limit=10, seconds=60.0)
    assert one.window.take("anna", 10)
    await one.window.report()
    assert other.window.take("anna", 1)
    await other.window.report()
    assert other.window.remaining("anna") == 0
    assert not other.window.take("anna")
    assert other.window.reset_ms() <= 501
    await eventually(lambda: other.window.take("anna", 10), seconds=5)
    await other.window.report()
    assert one.window.take("anna")
    await one.window.report()
    assert one.window.remaining("anna") == 0


class Switched:
    """A client of the stream server that tests replace."""

    def __init__(self, client):
        self.client = client

    def __getattr__(self, name):
        return getattr(self.client, name)


async def test_counts_that_could_not_be_reported_are_reported_later(client):
    async with open_client(StreamConfig(url="redis://127.0.0.1:1")) as nowhere:
        switched = Switched(nowhere)
        process = Process(switched)
        for _ in range(3):
            assert process.window.take("anna")
            with pytest.raises(StreamFault):
                await process.window.report()
    switched.client = client
    await process.window.report()
    other = Process(client)
    assert other.window.take("anna")
    await other.window.report()
    assert other.window.remaining("anna") == LIMIT - 4


async def test_requests_during_a_report_count(client):
    process = Process(client)
    assert process.window.take("anna")
    reporting = asyncio.create_task(process.window.report())
    await asyncio.sleep(0)
    assert process.window.take("anna")
    await reporting
    assert process.window.remaining("anna") == LIMIT - 2


async def test_many_clients_are_reported_in_parts(client, monkeypatch):
    monkeypatch.setattr(shared_limits, "REPORT_CLIENTS_MAX", 2)
    one, other = Process(client), Process(client)
    for process in (one, other):
        for name in "abcde":
            assert process.window.take(name)
        await process.window.report()
        while process.due.is_set():
            await process.report_if_due()
    assert [other.window.remaining(name) for name in "abcde"] == [LIMIT - 2] * 5


def slots(client, per_client=3):
    return SharedSlots("connections", 100, per_client, client, asyncio.Event())


async def test_slots_of_all_processes_count(client):
    one, other = slots(client), slots(client)
    one.take("1.2.3.4", "account anna")
    one.take("1.2.3.5", "account anna")
    await one.report()
    other.take("1.2.3.6", "account anna")
    await other.report()
    assert other.are_full_for("account anna")
    assert not other.are_full_for("1.2.3.6")
    one.leave("1.2.3.5", "account anna")
    await one.report()
    assert other.are_full_for("account anna")
    await other.report()
    assert not other.are_full_for("account anna")


async def test_slots_of_a_silent_process_are_forgotten_until_it_speaks_again(client, monkeypatch):
    monkeypatch.setattr(shared_limits, "LIFETIME_SECONDS", 0.3)
    monkeypatch.setattr(shared_limits, "RENEW_SECONDS", 0.0)
    silent, other = slots(client), slots(client)
    for _ in range(2):
        silent.take("anna")
    await silent.report()
    other.take("anna")

    async def is_full():
        await other.report()
        return other.are_full_for("anna")

    assert await is_full()

    async def is_free():
        return not await is_full()

    await eventually(is_free, seconds=5)
    await silent.report()  # learns that it was forgotten
    await silent.report()
    assert await client.hgetall("fundsvc:limits:{connections}:open") == {b"anna": b"3"}


async def test_slots_survive_the_loss_of_the_stream_server(client):
    one, other = slots(client), slots(client)
    for _ in range(2):
        one.take("anna")
    await one.report()
    await client.flushall()
    one.take("bert")
    await one.report()
    await one.report()
    other.take("anna")
    await other.report()
    assert other.are_full_for("anna")


async def test_name_can_be_claimed_once(client):
    assert [await claim(client, "token", 60) for _ in range(2)] == [True, False]
    assert await claim(client, "short", 0.001)
    await eventually(lambda: claim(client, "short", 60), seconds=5)


@asynccontextmanager
async def two_processes(config, **http):
    """Runs two APIs that share their limits."""
    config = with_section(with_secret(config), "http", port=0, shared_limits=True, **http)
    async with serving(config) as one, serving(config) as other:
        yield one, other


async def statuses(service, count, **headers):
    found = []
    for _ in range(count):
        async with service.http.get("/api/v1/insurance-fund", headers=headers) as answer:
            found.append(answer.status)
    return found


async def test_requests_to_one_process_count_at_the_other(config):
    async with two_processes(config, requests_max=20) as (one, other):
        assert await statuses(one, 20) == [200] * 20

        async def is_refused():
            return await statuses(other, 1) == [429]

        await eventually(is_refused, seconds=5)
        token = {"Authorization": f"Bearer {signed('trader', account='anna')}"}
        assert await statuses(other, 1, **token) == [200]


async def handshake(service, token):
    """Returns the status of a handshake, and the connection."""
    try:
        return 101, await service.http.ws_connect("/ws", params={"token": token})
    except aiohttp.WSServerHandshakeError as refused:
        return refused.status, None


async def test_connection_token_is_valid_once_for_all_processes(config, monkeypatch):
    monkeypatch.setattr(shared_limits, "CLAIM_SECONDS_MAX", 30.0)  # on a busy machine a handshake would do without the claim
    async with two_processes(config) as (one, other):
        token = (await one.bullet())["token"]
        assert [(await handshake(service, token))[0] for service in (other, one, other)] == [101, 401, 401]


async def test_connections_to_one_process_count_at_the_other(config):
    config = with_section(config, "websocket", client_connections_max=2)
    async with two_processes(config) as (one, other):

        async def connect(service):
            return await handshake(service, (await service.bullet())["token"])

        async def is_refused():
            return (await connect(other))[0] == 429

        (_, first), (_, second) = await connect(one), await connect(other)
        await eventually(is_refused, seconds=5)
        await first.close()

        async def is_accepted():
            return (await connect(other))[0] == 101

        await eventually(is_accepted, seconds=5)
        await second.close()


async def test_silent_stream_server_delays_no_request(config, servers):
    async with proxied(str(servers.run_directory / "valkey.sock")) as proxy:
        password = servers.stream_url.partition("@")[0].rpartition(":")[2]
        stream = StreamConfig(url=f"redis://:{password}@127.0.0.1:{proxy.port}")
        shared = with_section(config, "http", shared_limits=True, requests_max=10)
        with capture_logs() as logs:
            async with open_client(stream) as client, open_limits(shared, client) as limits:
                assert await limits.claim("one", 60)
                proxy.swallow("answers")
                began = time.monotonic()
                assert [limits.requests.take("anna") for _ in range(11)] == [True] * 10 + [False]
                assert time.monotonic() - began < 0.1
                assert await limits.claim("two", 60)
                assert time.monotonic() - began < 2  # the driver would wait for 3 s
                await eventually(lambda: [line["part"] for line in logs if line["event"] == "fault"] == ["limits"], 10)
                proxy.pass_on()
                await eventually(lambda: any(line["event"] == "recovered" for line in logs), seconds=10)


async def test_process_that_does_not_share_sends_nothing(config, client):
    async with serving(with_section(config, "http", port=0)) as service:
        assert await statuses(service, 3) == [200] * 3
        assert (await handshake(service, (await service.bullet())["token"]))[0] == 101
    assert await client.keys("fundsvc:limits:*") == []
