"""Static files: read when first asked for, compressed once, and not sent again to who has them."""

import asyncio
from collections.abc import Callable, Mapping
from hashlib import sha256

from aiohttp import hdrs, web

from fundsvc.api.http.compression import GZIP_HEADERS, PLAIN_HEADERS, GzipOnce, accepts_gzip

CONTENT_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""By the ends of names; a file of another kind has no place here."""

HASH_LENGTH = 16
"""Hex digits of a hash: 64 bits tell versions of a file apart."""

LEVEL = 9
"""Files are compressed once in the life of a process: as well as it goes."""

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Of everything that pages consist of."""


class Asset:
    """A file as it goes over the wire: gzipped when it is first asked for, in a thread."""

    def __init__(self, name: str, read: Callable[[], bytes]) -> None:
        self._read = read
        self._packed = GzipOnce(read, LEVEL)
        self.content_type = CONTENT_TYPES[name[name.rindex(".") :]]
        self.etag = digest(read())

    async def body(self, *, compressed: bool) -> bytes:
        """Its bytes, plain or gzipped."""
        if not compressed:
            return await asyncio.to_thread(self._read)
        return await self._packed.content()


async def answer_asset(request: web.Request, asset: Asset, headers: Mapping[str, str]) -> web.Response:
    """A file with these headers and those that are always there, or only that it is what the browser has."""
    sent = {**SECURITY_HEADERS, **headers, hdrs.ETAG: f'W/"{asset.etag}"', **PLAIN_HEADERS}
    known = request.if_none_match or ()
    if any(tag.value in (asset.etag, "*") for tag in known):
        return web.Response(status=304, headers=sent)
    compressed = accepts_gzip(request)
    if compressed:
        sent |= GZIP_HEADERS
    body = await asset.body(compressed=compressed)
    return web.Response(body=body, content_type=asset.content_type, charset="utf-8", headers=sent)


def digest(content: bytes) -> str:
    """A short hash of a content."""
    return sha256(content).hexdigest()[:HASH_LENGTH]
