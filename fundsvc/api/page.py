"""The page at `/`: static files under the hash of their contents, compressed once, and a policy that lets no other host in.

Whatever lies under a hash never changes, so browsers keep it for good; `/` itself is asked for again each time, and names the
hashes of now. The files are plain modules: they name each other relatively, so all of them share one hash.
"""

import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from fundsvc.api.http.routes import Endpoint, Media
from fundsvc.api.http.static_files import Asset, answer_asset, digest

FOREVER = "public, max-age=31536000, immutable"
"""A year, the longest that is customary, for what lies under its own hash."""

EMPTY_STYLE = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
"""The hash of nothing: plotly makes an empty style element and adds its rules by script, which is all that this allows."""

HOST = re.compile(r"[\w.:\[\]-]+", re.ASCII)
"""A host with its port; anything else in the header is not repeated to whoever sent it."""

MAP_STYLE = re.compile(rb'getElementById\("([0-9a-f]{40,})"\)')
"""Where plotly's script looks for the style of its maps: the id is a hash of it."""


class WebPage:
    """The page's files; `public_url` is where clients reach the service, "" if that is where they ask."""

    def __init__(self, public_url: str = "") -> None:
        self._public_host = urlsplit(public_url).netloc
        ours, plotly = files("fundsvc") / "page", files("plotly") / "package_data" / "plotly.min.js"
        assets = {file.name: Asset(file.name, file.read_bytes) for file in ours.iterdir() if file.name != "index.html"}
        charts = Asset(plotly.name, plotly.read_bytes)
        version = digest("".join(f"{name} {assets[name].etag}\n" for name in sorted(assets)).encode())
        self._assets = {(version, name): asset for name, asset in assets.items()} | {(charts.etag, plotly.name): charts}
        named = {
            "{files}": f"page/{version}",
            "{plotly}": f"page/{charts.etag}/{plotly.name}",
            "{map-style}": _map_style(plotly),
        }
        index = re.sub("|".join(named), lambda found: named[found[0]], (ours / "index.html").read_text()).encode()
        self._index = Asset("index.html", lambda: index)
        self.endpoints = (
            Endpoint("/", self.index, {200: Media("text/html")}),
            Endpoint("/page/{digest}/{name}", self.file, {200: Media("text/javascript")}),
        )

    async def index(self, request: web.Request) -> web.Response:
        """The document, with the policy that binds all it loads."""
        headers = {"Content-Security-Policy": self._policy(request.host), hdrs.CACHE_CONTROL: "no-cache"}
        return await answer_asset(request, self._index, headers)

    async def file(self, request: web.Request) -> web.Response:
        """A file of the page, under its hash."""
        asset = self._assets.get((request.match_info["digest"], request.match_info["name"]))
        if asset is None:
            raise web.HTTPNotFound
        return await answer_asset(request, asset, {hdrs.CACHE_CONTROL: FOREVER})

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


def _map_style(plotly: Traversable) -> str:
    """The id of the style element that plotly's script adds for maps, unless there is an element of that id.

    The page has no maps, and its policy no place for their style: so it has an element of that id.
    """
    found = MAP_STYLE.search(plotly.read_bytes())
    return found[1].decode() if found else "map-style"
