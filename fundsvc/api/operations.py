"""What a probe or a scraper asks, of any process of the service: is it alive, is it ready, what has it counted."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CONTENT_TYPE_LATEST

from fundsvc.api.answers import Answer
from fundsvc.api.errors import answer_errors
from fundsvc.metrics import Metrics
from fundsvc.store.reader import Reader

PING_SECONDS_MAX = 2.0
"""Probes themselves give up after a few seconds; by then they should have learned which part does not answer."""

Ping = Callable[[], Awaitable[object]]
"""Returns if a part is well; raises, saying why, if not."""


class Check(Answer, frozen=True):
    """How one part answered, and after how long; `error` is empty when it is well."""

    name: str
    ok: bool
    duration_ms: float
    error: str


class Readiness(Answer, frozen=True):
    """All parts; `unavailable` if any is not well."""

    status: str
    checks: list[Check]


def make_operations_app(reader: Reader, metrics: Metrics, pings: Mapping[str, Ping]) -> web.Application:
    """An application that serves /healthz, /readyz and /metrics; `pings` are parts to check besides the ledger."""
    parts = {
        "database": reader.check_database,
        "schema": reader.check_schema,
        "owners": reader.check_owners,
        **pings,
    }

    async def health(_request: web.Request) -> web.Response:
        return _json({"status": "ok"}, 200)

    async def readiness(_request: web.Request) -> web.Response:
        answers = await asyncio.gather(*(_check(name, ping) for name, ping in parts.items()))
        ready = all(check.ok for check in answers)
        return _json(Readiness(status="ok" if ready else "unavailable", checks=answers), 200 if ready else 503)

    async def exposition(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE_LATEST})

    application = web.Application(middlewares=[_counted(metrics), answer_errors])
    application.router.add_get("/healthz", health)
    application.router.add_get("/readyz", readiness)
    application.router.add_get("/metrics", exposition)
    return application


async def _check(name: str, ping: Ping) -> Check:
    started = time.perf_counter()
    # Gathered rather than awaited, so that whatever is wrong with a part is an answer and not an end.
    (outcome,) = await asyncio.gather(asyncio.wait_for(ping(), PING_SECONDS_MAX), return_exceptions=True)
    duration_ms = round((time.perf_counter() - started) * 1000, 3)
    return Check(name=name, ok=not isinstance(outcome, BaseException), duration_ms=duration_ms, error=_error(outcome))


def _error(outcome: object) -> str:
    match outcome:
        case TimeoutError():
            return f"no answer within {PING_SECONDS_MAX:g} s"
        case BaseException():
            return str(outcome) or type(outcome).__name__
        case _:
            return ""


def _counted(metrics: Metrics) -> Middleware:
    """Counts what is answered, by the template of its route."""

    @web.middleware
    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        response = await handler(request)
        resource = request.match_info.route.resource
        route = resource.canonical if resource else "unmatched"
        metrics.answered(route, response.status, time.perf_counter() - started)
        return response

    return count


def _json(answer: object, status: int) -> web.Response:
    return web.Response(body=msgspec.json.encode(answer), status=status, content_type="application/json")
