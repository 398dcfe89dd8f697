"""The schema as alembic revisions in plain SQL. `migrate` upgrades a database to the newest revision."""

from importlib.resources import files
from pathlib import Path

import asyncpg
import structlog
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from fundsvc.store.database import StoreFault
from fundsvc.store.hosts import dial
from fundsvc.store.schema import check_encoding, check_partitions, is_outdated, newest_revision
from fundsvc.store.server_checks import check_sessions

log = structlog.get_logger()

_LOCK = 0x66756E64
"""The number of the advisory lock that serialises concurrent migrations."""

RIGHTS = (files("fundsvc.store") / "rights.sql").read_text()
"""The rights of the service's role, by table and column."""


async def migrate(owner_dsn: str, partitions: int) -> None:
    """Creates or upgrades the schema and the partitions as the database's owner. A newer schema stays unchanged.

    Raises ValueError if the database has another number of partitions, because contracts would change their stream, or if its
    encoding is not UTF8, or if a connection pooler does not keep sessions. Raises StoreFault if the database is unreachable.
    """
    engine = create_async_engine("postgresql+asyncpg://", async_creator=lambda: dial(owner_dsn))
    try:
        await check_sessions(owner_dsn)
        async with engine.begin() as connection:
            check_encoding((await connection.execute(text("SHOW server_encoding"))).scalar_one())
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
    except (OSError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, StoreFault) as error:
        raise StoreFault(f"cannot migrate: {error}") from error
    finally:
        await engine.dispose()
    check_partitions(found, partitions)


def run_script(connection: Connection, script: str) -> None:
    """Runs statements separated by semicolons, in the migration's transaction."""
    connection.connection.run_async(lambda driver: driver.execute(script))


def _upgrade(connection: Connection) -> None:
    found = MigrationContext.configure(connection).get_current_revision()
    if found and not is_outdated(found):
        return
    log.info("schema upgrades", schema=found or "none", revision=newest_revision())
    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    run_script(connection, RIGHTS)


def alembic_config() -> Config:
    """Returns the configuration of alembic for the revisions of this package."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config
