"""The processes of the crash test: embedded servers, engines and the API; and queries of the ledger."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import psutil

from fundsvc.config.settings import Config, DatabaseConfig, StreamConfig
from fundsvc.local.servers import EmbeddedServers
from tests.crash.oracle import LEDGER_SECRET
from tests.crash.proxy import Proxy

PARTITIONS = 4
POSTGRES_SOCKET, VALKEY_SOCKET = ".s.PGSQL.5432", "valkey.sock"
"""The file names of the servers' sockets."""

TOKEN_SECRET = "a secret of the crash test, long enough"

RECOVERY_SECONDS_MAX = 30.0
"""Long enough for a busy machine; shorter limits are measured separately."""

_UNAVAILABLE = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)


class Owner(NamedTuple):
    """The engine that owns a partition, and its epoch. `live` is True until its lease expires."""

    engine: str
    epoch: int
    live: bool


class Timeline:
    """Prints actions and observations with the seconds since the start, so that a failure can be traced."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def note(self, text: str) -> None:
        """Prints a line."""
        print(f"{time.monotonic() - self._began:7.2f} s  {text}", flush=True)


class EngineProcess:
    """An engine in a separate process. Its log contains its name in the ledger."""

    def __init__(self, number: int, environment: dict[str, str], directory: Path) -> None:
        self.number = number
        self._log = directory / f"engine-{number}.log"
        with self._log.open("wb") as output:
            command = [sys.executable, "-m", "fundsvc", "engine"]
            self.process = psutil.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)

    def __str__(self) -> str:
        return f"engine {self.number}"

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    @property
    def log(self) -> str:
        """The log so far."""
        return self._log.read_text(errors="replace")

    @property
    def name(self) -> str:
        """The engine's name in the ledger; empty until it has owned a partition."""
        found = re.search(r'"engine": ?"([0-9a-f]+)"', self.log)
        return found[1] if found else ""

    @property
    def memory_mb(self) -> float:
        """The peak resident memory; 0 after the process has ended."""
        with suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
            return int(found[1]) * 1024 / 1e6 if found else 0.0
        return 0.0

    def kill(self) -> None:
        """Kills the process with SIGKILL."""
        self.process.kill()
        self.process.wait()

    def abort(self) -> str:
        """Ends the process; returns the end of its log, which contains the stacks of its threads."""
        self.process.send_signal(signal.SIGABRT)
        self.process.wait(5)
        return self.log[-5000:]

    def pause(self) -> None:
        """Suspends the process."""
        self.process.suspend()

    def resume(self) -> None:
        """Resumes the suspended process."""
        self.process.resume()


class World:
    """Servers in a directory, and the engines that use them.

    `happened` counts the disturbances. The sender holds the lock `sending` while it sends, and resends after `resend` is set.
    `pools` are the pools of the engines, as JSON.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.servers = EmbeddedServers(directory)
        self._sockets, self._proxied = self.servers.directory / "run", self.servers.directory / "proxy"
        self.postgres_proxy = Proxy(self._proxied / POSTGRES_SOCKET, self._sockets / POSTGRES_SOCKET)
        self.valkey_proxy = Proxy(self._proxied / VALKEY_SOCKET, self._sockets / VALKEY_SOCKET)
        self.timeline = Timeline()
        self.engines: list[EngineProcess] = []
        self.failures: list[str] = []
        self.happened: Counter[str] = Counter()
        self.sending = asyncio.Lock()
        self.resend = asyncio.Event()
        self.memory_mb = 0.0
        self.api_url = ""
        self.pools = "{}"
        self._api: psutil.Popen | None = None
        self._started = 0

    @property
    def config(self) -> Config:
        """The configuration for direct connections to the servers."""
        database = DatabaseConfig(dsn=self.servers.dsn, owner_dsn=self.servers.owner_dsn)
        return Config(database=database, stream=StreamConfig(url=self.servers.stream_url, partitions=PARTITIONS))

    @property
    def environment(self) -> dict[str, str]:
        """The environment of processes, which connect to the servers through the proxies."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("FUNDSVC_")}
        return ours | {
            "FUNDSVC_DATABASE_DSN": self._through_proxy(self.servers.dsn),
            "FUNDSVC_STREAM_URL": self._through_proxy(self.servers.stream_url),
            "FUNDSVC_STREAM_PARTITIONS": str(PARTITIONS),
            "FUNDSVC_LEDGER_SECRET": LEDGER_SECRET,
            "FUNDSVC_LOG_FORMAT": "json",
            "FUNDSVC_MUTUAL_POOLS": self.pools,
            "FUNDSVC_ADL_ROUND_SECONDS": "0",  # the exchange answers late
            "FUNDSVC_ENGINE_BOOK_SECONDS": "5",  # books are saved seldom, so engines replay many messages
            "PYTHONFAULTHANDLER": "1",  # an engine that does not end prints the stacks of its threads
        }

    def _through_proxy(self, url: str) -> str:
        return url.replace(str(self._sockets), str(self._proxied))

    @property
    def proxies(self) -> tuple[Proxy, Proxy]:
        """The proxies between the processes and the servers."""
        return self.postgres_proxy, self.valkey_proxy

    def note_memory(self) -> None:
        """Updates the peak resident memory of all engines."""
        for engine in self.engines:
            self.memory_mb = max(self.memory_mb, engine.memory_mb)

    async def start_servers(self, *, postgres: bool = True, valkey: bool = True) -> None:
        """Starts the servers that do not run."""
        await asyncio.to_thread(self.servers.start, postgres=postgres, valkey=valkey)

    def start_engine(self) -> EngineProcess:
        """Starts one more engine."""
        self._started += 1
        engine = EngineProcess(self._started, self.environment, self.directory)
        self.engines.append(engine)
        return engine

    async def start_api(self) -> None:
        """Starts the API at a new port, and waits until it accepts connections."""
        port = _free_port()
        environment = self.environment | {"FUNDSVC_HTTP_PORT": str(port), "FUNDSVC_TOKEN_SECRET": TOKEN_SECRET}
        with (self.directory / "api.log").open("ab") as output:
            command = [sys.executable, "-m", "fundsvc", "api"]
            self._api = psutil.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        await eventually("the API listens", lambda: _listens(port))
        self.api_url = f"http://127.0.0.1:{port}"

    def kill_api(self) -> None:
        """Kills the API with SIGKILL, if it runs."""
        if self._api:
            self._api.kill()
            self._api.wait()

    def replace_ended(self) -> None:
        """Replaces engines that ended by themselves, which they may only at their start, while the database is unreachable."""
        for engine in [engine for engine in self.engines if not engine.running]:
            self.engines.remove(engine)
            if engine.name:
                self.failures.append(f"{engine} ended by itself with {engine.process.returncode}:\n{engine.log[-2000:]}")
            output_end = engine.log.strip()[-200:]
            self.timeline.note(f"{engine} ended with {engine.process.returncode}, starting {self.start_engine()}: {output_end}")

    async def stop_engines(self) -> None:
        """Sends SIGTERM to all engines, which must end within five seconds."""
        for engine in self.engines:
            engine.process.terminate()
        _, alive = await asyncio.to_thread(psutil.wait_procs, [engine.process for engine in self.engines], 5)
        if alive or any(engine.process.returncode for engine in self.engines):
            ends = ", ".join(f"{engine}: {engine.process.poll()}" for engine in self.engines)
            self.failures.append(f"not all engines ended well on SIGTERM: {ends}")
            self.failures += [engine.abort() for engine in self.engines if engine.running]

    async def describe(self) -> str:
        """Describes the partitions, and ends the engines; returns the ends of their logs with the stacks of their threads."""
        try:
            partitions = await self.fetch("SELECT * FROM partitions ORDER BY partition")
        except _UNAVAILABLE as error:
            partitions = [error]
        return "\n".join([*map(str, partitions), *(f"{engine}\n{engine.abort()}" for engine in self.engines if engine.running)])

    def end(self) -> None:
        """Ends all processes."""
        for engine in self.engines:
            if engine.running:
                engine.kill()
        self.kill_api()
        for proxy in self.proxies:
            proxy.stop()
        self.servers.stop()

    async def execute(self, statement: str) -> None:
        """Runs a statement as the superuser, outside a transaction."""
        connection = await asyncpg.connect(self.servers.owner_dsn, timeout=5, command_timeout=30)
        try:
            await connection.execute(statement)
        finally:
            connection.terminate()

    async def fetch(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        """Returns rows, read as the superuser."""
        connection = await asyncpg.connect(self.servers.owner_dsn, timeout=5, command_timeout=30)
        try:
            return await connection.fetch(statement, *arguments)
        finally:
            connection.terminate()

    async def owners(self) -> dict[int, Owner]:
        """Returns the owner of each partition."""
        rows = await self.fetch("SELECT partition, owner, epoch, lease_until > clock_timestamp() AS live FROM partitions")
        return {row["partition"]: Owner(row["owner"] or "", row["epoch"], bool(row["live"])) for row in rows}

    async def all_owned(self) -> bool:
        """Whether every partition has an owner among the running engines."""
        names = {engine.name for engine in self.engines}
        return all(owner.live and owner.engine in names for owner in (await self.owners()).values())

    async def all_have_policies(self) -> bool:
        """Whether the policies of every partition are recorded: orders keep the policy version of their start."""
        rows = await self.fetch("SELECT DISTINCT partition FROM policies")
        return len(rows) == PARTITIONS

    async def messages(self) -> int:
        """Returns the number of messages that all partitions have settled."""
        (row,) = await self.fetch("SELECT sum(messages)::bigint AS messages FROM partitions")
        return int(row["messages"])

    async def open_orders(self) -> int:
        """Returns the number of open ADL orders."""
        (row,) = await self.fetch("SELECT count(*) AS orders FROM adl_orders WHERE state = 'open'")
        return int(row["orders"])

    async def command(self, *arguments: str) -> tuple[int, str, str]:
        """Runs a fundsvc command; returns its exit code, output and error output."""
        return await asyncio.to_thread(self._command, arguments)

    def _command(self, arguments: tuple[str, ...]) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "fundsvc", *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=600, check=False)
        return done.returncode, done.stdout, done.stderr


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


async def _listens(port: int) -> bool:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    return True


async def eventually(what: str, check: Callable[[], Awaitable[bool]], seconds_max: float = RECOVERY_SECONDS_MAX) -> float:
    """Waits until a check is true, and retries while the servers are unreachable; returns the seconds waited."""
    began = time.monotonic()
    while time.monotonic() - began < seconds_max:
        try:
            if await check():
                return time.monotonic() - began
        except _UNAVAILABLE:
            pass
        await asyncio.sleep(0.02)
    raise AssertionError(f"not within {seconds_max} s: {what}")
