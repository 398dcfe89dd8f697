"""What every request meets on its way to whatever answers it, and every answer on its way out.

In: an id and the gate. Out: errors as the path says them, what every answer says in its headers, a count and a log line.
"""

import time
from collections.abc import Callable, Mapping

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from fundsvc.api.http.access import Gate
from fundsvc.api.http.body_encoding import check_uncompressed
from fundsvc.api.http.errors import Errors, Refuse, refuse
from fundsvc.api.http.request_context import REQUEST_ID, VISIT, Visit
from fundsvc.api.http.routes import Cost
from fundsvc.metrics import Metrics

log = structlog.get_logger()


class Reception:
    """Receives the requests of an application, and those that are answered at once. Without a gate it lets everybody in."""

    def __init__(self, metrics: Metrics, gate: Gate | None = None) -> None:
        self._metrics = metrics
        self._gate = gate
        self._errors = Errors()
        self._refuse: dict[str, Refuse] = {}
        self._log = log.bind()  # made once: while nobody wants such lines, it then does nothing, which takes no time

    def receive(self, application: web.Application, refusing: Mapping[str, Refuse]) -> None:
        """Has every request of an application come this way. By route, how errors are said; in our envelope elsewhere."""
        self._refuse.update(refusing)
        application.middlewares.append(self._attend)
        application.on_response_prepare.append(self._see_out)

    def answer(self, request: web.Request, route: str, make: Callable[[], web.Response]) -> web.Response:
        """The answer to a request that needs no handler, ready to be sent; it is counted by a route's template."""
        started = time.perf_counter()
        visit = Visit(request)
        try:
            response = self._admit(request, visit) or make()
        except Exception as error:  # noqa: BLE001 - `Errors` logs what nobody foresaw
            response = self._errors.answer(request, error)
        self._note(request, route, response, started)
        self._dress(request, response, visit)
        return response

    def charging(self, cost: Cost | None, handler: Handler) -> Handler:
        """A handler whose answers are charged to the client before they are made."""
        gate = self._gate
        if cost is None or gate is None:
            return handler

        async def handle(request: web.Request) -> web.StreamResponse:
            gate.charge_requests(request, cost(**request.match_info))
            return await handler(request)

        return handle

    @web.middleware
    async def _attend(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        visit = request[VISIT] = Visit(request)
        response: web.StreamResponse
        try:
            response = self._admit(request, visit) or await handler(request)
        except Exception as error:  # noqa: BLE001 - `Errors` logs what nobody foresaw
            response = self._errors.answer(request, error, self._refuse.get(_template(request), refuse))
        self._note(request, _template(request), response, started)
        return response

    async def _see_out(self, request: web.Request, response: web.StreamResponse) -> None:
        """Comes before the headers of every answer, also of those that are streamed."""
        visit = request.get(VISIT)
        if visit is not None:
            self._dress(request, response, visit)

    def _admit(self, request: web.Request, visit: Visit) -> web.Response | None:
        check_uncompressed(request)
        return self._gate.admit(request, visit) if self._gate else None

    def _dress(self, request: web.Request, response: web.StreamResponse, visit: Visit) -> None:
        response.headers[REQUEST_ID] = visit.request_id
        if self._gate:
            self._gate.dress(request, response, visit)

    def _note(self, request: web.Request, route: str, response: web.StreamResponse, started: float) -> None:
        seconds = time.perf_counter() - started
        self._metrics.answered(route, response.status, seconds)
        self._log.debug("request answered", method=request.method, route=route, status=response.status, seconds=seconds)


def _template(request: web.Request) -> str:
    """The template of the route that the router found."""
    resource = request.match_info.route.resource
    return resource.canonical if resource else "unmatched"
