"""What a probe or a scraper asks, of any process of the service: is it alive, is it ready, what has it counted."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Literal

import msgspec
from aiohttp import hdrs, web
from prometheus_client import CONTENT_TYPE_LATEST

from fundsvc.api.answers import Answer
from fundsvc.api.endpoints import JSON, Endpoint, Media
from fundsvc.metrics import Metrics
from fundsvc.store.reader import Reader

PING_SECONDS_MAX = 2.0
"""Probes themselves give up after a few seconds; by then they should have learned which part does not answer."""

Ping = Callable[[], Awaitable[object]]
"""Returns if a part is well; raises, saying why, if not."""


class Health(Answer, frozen=True):
    """The process answers."""

    status: Literal["ok"]


class Check(Answer, frozen=True):
    """How one part answered, and after how long; `error` is empty when it is well. Readiness hangs on those it `needs`."""

    name: str
    needed: bool
    ok: bool
    duration_ms: float
    error: str


class Readiness(Answer, frozen=True):
    """All parts; `unavailable` if any that is needed is not well."""

    status: Literal["ok", "unavailable"]
    checks: list[Check]


def operations_endpoints(
    reader: Reader, metrics: Metrics, pings: Mapping[str, Ping], needed: Collection[str] = ()
) -> tuple[Endpoint, ...]:
    """/healthz, /readyz and /metrics; `pings` are parts to check besides the ledger, of which some are `needed`.

    The owners of partitions, and which are halted, are shown alone: a process that waits for its turn is ready for it, and one
    that reads can read.
    """
    needed = {"database", "schema", *needed}
    parts = {
        "database": reader.check_database,
        "schema": reader.check_schema,
        "owners": reader.check_owners,
        "halted": reader.check_halted,
        **pings,
    }

    async def health(_request: web.Request) -> web.Response:
        """Whether the process is alive."""
        return _json(Health(status="ok"), 200)

    async def readiness(_request: web.Request) -> web.Response:
        """Whether it can work, and which of its parts cannot."""
        answers = await asyncio.gather(*(_check(name, ping, needed=name in needed) for name, ping in parts.items()))
        ready = all(check.ok for check in answers if check.needed)
        return _json(Readiness(status="ok" if ready else "unavailable", checks=answers), 200 if ready else 503)

    async def exposition(_request: web.Request) -> web.Response:
        """Metrics for Prometheus."""
        text = await asyncio.to_thread(metrics.render)  # Others have work on this loop meanwhile.
        return web.Response(body=text, headers={hdrs.CONTENT_TYPE: CONTENT_TYPE_LATEST})

    readable = Media(JSON, Readiness)
    return (
        Endpoint("/healthz", health, {200: Media(JSON, Health)}, fails=frozenset()),
        Endpoint("/readyz", readiness, {200: readable, 503: readable}, fails=frozenset()),
        Endpoint("/metrics", exposition, {200: Media("text/plain")}, fails=frozenset()),
    )


async def _check(name: str, ping: Ping, *, needed: bool) -> Check:
    started = time.perf_counter()
    # Gathered rather than awaited, so that whatever is wrong with a part is an answer and not an end.
    (outcome,) = await asyncio.gather(asyncio.wait_for(ping(), PING_SECONDS_MAX), return_exceptions=True)
    duration_ms = round((time.perf_counter() - started) * 1000, 3)
    ok = not isinstance(outcome, BaseException)
    return Check(name=name, needed=needed, ok=ok, duration_ms=duration_ms, error=_error(outcome))


def _error(outcome: object) -> str:
    match outcome:
        case TimeoutError():
            return f"no answer within {PING_SECONDS_MAX:g} s"
        case BaseException():
            return str(outcome) or type(outcome).__name__
        case _:
            return ""


def _json(answer: object, status: int) -> web.Response:
    return web.Response(body=msgspec.json.encode(answer), status=status, content_type=JSON)
