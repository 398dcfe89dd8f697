"""How a path of another venue is served: read as strictly as our own, answered and refused in that venue's shape.

What is refused before it gets here, for its token or because a client asks too often, is refused in ours.
"""

from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple, get_type_hints

import msgspec
from aiohttp import web

from fundsvc.api.access import PUBLIC, Roles, allowed
from fundsvc.api.answers import FundAnswer
from fundsvc.api.endpoints import JSON, Endpoint, Media
from fundsvc.api.errors import NotFound, Problem, Unavailable
from fundsvc.api.parameters import read_query
from fundsvc.follower import NotFollowed
from fundsvc.store.database import StoreFault

Funds = Callable[[], Awaitable[Sequence[FundAnswer]]]
"""All funds, as our own list answers them."""

TRADER: Roles = frozenset({"trader"})
"""What a venue shows to whoever signs, we show to the account that a token is for."""

SECOND_MS = 1000

OK = HTTPStatus.OK.value


class Refusal(NamedTuple):
    """An error in a venue's shape, and the HTTP status that it comes with there."""

    status: int
    body: msgspec.Struct


class Venue(NamedTuple):
    """How a venue says what is wrong: the statuses that it uses, the type of the body, and what becomes of a problem."""

    statuses: tuple[int, ...]
    body: type[msgspec.Struct]
    refuse: Callable[[Problem], Refusal]

    def endpoint(self, path: str, answer: Callable[..., Awaitable[Any]], roles: Roles = PUBLIC) -> Endpoint:
        """A path. What is asked and answered are the types of the method's `query` and of what it returns.

        The method is called with the query and what the path names, and with the `caller` where roles are asked for.
        """
        hints = get_type_hints(answer)
        query = hints["query"]

        async def handle(request: web.Request) -> web.Response:
            try:
                caller = {"caller": allowed(request, roles)} if roles else {}
                status, body = OK, await answer(read_query(query, request.query), **caller, **request.match_info)
            except (StoreFault, NotFollowed):
                status, body = self.refuse(Unavailable("the ledger is away, ask again shortly"))
            except Problem as problem:
                status, body = self.refuse(problem)
            return web.Response(body=msgspec.json.encode(body), status=status, content_type=JSON)

        return Endpoint(path, handle, self._answers(hints["return"]), query=query, roles=roles, fails=_OURS, told=answer)

    def _answers(self, kind: Any) -> dict[int, Media]:
        refusals = dict.fromkeys(self.statuses, Media(JSON, self.body))
        return refusals | {OK: Media(JSON, kind | self.body if OK in self.statuses else kind)}


def of(funds: Sequence[FundAnswer], symbol: str) -> FundAnswer:
    """The fund of a contract; raises NotFound."""
    for fund in funds:
        if fund.symbol == symbol:
            return fund
    raise NotFound(f"no contract {symbol!r} is listed")


def newest(funds: Sequence[FundAnswer]) -> int:
    """When the last of some funds changed, in milliseconds; 0 without any."""
    return max((fund.updated_at for fund in funds), default=0)


_OURS = frozenset({429})
