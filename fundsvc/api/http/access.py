"""Access control: identifies callers by their tokens, limits requests by client, and answers CORS.

A public route needs no token. On a public route, a valid token determines the client that the request counts for, and what a
route with `token_optional` shows. The client is the account of a trader's token, the subject of another token, or the address.
Probes and scrapers are not counted.
"""

import math
from collections.abc import Awaitable, Callable, Iterable

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from multidict import istr

from fundsvc.api.http.client_address import address_of
from fundsvc.api.http.errors import Forbidden, NoToken, Problem, TooManyRequests
from fundsvc.api.http.rate_limits import Window
from fundsvc.api.http.request_context import CONTEXT, REQUEST_ID, RequestContext
from fundsvc.api.http.tokens import Caller, Role, Tokens
from fundsvc.config.settings import HttpConfig, TokenConfig

Roles = frozenset[Role]

RouteHandler = Callable[..., Awaitable[web.StreamResponse]]
"""Handles a request; `with_caller` describes its arguments."""

PUBLIC: Roles = frozenset()
"""The roles of a route that needs no token."""

TRADERS: Roles = frozenset({"trader"})
"""The role of clients with an account of their own."""

ACCOUNT_READERS: Roles = frozenset({"trader", "risk"})
"""The roles that read account data: a trader reads its own account, risk reads all accounts."""

PREFLIGHT_SECONDS = "7200"
"""How long a browser may cache a preflight answer. Chromium caches at most two hours."""

ANY_ORIGIN = "*"

_LIMIT, _REMAINING, _RESET = istr("gw-ratelimit-limit"), istr("gw-ratelimit-remaining"), istr("gw-ratelimit-reset")
_CONTENT_TYPE_OPTIONS = istr("X-Content-Type-Options")
_EXPOSED = ", ".join((_LIMIT, _REMAINING, _RESET, hdrs.RETRY_AFTER, REQUEST_ID))
_PREFLIGHT = {
    hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST",
    hdrs.ACCESS_CONTROL_ALLOW_HEADERS: f"Authorization, Content-Type, {REQUEST_ID}",
    hdrs.ACCESS_CONTROL_MAX_AGE: PREFLIGHT_SECONDS,
}


def authorized_caller(request: web.Request, roles: Roles) -> Caller:
    """Returns the caller of a request; raises NoToken or Forbidden if it has none of the roles."""
    context = request[CONTEXT]
    caller = context.caller
    if caller is None:
        raise context.token_problem or NoToken("an access token is required: send it as `Authorization: Bearer <token>`")
    if caller.role not in roles:
        raise Forbidden(f"the token's role is {caller.role}: this path requires {' or '.join(sorted(roles))}")
    return caller


def with_caller(handler: RouteHandler, roles: Roles, *, token_optional: bool = False) -> Handler:
    """Returns a handler for the router that checks the roles and passes the caller on.

    This is the only check of roles. With `roles`, `handler` receives the request and its `Caller`. With `token_optional`, it
    receives the request and the caller, or None without a valid token. Otherwise it receives the request.
    """

    async def for_roles(request: web.Request) -> web.StreamResponse:
        return await handler(request, authorized_caller(request, roles))

    async def for_all(request: web.Request) -> web.StreamResponse:
        return await handler(request, request[CONTEXT].caller)

    if roles:
        return for_roles
    return for_all if token_optional else handler


class AccessControl:
    """Identifies and limits the clients of an API; raises ConfigError if the token configuration is invalid.

    `requests` are the requests of all clients but matching engines, whose events and requests are `events`. Requests for the
    paths in `uncounted` are not limited.
    """

    def __init__(
        self, http: HttpConfig, token: TokenConfig, requests: Window, events: Window, uncounted: Iterable[str] = ()
    ) -> None:
        self._tokens = Tokens(token)
        self._requests = requests
        self._events = events
        self._proxies = http.proxies
        self._origins = frozenset(http.origins)
        self._uncounted = frozenset(uncounted)

    def admit(self, request: web.Request, context: RequestContext) -> web.Response | None:
        """Identifies the caller and counts the request; raises TooManyRequests.

        Returns the answer to a CORS preflight request, and None for all other requests.
        """
        self._identify(request, context)
        if request.path in self._uncounted:
            return None
        self._count(request, context, 1)
        if self._origins and request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
            return web.Response(status=204, headers=_PREFLIGHT if self._is_allowed_origin(request) else None)
        return None

    def charge(self, request: web.Request, amount: int) -> None:
        """Counts `amount` more events of a request; raises TooManyRequests if the client's limit does not permit them."""
        self._count(request, request[CONTEXT], amount)

    def charge_requests(self, request: web.Request, requests: int) -> None:
        """Counts an expensive answer as `requests` more requests; raises TooManyRequests.

        The charge is at most the client's whole limit. A client with another window is charged the same share of that window.
        """
        context = request[CONTEXT]
        if context.window:
            limit = self._requests.limit
            self._count(request, context, min(requests, limit - 1) * context.window.limit // limit)

    def add_headers(self, request: web.Request, response: web.StreamResponse, context: RequestContext) -> None:
        """Adds the headers of every answer, including streamed answers and errors."""
        headers, window = response.headers, context.window
        headers[_CONTENT_TYPE_OPTIONS] = "nosniff"
        if window:
            headers[_LIMIT] = str(window.limit)
            headers[_REMAINING] = str(window.remaining(context.client))
            headers[_RESET] = str(window.reset_ms())
        if context.caller:
            headers.setdefault(hdrs.CACHE_CONTROL, "no-store")
        if self._origins:
            self._add_cors_headers(request, response)

    def _add_cors_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Permits pages of configured origins to read an answer. Pages send tokens themselves, so cookies are not permitted."""
        if ANY_ORIGIN not in self._origins:
            response.headers.add(hdrs.VARY, hdrs.ORIGIN)
        if self._is_allowed_origin(request):
            origin = ANY_ORIGIN if ANY_ORIGIN in self._origins else request.headers[hdrs.ORIGIN]
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED

    def _is_allowed_origin(self, request: web.Request) -> bool:
        origin = request.headers.get(hdrs.ORIGIN)
        return origin is not None and not self._origins.isdisjoint((origin, ANY_ORIGIN))

    def _identify(self, request: web.Request, context: RequestContext) -> None:
        """Stores the caller or, for an invalid token, the problem. Only a route that requires a token raises the problem."""
        if not self._tokens.configured:
            context.token_problem = NoToken(
                "this service accepts no tokens: set token.secret or token.keys in its configuration"
            )
            return
        authorization = request.headers.get(hdrs.AUTHORIZATION)
        if authorization is None:
            return
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return
        try:
            context.caller = self._tokens.read(token.strip())
        except Problem as problem:
            context.token_problem = problem

    def _count(self, request: web.Request, context: RequestContext, amount: int) -> None:
        caller = context.caller
        client = context.client = caller.client if caller else address_of(request, self._proxies)
        window = context.window = self._events if caller and caller.role == "engine" else self._requests
        if not window.take(client, amount):
            seconds = math.ceil(window.reset_ms() / 1000)
            raise TooManyRequests(f"the limit of {window.limit} in the window is exceeded: retry in {seconds} s", seconds)
