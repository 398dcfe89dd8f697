"""A ledger of four partitions in two cells, which are two databases of the one server, and a service that serves it."""

import asyncio
import itertools
from contextlib import asynccontextmanager, suppress

import aiohttp
import msgspec
import pytest
from conftest import administrator, connected, dsn_for, with_section
from eventually import eventually
from served import INGEST
from tokens import bearer, with_secret

from fundsvc.app import connected as connected_service
from fundsvc.app import http_side
from fundsvc.config.settings import CellConfig
from fundsvc.core.contracts import partition_of
from fundsvc.engine.cell_engines import CellEngines
from fundsvc.metrics import Metrics
from fundsvc.mutual.engine.pools import pool_sessions
from fundsvc.store.migrations import migrate
from fundsvc.streams.client import stream_key

PARTITIONS = 4
HELD = {"main": [0, 1], "b": [2, 3]}

_NUMBERS = itertools.count(1)


def symbol_in(partition, number=0):
    """Returns a symbol of a partition."""
    symbols = (f"S{count}USDTM" for count in itertools.count())
    return next(itertools.islice((one for one in symbols if partition_of(one, PARTITIONS) == partition), number, None))


SYMBOLS = {partition: symbol_in(partition) for partition in range(PARTITIONS)}
"""A symbol of each partition."""


def in_cells(config, main, b):
    """Returns the configuration of a ledger in two cells, given as DSN and owner's DSN."""
    further = {"b": CellConfig(*b, partitions=("2-3",))}
    database = msgspec.structs.replace(config.database, dsn=main[0], owner_dsn=main[1], cells=further)
    stream = msgspec.structs.replace(config.stream, partitions=PARTITIONS)
    found = msgspec.structs.replace(config, database=database, stream=stream)
    quick = with_section(found, "engine", lease_seconds=0.6, rollup_seconds=0.05)
    return with_secret(with_section(quick, "http", port=0, book_seconds=0.05, stale_seconds_max=2))


@pytest.fixture(scope="session")
def cell_templates(servers):
    """The names of migrated databases of both cells, for copies."""
    names = {cell: f"template_cell_{cell}" for cell in HELD}
    asyncio.run(create_cells({names[cell]: (servers, cell) for cell in HELD}))
    return names


async def create_cells(databases):
    """Creates databases by name, each on a server, and makes them cells. Every module with the fixtures calls it."""
    for name, (server, cell) in databases.items():
        async with administrator(server) as connection:
            if await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", name):
                continue
            await connection.execute(f"CREATE DATABASE {name}")
        await migrate(dsn_for(server.owner_dsn, name), PARTITIONS, cell, HELD[cell])


@pytest.fixture
async def cells(config, servers, cell_templates):
    """The configuration of a ledger in two migrated cells."""
    names = {cell: f"cell_{cell}_{next(_NUMBERS)}" for cell in HELD}
    dsns = {cell: (dsn_for(servers.dsn, name), dsn_for(servers.owner_dsn, name)) for cell, name in names.items()}
    for cell, name in names.items():
        async with administrator(servers) as connection:
            await connection.execute(f"CREATE DATABASE {name} TEMPLATE {cell_templates[cell]}")
    yield in_cells(config, dsns["main"], dsns["b"])
    for name in names.values():
        async with administrator(servers) as connection:
            await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def owners(cells):
    """Connections of the owners of the cells, by cell."""
    async with connected(cells.database.owner_dsn) as main, connected(cells.database.cells["b"].owner_dsn) as b:
        yield {"main": main, "b": b}


class ServedCells:
    """A service over HTTP, whose engines run in this process."""

    def __init__(self, config, http, client, metrics):
        self.config = config
        self.http = http
        self.client = client
        self.metrics = metrics

    async def post(self, *events):
        """Posts events; returns status and answer."""
        headers = {**bearer("engine"), "Content-Type": "application/json"}
        async with self.http.post(INGEST, data=msgspec.json.encode(events), headers=headers) as answer:
            return answer.status, await answer.json()

    async def send(self, *events):
        """Posts events, and returns after they are settled."""
        status, answer = await self.post(*events)
        assert status == 200, answer
        await self.settled({message["partition"]: message["id"] for message in answer["data"]["messages"]})

    async def settled(self, ids):
        """Waits until the messages with these ids of partitions are settled."""

        async def is_settled():
            rows = await self.rows("SELECT partition, last_id FROM partitions ORDER BY generation")
            return all({row["partition"]: row["last_id"] for row in rows}[number] == last for number, last in ids.items())

        await eventually(is_settled)

    async def rows(self, query, *parameters):
        """Returns the rows of all cells that are not stopped."""
        found = []
        for cell in self.config.cells:
            with suppress(OSError):
                async with connected(self.config.in_cell(cell).database.dsn) as connection:
                    found += await connection.fetch(query, *parameters)
        return found

    async def answer(self, path, role=None, **claims):
        """Returns the status, the headers and the body of an answer."""
        async with self.http.get(path, headers=bearer(role, **claims) if role else {}) as answer:
            return answer.status, answer.headers, await answer.json()

    async def data(self, path, role=None, **claims):
        status, _, body = await self.answer(path, role, **claims)
        assert status == 200, body
        return body["data"]

    async def shows(self, symbol, entry):
        """Waits until the API shows a fund after an entry; returns it."""

        async def shown():
            status, _, body = await self.answer(f"/api/v1/insurance-fund/{symbol}")
            return body["data"] if status == 200 and body["data"]["entry"] == entry else None

        return await eventually(shown)

    async def last_id(self, partition):
        return (await self.client.xrevrange(stream_key(partition), count=1))[0][0].decode()


@asynccontextmanager
async def serving_cells(config):
    """Runs the engines and the API of a service."""
    metrics, stop = Metrics(), asyncio.Event()
    engines = CellEngines(config, Metrics(), pool_sessions)
    async with connected_service(config) as (pool, client):
        running = asyncio.create_task(engines.run(stop))
        try:
            async with (
                http_side(config, metrics, pool, client, engine=None, public=True) as url,
                aiohttp.ClientSession(url) as http,
            ):
                yield ServedCells(config, http, client, metrics)
        finally:
            stop.set()
            await running
