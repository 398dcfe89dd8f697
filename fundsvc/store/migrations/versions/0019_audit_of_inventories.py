"""The audit's walks remember the tranches at their checkpoints, and takeover orders are found by their sequences."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0019"
down_revision = "0018"

_SCHEMA = """
CREATE TABLE audit_tranches (
    symbol text COLLATE "C" NOT NULL,
    walk text NOT NULL,
    entry bigint NOT NULL,
    lots bigint NOT NULL CHECK (lots > 0),
    PRIMARY KEY (symbol, walk, entry),
    FOREIGN KEY (symbol, walk) REFERENCES audit_progress
) WITH (fillfactor = 70);
COMMENT ON TABLE audit_tranches IS 'The lots that are left of each takeover entry at the checkpoint of a walk of the audit.';

CREATE INDEX adl_orders_by_cause ON adl_orders (symbol, cause);
-- The ADL record that begins an order has the sequence of its event.
CREATE INDEX adl_records_by_beginning ON adl_records (symbol, seq) WHERE seq > 0 AND kind = 'order';
"""


def upgrade() -> None:
    """Adds the table and two indexes. Engines of the previous version continue to work, without takeovers."""
    run_script(op.get_bind(), _SCHEMA)
