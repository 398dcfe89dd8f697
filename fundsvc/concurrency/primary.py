"""Follows the primary: ends connections to an old one that still answers, after another was promoted."""

from structlog.typing import FilteringBoundLogger

from fundsvc.concurrency.background import PeriodicTask
from fundsvc.store.database import follow_primary

LOOK_SECONDS = 2.0
"""How often a process looks for a newer primary, if its DSN names several hosts. It connects to each of them."""


def following_primary(dsn: str, log: FilteringBoundLogger) -> PeriodicTask:
    """Returns a task that follows the primary of a DSN."""

    async def follow() -> None:
        left = await follow_primary(dsn)
        if left:
            log.warning("primary left", connections=left, detail="another host is the primary with a newer timeline")

    return PeriodicTask("primary", LOOK_SECONDS, follow, log)
