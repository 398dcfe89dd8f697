"""A proxy between the engines and a server. It forwards bytes, and can delay or drop them.

It drops the answer to a COMMIT: the transaction is committed, but the engine cannot know it. It makes connections half open,
as a router does that lost its state: they stay open, and no bytes arrive.
"""

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path

COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"
"""The bytes of the simple query on the wire."""

CHUNK_BYTES = 65_536


class Proxy:
    """Forwards connections from the socket `listens` to the socket `server`, in a separate thread.

    All bytes are delayed by `delay_seconds`.
    """

    def __init__(self, listens: Path, server: Path) -> None:
        self.delay_seconds = 0.0
        self._armed = self._dropped = False
        self._listens = listens
        self._server = server
        self._connections: set[_ProxiedConnection] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._listening: asyncio.Server | None = None

    def start(self) -> None:
        """Starts to listen."""
        self._listens.parent.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        self._run(self._listen())

    def drop_next_commit_response(self) -> None:
        """Closes the next connection that commits, before it receives the answer."""
        self._armed, self._dropped = True, False

    async def has_dropped_response(self) -> bool:
        """Whether an answer was dropped since then."""
        return self._dropped

    def make_half_open(self) -> int:
        """Drops all further bytes of the present connections, which stay open; returns their number."""
        connections = list(self._connections)
        for connection in connections:
            connection.half_open = True
        return len(connections)

    def stop(self) -> None:
        """Closes all connections and ends the thread."""
        if self._thread.is_alive():
            self._run(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def drops_response_to(self, request: bytes) -> bool:
        """Whether the proxy drops the answer to this request."""
        drops = self._armed and request.endswith(COMMIT)
        self._armed = self._armed and not drops
        return drops

    def note_dropped(self) -> None:
        """Records that an answer arrived and was dropped."""
        self._dropped = True

    def _run(self, work: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._listening = await asyncio.start_unix_server(self._serve, self._listens)

    async def _close(self) -> None:
        assert self._listening is not None
        self._listening.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forwards one connection until an end closes it, or the answer to a COMMIT is dropped."""
        connection = _ProxiedConnection(self)
        self._connections.add(connection)
        try:
            with suppress(OSError, asyncio.CancelledError):  # The server is unreachable, or the proxy stops.
                from_server, to_server = await asyncio.open_unix_connection(self._server)
                try:
                    await connection.run(reader, to_server, from_server, writer)
                finally:
                    to_server.transport.abort()
        finally:
            self._connections.discard(connection)
            writer.transport.abort()


class _ProxiedConnection:
    """One connection through the proxy. If it is `half_open`, its client receives nothing, not even the server's close."""

    def __init__(self, proxy: Proxy) -> None:
        self.half_open = False
        self._proxy = proxy
        self._drops_response = False

    async def run(
        self,
        reader: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
        from_server: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Forwards both directions."""
        requests = asyncio.create_task(self._forward_requests(reader, to_server))
        responses = asyncio.create_task(self._forward_responses(from_server, writer))
        try:
            await asyncio.wait((requests, responses), return_when=asyncio.FIRST_COMPLETED)
            if self.half_open:
                await asyncio.wait((requests,))
        finally:
            for task in (requests, responses):
                task.cancel()
            await asyncio.gather(requests, responses, return_exceptions=True)

    async def _forward_requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            self._drops_response = self._drops_response or self._proxy.drops_response_to(data)
            await self._forward(data, writer)

    async def _forward_responses(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if self._drops_response:
                self._proxy.note_dropped()
                return
            await self._forward(data, writer)

    async def _forward(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        if self._proxy.delay_seconds:
            await asyncio.sleep(self._proxy.delay_seconds)
        if not self.half_open:
            writer.write(data)
            await writer.drain()
