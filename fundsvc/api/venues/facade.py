"""Serves a path of another venue: validates its query like the service's own, and answers and reports errors in its format."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, get_type_hints

import msgspec
from aiohttp import web

from fundsvc.api.answers import FundAnswer
from fundsvc.api.http.access import PUBLIC, Roles
from fundsvc.api.http.errors import NotFound, Problem
from fundsvc.api.http.parameters import read_query
from fundsvc.api.http.routes import JSON, Endpoint, Media
from fundsvc.api.http.tokens import Caller

T = TypeVar("T")

FundsReader = Callable[[], Awaitable[Sequence[FundAnswer]]]
"""Returns the funds of all open contracts as GET /api/v1/insurance-fund answers them."""

TRADER: Roles = frozenset({"trader"})
"""The role for paths that a venue protects by signatures: the account of the token replaces the signer."""

SECOND_MS = 1000

OK = HTTPStatus.OK.value
_TOKEN_ERRORS = (HTTPStatus.UNAUTHORIZED.value, HTTPStatus.FORBIDDEN.value)


class ErrorResponse(NamedTuple):
    """An error in a venue's format, the HTTP status that the venue uses for it, and headers beside those of the problem."""

    status: int
    body: msgspec.Struct
    headers: Mapping[str, str] = MappingProxyType({})


class Facade(NamedTuple):
    """The error format of a venue, with which it builds endpoints.

    `statuses` are the HTTP statuses of errors except those of tokens, `body` is the type of an error, and `error_response`
    converts a problem.
    """

    statuses: tuple[int, ...]
    body: type[msgspec.Struct]
    error_response: Callable[[Problem], ErrorResponse]

    def endpoint(self, path: str, answer: Callable[..., Awaitable[Any]], roles: Roles = PUBLIC) -> Endpoint:
        """Returns an endpoint. The annotations of the method `answer` define the types of its query and of its answer.

        The method receives the query, the parameters of the path, and the `caller` if the endpoint requires a role.
        """
        hints = get_type_hints(answer)
        query = hints["query"]

        async def handle(request: web.Request, *callers: Caller) -> web.Response:
            caller = {"caller": callers[0]} if callers else {}
            body = await answer(read_query(query, request.query), **caller, **request.match_info)
            return web.Response(body=msgspec.json.encode(body), content_type=JSON)

        answers = self._answers(hints["return"], roles)
        return Endpoint(path, handle, answers, query=query, roles=roles, format_error=self._format_error, documented=answer)

    def _answers(self, kind: Any, roles: Roles) -> dict[int, Media]:
        errors = dict.fromkeys((*self.statuses, *(_TOKEN_ERRORS if roles else ())), Media(JSON, self.body))
        return errors | {OK: Media(JSON, kind | self.body if OK in self.statuses else kind)}

    def _format_error(self, problem: Problem) -> web.Response:
        status, body, headers = self.error_response(problem)
        return web.Response(
            body=msgspec.json.encode(body), status=status, content_type=JSON, headers={**problem.headers, **headers}
        )


def fund_of(funds: Sequence[FundAnswer], symbol: str) -> FundAnswer:
    """Returns the fund of a contract. Raises NotFound."""
    for fund in funds:
        if fund.symbol == symbol:
            return fund
    raise NotFound(f"no contract {symbol!r} is listed")


def latest_update(funds: Sequence[FundAnswer]) -> int:
    """Returns the time in milliseconds of the latest change of some funds, 0 without any."""
    return max((fund.updated_at for fund in funds), default=0)


def code_of(codes: Mapping[type[Problem], T], problem: Problem) -> T:
    """Returns a venue's code for a problem: that of its class, or of the nearest base class. `codes` contains `Problem`."""
    return next(codes[kind] for kind in type(problem).__mro__ if kind in codes)
