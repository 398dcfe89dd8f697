"""The progress of the background audit, so that it continues after a restart or under another owner."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0006"
down_revision = "0005"

_SCHEMA = """
CREATE TABLE audit_progress (
    symbol text COLLATE "C" NOT NULL,
    walk text NOT NULL CHECK (walk IN ('full', 'newest')),
    entry bigint NOT NULL DEFAULT 0 CHECK (entry >= 0),
    seq bigint NOT NULL DEFAULT 0,
    balance bigint NOT NULL DEFAULT 0,
    uncovered numeric NOT NULL DEFAULT 0,
    repaid numeric NOT NULL DEFAULT 0,
    head bytea NOT NULL DEFAULT decode(repeat('00', 32), 'hex') CHECK (octet_length(head) = 32),
    good boolean NOT NULL,
    verified_at timestamptz,
    PRIMARY KEY (symbol, walk)
) WITH (fillfactor = 50);

GRANT SELECT, INSERT, UPDATE ON audit_progress TO fundsvc_service;
"""


def upgrade() -> None:
    """Adds the table; an engine of the previous version does not use it."""
    run_script(op.get_bind(), _SCHEMA)
