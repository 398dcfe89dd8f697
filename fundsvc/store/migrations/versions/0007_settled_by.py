"""Which message had a rejected event settled: sent a second time, it is told from the one that counted."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0007"
down_revision = "0006"

_SCHEMA = "ALTER TABLE rejected ADD COLUMN settled_by text;"


def upgrade() -> None:
    """Adds the column; an engine of before leaves it empty."""
    run_script(op.get_bind(), _SCHEMA)
