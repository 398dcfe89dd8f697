"""Whether a database has the schema that this version needs.

It reads the names of the revisions and does not import `migrations`: to load alembic and SQLAlchemy takes a third of the time
in which a process starts. A function that migrates imports that package itself.
"""

from functools import cache
from importlib.resources import files

from asyncpg import UndefinedTableError

from fundsvc.store.database import SQL, connect, faults

_REVISIONS = files("fundsvc.store") / "migrations" / "versions"


async def check_schema(dsn: str, partitions: int) -> None:
    """Raises ValueError, saying what to do, when the database has not the schema or the partitions that this version needs."""
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
    """The revision of the schema that this version needs."""
    return max(file.name[:4] for file in _REVISIONS.iterdir() if file.name.endswith(".py"))


def is_outdated(revision: str | None) -> bool:
    """Whether a schema lacks something that this version needs. A newer one does not: migrations add, and what they make
    superfluous goes a release later, so that during an upgrade the old version works on beside the new one.
    """
    return revision is None or revision < newest_revision()


def check_encoding(found: str) -> None:
    """Raises ValueError for a database that is not encoded in UTF8."""
    if found != "UTF8":
        raise ValueError(
            f"the database is encoded in {found}, which cannot hold every symbol:"
            " make one with ENCODING 'UTF8' TEMPLATE template0"
        )


def check_partitions(found: int, wanted: int) -> None:
    """Raises ValueError for a ledger that has another number of partitions than the configuration."""
    if found != wanted:
        raise ValueError(f"the ledger has {found} partitions, the configuration says stream.partitions = {wanted}")
