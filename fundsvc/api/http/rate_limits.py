"""Rate limits: a count per client within a window of time that is common to all clients.

All counts are dropped together at the end of a window. A request therefore costs one dict lookup, without a cleanup task.
"""

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Returns seconds of a clock that never goes back."""

CLIENTS_MAX = 100_000
"""Clients with separate counts in a window, about 15 MB. Further clients share one overflow count."""

OVERFLOW = ""
"""The key of the overflow count. No client has this name."""


class Window:
    """Permits each client `limit` units in each window of `seconds` by `clock`."""

    def __init__(self, limit: int, seconds: float, clock: Clock = time.monotonic) -> None:
        self.limit = limit
        self._seconds = seconds
        self._clock = clock
        self._ends = 0.0
        self._taken: dict[str, int] = {}

    def take(self, client: str, amount: int = 1) -> bool:
        """Counts `amount` for a client and returns True; returns False and counts nothing if that exceeds the limit."""
        now = self._clock()
        if now >= self._ends:
            self._begin(now + self._seconds)
        before = self._taken.get(client)
        if before is None:
            client, before = self._first(client)
        after = before + amount
        if after > self.limit:
            return False
        self._taken[client] = after
        return True

    def remaining(self, client: str) -> int:
        """Returns the units that a client has left in this window."""
        taken = self._taken
        return self.limit - taken.get(client, taken.get(OVERFLOW, 0))

    def reset_ms(self) -> int:
        """Returns the milliseconds until the next window."""
        left = self._ends - self._clock()
        return int(left * 1000) + 1 if left > 0 else 0

    def _begin(self, ends: float) -> None:
        """Begins a window that lasts until `ends`."""
        self._ends = ends
        self._taken = {}

    def _first(self, client: str) -> tuple[str, int]:
        """Returns the key and the count of a client that is new in this window."""
        return (client, 0) if len(self._taken) < CLIENTS_MAX else (OVERFLOW, self._taken.get(OVERFLOW, 0))
