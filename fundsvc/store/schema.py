"""Checks that a database has the schema that this version requires.

The module reads the file names of the revisions instead of importing `migrations`: loading alembic and SQLAlchemy takes a third
of the start of a process. Only functions that migrate import that package.
"""

from functools import cache
from importlib.resources import files

from asyncpg import UndefinedTableError

from fundsvc.store.database import SQL, connect, faults

_REVISIONS = files("fundsvc.store") / "migrations" / "versions"


async def check_schema(dsn: str, partitions: int) -> None:
    """Raises ValueError with the remedy if the database lacks the schema or the partitions of this version."""
    async with connect(dsn, "fundsvc schema check") as connection:
        with faults():
            check_encoding(await connection.fetchval("SHOW server_encoding"))
            try:
                found = await connection.fetchval(SQL["schema_version"])
            except UndefinedTableError:
                found = None
            if is_outdated(found):
                raise ValueError(
                    f"the database has schema {found}, this version needs {newest_revision()}: run fundsvc migrate"
                )
            check_partitions(len(await connection.fetch(SQL["partitions"])), partitions)


@cache
def newest_revision() -> str:
    """Returns the revision of the schema that this version requires."""
    return max(file.name[:4] for file in _REVISIONS.iterdir() if file.name.endswith(".py"))


def is_outdated(revision: str | None) -> bool:
    """Returns whether a schema lacks something that this version requires.

    A newer schema does not: migrations only add, and remove unused parts one release later. So the old version runs beside the
    new one during an upgrade.
    """
    return revision is None or revision < newest_revision()


def check_encoding(found: str) -> None:
    """Raises ValueError for a database that is not encoded in UTF8."""
    if found != "UTF8":
        raise ValueError(
            f"the database is encoded in {found}, which cannot hold every symbol:"
            " create one with ENCODING 'UTF8' TEMPLATE template0"
        )


def check_partitions(found: int, wanted: int) -> None:
    """Raises ValueError for a ledger that has another number of partitions than the configuration."""
    if found != wanted:
        raise ValueError(
            f"the ledger has {found} partitions, the configuration has stream.partitions = {wanted}: set it to {found}"
        )
