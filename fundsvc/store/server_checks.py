"""Checks the version, the durability settings and the archiving of a database."""

from typing import NamedTuple

from fundsvc.store.database import Pool, connect
from fundsvc.store.reader import fetch


async def server_version(dsn: str) -> str:
    """Returns name and version of the server, such as "PostgreSQL 18.1"; raises StoreFault."""
    async with connect(dsn, "fundsvc config check") as connection:
        version = connection.get_server_version()
    return f"PostgreSQL {version.major}.{version.minor}"


async def weak_settings(primary: Pool) -> list[str]:
    """Returns the settings that are off and without which a crash may lose commits; raises StoreFault."""
    return [row["name"] for row in await fetch(primary, "weak_settings")]


class Archiving(NamedTuple):
    """Whether the last attempt to archive the write-ahead log failed, and when one last succeeded (seconds, 0 for never)."""

    failing: bool
    archived: float


async def archiving(primary: Pool) -> Archiving:
    """Returns the state of the archiving; raises StoreFault."""
    (row,) = await fetch(primary, "archiving")
    return Archiving(row["failing"], row["archived"])
