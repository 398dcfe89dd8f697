"""How much each client may ask for: a count per client, in windows of time that begin for all at once.

Counts are forgotten together when a window ends, so that nothing has to be tidied up, and a request costs a look into one dict.
"""

import time

CLIENTS_MAX = 100_000
"""Clients told apart within a window, some 15 MB of them; whoever comes later shares one count with all others so late."""

LATE = ""
"""The client that all of those are; no client is called so."""


class Window:
    """Grants each client `limit` of something within any window of so many seconds."""

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit = limit
        self._seconds = seconds
        self._ends = 0.0
        self._taken: dict[str, int] = {}

    def take(self, client: str, amount: int = 1) -> bool:
        """Whether a client may have an amount, which it then has: whole, or none of it."""
        now = time.monotonic()
        if now >= self._ends:
            self._ends = now + self._seconds
            self._taken = {}
        before = self._taken.get(client)
        if before is None:
            client, before = self._first(client)
        after = before + amount
        if after > self.limit:
            return False
        self._taken[client] = after
        return True

    def remaining(self, client: str) -> int:
        """What a client still has in this window."""
        taken = self._taken
        return self.limit - taken.get(client, taken.get(LATE, 0))

    def reset_ms(self) -> int:
        """How long this window still lasts."""
        left = self._ends - time.monotonic()
        return int(left * 1000) + 1 if left > 0 else 0

    def _first(self, client: str) -> tuple[str, int]:
        """Whom a client is counted as that asks for the first time, and what that has taken."""
        return (client, 0) if len(self._taken) < CLIENTS_MAX else (LATE, self._taken.get(LATE, 0))
