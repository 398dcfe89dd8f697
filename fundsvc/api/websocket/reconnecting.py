"""When the clients of a stopping service connect again: the reason of their close frames contains a delay for each."""

import random
import re

RECONNECTS_PER_SECOND = 500
"""Connections that the other processes receive in a second. One process accepts more than that with the work of its topics."""

_DELAY = re.compile(r"reconnect in (\d{1,6}) ms")


def stop_reason(connections: int) -> str:
    """Returns the reason for the end of one of so many connections of a stopping service, with a random delay."""
    delay_ms = random.uniform(0, 1000 * connections / RECONNECTS_PER_SECOND)  # noqa: S311 - not a secret
    return f"the service stops: reconnect in {delay_ms:.0f} ms, and subscribe with `after` to miss nothing"


def reconnect_seconds(reason: str) -> float | None:
    """Returns the delay that a reason contains; None without one."""
    found = _DELAY.search(reason)
    return int(found[1]) / 1000 if found else None
