"""Rounds by rank: an index for pages of large rounds."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0003"
down_revision = "0002"

_SCHEMA = "ALTER TABLE adl_allocations ADD CONSTRAINT adl_allocations_by_rank UNIQUE (symbol, adl, round, rank);"


def upgrade() -> None:
    """Makes ranks unique within a round."""
    run_script(op.get_bind(), _SCHEMA)
