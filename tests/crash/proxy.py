"""What stands between the engines and a server: passes bytes on, and now and then slowly, not at all, or not to their end.

It loses the answer to a COMMIT: the engine cannot know then whether its transaction was committed. It was. It leaves
connections half open, as a router does that forgot them: they are not closed, and nothing comes through any more.
"""

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path

COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"
"""The simple query, as it goes over the wire."""

CHUNK_BYTES = 65_536


class Proxy:
    """Listens at the socket `listens` for connections to the one at `server`; runs in a thread of its own.

    Whatever passes drops `delay_seconds` longer.
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
        """Begins to listen."""
        self._listens.parent.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        self._run(self._listen())

    def drop_next_commit_response(self) -> None:
        """Cuts off the next connection that commits, before it has the answer."""
        self._armed, self._dropped = True, False

    async def has_dropped_response(self) -> bool:
        """Whether that has happened since."""
        return self._dropped

    def make_half_open(self) -> int:
        """Lets nothing more through the present connections, which stay open; returns how many these are."""
        connections = list(self._connections)
        for connection in connections:
            connection.half_open = True
        return len(connections)

    def stop(self) -> None:
        """Ends all connections."""
        if self._thread.is_alive():
            self._run(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def drops_response_to(self, request: bytes) -> bool:
        """Whether the answer to a request is the one to be lost."""
        drops = self._armed and request.endswith(COMMIT)
        self._armed = self._armed and not drops
        return drops

    def note_dropped(self) -> None:
        """Notes that an answer has come, and is lost."""
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
        """One connection, until one of its ends closes or the answer to a COMMIT is lost."""
        connection = _ProxiedConnection(self)
        self._connections.add(connection)
        try:
            with suppress(OSError, asyncio.CancelledError):  # The server is away, or everything ends.
                from_server, to_server = await asyncio.open_unix_connection(self._server)
                try:
                    await connection.run(reader, to_server, from_server, writer)
                finally:
                    to_server.transport.abort()
        finally:
            self._connections.discard(connection)
            writer.transport.abort()


class _ProxiedConnection:
    """One connection through the proxy; once it `half_open`, its client learns nothing more, not even of the server's end."""

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
        """Passes on in both directions."""
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
