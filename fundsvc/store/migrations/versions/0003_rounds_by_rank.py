"""Rounds by rank: pages of what a round asked, however many it asked."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0003"
down_revision = "0002"

_SCHEMA = "ALTER TABLE adl_allocations ADD CONSTRAINT adl_allocations_by_rank UNIQUE (symbol, adl, round, rank);"


def upgrade() -> None:
    """Nobody shares a rank."""
    run_script(op.get_bind(), _SCHEMA)
