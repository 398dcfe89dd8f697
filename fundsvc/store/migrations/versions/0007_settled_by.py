"""The message that settled a rejected event, so that a second copy of it is recognised as a duplicate."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0007"
down_revision = "0006"

_SCHEMA = "ALTER TABLE rejected ADD COLUMN settled_by text;"


def upgrade() -> None:
    """Adds the column; an engine of the previous version leaves it empty."""
    run_script(op.get_bind(), _SCHEMA)
