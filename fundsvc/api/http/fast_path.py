"""Answers the most frequent request, for a single fund, without the router but with the same middleware.

Resolving a route takes aiohttp longer than encoding a cached answer. This module compares the raw path instead. All other
requests use the router, including the same path with parameters.
"""

from collections.abc import Callable
from typing import Any

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from fundsvc.api.http.application import Encoded
from fundsvc.api.http.middleware import Middleware
from fundsvc.api.http.routes import JSON

Find = Callable[[str], str | None]
"""Returns the key of the answer to a raw path, or None if the router must answer it."""


class FastPath:
    """Answers GET requests whose path `find` accepts; `answer` returns the answer to a key, metrics use `template`."""

    def __init__(self, middleware: Middleware, template: str, find: Find, answer: Callable[[str], Encoded[Any]]) -> None:
        self._reception = middleware
        self._template = template
        self._find = find
        self._answer = answer

    def before(self, rest: Handler) -> Handler:
        """Returns a handler of all requests; `rest` handles those without a fast answer."""

        async def handle(request: web.Request) -> web.StreamResponse:
            key = self._find(request.raw_path) if request.method == hdrs.METH_GET else None
            if key is None:
                return await rest(request)
            return self._reception.answer(request, self._template, lambda: self._reply(key))

        return handle

    def _reply(self, key: str) -> web.Response:
        return web.Response(body=self._answer(key).body, content_type=JSON)
