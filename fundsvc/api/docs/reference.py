"""Serves the API reference at /docs/reference/: Swagger UI from the package mkdocs-swagger-ui-tag.

Our style sheet gives its colours the contrast that readers need, and our script names what it leaves unnamed.

All files come from this service. The content security policy permits no other host; it permits the inline images of Swagger
UI's style sheet.
"""

from importlib.resources import files

from aiohttp import hdrs, web

from fundsvc.api.http.routes import Endpoint, Media
from fundsvc.api.http.static_files import Asset, answer_asset

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


class ApiReference:
    """The endpoints of the reference."""

    def __init__(self) -> None:
        own, renderer = files("fundsvc.api.docs") / "swagger", files("mkdocs_swagger_ui_tag") / "swagger-ui"
        self._index = Asset("index.html", (own / "index.html").read_bytes)
        self._assets = {
            **{name: Asset(name, (own / name).read_bytes) for name in ("start.js", "reference.css")},
            "swagger-ui.css": Asset("swagger-ui.css", (renderer / "stylesheets" / "swagger-ui.css").read_bytes),
            "swagger-ui-bundle.js": Asset("bundle.js", (renderer / "javascripts" / "swagger-ui-bundle.js").read_bytes),
        }
        self.endpoints = (
            Endpoint("/docs/reference/", self.index, {200: Media("text/html")}),
            Endpoint("/docs/reference/{name}", self.file, {200: Media("text/javascript")}),
        )

    async def index(self, request: web.Request) -> web.Response:
        """The API reference."""
        return await answer_asset(request, self._index, {"Content-Security-Policy": POLICY, hdrs.CACHE_CONTROL: "no-cache"})

    async def file(self, request: web.Request) -> web.Response:
        """A script or style sheet of the API reference."""
        asset = self._assets.get(request.match_info["name"])
        if asset is None:
            raise web.HTTPNotFound
        return await answer_asset(request, asset, {hdrs.CACHE_CONTROL: "no-cache"})
