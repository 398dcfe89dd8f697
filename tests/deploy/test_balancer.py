"""The configuration of HAProxy in the handbook, in front of two APIs."""

import asyncio
import re
import shutil
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from conftest import with_section
from eventually import eventually
from ledgers import listing, owned
from live import BALANCE, Listener, serving
from ports import free_port
from tokens import with_secret
from yarl import URL

import fundsvc

CHAPTER = (Path(fundsvc.__file__).parent / "handbook" / "performance.md").read_text()
SETTINGS = re.search(r"^    defaults\n(    .*\n|\n)+", CHAPTER, re.MULTILINE)[0]
SYMBOLS = ["AAA", "BBB", "CCC", "DDD", "EEE", "FFF"]


@asynccontextmanager
async def balancer(directory, *services):
    """Runs HAProxy with the settings of the handbook; yields its URL."""
    program = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    assert program, "haproxy is not installed: run scripts/ha, or apt-get install haproxy"
    port, settings = free_port(), directory / "haproxy.cfg"
    text = SETTINGS.replace("bind :8000", f"bind 127.0.0.1:{port}")
    for number, service in enumerate(services, 1):
        # Without health checks, which time out on a busy machine.
        text = text.replace(f"api-{number}:8080 check", f"127.0.0.1:{URL(service.url).port}")
    settings.write_text(text)
    with (directory / "haproxy.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(program, "-db", "-f", settings, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture
async def apis(config):
    """Two APIs behind a balancer that share their limits."""
    config = with_section(with_secret(config), "http", port=0, proxies=1, shared_limits=True)
    async with owned(config) as owner:
        await owner.settle([listing(symbol) for symbol in SYMBOLS])
    async with serving(config) as one, serving(config) as other:
        yield one, other


async def answers(http):
    try:
        async with http.get("/api/v1/insurance-fund") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


def clients(services):
    return [service.count("fundsvc_websocket_clients") for service in services]


async def test_balancer_spreads_topics_by_symbol(apis, tmp_path):
    async with balancer(tmp_path, *apis) as url, aiohttp.ClientSession(url) as http:
        await eventually(lambda: answers(http), seconds=30)

        async def chosen(symbol):
            """Subscribes to a symbol; returns the number of the process that has the connection."""
            before = clients(apis)
            async with http.post("/api/v1/bullet-public") as answer:
                bullet = (await answer.json())["data"]
            (server,) = bullet["instanceServers"]
            assert URL(server["endpoint"]).port == URL(url).port
            async with http.ws_connect(server["endpoint"], params={"token": bullet["token"], "symbol": symbol}) as socket:
                client = Listener(socket)
                assert (await client.next())["type"] == "welcome"
                await client.subscribe(f"{BALANCE}:{symbol}")
                assert (await client.data(f"{BALANCE}:{symbol}", "balance.change"))["symbol"] == symbol
                grown = [now - then for now, then in zip(clients(apis), before, strict=True)]
            await eventually(lambda: clients(apis) == before)
            assert sorted(grown) == [0, 1]
            return grown.index(1)

        first = [await chosen(symbol) for symbol in SYMBOLS]
        assert set(first) == {0, 1}
        assert [await chosen(symbol) for symbol in SYMBOLS] == first
