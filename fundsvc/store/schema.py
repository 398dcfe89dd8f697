"""Checks that a database has the schema that this version requires.

The module reads the file names of the revisions instead of importing `migrations`: loading alembic and SQLAlchemy takes a third
of the start of a process. Only functions that migrate import that package.
"""

from functools import cache
from importlib.resources import files

from asyncpg import UndefinedTableError

from fundsvc.config.cells import MAIN
from fundsvc.store.database import SQL, connect, faults

_REVISIONS = files("fundsvc.store") / "migrations" / "versions"


async def check_schema(dsn: str, partitions: int, cell: str = MAIN) -> None:
    """Raises ValueError with the remedy if the database lacks the schema or the partitions of this version, or is another cell.

    `partitions` is the number of partitions of the whole ledger.
    """
    async with connect(dsn, "fundsvc schema check") as connection:
        with faults():
            check_encoding(await connection.fetchval("SHOW server_encoding"))
            try:
                revision = await connection.fetchval(SQL["schema_version"])
            except UndefinedTableError:
                revision = None
            if is_outdated(revision):
                raise ValueError(
                    f"the database has schema {revision}, this version needs {newest_revision()}: run fundsvc migrate"
                )
            found = await connection.fetchrow(SQL["cell"])
            name, count = found or (cell, 0)
            check_cell(name, count, cell, partitions)


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


def check_cell(found_cell: str, found_partitions: int, cell: str, partitions: int) -> None:
    """Raises ValueError for a database that is another cell, or of a ledger with another number of partitions."""
    if found_cell != cell:
        raise ValueError(f"the database of cell {cell} is the cell {found_cell} of a ledger: correct its dsn or its name")
    if found_partitions != partitions:
        raise ValueError(
            f"the ledger has {found_partitions} partitions, the configuration has stream.partitions = {partitions}:"
            f" set it to {found_partitions}"
        )
