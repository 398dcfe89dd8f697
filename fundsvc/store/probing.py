"""Asking a database who it is."""

from fundsvc.store.database import connect


async def server_version(dsn: str) -> str:
    """What answers, such as "PostgreSQL 18.1"; raises StoreFault."""
    async with connect(dsn, "fundsvc config check") as connection:
        version = connection.get_server_version()
    return f"PostgreSQL {version.major}.{version.minor}"
