"""A rejected sequence of a contract is settled late at most once."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0017"
down_revision = "0016"

# Only late entries have a row in `rejected`, so the index is small and the ledger is not scanned.
_SCHEMA = """
CREATE UNIQUE INDEX rejected_settled_once ON rejected (event_symbol, event_seq)
    WHERE entry IS NOT NULL AND event_seq IS NOT NULL;
"""


def upgrade() -> None:
    """Adds the index. Engines of the previous version continue to work: they never settle a sequence late twice."""
    run_script(op.get_bind(), _SCHEMA)
