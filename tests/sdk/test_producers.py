"""The producers of the handbook: each passes an engine's events on, hands it each ADL round once, and resends what was lost."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import with_section
from environments import CPP, NODE, needs_compiler, needs_node, node_environment
from escalations import SYMBOL
from eventually import eventually
from installed import once
from ports import free_port
from served import contract, now_ms, served
from tokens import signed, with_secret

from fundsvc.core.contracts import partition_of
from fundsvc.streams.client import stream_key

SOURCES = Path(__file__).parents[2] / "fundsvc" / "handbook" / "producers"
LIBRARIES = ("-lhiredis", "-lcurl", "-lz", "-pthread")


def python_program():
    return [sys.executable, SOURCES / "producer.py"]


def node_program():
    node_environment()
    return ["node", shutil.copy(SOURCES / "producer.mjs", NODE)]


def compiled_program():
    source, program = SOURCES / "producer.cpp", CPP / "producer"
    flags = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror")
    once(CPP, source, lambda: subprocess.run(("g++", *flags, source, "-o", program, *LIBRARIES), check=True))
    return [program]


PROGRAMS = [
    pytest.param(python_program, id="python"),
    pytest.param(node_program, id="node", marks=needs_node),
    pytest.param(compiled_program, id="c++", marks=needs_compiler),
]


@pytest.fixture
def config(config):
    """The service has the same address after a restart."""
    config = with_section(with_secret(config), "http", port=free_port(), book_seconds=0.05)
    return with_section(config, "engine", lease_seconds=0.6)


class Engine(NamedTuple):
    """A matching engine that is connected by a producer."""

    process: asyncio.subprocess.Process

    def send(self, *events):
        for event in events:
            timed = event if event["type"] == "contract" else {"ts": now_ms(), **event}
            self.process.stdin.write(json.dumps(timed).encode() + b"\n")

    async def round(self):
        """Returns the next round that the producer hands over."""
        return json.loads(await asyncio.wait_for(self.process.stdout.readline(), 20))

    async def finished(self):
        """Ends the input; returns the rounds that were not read."""
        self.process.stdin.close()
        rest = await asyncio.wait_for(self.process.stdout.read(), 10)
        assert await self.process.wait() == 0
        return rest.decode().splitlines()


@asynccontextmanager
async def connected(program, config, journal):
    environment = {
        **os.environ,
        "FUNDSVC_STREAM": config.stream.url,
        "FUNDSVC_API": f"http://127.0.0.1:{config.http.port}",
        "FUNDSVC_TOKEN": signed("engine", sub="engine"),
    }
    process = await asyncio.create_subprocess_exec(
        *map(str, program), str(journal), env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield Engine(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def position(account, lots):
    margin = str(abs(lots))
    return {"type": "position", "symbol": SYMBOL, "account": account, "lots": lots, "entryPrice": "41000", "margin": margin}


def mark(price):
    return {"type": "mark", "symbol": SYMBOL, "price": str(price)}


def fill(lots, price):
    return {"type": "fill", "symbol": SYMBOL, "side": "sell", "lots": lots, "price": str(price), "bankruptcyPrice": "39000"}


class Book:
    """The engine's own positions, which it reduces as a round requests."""

    def __init__(self, **lots):
        self.lots = lots

    def executed(self, announced, lots_max=1000):
        """Yields the answer to a round: up to `lots_max` lots."""
        for each in announced["allocations"]:
            lots = min(each["lots"], lots_max)
            lots_max -= lots
            if lots:
                self.lots[each["account"]] += lots
                yield {"type": "adlFill", "symbol": SYMBOL, "adl": announced["adl"], "account": each["account"], "lots": lots}
                yield position(each["account"], self.lots[each["account"]])

    async def is_known(self, service):
        """Whether the service has exactly these positions, and a book that is not stale."""
        found = {}
        for account in self.lots:
            answer = await service.get_or_none(f"/api/v1/adl/positions?account={account}", "risk")
            found[account] = answer and -sum(each["lots"] for each in answer["positions"])
        queue = await service.get_or_none(f"/api/v1/adl/{SYMBOL}/queue")
        return found == self.lots and queue is not None and not queue["isStale"]


async def last_sequence(service):
    return await service.pool.fetchval("SELECT seq FROM funds")


async def check(service):
    """Checks that the service settled every event once."""
    assert await service.reasons() == []
    assert service.count("fundsvc_sequence_gaps_total") == 0


@pytest.mark.parametrize("program", PROGRAMS)
async def test_producer_resends_what_was_lost_and_hands_over_each_round_once(program, config, tmp_path, servers, client, exits):
    journal, command, book = tmp_path / "journal.ndjson", program(), Book(anna=-80, bert=-40)
    async with served(config, config.http.port) as service:
        async with connected(command, config, journal) as engine:
            engine.send(contract(SYMBOL), mark(39000), *(position(account, lots) for account, lots in book.lots.items()))
            engine.send({"type": "rate", "currency": "USDT", "price": "1"}, fill(100, 39100), fill(200, 38900))
            first = await engine.round()
            assert (first["adl"], first["round"], first["reduce"], first["lots"]) == (1, 1, "short", 100)
            engine.send(*book.executed(first, 30), {"type": "adlEnd", "symbol": SYMBOL, "adl": 1})
            second = await engine.round()
            assert (second["adl"], second["round"], second["lots"]) == (1, 2, 70)
        engine = await exits.enter_async_context(connected(command, config, journal))  # after the first one was killed
        engine.send(*book.executed(second), fill(10, 39200))
        await eventually(lambda: book.is_known(service), seconds=20)
        settled = await last_sequence(service)
        await check(service)
    book.lots["carl"] = -7
    engine.send(position("carl", -7), fill(10, 39300), mark(39010))
    await eventually(lambda: has_message(client, b'"39010"'))
    await client.flushall()
    servers.valkey.kill()
    await asyncio.to_thread(servers.start, postgres=False)
    async with served(config, config.http.port) as service:
        await eventually(lambda: book.is_known(service), seconds=20)
        assert await last_sequence(service) == settled + 1
        engine.send(fill(10, 39400))
        await eventually(lambda: is_settled(service, settled + 2), seconds=20)
        assert await engine.finished() == []
        await check(service)


@pytest.mark.parametrize("partitions", [4])
@pytest.mark.parametrize("program", PROGRAMS)
async def test_producer_sends_each_contract_to_its_partition_and_rates_to_all(program, config, tmp_path, client):
    symbols = [f"{name}USDTM" for name in ("XBT", "ETH", "SOL", "DOGE", "XRP")]
    expected = {partition: {"rate"} for partition in range(4)}
    for symbol in symbols:
        expected[partition_of(symbol, 4)].add(symbol)
    command = program()
    async with served(config, config.http.port), connected(command, config, tmp_path / "journal.ndjson") as engine:
        engine.send(*map(contract, symbols), {"type": "rate", "currency": "USDT", "price": "1"})
        engine.send(*({**fill(1, 39000), "symbol": symbol} for symbol in symbols))
        assert await engine.finished() == []
    assert len({*map(len, expected.values())}) > 1
    assert {partition: await names_in(client, partition) for partition in range(4)} == expected


async def names_in(client, partition):
    """Returns the contracts of the events in a stream, and "rate" if it has one."""
    events = [event for _, fields in await client.xrange(stream_key(partition)) for event in json.loads(fields[b"json"])]
    return {event.get("symbol") or event.get("contract", {}).get("symbol") or event["type"] for event in events}


async def has_message(client, text):
    return any(text in fields[b"json"] for _, fields in await client.xrange(stream_key(0)))


async def is_settled(service, seq):
    return await last_sequence(service) == seq
