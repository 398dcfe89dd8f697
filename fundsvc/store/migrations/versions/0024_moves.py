"""The contracts that the last commits of each partition changed, so that a tail finds changed funds without reading all."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0024"
down_revision = "0023"

_SCHEMA = """
CREATE TABLE moves (
    partition integer NOT NULL,
    slot smallint NOT NULL,
    commit bigint NOT NULL,
    symbols text[],
    PRIMARY KEY (partition, slot)
) WITH (fillfactor = 50);
COMMENT ON TABLE moves IS 'A ring of the last commits of each partition. An index on funds.commit would prevent HOT updates.';
COMMENT ON COLUMN moves.slot IS 'The number of the commit modulo 128.';
COMMENT ON COLUMN moves.symbols IS 'The contracts whose funds the commit changed; NULL for very many.';
"""


def upgrade() -> None:
    """Adds a table. An engine of the previous version does not write it; then readers read all funds of its partitions."""
    run_script(op.get_bind(), _SCHEMA)
