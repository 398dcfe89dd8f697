"""Valuation of funds: rates by the last `rate` event of each stream, base currencies, and an index to past balances."""

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

CREATE INDEX rollups_by_entry ON rollups (symbol, first_entry) INCLUDE (hour);

GRANT SELECT, INSERT, UPDATE ON rates TO fundsvc_service;
"""


def upgrade() -> None:
    """Adds rates by partition, so that no two owners write one row, the base currency of listings, and an index of hours by
    entry, which later condensing of an hour does not move.
    """
    run_script(op.get_bind(), _SCHEMA)
