"""The orders of a contract by state: a page of a rare state does not read all others."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0025"
down_revision = "0024"

_SCHEMA = """
CREATE INDEX adl_orders_by_state ON adl_orders (symbol, state, adl);
"""


def upgrade() -> None:
    """Adds an index. An order's state changes once, and the index of open orders changes with it anyway."""
    run_script(op.get_bind(), _SCHEMA)
