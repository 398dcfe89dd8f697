"""Clients that do not read: balances are coalesced, entries close the connection, and nothing is lost to who comes back."""

import pytest
from conftest import with_section
from eventually import eventually
from ledgers import fill, listing, owned
from live import BALANCE, ENTRY, serving, sleeping

SYMBOLS = [f"S{number:03d}" for number in range(200)]
"""A change of all of them is some 100 kB, so that a few dozen fill what sockets hold."""


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


async def test_a_client_that_does_not_read_gets_the_latest_balances_once_it_does(service, ledger):
    async with sleeping(service, {"id": "s", "type": "subscribe", "topic": f"{BALANCE}:all"}) as sleeper:
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
        told = {symbol: [0] for symbol in SYMBOLS}
        async for message in sleeper.messages():
            told[message["data"]["symbol"]].append(message["data"]["entry"])
            if all(entries[-1] == changes for entries in told.values()):
                break
    assert sleeper.closed is None
    for entries in told.values():
        assert entries == sorted(entries)
    assert min(map(len, told.values())) < changes - 5


async def test_a_client_that_does_not_read_its_entries_is_closed_with_a_reason_and_goes_on_from_where_it_was(service, ledger):
    symbol = SYMBOLS[0]
    async with sleeping(service, {"id": "s", "type": "subscribe", "topic": f"{ENTRY}:{symbol}"}) as sleeper:
        settled = 0
        while not service.count("fundsvc_websocket_overflows_total", action="closed"):
            await ledger.settle(fill(symbol, settled + number, 1) for number in range(1, 1001))
            settled += 1000
            assert settled < 50_000, "sockets hold more than this test expects"
            await service.until(symbol, settled)
        messages = [message async for message in sleeper.messages()]
    assert sleeper.closed == (1013, "read faster: more was waiting than is kept; connect again, go on with after=")
    told = [message["data"]["entry"] for message in messages]
    assert told == list(range(1, len(told) + 1))
    assert len(told) < settled
    await eventually(lambda: service.count("fundsvc_websocket_clients") == 0)
    async with service.connected() as client:
        await client.subscribe(f"{ENTRY}:{symbol}", after=told[-1])
        for entry in range(told[-1] + 1, settled + 1):
            assert (await client.data(f"{ENTRY}:{symbol}", "entry"))["entry"] == entry


async def test_a_client_that_never_reads_again_is_cut_off(service, ledger, monkeypatch):
    monkeypatch.setattr("fundsvc.api.websocket.subscriber.CLOSE_SECONDS_MAX", 0.2)
    symbol = SYMBOLS[0]
    async with sleeping(service, {"id": "s", "type": "subscribe", "topic": f"{ENTRY}:{symbol}"}):
        settled = 0
        while not service.count("fundsvc_websocket_overflows_total", action="closed"):
            await ledger.settle(fill(symbol, settled + number, 1) for number in range(1, 1001))
            settled += 1000
            await service.until(symbol, settled)
        await eventually(lambda: service.count("fundsvc_websocket_clients") == 0, seconds=3)


async def test_a_replay_goes_on_only_as_its_client_reads(service, ledger):
    symbol, entries = SYMBOLS[0], 20_000
    await ledger.settle(fill(symbol, seq, 1) for seq in range(1, entries + 1))
    await service.until(symbol, entries)
    command = {"id": "s", "type": "subscribe", "topic": f"{ENTRY}:{symbol}", "after": 0}
    async with sleeping(service, command) as sleeper, service.connected() as client:
        # A client that reads subscribes later. By the time that it has all entries, the other would have them, too.
        await client.subscribe(f"{ENTRY}:{symbol}", after=0)
        for entry in range(1, entries + 1):
            assert (await client.data(f"{ENTRY}:{symbol}", "entry"))["entry"] == entry
        assert entries < service.count("fundsvc_websocket_frames_total") < 2 * entries
        assert not service.count("fundsvc_websocket_overflows_total", action="closed")
        numbers = []
        async for message in sleeper.messages():
            numbers.append(message["data"]["entry"])
            if len(numbers) == entries:
                break
    assert sleeper.closed is None
    assert numbers == list(range(1, entries + 1))
