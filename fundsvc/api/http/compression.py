"""Bytes that are sent again and again: gzipped once for all who take them so."""

import asyncio
import gzip
import re
from collections.abc import Callable

from aiohttp import hdrs, web

GZIP_HEADERS: dict[str, str] = {hdrs.CONTENT_ENCODING: "gzip", hdrs.VARY: hdrs.ACCEPT_ENCODING}
PLAIN_HEADERS: dict[str, str] = {hdrs.VARY: hdrs.ACCEPT_ENCODING}
"""What an answer says of which of the two it is: a cache on the way must not give one for the other."""

GZIP_NAMES = frozenset({"gzip", "x-gzip"})
"""RFC 9110, section 8.4.1.3, has both mean the same."""

_CODING = re.compile(
    r"(?P<name>[!#$%&'*+.^`|~\w-]+)[ \t]*(?:;[ \t]*[qQ]=(?P<weight>0(?:\.\d{0,3})?|1(?:\.0{0,3})?))?", re.ASCII
)
"""A coding and its weight. A part of a header that is none does not make gzip acceptable."""


class GzipOnce:
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


def accepts_gzip(request: web.Request) -> bool:
    """Whether gzip is acceptable and not less preferred than plain bytes (RFC 9110, section 12.5.3)."""
    weights = _weights(",".join(request.headers.getall(hdrs.ACCEPT_ENCODING, ())))
    others = weights.get("*", 0.0)
    packed = max((weights[name] for name in GZIP_NAMES if name in weights), default=others)
    return packed > 0 and packed >= weights.get("identity", others)


def _weights(header: str) -> dict[str, float]:
    """The weight of each coding in an Accept-Encoding header, by its name in lower case."""
    found = (_CODING.fullmatch(part.strip()) for part in header.split(","))
    return {coding["name"].lower(): float(coding["weight"] or 1) for coding in found if coding}
