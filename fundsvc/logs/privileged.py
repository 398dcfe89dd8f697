"""Logs requests with the rights of an engine or of risk: the bearer, its token, the route, and the reason."""

import time
from collections.abc import Callable
from typing import NamedTuple

from structlog.typing import FilteringBoundLogger

REPEAT_SECONDS = 60.0
"""Seconds between two lines about the same bearer and route: an engine may post a thousand times a second."""

KINDS_MAX = 10_000
"""Bounds the memory: more bearers and routes than that begin again, with a line for each."""


class PrivilegedRequest(NamedTuple):
    """A kind of privileged requests. `who` is the bearer's name, `token` the id of its token; both may be ""."""

    role: str
    who: str
    token: str
    method: str
    route: str
    why: str


class PrivilegedRequests:
    """Logs the first request of a kind at once; later ones together, with the number since the last line."""

    def __init__(self, log: FilteringBoundLogger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._seen: dict[PrivilegedRequest, tuple[float, int]] = {}

    def note(self, request: PrivilegedRequest) -> None:
        """Records a request whose token has the rights for its route."""
        now = self._clock()
        due, count = self._seen.get(request, (now, 0))
        if now >= due:
            self._log.info(
                "privileged request",
                role=request.role,
                who=request.who,
                token=request.token,
                method=request.method,
                route=request.route,
                why=request.why,
                count=count + 1,
            )
            due, count = now + REPEAT_SECONDS, -1
        if len(self._seen) >= KINDS_MAX:
            self._seen.clear()
        self._seen[request] = due, count + 1
