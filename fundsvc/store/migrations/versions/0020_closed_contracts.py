"""Contracts close: by their settlement, or by a listing that ends them."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0020"
down_revision = "0019"

_SCHEMA = """
ALTER TABLE contracts
    ADD COLUMN status text COLLATE "C" GENERATED ALWAYS AS (specification ->> 'status') STORED,
    ADD COLUMN closed_at bigint CHECK (closed_at >= 0),
    ADD COLUMN closed_seq bigint NOT NULL DEFAULT 0 CHECK (closed_seq >= 0),
    ADD COLUMN closed_price bigint NOT NULL DEFAULT 0 CHECK (closed_price >= 0),
    ADD CONSTRAINT contracts_closed_by_settlement
        CHECK ((closed_seq > 0) = (closed_price > 0) AND (closed_at IS NOT NULL OR closed_seq = 0));
COMMENT ON COLUMN contracts.closed_at IS
    'The time (ms) of the settlement by the engine''s clock, or of the closing listing in the stream; NULL while it is open.';
COMMENT ON COLUMN contracts.closed_seq IS 'The sequence of the settlement; 0 if a listing closed the contract.';
COMMENT ON COLUMN contracts.closed_price IS 'The settlement price in units of 10**-price_decimals; 0 without a settlement.';
"""


def upgrade() -> None:
    """Adds columns. Engines of the previous version continue to work, and reject settlements as unknown events."""
    run_script(op.get_bind(), _SCHEMA)
