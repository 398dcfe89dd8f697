"""Money rules: zero bankruptcy prices, contracts with terms in doubt, content of rejected events, recorded policies."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0010"
down_revision = "0009"

_SCHEMA = """
-- Every row satisfies the previous, stricter checks, so NOT VALID avoids a scan of the whole ledger.
ALTER TABLE entries DROP CONSTRAINT entries_bankruptcy_price_check;
ALTER TABLE entries ADD CONSTRAINT entries_bankruptcy_price_check CHECK (bankruptcy_price >= 0) NOT VALID;
ALTER TABLE adl_orders DROP CONSTRAINT adl_orders_price_check;
ALTER TABLE adl_orders ADD CONSTRAINT adl_orders_price_check CHECK (price >= 0);

ALTER TABLE contracts
    ADD COLUMN suspended boolean NOT NULL DEFAULT false,
    ADD COLUMN is_quanto boolean NOT NULL GENERATED ALWAYS AS (NOT is_inverse AND CASE
        WHEN specification ->> 'quoteCurrency' IS NULL THEN coalesce(specification ->> 'isQuanto', '') = 'true'
        ELSE settle_currency NOT IN (specification ->> 'quoteCurrency', coalesce(specification ->> 'baseCurrency', ''))
        END) STORED;

ALTER TABLE rejected
    ADD COLUMN event_symbol text COLLATE "C",
    ADD COLUMN event_seq bigint,
    ADD COLUMN digest bytea;
CREATE INDEX rejected_by_sequence ON rejected (event_symbol, event_seq) WHERE event_seq IS NOT NULL;

CREATE INDEX adl_records_by_sequence ON adl_records (symbol, seq) WHERE seq > 0 AND kind IN ('execution', 'round', 'end');

CREATE TABLE policies (
    partition integer NOT NULL,
    version integer NOT NULL CHECK (version > 0),
    body json NOT NULL,
    stream_id text NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (partition, version)
);
CREATE TRIGGER policies_are_append_only BEFORE UPDATE OR DELETE ON policies
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
GRANT SELECT, INSERT ON policies TO fundsvc_service;
"""


def upgrade() -> None:
    """Adds columns and a table, and relaxes two checks. Engines of the previous version continue to work."""
    run_script(op.get_bind(), _SCHEMA)
