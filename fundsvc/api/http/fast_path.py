"""The way of the question that is asked most: past the router, through the same middleware as any other.

Finding the route of a request, and putting its handler together, takes aiohttp longer than a bare handler needs to answer.
What is known by its whole path needs neither. Everything else goes the usual way, the same path with parameters too.
"""

from collections.abc import Callable
from typing import Any

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from fundsvc.api.http.application import Encoded
from fundsvc.api.http.middleware import Middleware
from fundsvc.api.http.routes import JSON

Find = Callable[[str], str | None]
"""What a path, as it came, asks for; None if that is not known here."""


class FastPath:
    """Answers GETs of a route, `template`, with what `answer` has for what `find` makes of their paths."""

    def __init__(self, middleware: Middleware, template: str, find: Find, answer: Callable[[str], Encoded[Any]]) -> None:
        self._reception = middleware
        self._template = template
        self._find = find
        self._answer = answer

    def before(self, rest: Handler) -> Handler:
        """A handler of all requests; `rest` is that of the others."""

        async def handle(request: web.Request) -> web.StreamResponse:
            asked = self._find(request.raw_path) if request.method == hdrs.METH_GET else None
            if asked is None:
                return await rest(request)
            return self._reception.answer(request, self._template, lambda: self._reply(asked))

        return handle

    def _reply(self, asked: str) -> web.Response:
        return web.Response(body=self._answer(asked).body, content_type=JSON)
