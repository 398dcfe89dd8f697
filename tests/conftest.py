"""The real PostgreSQL and Valkey, started once. Every test gets a separate database and an empty key space."""

import asyncio
import itertools
import shutil
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path

import asyncpg
import msgspec
import pytest
import redis
import structlog
from eventually import eventually
from hypothesis import settings
from watchdog import WatchedLoop, budgeted

from fundsvc.app import tune_interpreter
from fundsvc.config.settings import Config, DatabaseConfig, DataConfig, StreamConfig
from fundsvc.local.servers import EmbeddedServers
from fundsvc.store.migrations import migrate
from fundsvc.store.writer import Writer
from fundsvc.streams.client import open_client

settings.register_profile("quick", max_examples=50, deadline=None)
settings.register_profile("thorough", max_examples=1000, deadline=None)  # chosen by --hypothesis-profile
settings.load_profile("quick")

PROCESSORS = [
    *structlog.get_config()["processors"][:-1],
    structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
]
"""Tracebacks are plain, as in the service: structlog's default formatter holds the loop for 250 ms."""


def pytest_runtest_setup():
    """Configures the logs before each test, as an earlier one may have changed them."""
    structlog.configure(processors=[*PROCESSORS])


MEMORY = Path("/dev/shm")
"""A file system in memory: PostgreSQL copies a database there with a third of the CPU time."""

MEMORY_BYTES_MIN = 4 * 2**30
"""What must be free there for the servers of all workers."""

LONG_FILES = {
    *("test_engine.py", "test_crash.py", "test_demo.py", "test_audit_loop.py", "test_recordings.py", "test_page.py"),
    *("test_half_open.py", "test_sdks.py", "test_local_servers.py", "test_alerts.py", "test_benchmarks.py"),
    *("test_page_accessibility.py", "test_pipeline.py", "test_streams.py", "test_patroni.py"),
}
"""Files whose tests take longest in sum."""

TEMPLATE = "template_ledger"
_NUMBERS = itertools.count(1)


def pytest_collection_modifyitems(items):
    """Long files come first, so that no worker has one of them left when the others are done."""
    items.sort(key=lambda item: item.path.name not in LONG_FILES)


def pytest_collection_finish():
    """Tunes the interpreter as the service does. This also exempts what pytest has collected from garbage collection."""
    tune_interpreter()


def pytest_asyncio_loop_factories():
    """Runs tests on the event loop of the service, watched for holds."""
    return {"uvloop": WatchedLoop}


@pytest.fixture(scope="session")
def short_directory():
    """A directory whose path is short enough for sockets, unlike pytest's own."""
    in_memory = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_BYTES_MIN
    directory = Path(tempfile.mkdtemp(prefix="fs-", dir=MEMORY if in_memory else None))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def servers(short_directory):
    """The servers of all tests. A test that stops one starts it again."""
    servers = EmbeddedServers(short_directory / "data")
    with servers.used():
        servers.start()
        yield servers


@pytest.fixture(scope="session")
def template(servers):
    """The name of a migrated database with one partition, for copies."""

    async def make():
        async with administrator(servers) as connection:
            # No test cuts the power: the kernel keeps the writes of a killed server, and copying databases is much quicker.
            await connection.execute("ALTER SYSTEM SET fsync = off")
            await connection.execute("SELECT pg_reload_conf()")
            await connection.execute(f"CREATE DATABASE {TEMPLATE}")
        await migrate(dsn_for(servers.owner_dsn, TEMPLATE), 1)

    asyncio.run(make())
    return TEMPLATE


@pytest.fixture
def partitions():
    """The number of partitions of a test's ledger; parametrize it for more."""
    return 1


@pytest.fixture
async def loop_budget(request):
    """Fails the test if the service holds the event loop for longer than its budget.

    Tests marked `alone` assert their own bounds. In tests with a browser, callbacks of its driver run on the same loop.
    """
    is_exempt = request.node.get_closest_marker("alone") or "browser" in request.fixturenames
    async with nullcontext() if is_exempt else budgeted():
        yield


@pytest.fixture
async def config(servers, template, partitions, loop_budget):
    """The configuration of a service with an empty ledger and empty streams."""
    name = f"ledger_{next(_NUMBERS)}"
    async with administrator(servers) as connection:
        await drop_ledgers(connection)
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    with redis.Redis.from_url(servers.stream_url) as stream:
        stream.flushall()
    database = DatabaseConfig(dsn=dsn_for(servers.dsn, name), owner_dsn=dsn_for(servers.owner_dsn, name))
    if partitions > 1:
        async with connected(database.owner_dsn) as connection:
            await connection.execute("INSERT INTO partitions (partition) SELECT generate_series(1, $1 - 1)", partitions)
            await connection.execute("UPDATE cell SET partitions = $1", partitions)
    return Config(
        data=DataConfig(directory=str(servers.directory)),
        database=database,
        stream=StreamConfig(url=servers.stream_url, partitions=partitions),
    )


async def drop_ledgers(connection):
    """Drops the databases of earlier tests.

    DROP DATABASE would check only ten times a second whether the last connections have ended.
    """
    for (name,) in await connection.fetch("SELECT datname FROM pg_database WHERE datname LIKE 'ledger_%'"):
        await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        await eventually(lambda name=name: is_unused(connection, name))
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def is_unused(connection, database):
    return not await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE datname = $1", database)


@pytest.fixture
async def client(config):
    """A client of the stream server."""
    async with open_client(config.stream) as client:
        yield client


@pytest.fixture
async def owner_connection(config):
    """A connection of the database's owner, which has all rights."""
    async with connected(config.database.owner_dsn) as connection:
        yield connection


@pytest.fixture
async def service_connection(config):
    """A connection with the rights of the service."""
    async with connected(config.database.dsn) as connection:
        yield connection


@asynccontextmanager
async def connected(dsn):
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        connection.terminate()


def administrator(servers):
    return connected(dsn_for(servers.owner_dsn, "postgres"))


def dsn_for(dsn, database):
    """Returns the DSN of another database on the same server."""
    return dsn.replace("/fundsvc?", f"/{database}?")


def with_section(config, section, **values):
    """Returns the configuration with some changed values of one section."""
    return msgspec.structs.replace(config, **{section: msgspec.structs.replace(getattr(config, section), **values)})


@pytest.fixture
def loads(monkeypatch):
    """The loads of partitions by engines of this process."""
    loads, load = [], Writer.load

    async def noted(self, *arguments):
        loads.append(arguments)
        return await load(self, *arguments)

    monkeypatch.setattr(Writer, "load", noted)
    return loads


@pytest.fixture
async def exits():
    """Keeps contexts open until the end of a test."""
    async with AsyncExitStack() as stack:
        yield stack
