"""/docs/reference/: the OpenAPI document as pages, drawn by the Swagger UI of the package mkdocs-swagger-ui-tag.

All files come from this service. The policy admits no other host, only the images inside Swagger UI's style sheet.
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
    """The page and its files."""

    def __init__(self) -> None:
        ours, renderer = files("fundsvc.api.docs") / "swagger", files("mkdocs_swagger_ui_tag") / "swagger-ui"
        self._index = Asset("index.html", (ours / "index.html").read_bytes)
        self._assets = {
            "start.js": Asset("start.js", (ours / "start.js").read_bytes),
            "swagger-ui.css": Asset("swagger-ui.css", (renderer / "stylesheets" / "swagger-ui.css").read_bytes),
            "swagger-ui-bundle.js": Asset("bundle.js", (renderer / "javascripts" / "swagger-ui-bundle.js").read_bytes),
        }
        self.endpoints = (
            Endpoint("/docs/reference/", self.index, {200: Media("text/html")}),
            Endpoint("/docs/reference/{name}", self.file, {200: Media("text/javascript")}),
        )

    async def index(self, request: web.Request) -> web.Response:
        """The page."""
        return await answer_asset(request, self._index, {"Content-Security-Policy": POLICY, hdrs.CACHE_CONTROL: "no-cache"})

    async def file(self, request: web.Request) -> web.Response:
        """A file that it loads."""
        asset = self._assets.get(request.match_info["name"])
        if asset is None:
            raise web.HTTPNotFound
        return await answer_asset(request, asset, {hdrs.CACHE_CONTROL: "no-cache"})
