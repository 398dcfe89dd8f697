"""Runs a complete service for a test: an engine and the API."""

import io
import time
from contextlib import asynccontextmanager

import aiohttp
import msgspec
from conftest import with_section
from eventually import eventually
from exposed import sample_sum
from test_engine import running
from tokens import bearer, with_secret

from fundsvc.app import http_side
from fundsvc.metrics import Metrics
from fundsvc.store.database import open_pool
from fundsvc.streams.announcer import announcement_key
from fundsvc.streams.client import open_client, stream_key

INGEST = "/api/v1/ingest/events"


def now_ms():
    return time.time_ns() // 1_000_000


def contract(symbol, **fields):
    given = {"symbol": symbol, "settleCurrency": "USDT", "multiplier": 0.001, "isInverse": False, "maxPrice": 1000000}
    return {"type": "contract", "contract": given | fields}


def fill(symbol, seq, **fields):
    given = {"side": "sell", "lots": 1000, "price": "39100", "bankruptcyPrice": "39000", "ts": now_ms()}
    return {"type": "fill", "symbol": symbol, "seq": seq} | given | fields


class Served:
    """A service over HTTP at `url`, with its stream, database and engine."""

    def __init__(self, url, http, client, pool, engine):
        self.url = url
        self.http = http
        self.client = client
        self.pool = pool
        self.engine = engine

    async def post(self, *events, body=None, kind="application/json"):
        """Posts events, or bytes; returns status and answer."""
        headers = {**bearer("engine"), "Content-Type": kind}
        async with self.http.post(INGEST, data=io.BytesIO(body or msgspec.json.encode(events)), headers=headers) as answer:
            return answer.status, await answer.json()

    async def send(self, *events, **options):
        """Posts events and returns the answer after they are settled."""
        status, answer = await self.post(*events, **options)
        assert status == 200, answer
        await self.settled()
        return answer["data"]

    async def append(self, *events, replay_of=None, stream_id="*"):
        """Appends events to the stream without HTTP, and waits until they are settled."""
        fields = {"json": msgspec.json.encode(events[0] if replay_of else events)}
        await self.client.xadd(stream_key(0), fields | ({"replayOf": replay_of} if replay_of else {}), id=stream_id)
        await self.settled()

    async def settled(self):
        await eventually(self._is_settled)

    async def _is_settled(self):
        end = (await self.client.xrevrange(stream_key(0), count=1))[0][0].decode()
        return await self.pool.fetchval("SELECT last_id FROM partitions WHERE partition = 0") == end

    async def get(self, path, role=None):
        async with self.http.get(path, headers=bearer(role) if role else {}) as answer:
            assert answer.status == 200, await answer.text()
            return (await answer.json())["data"]

    async def get_or_none(self, path, role=None):
        """Returns an answer, None if the path does not exist or cannot be answered now."""
        async with self.http.get(path, headers=bearer(role) if role else {}) as answer:
            return (await answer.json()).get("data")

    async def text(self, path):
        async with self.http.get(path) as answer:
            return await answer.text()

    async def announced(self):
        """Returns the announcements of ADL rounds."""
        found = await self.client.xrange(announcement_key(0))
        return [msgspec.json.decode(fields[b"json"]) for _, fields in found]

    async def fund(self, symbol):
        """Returns a contract's fund after the API has caught up with the ledger."""
        entry = await self.pool.fetchval("SELECT entry FROM funds WHERE symbol = $1", symbol)

        async def shown():
            listed = await self.get("/api/v1/insurance-fund?closed=true")
            return next((fund for fund in listed if (fund["symbol"], fund["entry"]) == (symbol, entry)), None)

        return await eventually(shown)

    async def entries(self, symbol):
        rows = await self.pool.fetch("SELECT seq, change, uncovered FROM entries WHERE symbol = $1 ORDER BY entry", symbol)
        return [tuple(row) for row in rows]

    async def reasons(self):
        """Returns the reasons of rejected events that are not settled, in the order of the stream."""
        rows = await self.pool.fetch(
            "SELECT reason FROM rejected WHERE settled_at IS NULL"
            " ORDER BY split_part(stream_id, '-', 1)::numeric, split_part(stream_id, '-', 2)::numeric, position"
        )
        return [row["reason"] for row in rows]

    def count(self, name, **labels):
        return sample_sum(self.engine.metrics, name, **labels)


@asynccontextmanager
async def served(config, port=0):
    """Runs a service with one partition."""
    config = with_section(with_secret(config), "http", port=port)
    metrics = Metrics()
    async with (
        running(config) as engine,
        open_pool(config.database.dsn, 4) as pool,
        open_client(config.stream) as client,
        http_side(config, metrics, pool, client, engine=False, public=True) as url,
        aiohttp.ClientSession(url) as http,
    ):
        yield Served(url, http, client, pool, engine)


@asynccontextmanager
async def restarted(service, config):
    """Stops the engine of a service and runs another service."""
    await service.engine.finish()
    async with served(config) as again:
        yield again
