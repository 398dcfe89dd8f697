"""The schema as alembic revisions, each plain SQL; `migrate` brings a database up to the newest."""

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
"""An advisory lock number of our own: two that migrate at once wait for each other."""

RIGHTS = (files("fundsvc.store") / "rights.sql").read_text()
"""What the service's role may do, by table and column."""


async def migrate(owner_dsn: str, partitions: int) -> None:
    """Creates or upgrades the schema and the rows of the partitions, as the owner of the database; leaves a newer one as it is.

    Raises ValueError when the database already has another number of partitions, because contracts would change their
    stream, or is not encoded in UTF8, and StoreFault when it is away.
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
    """Raises ValueError, saying what to do, when the database has not the schema or the partitions that this version needs."""
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
    """The revision of the schema that this version needs."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def is_outdated(revision: str | None) -> bool:
    """Whether a schema lacks something that this version needs. A newer one does not: migrations add, and what they make
    superfluous goes a release later, so that during an upgrade the old version works on beside the new one.
    """
    return revision is None or revision < str(newest_revision())


def _check_encoding(found: str) -> None:
    if found != "UTF8":
        raise ValueError(
            f"the database is encoded in {found}, which cannot hold every symbol:"
            " make one with ENCODING 'UTF8' TEMPLATE template0"
        )


def _check_partitions(found: int, wanted: int) -> None:
    if found != wanted:
        raise ValueError(f"the ledger has {found} partitions, the configuration says stream.partitions = {wanted}")


def run_script(connection: Connection, script: str) -> None:
    """Runs statements separated by semicolons, within the migration's transaction."""
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
