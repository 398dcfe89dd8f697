"""The way of the question that is asked most: past the router, through the same middlewares and signals as any other.

Finding the route of a request, and putting its handler together, takes aiohttp longer than a bare handler needs to answer.
What is known by its whole path needs neither. Everything else goes the usual way, the same path with parameters too.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from fundsvc.api.endpoints import JSON
from fundsvc.api.serving import TEMPLATE, Encoded

Find = Callable[[str], str | None]
"""What a path, as it came, asks for; None if that is not known here."""


class Shortcut:
    """Answers GETs of a route of an application, `template`, with what `answer` has for what `find` makes of their paths."""

    def __init__(self, application: web.Application, template: str, find: Find, answer: Callable[[str], Encoded[Any]]) -> None:
        self._application = application
        self._template = template
        self._find = find
        self._answer = answer

    def before(self, rest: Handler) -> Handler:
        """A handler of all requests; `rest` is that of the others."""
        handler: Handler = self._reply
        for middleware in reversed(self._application.middlewares):
            handler = partial(middleware, handler=handler)

        async def handle(request: web.Request) -> web.StreamResponse:
            asked = self._find(request.raw_path) if request.method == hdrs.METH_GET else None
            if asked is None:
                return await rest(request)
            request[TEMPLATE] = self._template
            request[_ASKED] = asked
            response = await handler(request)
            await self._application.on_response_prepare.send(request, response)
            return response

        return handle

    async def _reply(self, request: web.Request) -> web.Response:
        return web.Response(body=self._answer(request[_ASKED]).body, content_type=JSON)


_ASKED = web.RequestKey("asked", str)
