"""Two APIs behind haproxy, while entries are written: a client sees in every later read what it has seen once."""

import asyncio
import itertools
import os
import secrets
import subprocess
import time
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress

import aiohttp
import pytest
from commands import process
from eventually import eventually
from ledgers import fill, listing
from patroni import HA, needs_ha
from test_engine import running
from tokens import SECRET

from fundsvc.streams.producer import Producer

pytestmark = needs_ha

SYMBOL = "XBTUSDTM"
FUND = f"/api/v1/insurance-fund/{SYMBOL}"
NEWEST = f"{FUND}/history?forward=false&maxCount=1"
READ_SECONDS = 2.0
ENTRIES_MIN = 10
LATE_SECONDS = 1.0
"""Much longer than `http.tail_seconds`, for a loaded machine."""

STICKY = "balance source\n    hash-type consistent"


@contextmanager
def haproxy(tmp_path, network, rule):
    """Runs haproxy with the deployed configuration, or with another rule for the choice of an API."""
    text = (HA / "haproxy-api.cfg").read_text()
    assert STICKY in text
    path = tmp_path / "haproxy-api.cfg"
    path.write_text(text.replace(STICKY, rule))
    environment = os.environ | {"BIND": f"{network}.1", "API_1": f"{network}.2", "API_2": f"{network}.3"}
    environment |= {f"POSTGRES_{number}": f"{network}.9" for number in (1, 2, 3)}
    with (tmp_path / "log").open("wb") as log:
        command = ("haproxy", "-f", HA / "haproxy.cfg", "-f", path)
        program = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            yield f"http://{network}.1:8080"
        finally:
            program.kill()
            program.wait()


class Behind:
    """APIs behind haproxy, and a client of them."""

    def __init__(self, http, stop_one):
        self._http = http
        self.stop_one = stop_one

    async def get(self, path):
        """Returns the data of an answer; None without one."""
        with suppress(aiohttp.ClientError):
            async with self._http.get(path) as answer:
                return (await answer.json())["data"] if answer.status == 200 else None

    async def read(self, path, entry_of, seconds=READ_SECONDS):
        """Reads for a while; returns the entry numbers that were seen, in order, each with the time of its request."""
        seen, began = [], time.monotonic()
        while (asked := time.monotonic()) < began + seconds:
            if answer := await self.get(path):
                seen.append((asked, entry_of(answer)))
        return seen


@pytest.fixture
async def behind(config, client, tmp_path, rule):
    """Two APIs behind haproxy, while an engine settles a fill after the other."""
    network = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(254) + 1}"
    producer = Producer(client, 1)
    await producer.append([listing(SYMBOL), fill(SYMBOL, 1, 1)])
    async with AsyncExitStack() as exits, AsyncExitStack() as one:
        await exits.enter_async_context(running(config))
        url = exits.enter_context(haproxy(tmp_path, network, rule))
        more = {
            "FUNDSVC_TOKEN_SECRET": SECRET,
            "FUNDSVC_HTTP_PORT": "8080",
            "FUNDSVC_HTTP_HEALTH_PORT": "8081",
            "FUNDSVC_HTTP_REQUESTS_MAX": "1000000",
        }
        await one.enter_async_context(process(config, "api", FUNDSVC_HTTP_HOST=f"{network}.2", **more))
        await exits.enter_async_context(process(config, "api", FUNDSVC_HTTP_HOST=f"{network}.3", **more))
        http = await exits.enter_async_context(aiohttp.ClientSession(url))
        behind = Behind(http, one.aclose)
        await eventually(lambda: behind.get(FUND))
        async with _filling(producer):
            yield behind


@asynccontextmanager
async def _filling(producer):
    async def fills():
        seq = 1
        while True:
            seq += 1
            await producer.append([fill(SYMBOL, seq, 1)])
            await asyncio.sleep(0.002)

    task = asyncio.create_task(fills())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def backwards(seen):
    """Counts reads that lack an entry of the read before."""
    return sum(later < earlier for (_, earlier), (_, later) in itertools.pairwise(seen))


def late(seen):
    """Counts reads that lack an entry that was seen LATE_SECONDS before."""
    return sum(any(entry < earlier for asked, earlier in seen if asked < now - LATE_SECONDS) for now, entry in seen)


@pytest.mark.parametrize("rule", [STICKY])
async def test_a_client_of_the_deployed_balancer_never_reads_backwards(behind):
    seen = await behind.read(FUND, lambda fund: fund["entry"])
    await behind.stop_one()
    seen += await behind.read(FUND, lambda fund: fund["entry"], 2 * READ_SECONDS)
    print(f"{len(seen)} reads, up to entry {seen[-1][1]}, {backwards(seen)} backwards")
    assert len(set(seen)) > ENTRIES_MIN
    assert backwards(seen) == 0


@pytest.mark.parametrize("rule", ["balance roundrobin"])
async def test_in_turns_pages_of_entries_never_go_back_and_funds_only_for_a_moment(behind):
    pages = await behind.read(NEWEST, lambda page: page["dataList"][0]["entry"])
    funds = await behind.read(FUND, lambda fund: fund["entry"])
    print(f"{len(pages)} pages, {backwards(pages)} backwards")
    print(f"{len(funds)} funds, {backwards(funds)} backwards, {late(funds)} by more than {LATE_SECONDS} s")
    assert len(set(pages)) > ENTRIES_MIN
    assert (backwards(pages), late(funds)) == (0, 0)
