"""A ledger of four partitions in two cells, which are two databases of the one server, and a service that serves it."""

import asyncio
import itertools
from contextlib import asynccontextmanager, suppress

import aiohttp
import msgspec
import pytest
import redis
from conftest import administrator, connected, drop_ledgers, dsn_for, is_unused, with_section
from eventually import eventually
from served import INGEST, contract, fill
from tokens import bearer, with_secret

from fundsvc.app import connected as connected_service
from fundsvc.app import http_side
from fundsvc.config.settings import CellConfig, Config, DataConfig, StreamConfig
from fundsvc.core.contracts import partition_of
from fundsvc.engine.cell_engines import CellEngines
from fundsvc.metrics import Metrics
from fundsvc.mutual.engine.pools import pool_sessions
from fundsvc.store import cell_moves
from fundsvc.store.cell_moves import BY_PARTITION, BY_SYMBOL, CHAINS, Move, as_owner
from fundsvc.store.migrations import migrate
from fundsvc.streams.client import stream_key

PARTITIONS = 4
HELD = {"main": [0, 1], "b": [2, 3]}

PARTITION = 1
"""The partition that moves."""

TABLES = (*(chain.table for chain in CHAINS), *BY_PARTITION, *BY_SYMBOL, "rollups")
"""The tables with rows that move."""

_NUMBERS = itertools.count(1)


def symbol_in(partition, number=0):
    """Returns a symbol of a partition."""
    symbols = (f"S{count}USDTM" for count in itertools.count())
    return next(itertools.islice((one for one in symbols if partition_of(one, PARTITIONS) == partition), number, None))


SYMBOLS = {partition: symbol_in(partition) for partition in range(PARTITIONS)}
"""A symbol of each partition."""

MANY = [symbol_in(PARTITION, number) for number in range(3)]
"""Symbols of the partition that moves."""


def base_config(servers):
    """Returns a configuration for empty streams, which lacks the databases."""
    with redis.Redis.from_url(servers.stream_url) as stream:
        stream.flushall()
    return Config(data=DataConfig(directory=str(servers.directory)), stream=StreamConfig(url=servers.stream_url))


def dsns_of(servers, names):
    """Returns the DSN and the owner's DSN of both cells, by the names of their databases."""
    return [(dsn_for(servers.dsn, names[cell]), dsn_for(servers.owner_dsn, names[cell])) for cell in HELD]


def in_cells(config, main, b):
    """Returns the configuration of a ledger in two cells, given as DSN and owner's DSN."""
    further = {"b": CellConfig(*b, partitions=("2-3",))}
    database = msgspec.structs.replace(config.database, dsn=main[0], owner_dsn=main[1], cells=further)
    stream = msgspec.structs.replace(config.stream, partitions=PARTITIONS)
    found = msgspec.structs.replace(config, database=database, stream=stream)
    quick = with_section(found, "engine", lease_seconds=0.6, rollup_seconds=0.05)
    return with_secret(with_section(quick, "http", port=0, book_seconds=0.05, stale_seconds_max=2))


@pytest.fixture(scope="session")
def cell_templates(servers, template):
    """The names of migrated databases of both cells, for copies. `template` has sped up the server."""
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


async def copy_cells(servers, templates, names):
    """Creates databases of both cells from templates, whose last connections may be about to end."""
    async with administrator(servers) as connection:
        for cell, name in names.items():
            await eventually(lambda template=templates[cell]: is_unused(connection, template))
            await connection.execute(f"CREATE DATABASE {name} TEMPLATE {templates[cell]} STRATEGY FILE_COPY")


@pytest.fixture
async def cells(servers, cell_templates, loop_budget):
    """The configuration of a ledger in two cells. A later test drops the databases."""
    async with administrator(servers) as connection:
        await drop_ledgers(connection)
    names = {cell: f"ledger_{cell}_{next(_NUMBERS)}" for cell in HELD}
    await copy_cells(servers, cell_templates, names)
    return in_cells(base_config(servers), *dsns_of(servers, names))


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


async def escalated(service, symbol, account):
    """Settles a surplus, a takeover, and a shortfall that needs ADL, in a contract."""
    await service.send(
        contract(symbol),
        {"type": "mark", "symbol": symbol, "price": "39000", "ts": 1},
        {
            "type": "position",
            "symbol": symbol,
            "account": account,
            "lots": -900,
            "entryPrice": "40000",
            "margin": "500",
            "ts": 1,
        },
        fill(symbol, 1),
        {"type": "takeover", "symbol": symbol, "seq": 2, "side": "sell", "lots": 5, "bankruptcyPrice": "39000", "ts": 1},
        fill(symbol, 3, price="38000"),
        {"type": "adlFill", "symbol": symbol, "seq": 4, "adl": 1, "account": account, "lots": 100, "ts": 1},
        fill(symbol, 1, price="1"),
    )


async def dump(connection):
    """Returns all rows of the partition, by table, without what a move changes."""
    found = {}
    for table in TABLES:
        rows = await connection.fetch(f"SELECT * FROM {table}")
        of = [row for row in map(dict, rows) if _is_of(row)]
        for row in of:
            for name in ("generation", "moving_to", "epoch", "owner", "lease_until", "at"):
                row.pop(name, None)
        found[table] = sorted(of, key=repr)
    return found


def _is_of(row):
    return row["partition"] == PARTITION if "partition" in row else partition_of(row["symbol"], 4) == PARTITION


async def run_move(cells, step=None, *, source="main", target="b"):
    """Runs a move over connections of its own, which end with it."""
    dsns = {cell: cells.in_cell(cell).database.owner_dsn for cell in cells.cells}
    async with as_owner(dsns[source]) as one, as_owner(dsns[target]) as other:
        return await Move(one, other, PARTITION, *([step] if step else [])).run()


async def is_gone(connection):
    found = await dump(connection)
    rest = [await connection.fetchval(f"SELECT count(*) FROM {table}") for table in ("departed", "arriving", "copied")]
    return not any(found.values()) and not any(rest)


def set_sizes(monkeypatch, rows, linger_seconds):
    """Sets the rows of a chunk and of a deletion, and how long the source shows a moved partition."""
    monkeypatch.setattr(cell_moves, "CHUNK_ROWS", rows)
    monkeypatch.setattr(cell_moves, "PURGE_ROWS", rows)
    monkeypatch.setattr(cell_moves, "LINGER_SECONDS", linger_seconds)
