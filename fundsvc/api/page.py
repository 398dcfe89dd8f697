"""Serves the page at `/`: static files with hashes in their paths, compressed once, under a content security policy.

Files with a hash in their path never change, so browsers cache them permanently. `/` is revalidated on each request and names
the current hashes. The page's modules import each other by relative paths, so they share one hash.
"""

import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from fundsvc.api.http.routes import Endpoint, Media
from fundsvc.api.http.static_files import Asset, answer_asset, digest

FOREVER = "public, max-age=31536000, immutable"
"""Permanent caching: one year is the customary maximum."""

EMPTY_STYLE = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
"""The hash of an empty style element. Plotly creates one and adds its rules by script."""

HOST = re.compile(r"[\w.:\[\]-]+", re.ASCII)
"""A host with an optional port. Other content of the header Host is not copied into the policy."""

MAP_STYLE = re.compile(rb'getElementById\("([0-9a-f]{40,})"\)')
"""The place in plotly's script that looks up the style element of its maps; the id is a hash."""


class WebPage:
    """The endpoints of the page; `public_url` is the public address of the service, "" if it equals the request's host."""

    def __init__(self, public_url: str = "") -> None:
        self._public_host = urlsplit(public_url).netloc
        own, plotly = files("fundsvc") / "page", files("plotly") / "package_data" / "plotly.min.js"
        assets = {file.name: Asset(file.name, file.read_bytes) for file in own.iterdir() if file.name != "index.html"}
        charts = Asset(plotly.name, plotly.read_bytes)
        version = digest("".join(f"{name} {assets[name].etag}\n" for name in sorted(assets)).encode())
        self._assets = {(version, name): asset for name, asset in assets.items()} | {(charts.etag, plotly.name): charts}
        named = {
            "{files}": f"page/{version}",
            "{plotly}": f"page/{charts.etag}/{plotly.name}",
            "{map-style}": _map_style(plotly),
        }
        index = re.sub("|".join(named), lambda found: named[found[0]], (own / "index.html").read_text()).encode()
        self._index = Asset("index.html", lambda: index)
        self.endpoints = (
            Endpoint("/", self.index, {200: Media("text/html")}),
            Endpoint("/page/{digest}/{name}", self.file, {200: Media("text/javascript")}),
        )

    async def index(self, request: web.Request) -> web.Response:
        """The document of the page with its content security policy."""
        headers = {"Content-Security-Policy": self._policy(request.host), hdrs.CACHE_CONTROL: "no-cache"}
        return await answer_asset(request, self._index, headers)

    async def file(self, request: web.Request) -> web.Response:
        """A file of the page."""
        asset = self._assets.get((request.match_info["digest"], request.match_info["name"]))
        if asset is None:
            raise web.HTTPNotFound
        return await answer_asset(request, asset, {hdrs.CACHE_CONTROL: FOREVER})

    def _policy(self, requested_host: str) -> str:
        """Returns a policy that permits only own files and WebSockets. Some browsers exclude WebSockets from 'self'."""
        hosts = {host for host in (requested_host, self._public_host) if HOST.fullmatch(host)}
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


def _map_style(plotly: Traversable) -> str:
    """Returns the id of the style element that plotly's script adds for maps unless the element exists.

    The policy does not permit this style, and the page has no maps. The page contains an element with this id instead.
    """
    found = MAP_STYLE.search(plotly.read_bytes())
    return found[1].decode() if found else "map-style"
