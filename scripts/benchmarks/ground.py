"""Common parts of all measurements: embedded servers, a new ledger, a real engine process, and CPU costs."""

import asyncio
import os
import re
import secrets
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import asyncpg
import psutil

from fundsvc.config.settings import StreamConfig
from fundsvc.core.events import Event
from fundsvc.local.servers import EmbeddedServers
from fundsvc.store.migrations import migrate
from fundsvc.streams.client import StreamClient, open_client, stream_key
from fundsvc.wire.codec import Codec, encode

STREAM = stream_key(0)
"""The stream of the only partition."""

STAGED = "fundsvc:{0}:staged"
"""Key of a prepared backlog. Renaming it to STREAM makes it available completely, at a known moment."""

READY_SECONDS_MAX = 60.0
SETTLED_SECONDS_MAX = 1800.0
"""A longer duration is an error, not slowness."""


class Ledger(NamedTuple):
    """A separate database on the embedded PostgreSQL, with DSNs of the service (`dsn`) and of the owner.

    `checkout` has the program that settles into it; None means this one.
    """

    dsn: str
    owner_dsn: str
    stream_url: str
    checkout: Path | None = None


@asynccontextmanager
async def new_ledger(
    servers: EmbeddedServers, name: str, checkout: Path | None = None, partitions: int = 1
) -> AsyncIterator[Ledger]:
    """Yields a migrated, empty ledger and an empty stream server; drops the database at the end."""
    dsn, owner_dsn = (address.replace("/fundsvc?", f"/{name}?") for address in (servers.dsn, servers.owner_dsn))
    ledger = Ledger(dsn, owner_dsn, servers.stream_url, checkout)
    owner = await asyncpg.connect(servers.owner_dsn)
    try:
        await owner.execute(f"CREATE DATABASE {name}")
        await _create_tables(ledger, partitions)
        async with stream_of(ledger) as client:
            await client.flushall()
        yield ledger
    finally:
        await owner.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await owner.close()


async def _create_tables(ledger: Ledger, partitions: int) -> None:
    if ledger.checkout is None:
        await migrate(ledger.owner_dsn, partitions)
        return
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fundsvc", "migrate", cwd=ledger.checkout, env=_environment(ledger), stdout=subprocess.DEVNULL
    )
    if await program.wait():
        raise RuntimeError(f"fundsvc migrate of {ledger.checkout} failed")


def _environment(ledger: Ledger) -> dict[str, str]:
    """Returns the environment of a program that uses a ledger and its stream."""
    return os.environ | {
        "FUNDSVC_DATABASE_DSN": ledger.dsn,
        "FUNDSVC_DATABASE_OWNER_DSN": ledger.owner_dsn,
        "FUNDSVC_STREAM_URL": ledger.stream_url,
        "FUNDSVC_STREAM_PARTITIONS": "1",
        "FUNDSVC_LOG_LEVEL": "error",
    }


@asynccontextmanager
async def connection_to(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """Yields a connection, and closes it."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


def stream_of(ledger: Ledger) -> AbstractAsyncContextManager[StreamClient]:
    """Returns a client of the stream server."""
    return open_client(StreamConfig(url=ledger.stream_url))


def bodies(events: Iterable[Event], per_message: int, codec: Codec) -> Iterator[bytes]:
    """Yields message bodies with the given number of events each."""
    run: list[Event] = []
    for event in events:
        run.append(event)
        if len(run) == per_message:
            yield encode(run, codec)
            run.clear()
    if run:
        yield encode(run, codec)


async def append(client: StreamClient, key: str, messages: Iterable[bytes], codec: Codec) -> str:
    """Appends messages in order; returns the id of the last one."""
    async with client.pipeline(transaction=False) as pipeline:
        for body in messages:
            pipeline.xadd(key, {codec: body})
        ids = await pipeline.execute()
    last: bytes = ids[-1]
    return last.decode()


async def settled_to(connection: asyncpg.Connection) -> tuple[int, int]:
    """Returns the stream id up to which the ledger is durable, as `id_order` returns it."""
    last_id = await connection.fetchval("SELECT last_id FROM partitions WHERE partition = 0")
    return id_order(last_id)


def id_order(stream_id: str) -> tuple[int, int]:
    """Converts a stream id to numbers with the order of ids."""
    milliseconds, _, sequence = stream_id.partition("-")
    return int(milliseconds), int(sequence)


class Cost(NamedTuple):
    """CPU seconds, user and system together."""

    engine: float
    postgres: float
    benchmark: float
    machine: float

    def others_share(self, seconds: float) -> float:
        """Returns the share of the machine's CPU that other processes used: the stream server, and unrelated ones."""
        others = self.machine - self.engine - self.postgres - self.benchmark
        return max(0.0, others) / (seconds * (os.cpu_count() or 1))

    def since(self, before: "Cost") -> "Cost":
        """Returns the costs since an earlier reading."""
        return Cost(*(now - then for now, then in zip(self, before, strict=True)))


ENGINE = ("-m", "fundsvc", "engine")
"""Arguments of the Python interpreter that run an engine."""


class ServiceProcess:
    """A process of `fundsvc engine`, or of another program, on a ledger; `settings` are environment variables."""

    def __init__(self, ledger: Ledger, log: Path, program: Sequence[str] = ENGINE, **settings: str) -> None:
        self._program = program
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, *program],
                cwd=ledger.checkout,
                env=_environment(ledger) | settings,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._view = psutil.Process(self._process.pid)

    def check(self) -> None:
        """Raises RuntimeError with the end of its log if the process has ended."""
        if self._process.poll() is not None:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-12:])
            raise RuntimeError(f"{' '.join(self._program)} ended unexpectedly; its log ends with:\n{tail}")

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def cpu_seconds(self) -> float:
        """Returns its CPU seconds since the start."""
        times = self._view.cpu_times()
        return times.user + times.system

    def memory_peak_mb(self) -> float:
        """Returns its peak resident memory in MB (10**6 bytes), as the kernel recorded it."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
        return int(kilobytes) * 1024 / 1e6

    def send_signal(self, number: int) -> None:
        """Sends a signal."""
        self._process.send_signal(number)

    def stop(self) -> None:
        """Stops it by SIGTERM, and waits."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@asynccontextmanager
async def running_engine(
    ledger: Ledger, log: Path, program: Sequence[str] = ENGINE, **settings: str
) -> AsyncIterator[ServiceProcess]:
    """Yields an engine that has loaded its funds and waits for messages; stops it at the end."""
    engine = ServiceProcess(ledger, log, program, **settings)
    try:
        async with stream_of(ledger) as client:
            await _until_it_reads(client, engine)
        yield engine
    finally:
        await asyncio.to_thread(engine.stop)


@asynccontextmanager
async def running_api(ledger: Ledger, log: Path, **settings: str) -> AsyncIterator[ServiceProcess]:
    """Yields an HTTP side that shows its ledger; stops it at the end. `settings` are further environment variables."""
    settings = {
        "FUNDSVC_HTTP_PORT": "0",
        "FUNDSVC_HTTP_REQUESTS_MAX": "1000000000",
        "FUNDSVC_HTTP_CLIENT_CONNECTIONS_MAX": "1000000",  # all clients are on this machine
        "FUNDSVC_WEBSOCKET_CLIENT_CONNECTIONS_MAX": "1000000",
        "FUNDSVC_TOKEN_SECRET": secrets.token_urlsafe(32),
        **settings,
    }
    api = ServiceProcess(ledger, log, ("-m", "fundsvc", "api"), **settings)
    try:
        await _until(api, lambda: _shows_funds(log))
        yield api
    finally:
        await asyncio.to_thread(api.stop)


async def _shows_funds(log: Path) -> bool:
    try:
        host, port = url_of(log)
    except IndexError:
        return False
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET /api/v1/insurance-fund HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer.startswith(b"HTTP/1.1 200")


def url_of(log: Path) -> tuple[str, int]:
    """Returns the host and port that a process has printed."""
    host, port = re.findall(r"listens on http://([\d.]+):(\d+)", log.read_text())[-1]
    return host, int(port)


async def _until(process: ServiceProcess, check: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + READY_SECONDS_MAX
    while not await check():
        process.check()
        if time.monotonic() > deadline:
            raise RuntimeError(f"the process was not ready within {READY_SECONDS_MAX:g} s")
        await asyncio.sleep(0.02)


async def _until_it_reads(client: StreamClient, engine: ServiceProcess) -> None:
    async def reads() -> bool:
        return bool((await client.info("clients"))["blocked_clients"])

    await _until(engine, reads)


async def until_settled(connection: asyncpg.Connection, last_id: str, engine: ServiceProcess, every_seconds: float) -> None:
    """Waits until the ledger is durable up to a stream id."""
    wanted = id_order(last_id)
    deadline = time.monotonic() + SETTLED_SECONDS_MAX
    while await settled_to(connection) < wanted:
        engine.check()
        if time.monotonic() > deadline:
            raise RuntimeError(f"the engine did not settle up to {last_id} within {SETTLED_SECONDS_MAX:g} s")
        await asyncio.sleep(every_seconds)


def postgres_cpu_seconds(servers: EmbeddedServers) -> float:
    """Returns the CPU seconds of PostgreSQL and all its backends, including ended ones."""
    server = servers.postgres.process
    assert server is not None, "the server runs during a measurement"
    times = server.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for backend in server.children():
        try:
            own = backend.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += own.user + own.system
    return float(total)


def cost(servers: EmbeddedServers, engine: ServiceProcess | None = None) -> Cost:
    """Returns the costs up to now; `machine` covers all processes, `benchmark` this process."""
    machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
    busy = sum(machine[:8]) - machine.idle - getattr(machine, "iowait", 0.0)
    return Cost(engine.cpu_seconds() if engine else 0.0, postgres_cpu_seconds(servers), own.user + own.system, busy)


@contextmanager
def bare_server(script: Path, *arguments: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Runs a script in a separate process; yields the port that it prints, and the process. Kills it at the end."""
    process = subprocess.Popen([sys.executable, str(script), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline()), process
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    """Returns a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def sync_ms(directory: Path, times: int = 100) -> float:
    """Returns the median time of a small durable write on this disk, in milliseconds."""
    path = directory / "sync"
    took = []
    with path.open("wb") as file:
        for _ in range(times):
            file.write(bytes(8192))
            started = time.perf_counter()
            file.flush()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - started)
    path.unlink()
    return statistics.median(took) * 1000
