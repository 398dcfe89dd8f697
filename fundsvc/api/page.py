"""The page at `/`: static files under the hash of their contents, compressed once, and a policy that lets no other host in.

Whatever lies under a hash never changes, so browsers keep it for good; `/` itself is asked for again each time, and names the
hashes of now. The files are plain modules: they name each other relatively, so all of them share one hash.
"""

import asyncio
import gzip
import re
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from fundsvc.api.endpoints import Endpoint, Media

CONTENT_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""By the ends of names; a file of another kind has no place in the page's folder."""

FOREVER = "public, max-age=31536000, immutable"
"""A year, the longest that is customary, for what lies under its own hash."""

HASH_LENGTH = 16
"""Hex digits of a hash in a path: 64 bits tell versions of a file apart."""

EMPTY_STYLE = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
"""The hash of nothing: plotly makes an empty style element and adds its rules by script, which is all that this allows."""

HOST = re.compile(r"[\w.:\[\]-]+", re.ASCII)
"""A host with its port; anything else in the header is not repeated to whoever sent it."""

MAP_STYLE = re.compile(rb'getElementById\("([0-9a-f]{40,})"\)')
"""Where plotly's script looks for the style of its maps: the id is a hash of it."""

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Of everything that the page consists of."""


class Asset:
    """A file as it goes over the wire: gzipped when it is first asked for, in a thread."""

    def __init__(self, name: str, read: Callable[[], bytes], digest: str) -> None:
        self._read = read
        self._compressing: asyncio.Future[bytes] | None = None
        self.content_type = CONTENT_TYPES[name[name.rindex(".") :]]
        self.etag = digest

    async def body(self, *, compressed: bool) -> bytes:
        """Its bytes, plain or gzipped."""
        if not compressed:
            return await asyncio.to_thread(self._read)
        if self._compressing is None:
            self._compressing = asyncio.ensure_future(asyncio.to_thread(lambda: gzip.compress(self._read(), mtime=0)))
        return await asyncio.shield(self._compressing)


class Page:
    """The page's files; `public_url` is where clients reach the service, "" if that is where they ask."""

    def __init__(self, public_url: str = "") -> None:
        self._public_host = urlsplit(public_url).netloc
        plotly_digest, map_style = _plotly_facts()
        contents = {file.name: file.read_bytes() for file in files("fundsvc").joinpath("page").iterdir() if file.is_file()}
        index = contents.pop("index.html")
        digest = _digest(b"".join(name.encode() + contents[name] for name in sorted(contents)))
        index = index.replace(b"{files}", f"page/{digest}".encode())
        index = index.replace(b"{plotly}", f"page/{plotly_digest}/plotly.min.js".encode())
        index = index.replace(b"{map-style}", map_style)
        self._index = _asset("index.html", index, _digest(index))
        self._assets = {(digest, name): _asset(name, content, digest) for name, content in contents.items()}
        self._assets[plotly_digest, "plotly.min.js"] = Asset("plotly.min.js", _plotly().read_bytes, plotly_digest)
        self.endpoints = (
            Endpoint("/", self.index, {200: Media("text/html")}),
            Endpoint("/page/{digest}/{name}", self.file, {200: Media("text/javascript")}),
        )

    async def index(self, request: web.Request) -> web.Response:
        """The document, with the policy that binds all it loads."""
        headers = {"Content-Security-Policy": self._policy(request.host), hdrs.CACHE_CONTROL: "no-cache"}
        return await _answer(request, self._index, headers)

    async def file(self, request: web.Request) -> web.Response:
        """A file of the page, under its hash."""
        asset = self._assets.get((request.match_info["digest"], request.match_info["name"]))
        if asset is None:
            raise web.HTTPNotFound
        return await _answer(request, asset, {hdrs.CACHE_CONTROL: FOREVER})

    def _policy(self, asked: str) -> str:
        """Own files alone. Sockets are named besides, for browsers that do not count them to 'self'."""
        hosts = {host for host in (asked, self._public_host) if HOST.fullmatch(host)}
        sockets = " ".join(f"ws://{host} wss://{host}" for host in sorted(hosts))
        return "; ".join(
            (
                "default-src 'none'",
                "script-src 'self'",
                f"style-src 'self' '{EMPTY_STYLE}'",
                "img-src 'self'",
                f"connect-src 'self' {sockets}".rstrip(),
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
            )
        )


async def _answer(request: web.Request, asset: Asset, headers: dict[str, str]) -> web.Response:
    headers = {**SECURITY_HEADERS, **headers, hdrs.ETAG: f'W/"{asset.etag}"', hdrs.VARY: hdrs.ACCEPT_ENCODING}
    known = request.if_none_match or ()
    if any(tag.value in (asset.etag, "*") for tag in known):
        return web.Response(status=304, headers=headers)
    compressed = "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, "")
    if compressed:
        headers[hdrs.CONTENT_ENCODING] = "gzip"
    body = await asset.body(compressed=compressed)
    return web.Response(body=body, content_type=asset.content_type, charset="utf-8", headers=headers)


def _asset(name: str, content: bytes, digest: str) -> Asset:
    return Asset(name, lambda: content, digest)


def _plotly() -> Traversable:
    """The script that the installed plotly package draws with."""
    return files("plotly").joinpath("package_data", "plotly.min.js")


@cache
def _plotly_facts() -> tuple[str, bytes]:
    """The hash of plotly's script, and the id of the style element that it adds for maps unless there is one of that id.

    The page has no maps, and its policy no place for their style: so it has that id itself.
    """
    script = _plotly().read_bytes()
    found = MAP_STYLE.search(script)
    return _digest(script), found[1] if found else b"map-style"


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()[:HASH_LENGTH]
