"""Log lines for repeated failures: one when a fault begins and one when it ends, or one every few seconds."""

import time
from collections.abc import Callable
from typing import Any

from structlog.typing import FilteringBoundLogger

REPEAT_SECONDS = 10.0
"""Seconds between two log lines about the same kind of event."""


class Outage:
    """Logs a fault of a part when it begins, and when it ends with its duration."""

    def __init__(self, log: FilteringBoundLogger, part: str, **keys: Any) -> None:
        self._log = log
        self._keys = {"part": part, **keys}
        self._since: float | None = None

    def note(self, fault: BaseException) -> None:
        """Records a failure; logs the first one."""
        if self._since is None:
            self._since = time.monotonic()
            self._log.warning("fault", fault=str(fault), **self._keys)

    def over(self) -> None:
        """Records that the part works; logs the end of a fault."""
        if self._since is not None:
            seconds = round(time.monotonic() - self._since, 3)
            self._since = None
            self._log.info("recovered", seconds=seconds, **self._keys)


class ThrottledFaults:
    """Logs failing requests: the first of each few seconds, with the number of failures suppressed before it."""

    def __init__(self, log: FilteringBoundLogger, part: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._part = part
        self._due = 0.0
        self._suppressed = 0

    def note(self, fault: Exception, **keys: Any) -> None:
        """Records a failure."""
        now = self._clock()
        if now < self._due:
            self._suppressed += 1
            return
        self._log.warning("fault", part=self._part, fault=str(fault), suppressed=self._suppressed, **keys)
        self._due, self._suppressed = now + REPEAT_SECONDS, 0
