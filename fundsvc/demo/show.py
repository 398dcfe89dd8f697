"""`fundsvc up --demo`: the whole service, the demo market, and a live view of the ledger."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from fundsvc.app import connected, run_service
from fundsvc.config.settings import Config
from fundsvc.demo.feed import stream_market
from fundsvc.demo.instruments import INSTRUMENTS
from fundsvc.demo.screen import Surroundings, drawing
from fundsvc.demo.watch import Watch
from fundsvc.logs import configure_logs
from fundsvc.logs.faults import Outage
from fundsvc.store.database import Pool, StoreFault
from fundsvc.streams.client import StreamClient, StreamFault
from fundsvc.streams.source import Source

log = structlog.get_logger()


async def show_demo(config: Config, stop: asyncio.Event) -> None:
    """Runs until `stop` is set; `config` names running servers. Logs go to fundsvc.log in the data directory meanwhile."""
    started, address = time.monotonic(), asyncio.get_running_loop().create_future()
    marks: dict[str, str] = {}

    async def announce(url: str) -> None:
        address.set_result(url)

    async def picture(pool: Pool, client: StreamClient, logs: Path) -> None:
        watch = Watch(pool, _sources(config, client), [instrument.symbol for instrument in INSTRUMENTS], marks)
        await _draw(watch, Surroundings(await address, logs, started))

    with _logs_in(config) as logs:
        async with connected(config) as (pool, client), asyncio.TaskGroup() as tasks:
            beside = [
                tasks.create_task(stream_market(config, pool, client, marks, stop)),
                tasks.create_task(picture(pool, client, logs)),
            ]
            await run_service(config, stop, announce)
            for task in beside:
                task.cancel()


async def _draw(watch: Watch, surroundings: Surroundings) -> None:
    """Draws the ledger until cancelled; the last picture stays while the database or the stream is away."""
    with drawing(surroundings) as (draw, refresh_seconds):
        outage = Outage(log, "picture")
        while True:
            try:
                draw(await watch.look())
                outage.over()
            except (StoreFault, StreamFault) as fault:
                outage.note(fault)
            await asyncio.sleep(refresh_seconds)


def _sources(config: Config, client: StreamClient) -> list[Source]:
    return [Source(client, partition) for partition in range(config.stream.partitions)]


@contextmanager
def _logs_in(config: Config) -> Iterator[Path]:
    """Sends the log of the process to a file, so that log lines do not break the picture."""
    path = Path(config.data.directory) / "fundsvc.log"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("a", buffering=1) as output:
        configure_logs(config.log, output)
        try:
            yield path
        finally:
            configure_logs(config.log)
