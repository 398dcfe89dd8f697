"""The composition root: builds the running parts of a process from a configuration, and closes what it opened."""

import asyncio
import gc
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

import msgspec
import structlog

from fundsvc import __version__
from fundsvc.api.adl import AdlResources
from fundsvc.api.contracts import ContractResources
from fundsvc.api.docs.asyncapi import asyncapi_endpoint
from fundsvc.api.docs.handbook import Handbook
from fundsvc.api.docs.openapi import openapi_endpoint
from fundsvc.api.docs.reference import ApiReference
from fundsvc.api.docs.schemas import SchemaFiles
from fundsvc.api.exports import Exports
from fundsvc.api.fund_cache import FundCache
from fundsvc.api.funds import FundResources
from fundsvc.api.health import Ping, operations_endpoints
from fundsvc.api.http.access import AccessControl
from fundsvc.api.http.application import endpoints, make_app
from fundsvc.api.http.middleware import Middleware
from fundsvc.api.http.routes import Endpoint
from fundsvc.api.http.server import expiry, serve, tls_context
from fundsvc.api.http.shared_limits import open_limits
from fundsvc.api.ingest import Ingest
from fundsvc.api.inventory import InventoryResources
from fundsvc.api.page import WebPage
from fundsvc.api.stream_epochs import StreamEpochs
from fundsvc.api.targets import TargetResources
from fundsvc.api.valuation_inputs import Appraiser, appraising
from fundsvc.api.venues import venue_endpoints
from fundsvc.api.websocket.endpoints import websocket_endpoints
from fundsvc.api.websocket.topics import Topic
from fundsvc.concurrency.primary import following_primary
from fundsvc.config.settings import Config, DatabaseConfig, HttpConfig
from fundsvc.core.contracts import partition_of
from fundsvc.core.policy import Policy
from fundsvc.engine.cell_engines import CellEngines
from fundsvc.engine.durability import Durability, durability
from fundsvc.engine.engine import Engine
from fundsvc.local.open_files import files_for
from fundsvc.local.servers import embedded
from fundsvc.local.token_secret import with_ledger_secret, with_secret
from fundsvc.logs.faults import Outage
from fundsvc.metrics import Metrics
from fundsvc.mutual.api.accounts import InsuredResources
from fundsvc.mutual.api.pools import PoolResources
from fundsvc.mutual.api.topics import mutual_topics
from fundsvc.mutual.engine.pools import pool_sessions
from fundsvc.mutual.readmodel import open_pools
from fundsvc.mutual.store.reader import MutualReader
from fundsvc.readmodel.adl_books import open_adl_books
from fundsvc.readmodel.cell_tails import open_tails
from fundsvc.store.adl import AdlReader
from fundsvc.store.archive.files import ArchiveFiles, load_library
from fundsvc.store.cell_pools import known_cells, lenient, locate, open_cells, pools_by_cell, strict
from fundsvc.store.cells import CellMap
from fundsvc.store.database import Pool, StoreFault, main_pool
from fundsvc.store.inventories import InventoryReader
from fundsvc.store.partition_state import check_decimals
from fundsvc.store.reader import Reader, fetch
from fundsvc.store.schema import check_schema
from fundsvc.store.server_checks import check_sessions
from fundsvc.store.statistics import Statistics
from fundsvc.store.stream_epochs import EpochStore
from fundsvc.store.target_sizes import Targets
from fundsvc.store.venue_histories import Histories
from fundsvc.streams.client import StreamClient, open_client, stream_key
from fundsvc.streams.producer import Producer

STOP_SECONDS_MAX = 3.0
"""How long the engine may take to commit its current batch after a stop request. It is then cancelled, which loses nothing."""

RETRY_SECONDS = 1.0
"""Pause between two attempts of a starting service to reach its database."""

PROBE_CONNECTIONS = 2
"""Database connections for probes. If one of the two hangs, the other answers the four queries of a probe in turn."""

FILES_RESERVED = 128
"""Files that a process opens besides connections of clients and readers: the engine's sessions, streams, logs, Python's own."""

PRIMARY_CONNECTIONS_MAX = 2
"""Two suffice, because the process caches what it reads from the primary: epochs of producers and durability settings."""

GC_THRESHOLDS = 5000, 1000
"""Thresholds of the garbage collector: new objects per collection of the youngest generation, and such collections per
collection of the next one. Few objects here form cycles; with the defaults (700 and 10) the collector takes a tenth of the
engine's time. A collection of 5,000 objects takes a millisecond, one of the 100,000 that a storm keeps takes 30.
"""

SWITCH_SECONDS = 0.001
"""How long a thread that computes keeps the interpreter while the event loop waits for it.

The loop waits so long after each call that lets other threads run, such as a read or write of a socket: the default of 5 ms
adds up to tens of milliseconds. Without such a thread nothing changes.
"""

log = structlog.get_logger()

Settler = Engine | CellEngines
"""The engine of one database, or those of the cells."""


@asynccontextmanager
async def prepared(config: Config, stop: asyncio.Event | None = None) -> AsyncIterator[Config]:
    """Yields the configuration with started embedded servers and a matching schema. Migrates if the owner's DSN is configured.

    With `stop`, waits until the database is reachable or `stop` is set; without it, raises StoreFault at once.
    """
    async with embedded(with_ledger_secret(with_secret(config))) as complete:
        outage = Outage(log, "schema")
        while not await _has_schema(complete, stop, outage):
            pass
        outage.over()
        yield complete


async def _has_schema(config: Config, stop: asyncio.Event | None, outage: Outage) -> bool:
    """Migrates or checks the schema of each cell.

    One cell that answers suffices. Returns False after a pause if none does and the caller may retry.
    """
    prepared = await asyncio.gather(*(_prepare_cell(config, cell, is_run=stop is not None) for cell in config.cells))
    faults = {cell: fault for cell, fault in zip(config.cells, prepared, strict=True) if fault}
    if len(faults) < len(config.cells):
        for cell, fault in faults.items():
            log.warning("cell away", cell=cell, detail=str(fault))
        return True
    fault = next(iter(faults.values()))
    if stop is None or stop.is_set():
        raise fault
    outage.note(fault)
    await asyncio.sleep(RETRY_SECONDS)
    return False


async def _prepare_cell(config: Config, cell: str, *, is_run: bool) -> StoreFault | None:
    """Migrates or checks the schema of a cell, and its decimals before it is served; returns the fault if it is away."""
    partitions, database, currency = config.stream.partitions, config.in_cell(cell).database, config.currency
    try:
        await _check_poolers(database)
        if database.owner_dsn:
            await migrate_cell(config, cell)
        else:
            await check_schema(database.dsn, partitions, cell)
        if is_run:
            await check_decimals(database.dsn, currency.decimals, currency.decimals_default)
    except StoreFault as fault:
        return fault
    return None


async def migrate_cell(config: Config, cell: str) -> None:
    """Creates or upgrades the schema of a cell. A new cell begins with the partitions that the configuration gives it."""
    from fundsvc.store.migrations import migrate  # noqa: PLC0415 - see fundsvc.store.schema

    held = [number for number, holder in enumerate(config.placement) if holder == cell]
    await migrate(config.in_cell(cell).database.owner_dsn, config.stream.partitions, cell, held)


async def _check_poolers(database: DatabaseConfig) -> None:
    """Raises ValueError for a pooler that does not keep sessions; a replica may be unreachable at the start."""
    await check_sessions(database.dsn)
    if database.reader_dsn:
        with suppress(StoreFault):
            await check_sessions(database.reader_dsn)


@asynccontextmanager
async def connected(config: Config) -> AsyncIterator[tuple[Pool, StreamClient]]:
    """Yields connection pools for reads and a client of the stream server."""
    async with (
        reserved(config, config.database.connections_max, CellMap(config.placement)) as pool,
        open_client(config.stream) as client,
    ):
        await locate(pool)
        yield pool, client


async def run_service(
    config: Config, stop: asyncio.Event, started: Callable[[str], Awaitable[None]], *, engine: bool = True, api: bool = True
) -> None:
    """Runs the engine, the HTTP side or both until `stop` is set.

    Awaits `started` once, with the HTTP address ("" without one).
    """
    if api and config.archive.location:
        load_library()
    tune_interpreter()  # takes 60 ms the first time, so it runs before anything is served
    parts = [name for name, runs in (("engine", engine), ("api", api)) if runs]
    metrics = Metrics()
    metrics.partitions.set(config.stream.partitions)
    async with connected(config) as (pool, client), asyncio.TaskGroup() as tasks:
        for one in pools_by_cell(pool).values():
            metrics.add_pool(one)
        running = CellEngines(config, metrics, pool_sessions) if engine else None
        consumer = tasks.create_task(running.run(stop)) if running else None
        async with http_side(config, metrics, pool, client, engine=running, public=api) as url:
            gc.freeze()  # what was built so far lives as long as the process
            log.info("started", version=__version__, parts=parts, listens_on=url)
            await started(url)
            await stop.wait()
            stopping = time.monotonic()
        if consumer:
            await asyncio.wait([consumer], timeout=STOP_SECONDS_MAX)
            consumer.cancel()
    log.info("stopped", version=__version__, parts=parts, seconds=round(time.monotonic() - stopping, 3))


async def run_engine(engine: Settler, stop: asyncio.Event) -> None:
    """Runs an engine until `stop` is set, with the interpreter tuned for it."""
    tune_interpreter()
    await engine.run(stop)


def tune_interpreter() -> None:
    """Exempts all existing objects from garbage collection, collects new ones seldom, and switches threads often."""
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


@asynccontextmanager
async def http_side(
    config: Config, metrics: Metrics, pool: Pool, client: StreamClient, *, engine: Settler | None, public: bool
) -> AsyncIterator[str]:
    """Serves the API, or only health and metrics if not `public`; yields the address, "" if nothing is served.

    If `engine` runs in this process, readiness includes it.
    """
    known = known_cells(pool) or CellMap(config.placement)
    async with (
        reserved(at_primary(config), PRIMARY_CONNECTIONS_MAX, known) as primary,
        durability(lenient(primary), client, metrics) as durable,
        asyncio.TaskGroup() as tasks,
        _serving(config, metrics, lenient(pool), client, primary, durable, known, engine=engine, public=public) as url,
    ):
        databases = [config.in_cell(cell).database for cell in config.cells]
        places = {dsn for database in databases for dsn in (database.dsn, database.reader_dsn) if dsn}
        following = [tasks.create_task(following_primary(dsn, log).run()) for dsn in places]
        yield url
        for task in following:
            task.cancel()


@asynccontextmanager
async def _serving(
    config: Config,
    metrics: Metrics,
    pool: Pool,
    client: StreamClient,
    primary: Pool,
    durable: Durability,
    known: CellMap,
    *,
    engine: Settler | None,
    public: bool,
) -> AsyncIterator[str]:
    if not public and not config.engine.port:
        yield ""
        return

    async def ping_stream() -> None:
        await client.ping()

    settling: dict[str, Ping] = {"settling": engine.check} if engine else {}
    pings: dict[str, Ping] = {"stream": ping_stream, "durability": durable.check, **settling}
    files = ArchiveFiles(config.archive.location)
    reader = Reader(pool, files)
    # With several cells, the others settle while one is away.
    needed = ("stream", *(("settling",) if len(config.cells) == 1 else ())) if engine else ()
    if not public:
        async with reserved(config, PROBE_CONNECTIONS, known) as probing:
            operations = operations_endpoints(Reader(lenient(probing)), metrics, pings | cell_pings(probing), needed)
            async with serve(make_app(Middleware(metrics), operations), config.http.host, config.engine.port) as url:
                yield url
        return
    bounds = fitting(config)
    async with (
        reserved(config, PROBE_CONNECTIONS, known) as probing,
        reserved(config, config.http.exports_max, known) as exporting,
        open_adl_books(config, pool, client, metrics) as books,
        appraising(pool, books, config.http.rate_seconds_max, metrics) as appraiser,
        open_tails(config, metrics, appraiser.mark, known) as tail,
        open_limits(config, client) as limits,
        open_pools(config, tail.freshness) as pools,
    ):

        async def check_replica() -> None:
            tail.freshness.check()

        pings |= {"replica": check_replica, **cell_pings(probing)}
        operations = operations_endpoints(
            Reader(lenient(probing)), metrics, pings, needed={*needed, *(("replica",) if len(config.cells) == 1 else ())}
        )
        ledger = AdlReader(pool)
        policy_of = recorded_policies(config, appraiser)
        access_control = AccessControl(
            config.http, config.token, limits.requests, limits.events, (endpoint.path for endpoint in operations)
        )
        producer = Producer.configured(client, config.stream)
        epochs = StreamEpochs(EpochStore(primary), producer, config.stream.partitions)
        mutual = MutualReader(main_pool(pool))
        contracts = ContractResources(reader, stream_key, epochs, mutual, Reader(strict(pool)))
        ingest = Ingest(config, reader, producer, epochs, access_control)
        exports = Exports(config.http.exports_max)
        funds = FundResources(
            reader,
            tail,
            Statistics(pool, files),
            ledger,
            appraiser,
            policy_of,
            Reader(exporting, files),
            exports,
            config.ledger.secrets,
        )
        cached = FundCache(tail, funds.answer)
        inventory = InventoryResources(reader, InventoryReader(pool), tail, appraiser.mark)
        of_pools = PoolResources(pools, mutual, MutualReader(main_pool(exporting)), exports)
        insured = InsuredResources(pools, mutual, MutualReader(main_pool(exporting)), exports)
        sizing = TargetResources(reader, Targets(pool), books, config.target.of)
        adl = AdlResources(
            reader, ledger, books, tail, policy_of, appraiser.rate, config.queue.k_min, AdlReader(exporting), exports
        )
        venues = venue_endpoints(config.http.venues, cached.answers, funds.summary, adl, reader, Histories(pool), policy_of)
        async with (
            mutual_topics(pools, insured, mutual, metrics) as topics,
            websocket_endpoints(config, tail, cached, reader, ledger, books, metrics, policy_of, limits, topics) as websocket,
        ):
            of_funds = (*cached.routes, *funds.routes, *inventory.routes, *sizing.routes)
            of_mutual = (*of_pools.routes, *insured.routes)
            routes = (*contracts.routes, ingest.endpoint, *of_funds, *adl.routes, *of_mutual)
            table = endpoints((*operations, *routes, *websocket.endpoints, *venues))
            middleware = Middleware(metrics, access_control, lambda: tail.away)
            documents = await asyncio.to_thread(document_endpoints, table, websocket.topics, config.http.public_url)
            app = make_app(middleware, (*table, websocket.socket, *documents))
            app.on_shutdown.append(websocket.close_connections)
            tls = tls_context(config.http.certificate, config.http.certificate_key)
            metrics.servers.certificate.set(expiry(config.http.certificate))
            async with (
                health_side(config, Middleware(metrics, access_control), operations),
                serve(app, config.http.host, config.http.port, tls, bounds, metrics.refused) as url,
            ):
                yield url


def document_endpoints(table: Sequence[Endpoint], topics: Collection[Topic], public_url: str) -> tuple[Endpoint, ...]:
    """Returns the endpoints of the page and of all documentation; `table` and `topics` are documented.

    Takes a tenth of a second, most of it to render the handbook. So call it in a thread.
    """
    described = (openapi_endpoint(table), asyncapi_endpoint(topics), *SchemaFiles().endpoints)
    return (*described, *ApiReference().endpoints, *Handbook().endpoints, *WebPage(public_url).endpoints)


@asynccontextmanager
async def health_side(config: Config, middleware: Middleware, operations: Iterable[Endpoint]) -> AsyncIterator[None]:
    """Serves health and metrics on `http.health_port`, if configured, so that load on the other port cannot affect probes."""
    if not config.http.health_port:
        yield
        return
    async with serve(make_app(middleware, operations), config.http.host, config.http.health_port):
        yield


@asynccontextmanager
async def reserved(config: Config, connections: int, known: CellMap) -> AsyncIterator[Pool]:
    """Yields separate connection pools for reads that other queries cannot delay."""
    databases = {cell: config.in_cell(cell).database for cell in config.cells}
    dsns = {cell: database.reader_dsn or database.dsn for cell, database in databases.items()}
    async with open_cells(dsns, connections, known) as pool:
        yield pool


def at_primary(config: Config) -> Config:
    """Returns the configuration without read replicas, for what writes, or must see recent writes."""
    database = config.database
    cells = {name: msgspec.structs.replace(cell, reader_dsn="") for name, cell in database.cells.items()}
    return msgspec.structs.replace(config, database=msgspec.structs.replace(database, reader_dsn="", cells=cells))


def cell_pings(pool: Pool) -> dict[str, Ping]:
    """Returns a check of each of several cells."""
    pools = pools_by_cell(pool) if known_cells(pool) else {}
    return {f"cell {cell}": partial(fetch, one, "ping") for cell, one in pools.items()}


def fitting(config: Config) -> HttpConfig:
    """Returns the limits of the HTTP side, with `clients_max` reduced to what the process's limit of open files permits."""
    http = config.http
    own = FILES_RESERVED + config.database.connections_max + http.exports_max + PROBE_CONNECTIONS
    clients = files_for(http.clients_max, own)
    if clients < http.clients_max:
        log.warning(
            "few files", clients_max=http.clients_max, clients=clients, reserved=own, remedy="raise LimitNOFILE or ulimit -n"
        )
    return msgspec.structs.replace(http, clients_max=clients)


def recorded_policies(config: Config, appraiser: Appraiser) -> Callable[[str], Policy]:
    """Returns a function from symbol to policy: the recorded policy of the partition, or the configured one before that."""

    def policy_of(symbol: str) -> Policy:
        return appraiser.policies.get(partition_of(symbol, config.stream.partitions), config.policy).of(symbol)

    return policy_of


@asynccontextmanager
async def consuming(config: Config, pool: Pool) -> AsyncIterator[None]:
    """Runs an engine while the context is open, unless another engine is alive."""
    for cell in config.cells:
        await check_decimals(config.in_cell(cell).database.dsn, config.currency.decimals, config.currency.decimals_default)
    if any(row["live"] for row in await fetch(pool, "partitions")):
        yield
        return
    stop, metrics = asyncio.Event(), Metrics()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run_engine(CellEngines(config, metrics, pool_sessions), stop))
        try:
            yield
        finally:
            stop.set()


def stop_on_signals() -> asyncio.Event:
    """Returns an event that SIGINT and SIGTERM set, and SIGHUP unless it is ignored (nohup)."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    hang_up = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
    for number in (signal.SIGINT, signal.SIGTERM, *hang_up):
        loop.add_signal_handler(number, stop.set)
    return stop
