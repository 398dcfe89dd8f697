"""The background audit's progress along ADL records: the outstanding amount there, and the expected next entries."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0011"
down_revision = "0010"

_SCHEMA = """
ALTER TABLE audit_progress
    ADD COLUMN outstanding bigint NOT NULL DEFAULT 0,
    ADD COLUMN recovered numeric NOT NULL DEFAULT 0,
    ADD COLUMN record bigint NOT NULL DEFAULT 0 CHECK (record >= 0),
    ADD COLUMN adl bigint NOT NULL DEFAULT 0 CHECK (adl >= 0),
    ADD COLUMN adl_head bytea NOT NULL DEFAULT decode(repeat('00', 32), 'hex') CHECK (octet_length(adl_head) = 32),
    ADD COLUMN state bytea;

UPDATE audit_progress SET entry = 0, seq = 0, balance = 0, uncovered = 0, repaid = 0, head = decode(repeat('00', 32), 'hex');
"""


def upgrade() -> None:
    """Adds the columns. Walks start again at entry 1, because the outstanding amount at their checkpoints is unknown."""
    run_script(op.get_bind(), _SCHEMA)
