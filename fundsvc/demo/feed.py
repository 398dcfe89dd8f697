"""Sends the market's steps into the streams at their pace, as a matching engine would."""

import asyncio
import time
from contextlib import suppress

import structlog

from fundsvc.config import Config
from fundsvc.demo.instruments import INSTRUMENTS
from fundsvc.demo.market import STEP_SECONDS, Market, step_to_resume
from fundsvc.store.database import StoreFault
from fundsvc.store.reader import Reader
from fundsvc.streams.client import Client, StreamFault
from fundsvc.streams.producer import Producer

RETRY_SECONDS = 1.0
"""What is away is asked for again as often as the engine does."""

log = structlog.get_logger()


async def stream_market(config: Config, reader: Reader, client: Client, stop: asyncio.Event) -> None:
    """Streams until told to stop; begins, and after a fault begins again, where the ledger is."""
    market = Market(config.currency)
    producer = Producer(client, config.stream.partitions)
    while not stop.is_set():
        try:
            step = await _next_step(reader)
            log.info("market goes on", step=step)
            await _stream(market, producer, step, stop)
        except (StoreFault, StreamFault) as fault:
            log.warning("market waits", fault=str(fault))
            await _pause(stop, RETRY_SECONDS)


async def _next_step(reader: Reader) -> int:
    settled = {fund.symbol: fund.seq for fund in await reader.funds()}
    return step_to_resume([settled.get(instrument.symbol, 0) for instrument in INSTRUMENTS])


async def _stream(market: Market, producer: Producer, step: int, stop: asyncio.Event) -> None:
    due = time.monotonic()
    while not stop.is_set():
        # In a thread: the steps that size a cascade take a tenth of a second, and the engine runs in this process.
        await producer.append(await asyncio.to_thread(market.events, step, time.time_ns() // 1_000_000))
        step += 1
        due = max(due + STEP_SECONDS, time.monotonic())
        await _pause(stop, due - time.monotonic())


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    """Waits, but not once told to stop."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
