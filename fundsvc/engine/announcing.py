"""Announces rounds of ADL orders until the matching engine acknowledges them, and ends rounds that stay open for too long.

A round is announced once its batch is committed, concurrently with later commits. The first adlFill or adlEnd of the order in
this round acknowledges it, or an adlAck. Until then the announcement is repeated with growing pauses. The announcement stream
is trimmed by age, but keeps all announcements since the oldest unacknowledged one.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import NamedTuple, Protocol

import msgspec
from structlog.typing import FilteringBoundLogger

from fundsvc.concurrency.exclusive import Exclusive
from fundsvc.config.settings import AdlConfig
from fundsvc.core.adl.order import AdlOrder, OrderState
from fundsvc.core.events import AdlTimeout
from fundsvc.core.times import time_of_id
from fundsvc.logs.faults import Outage
from fundsvc.streams.announcer import Announcer, announcement_of
from fundsvc.streams.client import StreamFault
from fundsvc.streams.producer import Producer

ROUNDS_PER_TRIP_MAX = 200
BYTES_PER_TRIP_MAX = 250_000
"""Bound one round trip, and its encoding to about two milliseconds. A round with a thousand accounts has 40 kB."""

PAUSE_SECONDS_MAX = 60.0
"""The longest pause between announcements of one round: bounds the announcements during an outage of the matching engine."""

CHECK_SECONDS = 1.0
"""How often the announcer looks for rounds whose announcement is due again, or that are open for too long."""

RETRY_SECONDS = 0.5
"""The pause after a fault of the stream server."""

TRIM_SECONDS = 30.0
"""How often the announcer trims the stream while no rounds are open."""

RETENTION_SECONDS = 300.0
"""How long acknowledged announcements stay in the stream for other readers."""

OrderKey = tuple[str, int]
"""The symbol and the number of an ADL order."""


class Orders(Protocol):
    """The open orders of a partition, as the announcer reads them."""

    def open_order(self, symbol: str, adl: int) -> AdlOrder | None:
        """Returns an open order, or None."""

    def price_decimals(self, symbol: str) -> int:
        """Returns the scale of a contract's prices."""


class Metrics(Protocol):
    """The metrics that the announcer sets."""

    def unacknowledged(self, partition: int, rounds: int, seconds: float) -> None:
        """Sets the number of unacknowledged announced rounds and the age of the oldest one."""

    def announced_again(self, partition: int, rounds: int) -> None:
        """Counts repeated announcements."""


class OpenRound(msgspec.Struct):
    """An open round of an order: its number, its start time, and whether the matching engine has acknowledged it.

    `began_ms` is a time of the stream server's clock, 0 if unknown. `announced_ms` is the stream time of the last announcement,
    0 before the first. `due` is when the next announcement is due (monotonic), `pause` its distance in seconds.
    """

    round: int
    began_ms: int
    acknowledged: bool
    pause: float
    announced_ms: int = 0
    due: float = 0.0
    timed_out: bool = False


class _RoundTrip(NamedTuple):
    """Announcements that one round trip appends, with their rounds."""

    rounds: list[OpenRound]
    bodies: list[bytes]


class RoundAnnouncer:
    """Announces the open rounds of one partition's orders. `update` receives committed orders; `run` announces their rounds.

    `exclusive` gives access to the orders.
    """

    def __init__(
        self,
        orders: Orders,
        exclusive: Exclusive,
        announcer: Announcer,
        producer: Producer,
        config: AdlConfig,
        partition: int,
        metrics: Metrics,
        log: FilteringBoundLogger,
    ) -> None:
        self._orders = orders
        self._exclusive = exclusive
        self._announcer = announcer
        self._producer = producer
        self._config = config
        self._partition = partition
        self._metrics = metrics
        self._log = log
        self._outage = Outage(log, "announcing")
        self._open: dict[OrderKey, OpenRound] = {}
        self._unannounced: dict[OrderKey, OpenRound] = {}
        self._updated = asyncio.Event()
        self._pause = CHECK_SECONDS

    def update(self, orders: Iterable[OrderState]) -> None:
        """Receives orders in their committed state."""
        for order in orders:
            self._update((order.symbol, order.adl), order)
        self._pause = CHECK_SECONDS
        self._updated.set()

    def _update(self, key: OrderKey, order: OrderState) -> None:
        known = self._open.get(key)
        if order.state != "open":
            self._open.pop(key, None)
            self._unannounced.pop(key, None)
        elif known and known.round == order.round:
            known.acknowledged = order.acknowledged
        else:
            self._open[key] = OpenRound(order.round, order.round_ms, order.acknowledged, self._config.ack_seconds)
            if not order.acknowledged:
                self._unannounced[key] = self._open[key]

    async def run(self) -> None:
        """Announces until cancelled. Retries after faults of the stream server."""
        checked = 0.0
        while True:
            try:
                await self._announce_new()
                if time.monotonic() >= checked + CHECK_SECONDS:
                    checked = time.monotonic()
                    await self._check_rounds()
                self._outage.over()
                await self._wait_for_update()
            except StreamFault as fault:
                self._outage.note(fault)
                await asyncio.sleep(RETRY_SECONDS)

    async def _wait_for_update(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._pause):
                await self._updated.wait()
        self._updated.clear()

    async def _announce_new(self) -> None:
        while self._unannounced:
            keys = list(islice(self._unannounced, ROUNDS_PER_TRIP_MAX))
            for key in await self._announce(keys):
                self._unannounced.pop(key, None)

    async def _announce(self, keys: Sequence[OrderKey]) -> Sequence[OrderKey]:
        """Announces rounds up to the limit of a round trip; returns the keys of those that need no further announcement now."""
        trip, handled = await self._exclusive.run(partial(self._pack, keys))
        if trip.bodies:
            await self._send(trip)
        return handled

    def _pack(self, keys: Sequence[OrderKey]) -> tuple[_RoundTrip, Sequence[OrderKey]]:
        """Encodes announcements up to the limit of a round trip. Also returns the keys that it went through."""
        trip = _RoundTrip([], [])
        size, handled = 0, []
        for key in keys:
            if size >= BYTES_PER_TRIP_MAX:
                break
            handled.append(key)
            round_ = self._open.get(key)
            body = self._body(key, round_) if round_ else None
            if round_ and body:
                trip.rounds.append(round_)
                trip.bodies.append(body)
                size += len(body)
        return trip, handled

    async def _send(self, trip: _RoundTrip) -> None:
        ids = await self._announcer.append(trip.bodies)
        now = time.monotonic()
        for round_, stream_id in zip(trip.rounds, ids, strict=True):
            round_.announced_ms = time_of_id(stream_id)
            round_.due = now + round_.pause
            round_.pause = min(2 * round_.pause, max(PAUSE_SECONDS_MAX, self._config.ack_seconds))

    def _body(self, key: OrderKey, known: OpenRound) -> bytes | None:
        """Encodes the announcement of a round; None if memory is ahead of the ledger or no lots are left."""
        order = self._orders.open_order(*key)
        if known.acknowledged or order is None or order.round != known.round:
            return None
        return msgspec.json.encode(announcement_of(order, self._orders.price_decimals(key[0])))

    async def _check_rounds(self) -> None:
        """Repeats due announcements, ends rounds that are open for too long, and trims the stream.

        Without open rounds, the next check is only after TRIM_SECONDS.
        """
        now, now_ms = time.monotonic(), await self._announcer.now_ms()
        for round_ in self._open.values():
            round_.began_ms = round_.began_ms or now_ms
        waiting = {key: round_ for key, round_ in self._open.items() if not round_.acknowledged}
        self._set_metrics(waiting, now_ms)
        due = [key for key, round_ in waiting.items() if round_.announced_ms and round_.due <= now]
        if due:
            self._log.warning("adl rounds not acknowledged", count=len(due), symbol=due[0][0], adl=due[0][1])
            self._metrics.announced_again(self._partition, len(due))
        while due:
            due = due[len(await self._announce(due[:ROUNDS_PER_TRIP_MAX])) :]
        await asyncio.sleep(0)  # A storm has ten thousand open rounds; iterating over them takes milliseconds.
        await self._end_late(now_ms)
        await self._trim(waiting.values(), now_ms)
        self._pause = CHECK_SECONDS if self._open else TRIM_SECONDS

    def _set_metrics(self, waiting: dict[OrderKey, OpenRound], now_ms: int) -> None:
        oldest = min((round_.began_ms for round_ in waiting.values()), default=None)
        seconds = 0.0 if oldest is None else max(0.0, (now_ms - oldest) / 1000)
        self._metrics.unacknowledged(self._partition, len(waiting), seconds)

    async def _end_late(self, now_ms: int) -> None:
        """Appends one adlTimeout for each round that is open for longer than `adl.round_seconds`."""
        if not self._config.round_seconds:
            return
        latest = now_ms - self._config.round_seconds * 1000
        late = [(key, one) for key, one in self._open.items() if one.began_ms <= latest and not one.timed_out]
        for start in range(0, len(late), ROUNDS_PER_TRIP_MAX):
            part = late[start : start + ROUNDS_PER_TRIP_MAX]
            await self._producer.append([AdlTimeout(symbol, adl, one.round, now_ms) for (symbol, adl), one in part])
            for _, one in part:
                one.timed_out = True

    async def _trim(self, waiting: Iterable[OpenRound], now_ms: int) -> None:
        """Trims old announcements, once all unacknowledged rounds are in the stream."""
        times = [round_.announced_ms for round_ in waiting]
        if all(times):
            oldest_ms = max(0, now_ms - int(RETENTION_SECONDS * 1000))
            await self._announcer.trim(f"{min([oldest_ms, *times])}-0")
