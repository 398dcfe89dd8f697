"""The gate in front of everything: whose a request is, how many it may make, which web pages may make it.

A public route needs no token; one that is sent there anyway is only counted by. A client is an account, or else what another
token names as its subject, or else an address. Probes and scrapers are not counted.
"""

import math
from collections.abc import Iterable

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from multidict import istr

from fundsvc.api.errors import Forbidden, NoToken, Problem, TooManyRequests
from fundsvc.api.limits import Window
from fundsvc.api.request_ids import REQUEST_ID
from fundsvc.api.tokens import Caller, Role, Tokens
from fundsvc.config import HttpConfig, TokenConfig

Roles = frozenset[Role]

PUBLIC: Roles = frozenset()
"""The roles of a route that needs no token."""

PREFLIGHT_SECONDS = "7200"
"""How long a browser may remember what a page is allowed: the longest that Chromium does."""

ADDRESS_LENGTH_MAX = 45
"""Of the longest way to write an IPv6 address: a proxy's word for it is kept, so it must not be any text."""

ANY_ORIGIN = "*"

_CALLER = web.RequestKey("caller", Caller)
_REFUSAL = web.RequestKey("refusal", Problem)
_COUNTED = web.RequestKey("counted", tuple[Window, str, Caller | None])
_LIMIT, _REMAINING, _RESET = istr("gw-ratelimit-limit"), istr("gw-ratelimit-remaining"), istr("gw-ratelimit-reset")
_CONTENT_TYPE_OPTIONS = istr("X-Content-Type-Options")
_EXPOSED = ", ".join((_LIMIT, _REMAINING, _RESET, hdrs.RETRY_AFTER, REQUEST_ID))
_PREFLIGHT = {
    hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST",
    hdrs.ACCESS_CONTROL_ALLOW_HEADERS: f"Authorization, Content-Type, {REQUEST_ID}",
    hdrs.ACCESS_CONTROL_MAX_AGE: PREFLIGHT_SECONDS,
}


def allowed(request: web.Request, roles: Roles) -> Caller:
    """The caller of a request, who must have one of the roles; raises NoToken or Forbidden, saying what is missing."""
    caller: Caller | None = request.get(_CALLER)
    if caller is None:
        raise request.get(_REFUSAL) or NoToken("this needs an access token: send it as `Authorization: Bearer <token>`")
    if caller.role not in roles:
        raise Forbidden(f"this is for {' or '.join(sorted(roles))}: the token's role is {caller.role}")
    return caller


def for_roles(roles: Roles, handler: Handler) -> Handler:
    """A handler that is reached by callers with one of the roles alone."""
    if not roles:
        return handler

    async def handle(request: web.Request) -> web.StreamResponse:
        allowed(request, roles)
        return await handler(request)

    return handle


class Gate:
    """Stands before the application that it `guard`s; raises ConfigError where tokens cannot be read as configured.

    Whoever asks for a path that is `uncounted` is neither counted nor asked who it is.
    """

    def __init__(self, http: HttpConfig, token: TokenConfig, uncounted: Iterable[str] = ()) -> None:
        self._tokens = Tokens(token)
        self._requests = Window(http.requests_max, http.requests_seconds)
        self._events = Window(http.ingest_events_max, http.requests_seconds)
        self._proxies = http.proxies
        self._origins = frozenset(http.origins)
        self._uncounted = frozenset(uncounted)

    def guard(self, application: web.Application) -> None:
        """Has every request pass the gate, and every answer say what is left to its client."""
        application.middlewares.append(self._admit)
        application.on_response_prepare.append(self._dress)

    def charge(self, request: web.Request, caller: Caller, amount: int) -> None:
        """Counts what a caller sends beside its request; raises TooManyRequests when that is more than it has left."""
        self._count(request, caller, amount)

    @web.middleware
    async def _admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in self._uncounted:
            return await handler(request)
        caller = self._read(request)
        self._count(request, caller, 1)
        if self._origins and request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
            return web.Response(status=204, headers=_PREFLIGHT if self._is_welcome(request) else None)
        return await handler(request)

    async def _dress(self, request: web.Request, response: web.StreamResponse) -> None:
        """Adds what every answer says, also those that are streamed and those that are errors."""
        headers = response.headers
        headers[_CONTENT_TYPE_OPTIONS] = "nosniff"
        counted: tuple[Window, str, Caller | None] | None = request.get(_COUNTED)
        if counted:
            window, client, caller = counted
            headers[_LIMIT] = str(window.limit)
            headers[_REMAINING] = str(window.remaining(client))
            headers[_RESET] = str(window.reset_ms())
            if caller:
                headers.setdefault(hdrs.CACHE_CONTROL, "no-store")
        if self._origins:
            self._welcome(request, response)

    def _welcome(self, request: web.Request, response: web.StreamResponse) -> None:
        """Lets pages of configured origins read an answer. They send tokens themselves, so no cookies need be allowed."""
        if ANY_ORIGIN not in self._origins:
            response.headers.add(hdrs.VARY, hdrs.ORIGIN)
        if self._is_welcome(request):
            origin = ANY_ORIGIN if ANY_ORIGIN in self._origins else request.headers[hdrs.ORIGIN]
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED

    def _is_welcome(self, request: web.Request) -> bool:
        origin = request.headers.get(hdrs.ORIGIN)
        return origin is not None and not self._origins.isdisjoint((origin, ANY_ORIGIN))

    def _read(self, request: web.Request) -> Caller | None:
        """The caller that a request's token makes; why a token is bad is for the route to say, if it needs one."""
        if not self._tokens.configured:
            request[_REFUSAL] = NoToken("this service accepts no tokens: set token.secret or token.keys in its configuration")
            return None
        authorization = request.headers.get(hdrs.AUTHORIZATION)
        if authorization is None:
            return None
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        try:
            caller = request[_CALLER] = self._tokens.read(token.strip())
        except Problem as refusal:
            request[_REFUSAL] = refusal
            return None
        return caller

    def _count(self, request: web.Request, caller: Caller | None, amount: int) -> None:
        client, window = _name(caller) if caller else self._address(request), self._window(caller)
        request[_COUNTED] = window, client, caller
        if not window.take(client, amount):
            seconds = math.ceil(window.reset_ms() / 1000)
            raise TooManyRequests(f"more than {window.limit} within the window: ask again in {seconds} s", seconds)

    def _window(self, caller: Caller | None) -> Window:
        return self._events if caller and caller.role == "engine" else self._requests

    def _address(self, request: web.Request) -> str:
        """Where a request comes from: whom the outermost of our own proxies saw, for others may write what they like."""
        if self._proxies:
            hops = ",".join(request.headers.getall(hdrs.X_FORWARDED_FOR, ())).split(",")
            if len(hops) >= self._proxies and (hop := hops[-self._proxies].strip()):
                return hop[:ADDRESS_LENGTH_MAX]
        return request.remote or "unknown"


def _name(caller: Caller) -> str:
    """What a caller's requests are counted by; no address begins with a role."""
    return f"{caller.role}:{caller.account or caller.subject}"
