"""Bytes to and from a listening service, for what no HTTP client sends."""

import asyncio
from contextlib import asynccontextmanager

SECONDS_MAX = 10


class Raw:
    """A connection of bytes."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    async def send(self, data):
        self.writer.write(data.encode() if isinstance(data, str) else data)
        await self.writer.drain()

    async def head(self):
        """The status of the next answer and its headers, with names in lower case; None where the connection is over."""
        try:
            text = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), SECONDS_MAX)).decode("latin-1")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        first, *lines = text.rstrip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return int(first.split()[1]), headers

    async def answer(self):
        """The status and the body of the next answer."""
        status, headers = await self.head()
        return status, await self.reader.readexactly(int(headers.get("content-length", 0)))

    async def rest(self):
        """All that comes until the connection is over."""
        try:
            return await asyncio.wait_for(self.reader.read(), SECONDS_MAX)
        except ConnectionError:
            return b""

    def abort(self):
        self.writer.transport.abort()


@asynccontextmanager
async def raw(url, source=None):
    """A connection to a service, from an address of this machine."""
    host, port = url.removeprefix("http://").rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port), local_addr=(source, 0) if source else None)
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()


async def asked(url, request):
    """The status and the body that a request of bytes is answered with."""
    async with raw(url) as connection:
        await connection.send(request)
        return await connection.answer()
