"""Sends messages to an engine in chunks, and compares the ledger with the oracle after each chunk."""

import asyncio
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path

import asyncpg
import msgspec
import psutil

from fundsvc.config.settings import Config
from fundsvc.streams.announcements import Announcements
from fundsvc.streams.client import StreamClient, open_client, stream_key
from fundsvc.streams.source import Source, id_order
from tests.fuzz.messages import Fields, Messages, Requested
from tests.fuzz.oracle import Oracle

ROOT = Path(__file__).parents[2]
WATCHED = ROOT / "scripts" / "benchmarks" / "watched.py"
"""Runs an engine with a loop watchdog. It uses the code of this directory, not the installed one."""

CHUNK_MESSAGES = 1000
"""The run compares and reads the announced rounds after each chunk, so all messages of a chunk answer the same rounds."""

CHUNK_SECONDS_MAX = 60.0
"""Much longer than a chunk takes."""

CHUNKS_PER_ENGINE = 50
"""A restarted engine reads the saved books and the later messages, so it reads messages twice."""

STOP_SECONDS_MAX = 10.0
REQUESTED_MAX = 50
"""The newest requests, which the messages may answer."""

READ_MAX = 1000
POLL_SECONDS = 0.005

_COUNTS = "SELECT (SELECT count(*) FROM entries), (SELECT count(*) FROM rejected)"
_REJECTED = "SELECT stream_id, position, reason FROM rejected WHERE partition = 0 AND stream_id = ANY ($1)"

Chunks = Callable[[Messages], Iterable[Sequence[Fields]]]
"""Returns the chunks to send, in order."""


class Figures(msgspec.Struct):
    """The counts and measurements of a run. `hold_ms` is the longest hold of an engine's loop, in CPU time."""

    seed: int
    messages: int = 0
    events: int = 0
    outcomes: Counter[str] = msgspec.field(default_factory=Counter)
    reasons: Counter[str] = msgspec.field(default_factory=Counter)
    seconds: float = 0.0
    hold_ms: float = 0.0
    engines: int = 0
    loads: int = 0
    duplicates: int = 0
    memory_mb: float = 0.0
    wrong: list[str] = []


class Engine:
    """`fundsvc engine` in a separate process, with a loop watchdog."""

    def __init__(self, config: Config, directory: Path) -> None:
        self._report = directory / "watched.json"
        self._report.unlink(missing_ok=True)
        self._log = directory / "engine.log"
        environment = {
            "PYTHONPATH": str(ROOT),
            "FUNDSVC_DATABASE_DSN": config.database.dsn,
            "FUNDSVC_STREAM_URL": config.stream.url,
            "FUNDSVC_LOG_LEVEL": "warning",
        }
        with self._log.open("wb") as output:
            command = [sys.executable, str(WATCHED), str(self._report)]
            self.process = psutil.Popen(command, env=os.environ | environment, stdout=output, stderr=output)

    @property
    def log(self) -> str:
        """The end of the log."""
        return self._log.read_text(errors="replace")[-3000:]

    def stop(self, figures: Figures) -> None:
        """Stops the engine with SIGTERM, and adds its measurements to `figures`."""
        if self.process.poll() is None:
            figures.memory_mb = max(figures.memory_mb, self._memory_peak_mb())
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS_MAX)
            except psutil.TimeoutExpired:
                self.process.kill()
        if self.process.wait() or not self._report.exists():
            figures.wrong.append(f"the engine ended with {self.process.returncode}: {self.log}")
            return
        report = msgspec.json.decode(self._report.read_bytes())
        figures.hold_ms = max(figures.hold_ms, *(hold["cpu_ms"] for hold in report["holds"]), 0.0)
        figures.engines += 1
        figures.loads += report["loads"]
        figures.duplicates += report["duplicates"]

    def _memory_peak_mb(self) -> float:
        """The peak resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024 / 1e6


async def fuzz(
    config: Config, directory: Path, seed: int, chunks: Chunks, report_progress: Callable[[Figures], None] = lambda _: None
) -> Figures:
    """Sends chunks of messages to an engine on an empty ledger; calls `report_progress` after each chunk."""
    figures = Figures(seed)
    async with open_client(config.stream) as client, _connected(config.database.dsn) as connection:
        run = _Run(config, directory, client, connection, figures)
        try:
            for chunk in chunks(run.messages):
                await run.take(chunk)
                report_progress(figures)
                if figures.wrong:
                    break
        finally:
            await run.end()
    return figures


class _Run:
    """The state of a run: engine, oracle, and the id up to which the ledger was compared."""

    def __init__(
        self, config: Config, directory: Path, client: StreamClient, connection: asyncpg.Connection, figures: Figures
    ) -> None:
        self.messages = Messages(random.Random(figures.seed), time.time_ns() // 1_000_000)
        self._began = time.monotonic()
        self._config = config
        self._directory = directory
        self._client = client
        self._connection = connection
        self._figures = figures
        self._oracle = Oracle()
        self._source = Source(client, 0, message_bytes_max=config.stream.message_bytes_max)
        self._announcements = Announcements(client, 0)
        self._compared = self._announced = "0-0"
        self._uncompared: list[str] = []
        self._engine = Engine(config, directory)

    async def take(self, chunk: Sequence[Fields]) -> None:
        """Settles a chunk; an empty chunk restarts the engine."""
        if chunk:
            await self._settle(chunk)
        else:
            await asyncio.to_thread(self._engine.stop, self._figures)
            self._engine = Engine(self._config, self._directory)
        self._figures.seconds = time.monotonic() - self._began

    async def end(self) -> None:
        """Stops the engine, and compares the counts that it reports at its end."""
        figures = self._figures
        await asyncio.to_thread(self._engine.stop, figures)
        if figures.wrong:
            return
        if figures.duplicates != figures.outcomes["duplicate"]:
            figures.wrong.append(f"{figures.duplicates} duplicates were counted, expected {figures.outcomes['duplicate']}")
        if figures.loads != figures.engines:
            figures.wrong.append(f"{figures.engines} engines loaded the partition {figures.loads} times")

    async def _settle(self, chunk: Sequence[Fields]) -> None:
        """Sends a chunk, waits until it is settled, and compares."""
        async with self._client.pipeline(transaction=False) as pipeline:
            for fields in chunk:
                pipeline.execute_command("XADD", stream_key(0), "*", *fields)
            ids = [stream_id.decode() for stream_id in await pipeline.execute()]
        await self._follow(ids[-1])  # while the engine settles them
        if not await self._settled(ids[-1]):
            return
        await self._follow(await self._offset())
        self._figures.messages += len(chunk)
        self._figures.events = self._oracle.events
        self._figures.outcomes = self._oracle.outcomes
        self._figures.reasons = self._oracle.reasons
        self._figures.wrong += [wrong async for wrong in self._differences()]
        await self._read_announcements()

    async def _settled(self, last_id: str) -> bool:
        deadline = time.monotonic() + CHUNK_SECONDS_MAX
        while id_order(offset := await self._offset()) < id_order(last_id):
            if self._engine.process.poll() is not None or time.monotonic() > deadline:
                left = await self._source.read(offset, 3)
                shown = [f"{message.stream_id} {message.codec} {message.body[:400]!r}" for message in left]
                self._figures.wrong.append(
                    "\n".join([f"the engine does not proceed from {offset}, before", *shown, self._engine.log])
                )
                return False
            await asyncio.sleep(POLL_SECONDS)
        return True

    async def _offset(self) -> str:
        return await self._connection.fetchval("SELECT last_id FROM partitions WHERE partition = 0")

    async def _follow(self, end: str) -> None:
        """Settles the messages up to an id in the oracle, including those that the engine appended."""
        while id_order(self._compared) < id_order(end):
            read = await self._source.read(self._compared, READ_MAX)
            messages = [message for message in read if id_order(message.stream_id) <= id_order(end)]
            self._oracle.settle(messages)
            self._compared = messages[-1].stream_id
            self._uncompared += [message.stream_id for message in messages]

    async def _differences(self) -> AsyncIterator[str]:
        """Yields the differences between the ledger and the oracle.

        Compares each rejected event since the last comparison, and the total counts. Each event must have one outcome.
        """
        oracle = self._oracle
        if oracle.outcomes.total() != oracle.events:
            yield f"{oracle.events} events were sent, with the outcomes {oracle.outcomes}"
        entries, rejected = await self._connection.fetchrow(_COUNTS)
        if entries != oracle.entries:
            yield f"{entries} entries, expected {oracle.entries}"
        if rejected != oracle.outcomes["rejected"]:
            yield f"{rejected} rejected events are kept, expected {oracle.outcomes['rejected']}"
        rows = await self._connection.fetch(_REJECTED, self._uncompared)
        kept = {(row["stream_id"], row["position"]): row["reason"] for row in rows}
        expected, oracle.rejected, self._uncompared = oracle.rejected, {}, []
        for event_id in sorted(kept.keys() | expected.keys(), key=lambda event_id: (id_order(event_id[0]), event_id[1])):
            if kept.get(event_id) != expected.get(event_id):
                yield f"{event_id}: kept as {kept.get(event_id)}, expected {expected.get(event_id)}"

    async def _read_announcements(self) -> None:
        """Reads new announcements, so that later messages answer them."""
        while announced := await self._announcements.read(self._announced):
            self._announced = announced[-1].stream_id
            self.messages.requested += [
                Requested(each.symbol, each.adl, each.round, allocation.account, allocation.lots)
                for _, each in announced
                for allocation in each.allocations
            ]
            self.messages.requested = self.messages.requested[-REQUESTED_MAX:]


def any_messages(count: int) -> Chunks:
    """Returns chunks with this number of messages of every kind, the large ones in separate chunks, and restarts.

    New contracts replace the old ones between two restarts: some old ones may be suspended or at their last sequence.
    """

    def chunks(messages: Messages) -> Iterator[list[Fields]]:
        large = messages.large()
        yield [messages.listings()]
        for number in range(count // CHUNK_MESSAGES):
            if number and number % CHUNKS_PER_ENGINE == 0:
                yield []
            yield [messages.next() for _ in range(CHUNK_MESSAGES)]
            yield from ([fields] for fields in islice(large, 1))
            if number % CHUNKS_PER_ENGINE == CHUNKS_PER_ENGINE // 2:
                yield [messages.listings()]
        yield from ([fields] for fields in large)
        yield []
        yield [messages.next()]

    return chunks


@asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        connection.terminate()
