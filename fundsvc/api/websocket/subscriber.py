"""One client as topics see it: what it is sent, and what it has not read yet, which is bounded.

What waits for a client waits in its transport. Beyond `queue_bytes_max` of it, what only the latest of counts is kept back,
one for each contract, until the client has read; a client that would miss what must not be missed is closed with a reason.
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
"""What a client may take to answer a close; then the connection is cut, with all that waits for it."""

Spawn = Callable[[Coroutine[Any, Any, None]], object]
"""Runs something for as long as the connection lasts."""


class Subscriber:
    """A connected client; `account` is the one that it may see, "" without a trader's token.

    `numbers` is how the integers of its pushes are written.
    """

    def __init__(
        self,
        writer: AbstractStreamWriter,
        transport: asyncio.Transport,
        spawn: Spawn,
        metrics: Metrics,
        *,
        account: str,
        numbers: Numbers,
        queue_bytes_max: int,
    ) -> None:
        self.account = account
        self.numbers = numbers
        self.closed = False
        self._writer = writer
        self._transport = transport
        self._spawn = spawn
        self._metrics = metrics
        self._bytes_max = queue_bytes_max
        self._latest: dict[str, bytes] = {}
        # So that `drain` waits exactly while more than that is unread.
        transport.set_write_buffer_limits(high=queue_bytes_max)

    def send(self, frames: bytes) -> None:
        """Sends frames of which none may be missed."""
        if self._is_full():
            self._metrics.websocket_overflows.labels("closed").inc()
            self.close(
                WSCloseCode.TRY_AGAIN_LATER, "read faster: more was waiting than is kept; connect again, go on with after="
            )
        else:
            self._write(frames)

    def push(self, frames: Frames) -> None:
        """Sends pushes of which none may be missed."""
        self.send(frames.encode(self.numbers))

    def push_latest(self, key: str, frames: Frames) -> None:
        """Sends a push that replaces an earlier one with its key, should that still wait."""
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
        """Returns once little enough waits; raises ConnectionResetError when the client is gone."""
        await self._writer.drain()

    def close(self, code: int, reason: str) -> None:
        """Asks the client to close the connection, and cuts it if that takes long; nothing more is sent."""
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
