"""The schema as alembic revisions in plain SQL. `migrate` upgrades a database to the newest revision."""

from functools import cache
from importlib.resources import files
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from asyncpg import UndefinedTableError
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from fundsvc.store.database import SQL, StoreFault, connect, faults

_LOCK = 0x66756E64
"""The number of the advisory lock that serialises concurrent migrations."""

RIGHTS = (files("fundsvc.store") / "rights.sql").read_text()
"""The rights of the service's role, by table and column."""


async def migrate(owner_dsn: str, partitions: int) -> None:
    """Creates or upgrades the schema and the partitions as the database's owner. A newer schema stays unchanged.

    Raises ValueError if the database has another number of partitions, because contracts would change their stream, or if its
    encoding is not UTF8. Raises StoreFault if the database is unreachable.
    """
    engine = create_async_engine(owner_dsn.replace("postgresql://", "postgresql+asyncpg://", 1))
    try:
        async with engine.begin() as connection:
            _check_encoding((await connection.execute(text("SHOW server_encoding"))).scalar_one())
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            await connection.run_sync(_upgrade)
            await connection.execute(
                text(
                    "INSERT INTO partitions (partition) SELECT generate_series(0, :n - 1)"
                    " WHERE NOT EXISTS (SELECT FROM partitions)"
                ),
                {"n": partitions},
            )
            found = (await connection.execute(text("SELECT count(*) FROM partitions"))).scalar_one()
    except (OSError, SQLAlchemyError) as error:
        raise StoreFault(f"cannot migrate: {error}") from error
    finally:
        await engine.dispose()
    _check_partitions(found, partitions)


async def check_schema(dsn: str, partitions: int) -> None:
    """Raises ValueError with the remedy if the database lacks the schema or the partitions of this version."""
    async with connect(dsn, "fundsvc schema check") as connection:
        with faults():
            _check_encoding(await connection.fetchval("SHOW server_encoding"))
            try:
                found = await connection.fetchval(SQL["schema_version"])
            except UndefinedTableError:
                found = None
            if is_outdated(found):
                raise ValueError(
                    f"the database has schema {found}, this version needs {newest_revision()}: run fundsvc migrate"
                )
            _check_partitions(len(await connection.fetch(SQL["partitions"])), partitions)


@cache
def newest_revision() -> str | None:
    """Returns the revision of the schema that this version requires."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def is_outdated(revision: str | None) -> bool:
    """Returns whether a schema lacks something that this version requires.

    A newer schema does not: migrations only add, and remove unused parts one release later. So the old version runs beside the
    new one during an upgrade.
    """
    return revision is None or revision < str(newest_revision())


def _check_encoding(found: str) -> None:
    if found != "UTF8":
        raise ValueError(
            f"the database is encoded in {found}, which cannot hold every symbol:"
            " create one with ENCODING 'UTF8' TEMPLATE template0"
        )


def _check_partitions(found: int, wanted: int) -> None:
    if found != wanted:
        raise ValueError(
            f"the ledger has {found} partitions, the configuration has stream.partitions = {wanted}: set it to {found}"
        )


def run_script(connection: Connection, script: str) -> None:
    """Runs statements separated by semicolons, in the migration's transaction."""
    connection.connection.run_async(lambda driver: driver.execute(script))


def _upgrade(connection: Connection) -> None:
    found = MigrationContext.configure(connection).get_current_revision()
    if found and not is_outdated(found):
        return
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    run_script(connection, RIGHTS)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config
