"""What a probe or a scraper asks, of any process of the service: is it alive, is it ready, what has it counted."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from typing import Generic, Literal, NamedTuple, TypeVar

import msgspec
import structlog
from aiohttp import hdrs, web
from prometheus_client import CONTENT_TYPE_LATEST

from fundsvc.api.answers import Answer
from fundsvc.api.http.request_context import VISIT
from fundsvc.api.http.routes import JSON, Endpoint, Media
from fundsvc.logs.faults import Outage
from fundsvc.metrics import Metrics
from fundsvc.store.freshness import Behind
from fundsvc.store.reader import NotReady, Reader

T = TypeVar("T")

PING_SECONDS_MAX = 2.0
"""Probes themselves give up after a few seconds; by then they should have learned which part does not answer."""

AWAY = "away, or not well: its log says more, and so does this to a caller with role risk"

Ping = Callable[[], Awaitable[object]]
"""Returns if a part is well; raises, saying why, if not."""


log = structlog.get_logger()


class Health(Answer, frozen=True):
    """The process answers."""

    status: Literal["ok"]


class Check(Answer, frozen=True):
    """How one part answered, and after how long. Readiness hangs on those that are `needed`.

    `error` is empty when a part is well. It says in a few words what is wrong, and all that is known to callers with role risk.
    """

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

    outages = {name: Outage(log, name) for name in parts}

    async def look() -> list[_Look]:
        looks = await asyncio.gather(*(_look(name, ping) for name, ping in parts.items()))
        for name, _, wrong in looks:
            if wrong:
                outages[name].note(wrong)
            else:
                outages[name].over()
        return looks

    looking = _Shared(look)
    rendering = _Shared(lambda: asyncio.to_thread(metrics.render))  # Others have work on this loop meanwhile.

    async def health(_request: web.Request) -> web.Response:
        """Whether the process is alive."""
        return _json(Health(status="ok"), 200)

    async def readiness(request: web.Request) -> web.Response:
        """Whether it can work, and which of its parts cannot."""
        in_full = _may_know(request)
        checks = [
            Check(name, name in needed, not wrong, milliseconds, _told(wrong, in_full=in_full) if wrong else "")
            for name, milliseconds, wrong in await looking.result()
        ]
        ready = all(check.ok for check in checks if check.needed)
        return _json(Readiness(status="ok" if ready else "unavailable", checks=checks), 200 if ready else 503)

    async def exposition(_request: web.Request) -> web.Response:
        """Metrics for Prometheus."""
        return web.Response(body=await rendering.result(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE_LATEST})

    readable = Media(JSON, Readiness)
    return (
        Endpoint("/healthz", health, {200: Media(JSON, Health)}, fails=frozenset()),
        Endpoint("/readyz", readiness, {200: readable, 503: readable}, fails=frozenset()),
        Endpoint("/metrics", exposition, {200: Media("text/plain")}, fails=frozenset()),
    )


class _Look(NamedTuple):
    """How a part answered, after how many milliseconds, and what is wrong with it."""

    name: str
    milliseconds: float
    wrong: BaseException | None


class _Shared(Generic[T]):
    """Work that is done once for all who ask for its result meanwhile: nobody is counted here."""

    def __init__(self, work: Callable[[], Coroutine[None, None, T]]) -> None:
        self._work = work
        self._task: asyncio.Task[T] | None = None

    async def result(self) -> T:
        """What the work in hand comes to."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await asyncio.shield(self._task)


async def _look(name: str, ping: Ping) -> _Look:
    started = time.perf_counter()
    # Gathered rather than awaited, so that whatever is wrong with a part is an answer and not an end.
    (outcome,) = await asyncio.gather(asyncio.wait_for(ping(), PING_SECONDS_MAX), return_exceptions=True)
    milliseconds = round((time.perf_counter() - started) * 1000, 3)
    if isinstance(outcome, TimeoutError):
        outcome = TimeoutError(f"no answer within {PING_SECONDS_MAX:g} s")
    return _Look(name, milliseconds, outcome if isinstance(outcome, BaseException) else None)


def _may_know(request: web.Request) -> bool:
    """Whether a caller may know what servers say of themselves: their addresses, roles and versions."""
    visit = request.get(VISIT)
    return visit is not None and visit.caller is not None and visit.caller.role == "risk"


def _told(wrong: BaseException, *, in_full: bool) -> str:
    match wrong:
        case TimeoutError() | Behind():
            return str(wrong)
        case NotReady() if not in_full:
            return wrong.public_text
        case _:
            return str(wrong) or type(wrong).__name__ if in_full else AWAY


def _json(answer: object, status: int) -> web.Response:
    return web.Response(body=msgspec.json.encode(answer), status=status, content_type=JSON)
