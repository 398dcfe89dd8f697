"""One run: messages go to an engine in chunks; after each chunk the ledger must have what the oracle has, and nothing else."""

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

from fundsvc.config import Config
from fundsvc.streams.announcements import Announcements
from fundsvc.streams.client import Client, open_client, stream_key
from fundsvc.streams.source import Source, id_order
from tests.fuzz.messages import Asked, Fields, Messages
from tests.fuzz.oracle import Oracle

WATCHED = Path(__file__).parents[2] / "scripts" / "benchmarks" / "watched.py"
"""An engine whose loop is watched."""

CHUNK_MESSAGES = 500
CHUNK_SECONDS_MAX = 60.0
"""Far longer than any chunk takes."""

STOP_SECONDS_MAX = 10.0
ASKED_MAX = 50
"""What the messages may answer: the newest of what deleveraging asks."""

READ_MAX = 1000
LOOK_SECONDS = 0.005


class Figures(msgspec.Struct):
    """What a run sent and saw. `hold_ms` is the longest hold of the engine's loop, in CPU time."""

    seed: int
    messages: int = 0
    events: int = 0
    outcomes: Counter[str] = msgspec.field(default_factory=Counter)
    reasons: Counter[str] = msgspec.field(default_factory=Counter)
    seconds: float = 0.0
    hold_ms: float = 0.0
    loads: int = 0
    memory_mb: float = 0.0
    wrong: list[str] = []


class Engine:
    """`fundsvc engine` as a process of its own, under watch."""

    def __init__(self, config: Config, directory: Path) -> None:
        self._report = directory / "watched.json"
        self._log = directory / "engine.log"
        environment = {
            "FUNDSVC_DATABASE_DSN": config.database.dsn,
            "FUNDSVC_STREAM_URL": config.stream.url,
            "FUNDSVC_LOG_LEVEL": "warning",
        }
        with self._log.open("wb") as output:
            command = [sys.executable, str(WATCHED), str(self._report)]
            self.process = psutil.Popen(command, env=os.environ | environment, stdout=output, stderr=output)

    @property
    def log(self) -> str:
        """The end of what it wrote."""
        return self._log.read_text(errors="replace")[-3000:]

    def _memory_peak_mb(self) -> float:
        """Most resident memory it ever had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024 / 1e6

    def stop(self, figures: Figures) -> None:
        """Ends it as an operator does, and takes down what its watchdog saw."""
        if self.process.poll() is None:
            figures.memory_mb = self._memory_peak_mb()
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS_MAX)
            except psutil.TimeoutExpired:
                self.process.kill()
        if self.process.wait() or not self._report.exists():
            figures.wrong.append(f"the engine ended with {self.process.returncode}: {self.log}")
            return
        report = msgspec.json.decode(self._report.read_bytes())
        figures.hold_ms = max((hold["cpu_ms"] for hold in report["holds"]), default=0.0)
        figures.loads = report["loads"]
        known = figures.outcomes["duplicate"]
        if report["duplicates"] != known and not figures.wrong:
            figures.wrong.append(f"{report['duplicates']} duplicates were counted, expected {known}")


async def fuzz(
    config: Config,
    directory: Path,
    seed: int,
    count: int,
    *,
    large: bool = True,
    tell: Callable[[Figures], None] = lambda _: None,
) -> Figures:
    """Sends so many messages, and those as large as may be, to an engine on an empty ledger; `tell` hears of the progress."""
    figures, began = Figures(seed), time.monotonic()
    async with open_client(config.stream) as client, _connected(config.database.dsn) as connection:
        engine = Engine(config, directory)
        try:
            run = _Run(config, client, connection, engine, figures)
            for chunk in _chunks(run.messages, count, large=large):
                await run.settle(chunk)
                figures.seconds = time.monotonic() - began
                tell(figures)
                if figures.wrong:
                    break
        finally:
            await asyncio.to_thread(engine.stop, figures)
    return figures


class _Run:
    """The state of a run: where the stream has been compared to."""

    def __init__(
        self, config: Config, client: Client, connection: asyncpg.Connection, engine: Engine, figures: Figures
    ) -> None:
        self.messages = Messages(random.Random(figures.seed), time.time_ns() // 1_000_000)
        self._client = client
        self._connection = connection
        self._engine = engine
        self._figures = figures
        self._oracle = Oracle()
        self._source = Source(client, 0)
        self._announcements = Announcements(client, 0)
        self._compared = self._announced = "0-0"

    async def settle(self, chunk: Sequence[Fields]) -> None:
        """Sends a chunk, waits until the ledger is past it, and compares."""
        async with self._client.pipeline(transaction=False) as pipeline:
            for fields in chunk:
                pipeline.execute_command("XADD", stream_key(0), "*", *fields)
            ids = [stream_id.decode() for stream_id in await pipeline.execute()]
        if not await self._settled(ids[-1]):
            return
        await self._follow()
        self._figures.messages += len(chunk)
        self._figures.events = self._oracle.events
        self._figures.outcomes = self._oracle.outcomes
        self._figures.reasons = Counter(self._oracle.rejected.values())
        self._figures.wrong += [wrong async for wrong in self._differences()]
        await self._hear()

    async def _settled(self, last_id: str) -> bool:
        deadline = time.monotonic() + CHUNK_SECONDS_MAX
        while id_order(offset := await self._offset()) < id_order(last_id):
            if self._engine.process.poll() is not None or time.monotonic() > deadline:
                left = await self._source.read(offset, 3)
                shown = [f"{message.stream_id} {message.codec} {message.body[:400]!r}" for message in left]
                self._figures.wrong.append("\n".join([f"the engine is stuck at {offset}, before", *shown, self._engine.log]))
                return False
            await asyncio.sleep(LOOK_SECONDS)
        return True

    async def _offset(self) -> str:
        return await self._connection.fetchval("SELECT last_id FROM partitions WHERE partition = 0")

    async def _follow(self) -> None:
        """Takes the oracle to where the ledger is, over what the engine itself appended, too."""
        while id_order(self._compared) < id_order(end := await self._offset()):
            while id_order(self._compared) < id_order(end):
                read = await self._source.read(self._compared, READ_MAX)
                messages = [message for message in read if id_order(message.stream_id) <= id_order(end)]
                self._oracle.settle(messages)
                self._compared = messages[-1].stream_id

    async def _differences(self) -> AsyncIterator[str]:
        """How the ledger differs from the oracle; every event must be in one of the four counts."""
        oracle = self._oracle
        if oracle.outcomes.total() != oracle.events:
            yield f"{oracle.events} events were sent, {oracle.outcomes} became of them"
        entries = await self._connection.fetchval("SELECT count(*) FROM entries")
        if entries != oracle.entries:
            yield f"{entries} entries, expected {oracle.entries}"
        rows = await self._connection.fetch("SELECT stream_id, position, reason FROM rejected")
        kept = {(row["stream_id"], row["position"]): row["reason"] for row in rows}
        for place in sorted(kept.keys() ^ oracle.rejected.keys(), key=lambda place: id_order(place[0]))[:5]:
            yield f"{place}: kept as {kept.get(place)}, expected {oracle.rejected.get(place)}"
        for place in [place for place in kept.keys() & oracle.rejected.keys() if kept[place] != oracle.rejected[place]][:5]:
            yield f"{place}: kept as {kept[place]}, expected {oracle.rejected[place]}"

    async def _hear(self) -> None:
        """Lets the messages answer what was announced since."""
        while announced := await self._announcements.read(self._announced):
            self._announced = announced[-1].stream_id
            self.messages.asked += [
                Asked(each.symbol, each.adl, each.round, asked.account, asked.lots)
                for _, each in announced
                for asked in each.allocations
            ]
            self.messages.asked = self.messages.asked[-ASKED_MAX:]


def _chunks(messages: Messages, count: int, *, large: bool) -> Iterator[list[Fields]]:
    """The listings, then chunks of messages, and the large ones alone between the first of them."""
    yield [messages.listings()]
    heavy: Iterable[Fields] = messages.large() if large else ()
    left = iter(heavy)
    for start in range(0, count, CHUNK_MESSAGES):
        yield [messages.next() for _ in range(min(CHUNK_MESSAGES, count - start))]
        yield from ([fields] for fields in islice(left, 1))
    yield from ([fields] for fields in left)


@asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        connection.terminate()
