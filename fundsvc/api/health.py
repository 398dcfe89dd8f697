"""Liveness, readiness and metrics of a process."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from typing import Generic, Literal, NamedTuple, TypeVar

import msgspec
import structlog
from aiohttp import hdrs, web
from prometheus_client import CONTENT_TYPE_LATEST

from fundsvc.api.answers import Answer
from fundsvc.api.http.request_context import CONTEXT
from fundsvc.api.http.routes import JSON, Endpoint, Media
from fundsvc.api.visibility import visibility_of
from fundsvc.logs.faults import Outage
from fundsvc.metrics import Metrics
from fundsvc.store.freshness import Behind
from fundsvc.store.reader import NotReady, Reader

T = TypeVar("T")

PING_SECONDS_MAX = 2.0
"""The time limit of a check. Probes time out after a few seconds and should receive the name of the failing part before."""

DETAILS_HIDDEN = "unreachable or failing: the log and an answer to a token with role risk have details"

Ping = Callable[[], Awaitable[object]]
"""Checks a part of the service; raises an exception with the reason if the part fails."""


log = structlog.get_logger()


class Health(Answer, frozen=True):
    """The process is alive."""

    status: Literal["ok"]


class Check(Answer, frozen=True):
    """The result of checking one part, and its duration. The service is unavailable if a `needed` part fails.

    `error` is empty for a healthy part. A token with role risk receives all details of an error, other callers a short text.
    """

    name: str
    needed: bool
    ok: bool
    duration_ms: float
    error: str


class Readiness(Answer, frozen=True):
    """The results of all checks; `unavailable` if a needed part fails."""

    status: Literal["ok", "unavailable"]
    checks: list[Check]


def operations_endpoints(
    reader: Reader, metrics: Metrics, pings: Mapping[str, Ping], needed: Collection[str] = ()
) -> tuple[Endpoint, ...]:
    """Returns /healthz, /readyz and /metrics; `pings` are checks besides those of the ledger, `needed` names the required ones.

    The checks of partition owners and of halted partitions are informative. An engine that waits for a lease is ready, and a
    reading process can answer without engines.
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

    async def check_all() -> list[_Result]:
        results = await asyncio.gather(*(_check(name, ping) for name, ping in parts.items()))
        for name, _, error in results:
            if error:
                outages[name].note(error)
            else:
                outages[name].over()
        return results

    checking = _Shared(check_all)
    rendering = _Shared(lambda: asyncio.to_thread(metrics.render))  # in a thread: rendering would block the loop

    async def health(_request: web.Request) -> web.Response:
        """The liveness of the process."""
        return _json(Health(status="ok"), 200)

    async def readiness(request: web.Request) -> web.Response:
        """The readiness of the process and the state of its parts."""
        detailed = _sees_details(request)
        checks = [
            Check(name, name in needed, not error, milliseconds, _error_text(error, detailed=detailed) if error else "")
            for name, milliseconds, error in await checking.result()
        ]
        ready = all(check.ok for check in checks if check.needed)
        return _json(Readiness(status="ok" if ready else "unavailable", checks=checks), 200 if ready else 503)

    async def exposition(_request: web.Request) -> web.Response:
        """The metrics of the process in the format of Prometheus."""
        return web.Response(body=await rendering.result(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE_LATEST})

    answer = Media(JSON, Readiness)
    return (
        Endpoint("/healthz", health, {200: Media(JSON, Health)}, fails=frozenset()),
        Endpoint("/readyz", readiness, {200: answer, 503: answer}, fails=frozenset()),
        Endpoint("/metrics", exposition, {200: Media("text/plain")}, fails=frozenset()),
    )


class _Result(NamedTuple):
    """The name of a part, the duration of its check, and its error."""

    name: str
    milliseconds: float
    error: BaseException | None


class _Shared(Generic[T]):
    """Work that concurrent requests share, because probes and scrapers have no rate limit."""

    def __init__(self, work: Callable[[], Coroutine[None, None, T]]) -> None:
        self._work = work
        self._task: asyncio.Task[T] | None = None

    async def result(self) -> T:
        """Returns the result of the running work, and starts it if it does not run."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await asyncio.shield(self._task)


async def _check(name: str, ping: Ping) -> _Result:
    started = time.perf_counter()
    # gather returns every exception of the part as a result.
    (outcome,) = await asyncio.gather(asyncio.wait_for(ping(), PING_SECONDS_MAX), return_exceptions=True)
    milliseconds = round((time.perf_counter() - started) * 1000, 3)
    if isinstance(outcome, TimeoutError):
        outcome = TimeoutError(f"no answer within {PING_SECONDS_MAX:g} s")
    return _Result(name, milliseconds, outcome if isinstance(outcome, BaseException) else None)


def _sees_details(request: web.Request) -> bool:
    """Returns whether the caller may see the addresses, roles and versions in the errors of servers."""
    return visibility_of(request[CONTEXT].caller).all_accounts


def _error_text(error: BaseException, *, detailed: bool) -> str:
    match error:
        case TimeoutError() | Behind():
            return str(error)
        case NotReady() if not detailed:
            return error.public_text
        case _:
            return str(error) or type(error).__name__ if detailed else DETAILS_HIDDEN


def _json(answer: object, status: int) -> web.Response:
    return web.Response(body=msgspec.json.encode(answer), status=status, content_type=JSON)
