"""The commit that last changed a fund, so that a tail reads only changed funds."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0015"
down_revision = "0014"

_SCHEMA = """
ALTER TABLE partitions ADD COLUMN commits bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN partitions.commits IS 'How many commits moved the offset; an engine of before does not count its own.';
ALTER TABLE funds ADD COLUMN commit bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN funds.commit IS 'The commit of its partition that changed it last; 0 for one by an engine of before.';
"""


def upgrade() -> None:
    """Adds the columns. An engine of the previous version does not change them; then readers read all funds."""
    run_script(op.get_bind(), _SCHEMA)
