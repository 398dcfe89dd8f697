"""A connected client as topics see it: a bounded queue of frames.

The transport of the connection holds the unread frames. While it holds more than `queue_bytes_max`, pushes of which only the
latest counts wait outside, one per contract, until the client has read. Any other frame then closes the connection, because
the client would miss it.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from aiohttp import WSCloseCode
from aiohttp.abc import AbstractStreamWriter

from fundsvc.api.http.big_integers import Numbers
from fundsvc.api.websocket.frames import Frames, close_frame
from fundsvc.metrics import Metrics

CLOSE_SECONDS_MAX = 5.0
"""How long a client may take to answer a close frame. After that the connection is aborted and its queue dropped."""

Spawn = Callable[[Coroutine[Any, Any, None]], object]
"""Starts a task in the task group of the connection."""


class Subscriber:
    """Sends frames to a client.

    `role` is that of its token, "" without one, and `account` its account, "" without a trader's token. `numbers` is the
    representation of integers in pushes.
    """

    def __init__(
        self,
        writer: AbstractStreamWriter,
        transport: asyncio.Transport,
        spawn: Spawn,
        metrics: Metrics,
        *,
        account: str,
        role: str,
        numbers: Numbers,
        queue_bytes_max: int,
    ) -> None:
        self.account = account
        self.role = role
        self.numbers = numbers
        self.closed = False
        self._writer = writer
        self._transport = transport
        self._spawn = spawn
        self._metrics = metrics
        self._bytes_max = queue_bytes_max
        self._latest: dict[str, bytes] = {}
        # `drain` then waits exactly while more than that is unread.
        transport.set_write_buffer_limits(high=queue_bytes_max)

    def send(self, frames: bytes) -> None:
        """Sends frames that must not be lost. Closes the connection if the queue is full."""
        if self._is_full():
            self._metrics.websocket_overflows.labels("closed").inc()
            self.close(
                WSCloseCode.TRY_AGAIN_LATER,
                f"more than {self._bytes_max} bytes were unread: read faster; reconnect, and subscribe with `after`",
            )
        else:
            self._write(frames)

    def push(self, frames: Frames) -> None:
        """Sends pushes that must not be lost. Closes the connection if the queue is full."""
        self.send(frames.encode(self.numbers))

    def push_latest(self, key: str, frames: Frames) -> None:
        """Sends a push. If the queue is full, keeps only the latest push of each key until the client has read."""
        frame = frames.encode(self.numbers)
        if self._latest:
            self._latest[key] = frame
        elif self._is_full():
            self._metrics.websocket_overflows.labels("coalesced").inc()
            self._latest[key] = frame
            self._spawn(self._send_latest())
        else:
            self._write(frame)

    async def drained(self) -> None:
        """Waits until the queue is not full. Raises ConnectionResetError if the client has disconnected."""
        await self._writer.drain()

    def close(self, code: int, reason: str) -> None:
        """Sends a close frame, and nothing after it. Aborts the connection if the client does not answer in time."""
        if not self._is_closed():
            self._transport.write(close_frame(code, reason))
            asyncio.get_running_loop().call_later(CLOSE_SECONDS_MAX, self._transport.abort)
        self.closed = True

    async def _send_latest(self) -> None:
        try:
            await self.drained()
        except ConnectionResetError:
            return
        frames = b"".join(self._latest.values())
        self._latest.clear()
        self._write(frames)

    def _is_full(self) -> bool:
        return not self._is_closed() and self._transport.get_write_buffer_size() > self._bytes_max

    def _write(self, frames: bytes) -> None:
        if not self._is_closed():
            self._transport.write(frames)

    def _is_closed(self) -> bool:
        return self.closed or self._transport.is_closing()
