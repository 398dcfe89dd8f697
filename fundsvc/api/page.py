"""Serves the page at `/`: static files with hashes in their paths, compressed once, under a content security policy.

Files with a hash in their path never change, so browsers cache them permanently. `/` is revalidated on each request and names
the current hash, which all files share. The modules of the page are one script, because each request delays the first chart.
"""

import re
from importlib.resources import files
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from fundsvc.api.http.caching import digest
from fundsvc.api.http.routes import Endpoint, Media
from fundsvc.api.http.static_files import Asset, answer_asset
from fundsvc.api.page_bundle import bundle

FOREVER = "public, max-age=31536000, immutable"
"""Permanent caching: one year is the customary maximum."""

HOST = re.compile(r"[\w.:\[\]-]+", re.ASCII)
"""A host with an optional port. Other content of the header Host is not copied into the policy."""

SERVED_ALONE = "theme.js"
"""The script that is no module, because it runs before the first paint."""


class WebPage:
    """The endpoints of the page; `public_url` is the public address of the service, "" if it equals the request's host."""

    def __init__(self, public_url: str = "") -> None:
        self._public_host = urlsplit(public_url).netloc
        self._assets = {asset.name: asset for asset in _assets()}
        self._version = digest("".join(f"{name} {asset.etag}\n" for name, asset in sorted(self._assets.items())).encode())
        index = (files("fundsvc") / "page" / "index.html").read_text().replace("{files}", f"page/{self._version}").encode()
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
        asset = self._assets.get(request.match_info["name"])
        if asset is None or request.match_info["digest"] != self._version:
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
                "style-src 'self'",
                "img-src 'self'",
                f"connect-src 'self' {sockets}".rstrip(),
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
            )
        )


def _assets() -> list[Asset]:
    """Returns the files of the page and of its chart library, with the modules joined in `app.js`."""
    page = files("fundsvc") / "page"
    texts = {file.name.removesuffix(".js"): file for file in page.iterdir() if file.name.endswith(".js")}
    alone = texts.pop(SERVED_ALONE.removesuffix(".js"))
    script = bundle({name: file.read_text() for name, file in texts.items()}).encode()
    plain = (
        page / "page.css",
        page / "icon.svg",
        page / "uplot" / "uPlot.iife.min.js",
        page / "uplot" / "uPlot.min.css",
        alone,
    )
    return [Asset("app.js", lambda: script), *(Asset(file.name, file.read_bytes) for file in plain)]
