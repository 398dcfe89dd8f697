"""Rates: what one unit of a currency is worth in USDT, by the last `rate` event of each partition's stream."""

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

GRANT SELECT, INSERT, UPDATE ON rates TO fundsvc_service;
"""


def upgrade() -> None:
    """Adds the rates: each partition has its own, so that no two owners write one row."""
    run_script(op.get_bind(), _SCHEMA)
