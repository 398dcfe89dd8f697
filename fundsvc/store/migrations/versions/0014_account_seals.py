"""Seals of accounts: the hash of an entry covers a commitment to the account."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0014"
down_revision = "0013"

_SCHEMA = """
ALTER TABLE entries ADD COLUMN seal bytea NOT NULL DEFAULT '';
COMMENT ON COLUMN entries.seal IS
    'What is hashed in the place of the account: the id of the ledger secret (4 bytes) and the commitment (32); or nothing.';
-- Existing entries have no seal, so NOT VALID avoids a scan of the whole ledger.
ALTER TABLE entries ADD CONSTRAINT entries_seal_check
    CHECK (octet_length(seal) = 0 OR octet_length(seal) = 36 AND account <> '') NOT VALID;
"""


def upgrade() -> None:
    """Adds a column. Engines of the previous version continue to work, and write entries without seals."""
    run_script(op.get_bind(), _SCHEMA)
