"""The composition root: a configuration in, running parts out. Whoever opens something here closes it here."""

import asyncio
import gc
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

import msgspec
import structlog

from fundsvc import __version__
from fundsvc.api.adl import DeleveragingResources
from fundsvc.api.contracts import ContractResources
from fundsvc.api.docs.handbook import Handbook
from fundsvc.api.docs.openapi import described
from fundsvc.api.docs.reference import Reference
from fundsvc.api.exports import Exports
from fundsvc.api.fund_cache import CachedFunds
from fundsvc.api.funds import FundResources
from fundsvc.api.health import Ping, operations_endpoints
from fundsvc.api.http.access import Gate
from fundsvc.api.http.application import endpoints, make_app
from fundsvc.api.http.middleware import Reception
from fundsvc.api.http.routes import Endpoint
from fundsvc.api.http.server import serve, tls_context
from fundsvc.api.ingest import Ingest
from fundsvc.api.page import Page
from fundsvc.api.stream_epochs import StreamEpochs
from fundsvc.api.targets import SizingResources
from fundsvc.api.valuation_inputs import Appraiser, appraising
from fundsvc.api.venues import venue_endpoints
from fundsvc.api.websocket.endpoints import living
from fundsvc.config.settings import Config, HttpConfig
from fundsvc.core.contracts import partition_of
from fundsvc.core.policy import Policy
from fundsvc.engine.durability import Durability, durability
from fundsvc.engine.engine import Engine
from fundsvc.local.open_files import files_for
from fundsvc.local.servers import embedded
from fundsvc.local.token_secret import with_ledger_secret, with_secret
from fundsvc.logs.faults import Outage
from fundsvc.metrics import Metrics
from fundsvc.readmodel.adl_books import open_follower
from fundsvc.readmodel.ledger_tail import open_tail
from fundsvc.store.adl import Deleveragings
from fundsvc.store.database import SQL, Pool, StoreFault, faults, open_pool
from fundsvc.store.partition_state import check_decimals
from fundsvc.store.reader import Reader
from fundsvc.store.schema import check_schema
from fundsvc.store.statistics import Statistics
from fundsvc.store.stream_epochs import EpochStore
from fundsvc.store.target_sizes import Targets
from fundsvc.store.venue_histories import Histories
from fundsvc.streams.client import Client, open_client, stream_key
from fundsvc.streams.producer import Producer

STOP_SECONDS_MAX = 3.0
"""The batch in hand is finished within this time of being told to stop; then the engine is cut off, which loses nothing."""

RETRY_SECONDS = 1.0
"""How often a service that starts before its database asks for it."""

PROBE_CONNECTIONS = 2
"""To the database, for probes: their four questions are answered one after the other where one of the two hangs."""

FILES_RESERVED = 128
"""Files that a process has open besides its clients and readers: an engine's sessions, streams, logs, what Python opens."""

PRIMARY_CONNECTIONS_MAX = 2
"""Few suffice: the process caches what it reads there, the epochs of posters and the durability settings."""

GC_THRESHOLDS = 5000, 1000
"""New objects until the collector looks at these, and such looks until it looks at those that were kept. Hardly anything here
forms cycles: with the defaults of 700 and 10 the collector takes a tenth of the engine's time. 5000 objects take it a
millisecond; the 100,000 that a storm keeps take 30.
"""

log = structlog.get_logger()


@asynccontextmanager
async def prepared(config: Config, stop: asyncio.Event | None = None) -> AsyncIterator[Config]:
    """The configuration with servers behind it and a schema that fits; migrates where the owner's DSN is known.

    What runs until a `stop` waits for a database that is away; anything else raises StoreFault.
    """
    async with embedded(with_ledger_secret(with_secret(config))) as complete:
        outage = Outage(log, "schema")
        while not await _has_schema(complete, stop, outage):
            pass
        outage.over()
        yield complete


async def _has_schema(config: Config, stop: asyncio.Event | None, outage: Outage) -> bool:
    """Makes sure of the schema; False, a moment later, when the database is away and there is time to wait for it."""
    try:
        if config.database.owner_dsn:
            from fundsvc.store.migrations import migrate  # noqa: PLC0415 - see fundsvc.store.schema

            await migrate(config.database.owner_dsn, config.stream.partitions)
        else:
            await check_schema(config.database.dsn, config.stream.partitions)
        if stop is not None:
            await check_decimals(config.database.dsn, config.currency.decimals, config.currency.decimals_default)
    except StoreFault as fault:
        if stop is None or stop.is_set():
            raise
        outage.note(fault)
        await asyncio.sleep(RETRY_SECONDS)
        return False
    return True


@asynccontextmanager
async def connected(config: Config) -> AsyncIterator[tuple[Pool, Client]]:
    """A pool of readers and a client of the stream."""
    async with (
        open_pool(config.database.reader_dsn or config.database.dsn, config.database.connections_max) as pool,
        open_client(config.stream) as client,
    ):
        yield pool, client


async def run_service(
    config: Config, stop: asyncio.Event, started: Callable[[str], Awaitable[None]], *, engine: bool = True, api: bool = True
) -> None:
    """Runs the consumer, the HTTP side or both until `stop` is set.

    `started` is awaited once with the HTTP address ("" without one), and again never.
    """
    parts = [name for name, runs in (("engine", engine), ("api", api)) if runs]
    metrics = Metrics()
    metrics.partitions.set(config.stream.partitions)
    async with connected(config) as (pool, client), asyncio.TaskGroup() as tasks:
        metrics.pooled(pool)
        running = Engine(config, metrics) if engine else None
        consumer = tasks.create_task(run_engine(running, stop)) if running else None
        async with http_side(config, metrics, pool, client, engine=running, public=api) as url:
            spare_collector()
            log.info("started", version=__version__, parts=parts, listens_on=url)
            await started(url)
            await stop.wait()
            told = time.monotonic()
        if consumer:
            await asyncio.wait([consumer], timeout=STOP_SECONDS_MAX)
            consumer.cancel()
    log.info("stopped", version=__version__, parts=parts, seconds=round(time.monotonic() - told, 3))


async def run_engine(engine: Engine, stop: asyncio.Event) -> None:
    """Runs the consumer with the collector out of its way."""
    spare_collector()
    await engine.run(stop)


def spare_collector() -> None:
    """Has the collector look no more at what is there by now, and seldom at what comes."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


@asynccontextmanager
async def http_side(
    config: Config, metrics: Metrics, pool: Pool, client: Client, *, engine: Engine | None, public: bool
) -> AsyncIterator[str]:
    """Serves the whole API, or only health and metrics for an engine alone; yields the address, "" when that is off.

    Readiness hangs on an engine that runs here.
    """
    async with (
        open_pool(config.database.dsn, PRIMARY_CONNECTIONS_MAX) as primary,
        durability(primary, client, metrics) as durable,
        _serving(config, metrics, pool, client, primary, durable, engine=engine, public=public) as url,
    ):
        yield url


@asynccontextmanager
async def _serving(
    config: Config,
    metrics: Metrics,
    pool: Pool,
    client: Client,
    primary: Pool,
    durable: Durability,
    *,
    engine: Engine | None,
    public: bool,
) -> AsyncIterator[str]:
    if not public and not config.engine.port:
        yield ""
        return

    async def ping_stream() -> None:
        await client.ping()

    pings: dict[str, Ping] = {"stream": ping_stream, "durability": durable.check}
    if engine:
        pings["settling"] = engine.check
    reader = Reader(pool)
    needed = ("stream", "settling") if engine else ()
    if not public:
        async with reserved(config, PROBE_CONNECTIONS) as probing:
            operations = operations_endpoints(probing, metrics, pings, needed)
            async with serve(make_app(Reception(metrics), operations), config.http.host, config.engine.port) as url:
                yield url
        return
    bounds = fitting(config)
    async with (
        reserved(config, PROBE_CONNECTIONS) as probing,
        reserved(config, config.http.exports_max) as exporting,
        open_follower(config, pool, client, metrics) as follower,
        appraising(pool, follower, config.http.rate_seconds_max) as appraiser,
        open_tail(config, metrics) as tail,
    ):

        async def check_replica() -> None:
            tail.freshness.check()

        operations = operations_endpoints(probing, metrics, {**pings, "replica": check_replica}, needed={*needed, "replica"})
        ledger = Deleveragings(pool)
        policy_of, gate = (
            recorded_policies(config, appraiser),
            Gate(config.http, config.token, (endpoint.path for endpoint in operations)),
        )
        producer = Producer.configured(client, config.stream)
        epochs = StreamEpochs(EpochStore(primary), producer, config.stream.partitions)
        contracts = ContractResources(reader, stream_key, epochs)
        ingest = Ingest(config, reader, producer, epochs, gate)
        exports = Exports(exporting, config.http.exports_max)
        funds = FundResources(reader, tail, Statistics(pool), ledger, appraiser, policy_of, exports, config.ledger.secrets)
        cached = CachedFunds(tail, funds.answer)
        sizing = SizingResources(reader, Targets(pool))
        deleveraging = DeleveragingResources(reader, ledger, follower, tail, policy_of, config.queue.k_min)
        venues = venue_endpoints(
            config.http.venues, cached.answers, funds.summary, deleveraging, reader, Histories(pool), policy_of
        )
        async with living(config, tail, cached, reader, ledger, follower, metrics) as live:
            routes = (*contracts.routes, ingest.endpoint, *cached.routes, *funds.routes, *sizing.routes, *deleveraging.routes)
            table = endpoints((*operations, *routes, *live.endpoints, *venues))
            reception = Reception(metrics, gate)
            app = make_app(
                reception,
                (
                    *table,
                    described(table),
                    live.socket,
                    *Reference().endpoints,
                    *Handbook().endpoints,
                    *Page(config.http.public_url).endpoints,
                ),
            )
            app.on_shutdown.append(live.say_goodbye)
            tls = tls_context(config.http.certificate, config.http.certificate_key)
            async with (
                health_side(config, Reception(metrics, gate), operations),
                serve(app, config.http.host, config.http.port, tls, cached.shortcut(reception), bounds) as url,
            ):
                yield url


@asynccontextmanager
async def health_side(config: Config, reception: Reception, operations: Iterable[Endpoint]) -> AsyncIterator[None]:
    """Serves health and metrics on a port of their own, where one is configured: whatever happens at the other one."""
    if not config.http.health_port:
        yield
        return
    async with serve(make_app(reception, operations), config.http.host, config.http.health_port):
        yield


@asynccontextmanager
async def reserved(config: Config, connections: int) -> AsyncIterator[Reader]:
    """A reader with connections of its own: nobody else's questions keep it waiting."""
    async with open_pool(config.database.reader_dsn or config.database.dsn, connections) as pool:
        yield Reader(pool)


def fitting(config: Config) -> HttpConfig:
    """The bounds of the HTTP side, with as many connections as the process may open files for."""
    http = config.http
    own = FILES_RESERVED + config.database.connections_max + http.exports_max + PROBE_CONNECTIONS
    clients = files_for(http.clients_max, own)
    if clients < http.clients_max:
        log.warning(
            "few files", clients_max=http.clients_max, clients=clients, reserved=own, remedy="raise LimitNOFILE or ulimit -n"
        )
    return msgspec.structs.replace(http, clients_max=clients)


def recorded_policies(config: Config, appraiser: Appraiser) -> Callable[[str], Policy]:
    """The policy of a contract as its partition has recorded it; as it is configured until an engine has recorded one."""

    def policy_of(symbol: str) -> Policy:
        return appraiser.policies.get(partition_of(symbol, config.stream.partitions), config.policy).of(symbol)

    return policy_of


@asynccontextmanager
async def consuming(config: Config, pool: Pool) -> AsyncIterator[None]:
    """Makes sure that somebody consumes the stream: runs an engine meanwhile where none is alive."""
    await check_decimals(config.database.dsn, config.currency.decimals, config.currency.decimals_default)
    with faults():
        live = any(row["live"] for row in await pool.fetch(SQL["partitions"]))
    if live:
        yield
        return
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run_engine(Engine(config, Metrics()), stop))
        try:
            yield
        finally:
            stop.set()


def stop_on_signals() -> asyncio.Event:
    """An event that SIGINT and SIGTERM set, and the end of the terminal unless that is ignored (nohup)."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    hang_up = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
    for number in (signal.SIGINT, signal.SIGTERM, *hang_up):
        loop.add_signal_handler(number, stop.set)
    return stop
