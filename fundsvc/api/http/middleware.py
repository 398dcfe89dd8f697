"""Middleware of all requests: request id, access control, errors, headers, metrics and a log line."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from fundsvc.api.http.access import AccessControl, RouteHandler
from fundsvc.api.http.body_encoding import check_uncompressed
from fundsvc.api.http.errors import ErrorFormatter, Errors, error_response
from fundsvc.api.http.request_context import CONTEXT, REQUEST_ID, RequestContext
from fundsvc.api.http.routes import Cost
from fundsvc.api.http.tokens import Caller
from fundsvc.logs.privileged import PrivilegedRequest, PrivilegedRequests
from fundsvc.metrics import Metrics

REASON = "X-Reason"
"""The header in which the bearer of a privileged token may give the reason for a request, for the log."""

REASON_LENGTH_MAX = 200

CELLS_AWAY = "Fundsvc-Cells-Away"
"""The header that names the cells that are away: lists and sums lack their funds."""

FAILED = 400
"""The lowest status of an answer without the requested content."""

log = structlog.get_logger()


class Middleware:
    """Handles the requests of an application. Without access control it admits all requests.

    `away` returns the cells of the ledger that are away.
    """

    def __init__(
        self, metrics: Metrics, access_control: AccessControl | None = None, away: Callable[[], Sequence[str]] = tuple
    ) -> None:
        self._cells_away = away
        self._metrics = metrics
        self._access_control = access_control
        self._errors = Errors()
        self._formatters: dict[str, ErrorFormatter] = {}
        self._restricted: set[str] = set()
        self._privileged = PrivilegedRequests(log)
        self._log = log.bind()  # bound once: a disabled debug line then costs nothing

    def install(
        self, application: web.Application, formatters: Mapping[str, ErrorFormatter], restricted: Iterable[str] = ()
    ) -> None:
        """Adds this middleware to an application.

        `formatters` maps routes to their error formatters. `restricted` are the routes that require a token, or show more
        with one: their answers to engines and risk are logged.
        """
        self._formatters.update(formatters)
        self._restricted.update(restricted)
        application.middlewares.append(self._handle)
        application.on_response_prepare.append(self._prepare)

    def charging(self, cost: Cost | None, handler: RouteHandler) -> RouteHandler:
        """Returns a handler that charges the cost of each answer to the client before it runs."""
        access_control = self._access_control
        if cost is None or access_control is None:
            return handler

        async def handle(request: web.Request, *caller: Caller | None) -> web.StreamResponse:
            access_control.charge_requests(request, cost(**request.match_info))
            return await handler(request, *caller)

        return handle

    @web.middleware
    async def _handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        context = request[CONTEXT] = RequestContext(request)
        response: web.StreamResponse
        try:
            response = self._admit(request, context) or await handler(request)
        except Exception as error:  # noqa: BLE001 - `Errors` logs unexpected exceptions
            response = self._errors.answer(request, error, self._formatters.get(_template(request), error_response))
        route = _template(request)
        self._note(request, route, response, started)
        if context.caller and context.caller.role != "trader" and route in self._restricted and response.status < FAILED:
            self._privileged.note(_kind_of(request, route, context.caller))
        return response

    async def _prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Runs before the headers of every answer are sent, including streamed answers."""
        context = request.get(CONTEXT)
        if context is not None:
            self._add_headers(request, response, context)

    def _admit(self, request: web.Request, context: RequestContext) -> web.Response | None:
        check_uncompressed(request)
        return self._access_control.admit(request, context) if self._access_control else None

    def _add_headers(self, request: web.Request, response: web.StreamResponse, context: RequestContext) -> None:
        response.headers[REQUEST_ID] = context.request_id
        if away := self._cells_away():
            response.headers[CELLS_AWAY] = ",".join(away)
        if self._access_control:
            self._access_control.add_headers(request, response, context)

    def _note(self, request: web.Request, route: str, response: web.StreamResponse, started: float) -> None:
        seconds = time.perf_counter() - started
        self._metrics.answered(route, response.status, seconds)
        self._log.debug("request answered", method=request.method, route=route, status=response.status, seconds=seconds)


def _kind_of(request: web.Request, route: str, caller: Caller) -> PrivilegedRequest:
    """Returns what is logged of a privileged request: the route's template, because paths and queries may name accounts."""
    why = request.headers.get(REASON, "")[:REASON_LENGTH_MAX]
    return PrivilegedRequest(caller.role, caller.subject, caller.token_id, request.method, route, why)


def _template(request: web.Request) -> str:
    """Returns the template of the request's route, or "unmatched"."""
    resource = request.match_info.route.resource
    return resource.canonical if resource else "unmatched"
