"""Static files: read on demand, compressed once, and answered with 304 if the client has the current version."""

import asyncio
from collections.abc import Callable, Mapping

from aiohttp import web

from fundsvc.api.http.caching import digest, is_current, validated
from fundsvc.api.http.compression import GZIP_HEADERS, PLAIN_HEADERS, GzipOnce, accepts_gzip

CONTENT_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""Content types by file extension. Other extensions are not supported."""

LEVEL = 9
"""The best compression, because each process compresses a file once."""

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""The headers of all files of pages."""


class Asset:
    """A file, gzipped in a thread at the first request."""

    def __init__(self, name: str, read: Callable[[], bytes]) -> None:
        self.name = name
        self._read = read
        self._packed = GzipOnce(read, LEVEL)
        self.content_type = CONTENT_TYPES[name[name.rindex(".") :]]
        self.etag = digest(read())

    async def body(self, *, compressed: bool) -> bytes:
        """Returns the bytes of the file, plain or gzipped."""
        if not compressed:
            return await asyncio.to_thread(self._read)
        return await self._packed.content()


async def answer_asset(request: web.Request, asset: Asset, headers: Mapping[str, str]) -> web.Response:
    """Returns a file with these headers and the security headers, or 304 if the browser's copy is current."""
    sent = {**SECURITY_HEADERS, **headers, **validated(asset.etag), **PLAIN_HEADERS}
    if is_current(request, asset.etag):
        return web.Response(status=304, headers=sent)
    compressed = accepts_gzip(request)
    if compressed:
        sent |= GZIP_HEADERS
    body = await asset.body(compressed=compressed)
    return web.Response(body=body, content_type=asset.content_type, charset="utf-8", headers=sent)
