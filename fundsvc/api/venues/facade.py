"""How a path of another venue is served: read as strictly as our own, answered and refused in that venue's shape."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, get_type_hints

import msgspec
from aiohttp import web

from fundsvc.api.answers import FundAnswer
from fundsvc.api.http.access import PUBLIC, Roles, allowed
from fundsvc.api.http.errors import NotFound, Problem
from fundsvc.api.http.parameters import read_query
from fundsvc.api.http.routes import JSON, Endpoint, Media

T = TypeVar("T")

FundsReader = Callable[[], Awaitable[Sequence[FundAnswer]]]
"""All funds, as our own list answers them."""

TRADER: Roles = frozenset({"trader"})
"""What a venue shows to whoever signs, we show to the account that a token is for."""

SECOND_MS = 1000

OK = HTTPStatus.OK.value
_TOKEN_ERRORS = (HTTPStatus.UNAUTHORIZED.value, HTTPStatus.FORBIDDEN.value)


class ErrorResponse(NamedTuple):
    """An error in a venue's shape, the HTTP status that it comes with there, and headers besides those of the problem."""

    status: int
    body: msgspec.Struct
    headers: Mapping[str, str] = MappingProxyType({})


class Facade(NamedTuple):
    """How a venue says what is wrong: with which statuses, those of tokens apart, in what type of body, and how a problem."""

    statuses: tuple[int, ...]
    body: type[msgspec.Struct]
    error_response: Callable[[Problem], ErrorResponse]

    def endpoint(self, path: str, answer: Callable[..., Awaitable[Any]], roles: Roles = PUBLIC) -> Endpoint:
        """A path. What is asked and answered are the types of the method's `query` and of what it returns.

        The method is called with the query and what the path names, and with the `caller` where roles are asked for.
        """
        hints = get_type_hints(answer)
        query = hints["query"]

        async def handle(request: web.Request) -> web.Response:
            caller = {"caller": allowed(request, roles)} if roles else {}
            body = await answer(read_query(query, request.query), **caller, **request.match_info)
            return web.Response(body=msgspec.json.encode(body), content_type=JSON)

        answers = self._answers(hints["return"], roles)
        return Endpoint(path, handle, answers, query=query, roles=roles, refuse=self._format_error, told=answer)

    def _answers(self, kind: Any, roles: Roles) -> dict[int, Media]:
        errors = dict.fromkeys((*self.statuses, *(_TOKEN_ERRORS if roles else ())), Media(JSON, self.body))
        return errors | {OK: Media(JSON, kind | self.body if OK in self.statuses else kind)}

    def _format_error(self, problem: Problem) -> web.Response:
        status, body, headers = self.error_response(problem)
        return web.Response(
            body=msgspec.json.encode(body), status=status, content_type=JSON, headers={**problem.headers, **headers}
        )


def fund_of(funds: Sequence[FundAnswer], symbol: str) -> FundAnswer:
    """The fund of a contract; raises NotFound."""
    for fund in funds:
        if fund.symbol == symbol:
            return fund
    raise NotFound(f"no contract {symbol!r} is listed")


def latest_update(funds: Sequence[FundAnswer]) -> int:
    """When the last of some funds changed, in milliseconds; 0 without any."""
    return max((fund.updated_at for fund in funds), default=0)


def code_of(codes: Mapping[type[Problem], T], problem: Problem) -> T:
    """What a venue calls a problem: by its kind, or by the nearest of those that it is of; `Problem` is among them."""
    return next(codes[kind] for kind in type(problem).__mro__ if kind in codes)
