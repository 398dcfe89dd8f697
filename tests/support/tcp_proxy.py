"""A proxy between the service and a server. It cuts connections, or swallows bytes in one direction (half-open)."""

import asyncio
import threading
from contextlib import asynccontextmanager, suppress

CHUNK_BYTES = 65_536


class TcpProxy:
    """Forwards bytes from its own port. Every method may be called at any time.

    The server is a TCP port or the path of a socket. The proxy runs in a separate thread, so that a busy test does not delay
    it.
    """

    def __init__(self, server):
        self.port = 0
        self._server = server
        self._swallowed = frozenset()
        self._left = None
        self._old = []
        self._writers = []
        self._tasks = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._listening = None

    async def start(self):
        self._thread.start()
        await self._there(self._listen())

    async def stop(self):
        await self._there(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()

    def swallow(self, *ways):
        """Swallows all bytes in these directions on any connection: "questions" to the server, "answers" from it."""
        self._swallowed = frozenset(ways)

    def swallow_on_old_connections(self, *ways):
        """Does the same as `swallow` on existing connections; new ones work."""
        for connection in self._old:
            connection.update(ways)

    def pass_on(self):
        """Forwards everything again. Swallowed bytes are lost, and connections that lost bytes stay broken."""
        self._swallowed = frozenset()

    def cut_after(self, questions_bytes):
        """Cuts all connections after `questions_bytes` more bytes to the server."""
        self._left = questions_bytes

    async def _there(self, work):
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _listen(self):
        self._listening = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listening.sockets[0].getsockname()[1]

    async def _close(self):
        self._listening.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0.05)  # the aborted transports need time to close

    def _accept(self, reader, writer):
        """Not a coroutine: one that is cancelled before it begins would leave its connection open."""
        self._writers.append(writer)
        self._tasks.append(asyncio.ensure_future(self._serve(reader, writer)))

    async def _serve(self, reader, writer):
        swallowed = set()
        self._old.append(swallowed)
        with suppress(OSError, asyncio.CancelledError):
            from_server, to_server = await self._connect()
            ways = (
                asyncio.create_task(self._pass(reader, to_server, "questions", swallowed)),
                asyncio.create_task(self._pass(from_server, writer, "answers", swallowed)),
            )
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                to_server.transport.abort()  # first, because a cancellation may skip the following lines
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        writer.transport.abort()

    def _connect(self):
        if isinstance(self._server, int):
            return asyncio.open_connection("127.0.0.1", self._server)
        return asyncio.open_unix_connection(self._server)

    async def _pass(self, reader, writer, way, swallowed):
        while data := await reader.read(CHUNK_BYTES):
            if way in self._swallowed:
                swallowed.add(way)  # A connection that lost bytes stays broken.
            if way in swallowed:
                continue
            if way == "questions" and self._left is not None:
                data = data[: self._left]
                self._left -= len(data)
            writer.write(data)
            await writer.drain()
            if way == "questions" and self._left == 0:
                self._left = None
                return


@asynccontextmanager
async def proxied(server):
    """Runs a proxy in front of a server."""
    proxy = TcpProxy(server)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
