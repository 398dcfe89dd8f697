"""Sends bytes to a service that no HTTP client would send."""

import asyncio
from contextlib import asynccontextmanager

SECONDS_MAX = 10


class Raw:
    """A raw TCP connection."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    async def send(self, data):
        self.writer.write(data.encode() if isinstance(data, str) else data)
        await self.writer.drain()

    async def head(self):
        """Returns status and headers (names in lower case) of the next answer; None if the connection is closed."""
        try:
            text = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), SECONDS_MAX)).decode("latin-1")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        first, *lines = text.rstrip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return int(first.split()[1]), headers

    async def answer(self):
        """Returns status and body of the next answer."""
        status, headers = await self.head()
        return status, await self.reader.readexactly(int(headers.get("content-length", 0)))

    async def rest(self):
        """Returns all bytes until the connection is closed."""
        try:
            return await asyncio.wait_for(self.reader.read(), SECONDS_MAX)
        except ConnectionError:
            return b""

    def abort(self):
        self.writer.transport.abort()


@asynccontextmanager
async def raw(url, source=None):
    """Connects to a service, optionally from another local address."""
    host, port = url.removeprefix("http://").rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port), local_addr=(source, 0) if source else None)
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()


async def exchange(url, request):
    """Sends a request as bytes; returns status and body of the answer."""
    async with raw(url) as connection:
        await connection.send(request)
        return await connection.answer()
