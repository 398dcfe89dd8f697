"""How much each client may ask for: a count per client, in windows of time that begin for all at once.

Counts are forgotten together when a window ends, so that nothing has to be tidied up, and a request costs a look into one dict.
"""

import time
from typing import NamedTuple

CLIENTS_MAX = 100_000
"""Clients told apart within a window, some 15 MB of them; whoever comes later shares one count with all others so late."""

LATE = ""
"""The client that all of those are; no client is called so."""


class Allowance(NamedTuple):
    """What a client has left until a window ends, and whether what it asked for was within it."""

    limit: int
    remaining: int
    reset_ms: int
    granted: bool


class Window:
    """Grants each client `limit` of something within any window of so many seconds."""

    def __init__(self, limit: int, seconds: float) -> None:
        self._limit = limit
        self._seconds = seconds
        self._ends = 0.0
        self._taken: dict[str, int] = {}

    def take(self, client: str, amount: int = 1) -> Allowance:
        """Grants a client an amount whole, or none of it."""
        now = time.monotonic()
        if now >= self._ends:
            self._ends = now + self._seconds
            self._taken = {}
        taken = self._taken
        if client not in taken and len(taken) >= CLIENTS_MAX:
            client = LATE
        before = taken.get(client, 0)
        granted = before + amount <= self._limit
        after = before + amount if granted else before
        taken[client] = after
        return Allowance(self._limit, self._limit - after, int((self._ends - now) * 1000) + 1, granted)
