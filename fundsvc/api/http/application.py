"""Builds an aiohttp application from a table of routes; reads queries and encodes answers the same way for all of them."""

import re
from collections.abc import Awaitable, Callable, Iterable
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from aiohttp import hdrs, web
from multidict import MultiDict

from fundsvc.api.answers import Envelope
from fundsvc.api.http.access import PUBLIC, Roles, RouteHandler, with_caller
from fundsvc.api.http.big_integers import integers_as_strings, with_integers
from fundsvc.api.http.caching import SHARED, digest, is_current, validated
from fundsvc.api.http.compression import GZIP_HEADERS, PLAIN_HEADERS, GzipOnce, accepts_gzip
from fundsvc.api.http.errors import BadParameter, NotFound
from fundsvc.api.http.middleware import Middleware
from fundsvc.api.http.parameters import Query, read_body, read_query
from fundsvc.api.http.routes import JSON, Cost, Endpoint, Media
from fundsvc.api.http.tokens import Caller
from fundsvc.store.reader import FundRow, Listed, Reader

T_co = TypeVar("T_co", covariant=True)

GZIP_BYTES_MIN = 16_384
"""About a dozen packets. Compressing a shorter answer saves no noticeable time."""

NOT_MODIFIED = 304

GZIP_LEVEL = 1
"""A thousand funds take a thread 3 ms and shrink to a quarter. The best level takes five times as long and saves a tenth."""


_PARAMETER, _ANY_TEXT = re.compile(r"\{(\w+)\}"), r"{\1:[^/]+}"
"""Replaces aiohttp's default pattern of a path parameter, which excludes braces. A contract's symbol may contain them."""


class Encoded(Generic[T_co]):
    """An answer that is already encoded in its envelope. The type parameter documents its content for OpenAPI."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self._packed = GzipOnce(lambda: body, GZIP_LEVEL)

    @cached_property
    def as_strings(self) -> "Encoded[T_co]":
        """The same answer with its integers as strings."""
        return Encoded(integers_as_strings(self.body))

    @cached_property
    def _version(self) -> str:
        return digest(self.body)

    async def response(self, request: web.Request, *, cached: bool) -> web.Response:
        """Returns the response, gzipped if it is long and the request accepts gzip.

        A `cached` answer is for everyone, so caches may keep it; the response is 304 if the client has it.
        """
        is_long, headers = len(self.body) >= GZIP_BYTES_MIN, {}
        if cached:
            headers = {hdrs.CACHE_CONTROL: SHARED, **validated(self._version)}
        if is_long:
            headers |= PLAIN_HEADERS
        if cached and is_current(request, self._version):
            return web.Response(status=NOT_MODIFIED, headers=headers)
        if is_long and accepts_gzip(request):
            return web.Response(body=await self._packed.content(), content_type=JSON, headers=headers | GZIP_HEADERS)
        return web.Response(body=self.body, content_type=JSON, headers=headers)


class Route(NamedTuple):
    """A path, the struct of its query parameters, and the method that answers it.

    `answer` receives the query and the path's parameters. A route with a `body` is a POST of that struct, or of one of a union
    of structs, as JSON; `answer` receives it as `body`. A route with `roles` requires one of them and passes the
    `caller`. A route with `token_optional` is public and shows a caller more of its own data; `caller` is None without a valid
    token. `cost` returns how many more requests an answer counts as; it receives the path's parameters. Caches may keep the
    answers of a public route that is `cached`.
    """

    path: str
    query: type[Query]
    answer: Callable[..., Awaitable[Any]]
    body: Any = None
    roles: Roles = PUBLIC
    cost: Cost | None = None
    token_optional: bool = False
    cached: bool = True

    @property
    def is_cached(self) -> bool:
        """Whether caches may keep the answers: they are the same for everyone, and change nothing."""
        return self.cached and not (self.roles or self.token_optional or self.body)


def make_app(middleware: Middleware, table: Iterable[Route | Endpoint]) -> web.Application:
    """Returns an application that serves a table. The caller closes what the handlers use."""
    application = web.Application()
    served = endpoints(table)
    middleware.install(
        application,
        {endpoint.path: endpoint.format_error for endpoint in served},
        {endpoint.path for endpoint in served if endpoint.roles or endpoint.token_optional},
    )
    for endpoint in served:
        charged = middleware.charging(endpoint.cost, endpoint.handler)
        handler = with_caller(charged, endpoint.roles, token_optional=endpoint.token_optional)
        path = _PARAMETER.sub(_ANY_TEXT, endpoint.path)
        if endpoint.method == hdrs.METH_GET:
            application.router.add_get(path, handler)  # and HEAD
        else:
            application.router.add_route(endpoint.method, path, handler)
    return application


def endpoints(table: Iterable[Route | Endpoint]) -> tuple[Endpoint, ...]:
    """Converts all routes of a table to endpoints."""
    return tuple(map(_endpoint, table))


def _endpoint(entry: Route | Endpoint) -> Endpoint:
    """Converts a route to an endpoint; the return annotation of its method is the type of the answer."""
    if isinstance(entry, Endpoint):
        return entry
    answered = get_type_hints(entry.answer)["return"]
    kind = get_args(answered)[0] if get_origin(answered) is Encoded else answered
    answers = {200: Media(JSON, kind, in_envelope=True)}
    method, bodies = (hdrs.METH_POST, (Media(JSON, entry.body),)) if entry.body else (hdrs.METH_GET, ())
    return Endpoint(
        entry.path,
        _handler(entry),
        answers,
        method,
        entry.query,
        bodies,
        entry.roles,
        token_optional=entry.token_optional,
        documented=entry.answer,
        cost=entry.cost,
        cached=entry.is_cached,
    )


async def find_contract(reader: Reader, symbol: str) -> Listed:
    """Returns a listed contract; raises NotFound."""
    for found in await reader.contracts(checked_symbol(symbol)):
        return found
    raise symbol_not_listed(symbol)


async def find_fund(reader: Reader, symbol: str) -> FundRow:
    """Returns the fund of a listed contract; raises NotFound."""
    for fund in await reader.funds(checked_symbol(symbol)):
        return fund
    raise symbol_not_listed(symbol)


def checked_symbol(symbol: str) -> str:
    """Returns a symbol that PostgreSQL can store; raises NotFound for one with NUL or an unpaired surrogate."""
    if not symbol.isprintable():
        raise symbol_not_listed(symbol)
    return symbol


def symbol_not_listed(symbol: str) -> NotFound:
    """Returns the error for a symbol without a contract."""
    return NotFound(f"no contract {symbol!r} is listed")


def _handler(route: Route) -> RouteHandler:
    default = _default_query(route.query)
    cached = route.is_cached

    async def handle(request: web.Request, *callers: Caller | None) -> web.Response:
        caller = {"caller": callers[0]} if callers else {}
        query = _query(route.query, default, request)
        body = {"body": read_body(route.body, await request.read())} if route.body else {}
        answer = await route.answer(query, **caller, **body, **request.match_info)
        if isinstance(answer, Encoded):
            return await (answer if query.numbers == "number" else answer.as_strings).response(request, cached=cached)
        fresh: Encoded[Any] = Encoded(with_integers(msgspec.json.encode(Envelope(data=answer)), query.numbers))
        return await fresh.response(request, cached=cached)

    return handle


def _query(kind: type[Query], default: Query | None, request: web.Request) -> Query:
    if default is not None and not request.rel_url.raw_query_string:
        return default
    return read_query(kind, query_parameters(request))


def _default_query(query: type[Query]) -> Query | None:
    """Returns the query without parameters, parsed once; None if a parameter is required."""
    try:
        return read_query(query, MultiDict())
    except BadParameter:
        return None


def query_parameters(request: web.Request) -> MultiDict[str]:
    """Returns the query's parameters without those that repeat the path. KuCoin's own client repeats `symbol`."""
    path = request.match_info
    return MultiDict((name, value) for name, value in request.query.items() if path.get(name) != value)
