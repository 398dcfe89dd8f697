"""Checks the version and the durability settings of a database."""

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
