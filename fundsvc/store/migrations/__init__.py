"""The schema as alembic revisions, each plain SQL; `migrate` brings a database up to the newest."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from fundsvc.store.database import StoreFault

_LOCK = 0x66756E64
"""An advisory lock number of our own: two that migrate at once wait for each other."""


async def migrate(owner_dsn: str, partitions: int) -> None:
    """Creates or upgrades the schema and the rows of the partitions, as the owner of the database.

    Raises ValueError when the database already has another number of partitions: contracts would change their stream.
    """
    engine = create_async_engine(owner_dsn.replace("postgresql://", "postgresql+asyncpg://", 1))
    try:
        async with engine.begin() as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            await connection.run_sync(_upgrade)
            await connection.execute(
                text("INSERT INTO partitions (partition) SELECT generate_series(0, :n - 1) ON CONFLICT DO NOTHING"),
                {"n": partitions},
            )
            found = (await connection.execute(text("SELECT count(*) FROM partitions"))).scalar_one()
    except (OSError, SQLAlchemyError) as error:
        raise StoreFault(f"cannot migrate: {error}") from error
    finally:
        await engine.dispose()
    if found != partitions:
        raise ValueError(f"the ledger has {found} partitions, the configuration says stream.partitions = {partitions}")


def run_script(connection: Connection, script: str) -> None:
    """Runs statements separated by semicolons, within the migration's transaction."""
    connection.connection.run_async(lambda driver: driver.execute(script))


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
