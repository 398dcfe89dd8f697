"""What funds are valued by: rates to USDT by the last `rate` event of each partition's stream, and contracts' base currencies."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0004"
down_revision = "0003"

_SCHEMA = """
CREATE TABLE rates (
    partition integer NOT NULL,
    currency text COLLATE "C" NOT NULL,
    price bigint NOT NULL CHECK (price > 0),
    ts bigint NOT NULL CHECK (ts >= 0),
    PRIMARY KEY (partition, currency)
) WITH (fillfactor = 50);

ALTER TABLE contracts ADD COLUMN base_currency text GENERATED ALWAYS AS (specification ->> 'baseCurrency') STORED;

GRANT SELECT, INSERT, UPDATE ON rates TO fundsvc_service;
"""


def upgrade() -> None:
    """Adds the rates, each partition's its own so that no two owners write one row; and what the listings say of the base."""
    run_script(op.get_bind(), _SCHEMA)
