"""Messages up to which streams were settled, so that a stream that lost its tail is not read from its start."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0030"
down_revision = "0029"

_SCHEMA = """
CREATE TABLE stream_checkpoints (
    partition integer NOT NULL,
    pool text COLLATE "C" NOT NULL,
    last_id text NOT NULL,
    messages bigint NOT NULL CHECK (messages >= 0),
    fingerprint bytea NOT NULL,
    stored_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (partition, pool, last_id)
);
COMMENT ON TABLE stream_checkpoints IS 'Messages up to which each stream was settled at some moments, the fewer the older.';
COMMENT ON COLUMN stream_checkpoints.pool IS 'The pool whose stream it is; empty for the events of the partition.';
COMMENT ON COLUMN stream_checkpoints.messages IS 'The number of messages that the stream ever had up to this one.';
"""


def upgrade() -> None:
    """Adds a table. An engine of the previous version does not write it; it reads a stream without its tail from the start."""
    run_script(op.get_bind(), _SCHEMA)
