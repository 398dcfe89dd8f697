"""Clients that do not read: balances are coalesced, entries close the connection, and a reconnected client misses nothing."""

import pytest
from conftest import with_section
from eventually import eventually
from ledgers import fill, listing, owned
from live import BALANCE, ENTRY, serving, stalled_client

SYMBOLS = [f"S{number:03d}" for number in range(200)]
"""A change of all of them is some 100 kB. A few dozen fill the buffers of the sockets."""


@pytest.fixture
def config(config):
    config = with_section(config, "websocket", queue_bytes_max=20_000)
    return with_section(config, "http", port=0, tail_seconds=0.005, requests_max=100_000)


@pytest.fixture
async def ledger(config):
    async with owned(config) as owner:
        await owner.settle(map(listing, SYMBOLS))
        yield owner


@pytest.fixture
async def service(config, ledger):
    async with serving(config) as service:
        await service.until(SYMBOLS[-1], 0)
        yield service


async def test_slow_client_receives_the_latest_balances_when_it_reads_again(service, ledger):
    async with stalled_client(service, {"id": "s", "type": "subscribe", "topic": f"{BALANCE}:all"}) as stalled:
        changes = 0
        while not service.count("fundsvc_websocket_overflows_total", action="coalesced") or changes < 20:
            changes += 1
            await ledger.settle(fill(symbol, changes, 1) for symbol in SYMBOLS)
            assert changes < 300, "sockets hold more than this test expects"
        await service.until(SYMBOLS[-1], changes)
        for _ in range(10):
            changes += 1
            await ledger.settle(fill(symbol, changes, 1) for symbol in SYMBOLS)
            await service.until(SYMBOLS[-1], changes)
        assert service.count("fundsvc_websocket_clients") == 1
        received = {symbol: [0] for symbol in SYMBOLS}
        async for message in stalled.messages():
            received[message["data"]["symbol"]].append(message["data"]["entry"])
            if all(entries[-1] == changes for entries in received.values()):
                break
    assert stalled.closed is None
    for entries in received.values():
        assert entries == sorted(entries)
    assert min(map(len, received.values())) < changes - 5


async def test_slow_subscriber_of_entries_is_closed_and_resumes_after_its_last_entry(service, ledger):
    symbol = SYMBOLS[0]
    async with stalled_client(service, {"id": "s", "type": "subscribe", "topic": f"{ENTRY}:{symbol}"}) as stalled:
        settled = 0
        while not service.count("fundsvc_websocket_overflows_total", action="closed"):
            await ledger.settle(fill(symbol, settled + number, 1) for number in range(1, 1001))
            settled += 1000
            assert settled < 50_000, "sockets hold more than this test expects"
            await service.until(symbol, settled)
        messages = [message async for message in stalled.messages()]
    assert stalled.closed == (1013, "more than 20000 bytes were unread: read faster; reconnect, and subscribe with `after`")
    received = [message["data"]["entry"] for message in messages]
    assert received == list(range(1, len(received) + 1))
    assert len(received) < settled
    await eventually(lambda: service.count("fundsvc_websocket_clients") == 0)
    async with service.connected() as client:
        await client.subscribe(f"{ENTRY}:{symbol}", after=received[-1])
        for entry in range(received[-1] + 1, settled + 1):
            assert (await client.data(f"{ENTRY}:{symbol}", "entry"))["entry"] == entry


async def test_client_that_never_reads_again_is_aborted(service, ledger, monkeypatch):
    monkeypatch.setattr("fundsvc.api.websocket.subscriber.CLOSE_SECONDS_MAX", 0.2)
    symbol = SYMBOLS[0]
    async with stalled_client(service, {"id": "s", "type": "subscribe", "topic": f"{ENTRY}:{symbol}"}):
        settled = 0
        while not service.count("fundsvc_websocket_overflows_total", action="closed"):
            await ledger.settle(fill(symbol, settled + number, 1) for number in range(1, 1001))
            settled += 1000
            await service.until(symbol, settled)
        await eventually(lambda: service.count("fundsvc_websocket_clients") == 0, seconds=3)


async def test_missed_entries_are_sent_only_as_fast_as_the_client_reads(service, ledger):
    symbol, entries = SYMBOLS[0], 20_000
    await ledger.settle(fill(symbol, seq, 1) for seq in range(1, entries + 1))
    await service.until(symbol, entries)
    command = {"id": "s", "type": "subscribe", "topic": f"{ENTRY}:{symbol}", "after": 0}
    async with stalled_client(service, command) as stalled, service.connected() as client:
        # The reading client subscribes later. Without back-pressure, the service would have sent all entries to the stalled
        # client by the time that the reading one has them.
        await client.subscribe(f"{ENTRY}:{symbol}", after=0)
        for entry in range(1, entries + 1):
            assert (await client.data(f"{ENTRY}:{symbol}", "entry"))["entry"] == entry
        assert entries < service.count("fundsvc_websocket_frames_total") < 2 * entries
        assert not service.count("fundsvc_websocket_overflows_total", action="closed")
        numbers = []
        async for message in stalled.messages():
            numbers.append(message["data"]["entry"])
            if len(numbers) == entries:
                break
    assert stalled.closed is None
    assert numbers == list(range(1, entries + 1))
