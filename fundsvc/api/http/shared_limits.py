"""Limits of clients that hold over all API processes.

Each process counts by itself, so no request waits for another server. It reports its counts to the stream server, which answers
with those of all processes. A report follows at once when a client has used a share of its limit since the last one. A client
can therefore exceed a limit only by what it uses at the other processes between two reports. While the stream server does not
answer, each process applies the limits to its own counts.
"""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import islice
from typing import NamedTuple

import structlog

from fundsvc.api.http.rate_limits import OVERFLOW, Clock, Window
from fundsvc.api.http.slots import Slots
from fundsvc.config.settings import Config, HttpConfig
from fundsvc.logs.faults import Outage
from fundsvc.streams.client import StreamClient, StreamFault
from fundsvc.streams.shared_counts import add_to_window, change_open, claim

REPORT_SECONDS = 0.1
"""The interval of reports while clients use less than EAGER_SHARE of their limits."""

EAGER_SHARE = 0.02
"""The share of a limit after which a report follows at once: 40 of 2000 requests."""

RETRY_SECONDS = 1.0
"""Pause after a report that failed."""

REPORT_CLIENTS_MAX = 1000
"""Clients of one report. A longer script would hold the stream server for more than a millisecond."""

RENEW_SECONDS, LIFETIME_SECONDS = 1.0, 10.0
"""How often a process reports that it lives, and when the connections of a silent one are forgotten."""

CLAIM_SECONDS_MAX = 0.25
"""How long a handshake may wait for the stream server."""

log = structlog.get_logger()


class SharedWindow(Window):
    """A window whose counts include those of the other processes as of the last report. `due` is set when one is urgent."""

    def __init__(
        self, name: str, limit: int, seconds: float, client: StreamClient, due: asyncio.Event, clock: Clock = time.monotonic
    ) -> None:
        super().__init__(limit, seconds, clock)
        self._name = name
        self._client = client
        self._due = due
        self._eager = max(1, int(limit * EAGER_SHARE))
        self._id = 0
        self._unreported: dict[str, int] = {}

    def take(self, client: str, amount: int = 1) -> bool:
        """Counts like a window, and notes what to report."""
        if not super().take(client, amount):
            return False
        key = client if client in self._taken else OVERFLOW
        unreported = self._unreported[key] = self._unreported.get(key, 0) + amount
        if unreported >= self._eager:
            self._due.set()
        return True

    def remaining(self, client: str) -> int:
        """Returns the units that a client has left in this window; other processes may have granted more than all."""
        return max(0, super().remaining(client))

    async def report(self) -> None:
        """Reports the counts of some clients, and adds those of other processes; raises StreamFault."""
        if not self._unreported:
            return
        sent = {client: self._unreported.pop(client) for client in list(islice(self._unreported, REPORT_CLIENTS_MAX))}
        if self._unreported:
            self._due.set()
        try:
            counted = await add_to_window(self._client, self._name, self._seconds, sent)
        except StreamFault:
            for client, amount in sent.items():
                self._unreported[client] = self._unreported.get(client, 0) + amount
            raise
        if counted.id != self._id:
            self._join(counted.id, self._clock() + counted.left_seconds)
        for client, total in counted.totals.items():
            self._taken[client] = total + self._unreported.get(client, 0)

    def _join(self, window: int, ends: float) -> None:
        """Adopts the end of the common window. What was counted in an earlier common window is dropped."""
        if self._id:
            self._begin(ends)
        self._id, self._ends = window, ends

    def _begin(self, ends: float) -> None:
        super()._begin(ends)
        self._id = 0
        self._unreported = {}


class SharedSlots(Slots):
    """Slots of which a client may hold its limit at all processes together. `due` is set after each change."""

    def __init__(self, name: str, slots: int, client_slots: int, client: StreamClient, due: asyncio.Event) -> None:
        super().__init__(slots, client_slots)
        self._name = name
        self._client = client
        self._due = due
        self._elsewhere: dict[str, int] = {}
        self._process = ""
        self._is_new = True
        self._renew_at = 0.0
        self._changes: Counter[str] = Counter()
        self._forget_process()

    def are_full_for(self, client: str) -> bool:
        """Returns whether a client holds all slots that it may hold, here and elsewhere."""
        if self._by_client[client] + self._elsewhere.get(client, 0) < self.client_slots:
            return False
        self._note(client, 0)  # It may have left slots elsewhere since the last report.
        return True

    def take(self, *clients: str) -> None:
        """Takes one slot, counted once for each of these clients."""
        super().take(*clients)
        for client in clients:
            self._note(client, 1)

    def leave(self, *clients: str) -> None:
        """Returns the slot that `take` took for these clients."""
        super().leave(*clients)
        for client in clients:
            self._note(client, -1)

    async def report(self) -> None:
        """Reports the changes, and that this process lives; raises StreamFault."""
        if not self._changes and time.monotonic() < self._renew_at:
            return
        sent = {client: self._changes.pop(client) for client in list(islice(self._changes, REPORT_CLIENTS_MAX))}
        if self._changes:
            self._due.set()
        held = {client: self._by_client[client] for client in sent}
        try:
            totals = await change_open(self._client, self._name, self._process, LIFETIME_SECONDS, sent, is_new=self._is_new)
        except BaseException:
            self._forget_process()  # The changes may have been made, or not.
            raise
        if totals is None:
            self._forget_process()
            return
        self._is_new = False
        self._renew_at = time.monotonic() + RENEW_SECONDS
        for client, total in totals.items():
            if self._by_client[client]:
                self._elsewhere[client] = total - held[client]
            else:
                self._elsewhere.pop(client, None)

    def _forget_process(self) -> None:
        """Continues as another process, whose report has all counts. Those of the old one disappear after its lifetime."""
        self._process = secrets.token_hex(8)
        self._is_new = True
        self._renew_at = 0.0
        self._changes = Counter(self._by_client)
        self._due.set()

    def _note(self, client: str, change: int) -> None:
        self._changes[client] += change
        self._due.set()


class Limits(NamedTuple):
    """The limits of clients: requests and events of matching engines in a window, and WebSocket connections.

    With `stream`, they hold over all processes.
    """

    requests: Window
    events: Window
    connections: Slots
    stream: StreamClient | None = None

    async def claim(self, token: str, seconds: float) -> bool:
        """Returns whether no other process has accepted a token of the next `seconds`; True if the answer takes too long."""
        if self.stream is None:
            return True
        with suppress(StreamFault, TimeoutError):
            async with asyncio.timeout(CLAIM_SECONDS_MAX):
                return await claim(self.stream, token, seconds)
        return True


def local_windows(http: HttpConfig, clock: Clock = time.monotonic) -> tuple[Window, Window]:
    """Returns the windows of requests and of events of one process."""
    return (
        Window(http.requests_max, http.requests_seconds, clock),
        Window(http.ingest_events_max, http.requests_seconds, clock),
    )


@asynccontextmanager
async def open_limits(config: Config, client: StreamClient) -> AsyncIterator[Limits]:
    """Yields the limits of a process, which reports its counts while the context is open if `http.shared_limits` is set."""
    http, websocket = config.http, config.websocket
    if not http.shared_limits:
        yield Limits(*local_windows(http), Slots(websocket.clients_max, websocket.client_connections_max))
        return
    due = asyncio.Event()
    requests = SharedWindow("requests", http.requests_max, http.requests_seconds, client, due)
    events = SharedWindow("events", http.ingest_events_max, http.requests_seconds, client, due)
    connections = SharedSlots("connections", websocket.clients_max, websocket.client_connections_max, client, due)
    reporting = asyncio.create_task(_report((requests, events, connections), due))
    try:
        yield Limits(requests, events, connections, client)
    finally:
        reporting.cancel()
        await asyncio.wait({reporting})
        with suppress(StreamFault, TimeoutError):
            async with asyncio.timeout(CLAIM_SECONDS_MAX):
                await connections.report()


async def _report(shared: tuple[SharedWindow | SharedSlots, ...], due: asyncio.Event) -> None:
    """Reports until cancelled."""
    outage = Outage(log, "limits")
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(REPORT_SECONDS):
                await due.wait()
        due.clear()
        try:
            for one in shared:
                await one.report()
        except StreamFault as fault:
            outage.note(fault)
            await asyncio.sleep(RETRY_SECONDS)
        else:
            outage.over()
