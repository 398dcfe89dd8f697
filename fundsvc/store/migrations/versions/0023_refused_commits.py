"""A commit that must not be written fails inside PostgreSQL, so that a single statement can be a whole transaction."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0023"
down_revision = "0022"

_SCHEMA = """
-- Engines recognise FS001; class 23 is that of values that the database rejects.
CREATE FUNCTION refuse_commit(is_ours boolean, unwritten text[]) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF NOT is_ours THEN
        RAISE EXCEPTION 'another engine moved the partition' USING ERRCODE = 'FS001';
    END IF;
    RAISE EXCEPTION 'the ledger has % in another partition, or in a later state than this engine: run fundsvc audit, and have'
        ' the database''s owner correct it', array_to_string(unwritten, ', ') USING ERRCODE = '23F01';
END $$;
"""


def upgrade() -> None:
    """Adds a function. Engines of the previous version continue to work, and check the commits themselves."""
    run_script(op.get_bind(), _SCHEMA)
