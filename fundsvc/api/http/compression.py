"""Gzips content once and reuses it for all clients that accept gzip."""

import asyncio
import gzip
import re
from collections.abc import Callable

from aiohttp import hdrs, web

GZIP_HEADERS: dict[str, str] = {hdrs.CONTENT_ENCODING: "gzip", hdrs.VARY: hdrs.ACCEPT_ENCODING}
PLAIN_HEADERS: dict[str, str] = {hdrs.VARY: hdrs.ACCEPT_ENCODING}
"""The headers of both variants. `Vary` prevents caches from sending the gzipped variant to other clients."""

GZIP_NAMES = frozenset({"gzip", "x-gzip"})
"""RFC 9110, section 8.4.1.3: both names are equivalent."""

_CODING = re.compile(
    r"(?P<name>[!#$%&'*+.^`|~\w-]+)[ \t]*(?:;[ \t]*[qQ]=(?P<weight>0(?:\.\d{0,3})?|1(?:\.0{0,3})?))?", re.ASCII
)
"""A coding and its weight. A malformed part of the header is ignored."""


class GzipOnce:
    """Gzips the bytes that `read` returns, in a thread, at the first request."""

    def __init__(self, read: Callable[[], bytes], level: int) -> None:
        self._read = read
        self._level = level
        self._compressing: asyncio.Future[bytes] | None = None

    async def content(self) -> bytes:
        """Returns the gzipped bytes."""
        if self._compressing is None:
            compress = asyncio.to_thread(lambda: gzip.compress(self._read(), self._level, mtime=0))
            self._compressing = asyncio.ensure_future(compress)
        return await asyncio.shield(self._compressing)


def accepts_gzip(request: web.Request) -> bool:
    """Returns whether the request prefers gzip to plain bytes, or has no preference (RFC 9110, section 12.5.3)."""
    weights = _weights(",".join(request.headers.getall(hdrs.ACCEPT_ENCODING, ())))
    others = weights.get("*", 0.0)
    gzip_weight = max((weights[name] for name in GZIP_NAMES if name in weights), default=others)
    return gzip_weight > 0 and gzip_weight >= weights.get("identity", others)


def _weights(header: str) -> dict[str, float]:
    """Returns the weight of each coding in an Accept-Encoding header by its name in lower case."""
    found = (_CODING.fullmatch(part.strip()) for part in header.split(","))
    return {coding["name"].lower(): float(coding["weight"] or 1) for coding in found if coding}
