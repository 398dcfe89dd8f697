"""Asking a database who it is, and whether its commits survive a crash."""

from fundsvc.store.database import Pool, connect
from fundsvc.store.reader import fetch


async def server_version(dsn: str) -> str:
    """What answers, such as "PostgreSQL 18.1"; raises StoreFault."""
    async with connect(dsn, "fundsvc config check") as connection:
        version = connection.get_server_version()
    return f"PostgreSQL {version.major}.{version.minor}"


async def weak_settings(primary: Pool) -> list[str]:
    """The settings that are off although commits may be lost without them; raises StoreFault."""
    return [row["name"] for row in await fetch(primary, "weak_settings")]
