"""Lines that would repeat themselves: said once when something begins and once when it ends, or seldom."""

import time
from typing import Any

from structlog.typing import FilteringBoundLogger

SELDOM_SECONDS = 10.0
"""Who looks at a log learns within this time that something still goes on; more lines would tell nothing new."""


class Outage:
    """What a part needs and does not get: said when it begins, and when it is over, with how long it lasted."""

    def __init__(self, log: FilteringBoundLogger, part: str, **keys: Any) -> None:
        self._log = log
        self._keys = {"part": part, **keys}
        self._since: float | None = None

    def note(self, fault: BaseException) -> None:
        """Something failed, for the first time or again."""
        if self._since is None:
            self._since = time.monotonic()
            self._log.warning("fault", fault=str(fault), **self._keys)

    def over(self) -> None:
        """It works, again or still."""
        if self._since is not None:
            seconds = round(time.monotonic() - self._since, 3)
            self._since = None
            self._log.info("recovered", seconds=seconds, **self._keys)


class Seldom:
    """What fails for many who ask, each by itself: the first of each few seconds is said, with how many were not before."""

    def __init__(self, log: FilteringBoundLogger, part: str) -> None:
        self._log = log
        self._part = part
        self._due = 0.0
        self._unsaid = 0

    def note(self, fault: Exception, **keys: Any) -> None:
        """Something failed once more."""
        now = time.monotonic()
        if now < self._due:
            self._unsaid += 1
            return
        self._log.warning("fault", part=self._part, fault=str(fault), unsaid=self._unsaid, **keys)
        self._due, self._unsaid = now + SELDOM_SECONDS, 0
