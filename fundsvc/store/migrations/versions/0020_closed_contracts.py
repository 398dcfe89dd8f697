"""Contracts close: by their settlement, or by a listing that ends them. A symbol may be used again."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0020"
down_revision = "0019"

_SCHEMA = """
CREATE FUNCTION public_symbol(key text) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN regexp_replace(key, '@[1-9][0-9]{0,8}$', '');
COMMENT ON FUNCTION public_symbol IS 'The symbol of a ledger key, which ends with @ and a number from generation 2 on.';

ALTER TABLE contracts
    ADD COLUMN name text COLLATE "C" GENERATED ALWAYS AS (regexp_replace(symbol, '@[1-9][0-9]{0,8}$', '')) STORED,
    ADD COLUMN generation integer
        GENERATED ALWAYS AS (coalesce(substring(symbol FROM '@([1-9][0-9]{0,8})$')::integer, 1)) STORED,
    ADD COLUMN status text COLLATE "C" GENERATED ALWAYS AS (specification ->> 'status') STORED,
    ADD COLUMN closed_at bigint CHECK (closed_at >= 0),
    ADD COLUMN closed_seq bigint NOT NULL DEFAULT 0 CHECK (closed_seq >= 0),
    ADD COLUMN closed_price bigint NOT NULL DEFAULT 0 CHECK (closed_price >= 0),
    ADD CONSTRAINT contracts_closed_by_settlement
        CHECK ((closed_seq > 0) = (closed_price > 0) AND (closed_at IS NOT NULL OR closed_seq = 0));
COMMENT ON COLUMN contracts.closed_at IS
    'The time (ms) of the settlement by the engine''s clock, or of the closing listing in the stream; NULL while it is open.';
COMMENT ON COLUMN contracts.closed_seq IS 'The sequence of the settlement; 0 if a listing closed the contract.';
COMMENT ON COLUMN contracts.name IS 'The symbol of the contract''s events; `symbol` is the ledger key.';
CREATE UNIQUE INDEX contracts_by_generation ON contracts (name, generation);
COMMENT ON COLUMN contracts.closed_price IS 'The settlement price in units of 10**-price_decimals; 0 without a settlement.';
"""


def upgrade() -> None:
    """Adds columns. Engines of the previous version continue to work, and reject settlements as unknown events."""
    run_script(op.get_bind(), _SCHEMA)
