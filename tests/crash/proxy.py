"""What stands between the engines and PostgreSQL: passes bytes on, and once in a while loses the answer to a COMMIT.

The engine cannot know then whether its transaction was committed. It was.
"""

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path

COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"
"""The simple query, as it goes over the wire."""

CHUNK_BYTES = 65_536
SOCKET = ".s.PGSQL.5432"
"""How PostgreSQL names its socket."""


class Proxy:
    """Listens in `directory` for connections to the server whose socket is in `server`; runs in a thread of its own."""

    def __init__(self, directory: Path, server: Path) -> None:
        self._armed = self._lost = False
        self._listens = directory / SOCKET
        self._server = server / SOCKET
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._listening: asyncio.Server | None = None

    def start(self) -> None:
        """Begins to listen."""
        self._listens.parent.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        self._run(self._listen())

    def lose_next_answer(self) -> None:
        """Cuts off the next connection that commits, before it has the answer."""
        self._armed, self._lost = True, False

    async def has_lost_it(self) -> bool:
        """Whether that has happened since."""
        return self._lost

    def stop(self) -> None:
        """Ends all connections."""
        if self._thread.is_alive():
            self._run(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

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
        try:
            with suppress(OSError, asyncio.CancelledError):  # The server is away, or everything ends.
                await self._pass_on(reader, writer)
        finally:
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_unix_connection(self._server)
        lost = asyncio.Event()
        ways = [
            asyncio.create_task(self._pass_questions(reader, to_server, lost)),
            asyncio.create_task(self._pass_answers(from_server, writer, lost)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            to_server.transport.abort()

    async def _pass_questions(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lost: asyncio.Event) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if self._armed and data.endswith(COMMIT):
                self._armed = False
                lost.set()
            writer.write(data)
            await writer.drain()

    async def _pass_answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lost: asyncio.Event) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if lost.is_set():
                self._lost = True
                return
            writer.write(data)
            await writer.drain()
