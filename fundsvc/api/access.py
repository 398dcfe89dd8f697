"""Who asks: roles, the callers that tokens make, and the one place that lets them through."""

from typing import Literal, NamedTuple

from aiohttp import web

from fundsvc.api.errors import Forbidden, Unauthorized

Role = Literal["trader", "engine", "risk"]
"""Of an access token: a trader speaks for one account, the engine sends events, risk sees every account."""

Roles = frozenset[Role]

PUBLIC: Roles = frozenset()
"""The roles of a route that needs no token."""


class Caller(NamedTuple):
    """Whom a token speaks for; `account` is a trader's, "" otherwise."""

    role: Role
    account: str
    subject: str


CALLER = web.RequestKey("caller", Caller)
"""Where a request keeps its caller, if its token is good."""


def allowed(request: web.Request, roles: Roles) -> Caller:
    """The caller of a request, who must have one of the roles; raises Unauthorized or Forbidden, saying what is missing."""
    caller: Caller | None = request.get(CALLER)
    if caller is None:
        raise Unauthorized("this needs an access token: send it as `Authorization: Bearer <token>`")
    if caller.role not in roles:
        raise Forbidden(f"this is for {' or '.join(sorted(roles))}: the token's role is {caller.role}")
    return caller
