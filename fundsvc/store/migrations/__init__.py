"""The schema as alembic revisions in plain SQL. `migrate` upgrades a database to the newest revision."""

from collections.abc import Sequence
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

from fundsvc.config.cells import MAIN
from fundsvc.store.database import SQL, StoreFault
from fundsvc.store.hosts import dial
from fundsvc.store.schema import check_cell, check_encoding, is_outdated, newest_revision
from fundsvc.store.server_checks import check_sessions

log = structlog.get_logger()

_LOCK = 0x66756E64
"""The number of the advisory lock that serialises concurrent migrations."""

RIGHTS = (files("fundsvc.store") / "rights.sql").read_text()
"""The rights of the service's role, by table and column."""


async def migrate(owner_dsn: str, partitions: int, cell: str = MAIN, held: Sequence[int] | None = None) -> None:
    """Creates or upgrades the schema of a cell as its owner. A newer schema stays unchanged.

    A new cell begins with the partitions `held`, by default all `partitions` of the ledger; later only moves change them.
    Raises ValueError if the database is another cell, or of a ledger with another number of partitions, because contracts would
    change their stream, or if its encoding is not UTF8, or if a connection pooler does not keep sessions. Raises StoreFault if
    the database is unreachable.
    """
    engine = create_async_engine("postgresql+asyncpg://", async_creator=lambda: dial(owner_dsn))
    try:
        await check_sessions(owner_dsn)
        async with engine.begin() as connection:
            check_encoding((await connection.execute(text("SHOW server_encoding"))).scalar_one())
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            await connection.run_sync(_upgrade)
            found = (await connection.execute(text(SQL["cell"]))).one_or_none()
            if found is None:
                await connection.execute(_NAME_CELL, {"name": cell, "partitions": partitions})
                await connection.execute(_ADD_PARTITIONS, {"held": range(partitions) if held is None else held})
    except (OSError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, StoreFault) as error:
        raise StoreFault(f"cannot migrate: {error}") from error
    finally:
        await engine.dispose()
    if found is not None:
        check_cell(found.name, found.partitions, cell, partitions)


_NAME_CELL = text("INSERT INTO cell (name, partitions) VALUES (:name, :partitions)")
_ADD_PARTITIONS = text("INSERT INTO partitions (partition) SELECT unnest(CAST(:held AS integer[]))")


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
