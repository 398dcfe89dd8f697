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

    Whatever passes takes `delay_seconds` longer.
    """

    def __init__(self, listens: Path, server: Path) -> None:
        self.delay_seconds = 0.0
        self._armed = self._lost = False
        self._listens = listens
        self._server = server
        self._passages: set[_Passage] = set()
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

    def swallow(self) -> int:
        """Lets nothing more through the present connections, which stay open; returns how many these are."""
        passages = list(self._passages)
        for passage in passages:
            passage.swallows = True
        return len(passages)

    def stop(self) -> None:
        """Ends all connections."""
        if self._thread.is_alive():
            self._run(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def takes_answer(self, question: bytes) -> bool:
        """Whether the answer to a question is the one to be lost."""
        takes = self._armed and question.endswith(COMMIT)
        self._armed = self._armed and not takes
        return takes

    def note_lost(self) -> None:
        """Notes that an answer has come, and is lost."""
        self._lost = True

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
        passage = _Passage(self)
        self._passages.add(passage)
        try:
            with suppress(OSError, asyncio.CancelledError):  # The server is away, or everything ends.
                from_server, to_server = await asyncio.open_unix_connection(self._server)
                try:
                    await passage.run(reader, to_server, from_server, writer)
                finally:
                    to_server.transport.abort()
        finally:
            self._passages.discard(passage)
            writer.transport.abort()


class _Passage:
    """One connection through the proxy; once it `swallows`, its client learns nothing more, not even of the server's end."""

    def __init__(self, proxy: Proxy) -> None:
        self.swallows = False
        self._proxy = proxy
        self._loses = False

    async def run(
        self,
        reader: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
        from_server: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Passes on in both directions."""
        questions = asyncio.create_task(self._questions(reader, to_server))
        answers = asyncio.create_task(self._answers(from_server, writer))
        try:
            await asyncio.wait((questions, answers), return_when=asyncio.FIRST_COMPLETED)
            if self.swallows:
                await asyncio.wait((questions,))
        finally:
            for way in (questions, answers):
                way.cancel()
            await asyncio.gather(questions, answers, return_exceptions=True)

    async def _questions(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            self._loses = self._loses or self._proxy.takes_answer(data)
            await self._pass_on(data, writer)

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if self._loses:
                self._proxy.note_lost()
                return
            await self._pass_on(data, writer)

    async def _pass_on(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        if self._proxy.delay_seconds:
            await asyncio.sleep(self._proxy.delay_seconds)
        if not self.swallows:
            writer.write(data)
            await writer.drain()
