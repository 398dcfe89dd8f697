"""Offsets inside a message, halted partitions, and gaps: messages that left a stream before they were settled."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0009"
down_revision = "0008"

_SCHEMA = """
ALTER TABLE partitions
    ADD COLUMN events integer NOT NULL DEFAULT 0,
    ADD COLUMN partial_id text NOT NULL DEFAULT '',
    ADD COLUMN halted text NOT NULL DEFAULT '';

CREATE TABLE stream_gaps (
    partition integer NOT NULL,
    after_id text NOT NULL,
    until_id text NOT NULL,
    messages bigint NOT NULL,
    found_at timestamptz NOT NULL DEFAULT now(),
    acknowledged_at timestamptz,
    PRIMARY KEY (partition, until_id)
);
GRANT SELECT, INSERT, UPDATE ON stream_gaps TO fundsvc_service;
"""


def upgrade() -> None:
    """Adds them; an engine of the previous version commits whole messages, and does not change the new columns."""
    run_script(op.get_bind(), _SCHEMA)
