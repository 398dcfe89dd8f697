"""`fundsvc up --demo`: the whole service, the demo market, and a live view of the ledger."""

import asyncio
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import structlog

from fundsvc.api.http.tokens import mint
from fundsvc.app import connected, run_service
from fundsvc.config.settings import SECRET_LENGTH_MIN, Config, MutualConfig
from fundsvc.core.fund.fullness import TargetPolicy
from fundsvc.demo.feed import stream_market
from fundsvc.demo.instruments import INSTRUMENTS
from fundsvc.demo.insured import MUTUAL, InsuredTraders
from fundsvc.demo.market import SimulatedMarket
from fundsvc.demo.screen import Surroundings, Visitor, drawing
from fundsvc.demo.watch import Watch
from fundsvc.logs import configure_logs
from fundsvc.logs.faults import Outage
from fundsvc.store.database import Pool, StoreFault
from fundsvc.streams.client import StreamClient, StreamFault
from fundsvc.streams.source import Source

TARGET = TargetPolicy(rule="open_interest", share=0.006)
"""The rule needs no history of deficits, of which the demo has only some hours. Funds are between a tenth and twice as full."""

TOKEN_SECONDS = 24 * 3600
"""The default lifetime of `fundsvc token`."""

SYMBOLS = [instrument.symbol for instrument in INSTRUMENTS]

log = structlog.get_logger()


async def show_demo(config: Config, stop: asyncio.Event) -> None:
    """Runs until `stop` is set; `config` names running servers. Logs go to fundsvc.log in the data directory meanwhile."""
    config = with_market(config)
    served = with_secret(config)
    started, address = time.monotonic(), asyncio.get_running_loop().create_future()
    marks: dict[str, str] = {}

    async def announce(url: str) -> None:
        address.set_result(url)

    async def market(pool: Pool, client: StreamClient) -> None:
        await stream_market(served, pool, client, await address, marks, stop)

    async def picture(pool: Pool, client: StreamClient, logs: Path) -> None:
        watch = Watch(pool, _sources(config, client), SYMBOLS, marks)
        await _draw(watch, Surroundings(await address, logs, started, visitors(config)))

    with _logs_in(config) as logs:
        async with connected(config) as (pool, client), asyncio.TaskGroup() as tasks:
            beside = [
                tasks.create_task(market(pool, client)),
                tasks.create_task(picture(pool, client, logs)),
            ]
            await run_service(served, stop, announce)
            for task in beside:
                task.cancel()


def with_market(config: Config) -> Config:
    """Returns the configuration with the pool of the insured traders, and with targets that a fund of minutes can have."""
    targets = msgspec.structs.replace(config.target, contracts=dict.fromkeys(SYMBOLS, TARGET) | config.target.contracts)
    pools = MutualConfig(config.mutual.pools | MUTUAL.pools)
    return msgspec.structs.replace(config, target=targets, mutual=pools)


def with_secret(config: Config) -> Config:
    """Adds a token secret, of this process, if the configuration has none: the market reads the cursor with a token."""
    secret = config.token.secret or secrets.token_urlsafe(SECRET_LENGTH_MIN)
    return msgspec.structs.replace(config, token=msgspec.structs.replace(config.token, secret=secret))


def visitors(config: Config) -> Sequence[Visitor]:
    """Returns tokens for visitors: of a trader with positions and policies, and of risk. Without the secret there are none."""
    if not config.token.secret:
        return ()
    account = InsuredTraders(SimulatedMarket(config.currency)).accounts[0]
    trader = mint(config.token, "trader", account, "", TOKEN_SECONDS)
    risk = mint(config.token, "risk", "", "demo", TOKEN_SECONDS)
    return Visitor("trader", account, trader), Visitor("risk", "", risk)


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
