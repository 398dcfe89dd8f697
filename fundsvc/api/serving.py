"""From a table of routes to an application: what a request asks is read, answered and wrapped, in one way for all."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from multidict import MultiDict

from fundsvc.api.answers import Envelope
from fundsvc.api.errors import NotFound
from fundsvc.api.operations import Ping, make_operations_app
from fundsvc.api.parameters import Query, read_body, read_query
from fundsvc.metrics import Metrics
from fundsvc.store.reader import Listed, Reader

T_co = TypeVar("T_co", covariant=True)


class Encoded(Generic[T_co]):
    """An answer that was encoded before, in its envelope; what it says is for those who describe the API."""

    def __init__(self, body: bytes) -> None:
        self.body = body


class Route(NamedTuple):
    """A path, the struct of its query parameters, and what answers it: called with the query and the path's parameters.

    A route with a `body` is a POST of such a struct as JSON, which is given to the answer too.
    """

    path: str
    query: type[Query]
    answer: Callable[..., Awaitable[Any]]
    body: type[Query] | None = None


def make_app(reader: Reader, metrics: Metrics, pings: Mapping[str, Ping], routes: Iterable[Route]) -> web.Application:
    """The whole HTTP side, the operations' paths included; whoever opened the reader's pool closes it."""
    application = make_operations_app(reader, metrics, pings)
    for route in routes:
        if route.body:
            application.router.add_route(hdrs.METH_POST, route.path, _handler(route))
        else:
            application.router.add_get(route.path, _handler(route))
    return application


async def listed(reader: Reader, symbol: str) -> Listed:
    """A listed contract; raises NotFound."""
    for found in await reader.contracts(possible(symbol)):
        return found
    raise not_listed(symbol)


def possible(symbol: str) -> str:
    """The symbol, if a contract may have it at all: a database's text holds no NUL and no half characters."""
    if not symbol.isprintable():
        raise not_listed(symbol)
    return symbol


def not_listed(symbol: str) -> NotFound:
    """Says that there is no such contract."""
    return NotFound(f"no contract {symbol!r} is listed")


def _handler(route: Route) -> Handler:
    async def handle(request: web.Request) -> web.Response:
        query = read_query(route.query, _asked(request))
        body = {"body": read_body(route.body, await request.read())} if route.body else {}
        answer = await route.answer(query, **body, **request.match_info)
        encoded = answer.body if isinstance(answer, Encoded) else msgspec.json.encode(Envelope(data=answer))
        return web.Response(body=encoded, content_type="application/json")

    return handle


def _asked(request: web.Request) -> MultiDict[str]:
    """The query's parameters, without those that say again what the path says, as KuCoin's own client does with `symbol`."""
    path = request.match_info
    return MultiDict((name, value) for name, value in request.query.items() if path.get(name) != value)
