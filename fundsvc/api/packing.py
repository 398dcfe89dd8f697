"""Bytes that are sent again and again: gzipped once for all who take them so."""

import asyncio
import gzip
from collections.abc import Callable

from aiohttp import hdrs, web

PACKED: dict[str, str] = {hdrs.CONTENT_ENCODING: "gzip", hdrs.VARY: hdrs.ACCEPT_ENCODING}
PLAIN: dict[str, str] = {hdrs.VARY: hdrs.ACCEPT_ENCODING}
"""What an answer says of which of the two it is: a cache on the way must not give one for the other."""


class Packed:
    """What `read` returns, gzipped in a thread when it is first asked for."""

    def __init__(self, read: Callable[[], bytes], level: int) -> None:
        self._read = read
        self._level = level
        self._packing: asyncio.Future[bytes] | None = None

    async def content(self) -> bytes:
        """The gzipped bytes."""
        if self._packing is None:
            pack = asyncio.to_thread(lambda: gzip.compress(self._read(), self._level, mtime=0))
            self._packing = asyncio.ensure_future(pack)
        return await asyncio.shield(self._packing)


def takes_packed(request: web.Request) -> bool:
    """Whether whoever asks can unpack it."""
    return "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, "")
