"""The fund holds positions: entries that take lots over or close them, ADL orders for lots, and the inventory."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0018"
down_revision = "0017"

_SCHEMA = """
ALTER TABLE entries
    ADD COLUMN closes bigint NOT NULL DEFAULT 0,
    ADD COLUMN forced boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN entries.closes IS 'The takeover entry whose tranche the entry reduces; 0 for none.';
COMMENT ON COLUMN entries.forced IS 'Whether the fund took lots over because no position was left for ADL.';
-- Existing entries satisfy the previous checks and have neither, so NOT VALID avoids a scan of the whole ledger.
ALTER TABLE entries DROP CONSTRAINT entries_price_check;
ALTER TABLE entries ADD CONSTRAINT entries_price_check
    CHECK (price > 0 OR price = 0 AND kind IN ('refund', 'cover', 'takeover', 'deleverage')) NOT VALID;
ALTER TABLE entries DROP CONSTRAINT entries_add_up;
ALTER TABLE entries ADD CONSTRAINT entries_add_up CHECK (CASE kind
    WHEN 'surplus' THEN change >= 0 AND change + repaid > 0 AND uncovered = 0
    WHEN 'flat' THEN change = 0 AND repaid = 0 AND uncovered = 0
    WHEN 'shortfall' THEN change <= 0 AND repaid = 0 AND uncovered >= 0 AND uncovered - change > 0
    WHEN 'refund' THEN change > 0 AND repaid = 0 AND uncovered = 0
    WHEN 'cover' THEN change < 0 AND repaid = -change AND uncovered = 0
    WHEN 'takeover' THEN change = 0 AND repaid = 0 AND uncovered = 0 AND price = bankruptcy_price
    WHEN 'deleverage' THEN change = 0 AND repaid = 0 AND uncovered = 0 AND price = bankruptcy_price
    ELSE false END) NOT VALID;
ALTER TABLE entries ADD CONSTRAINT entries_closes_check
    CHECK (closes = 0 OR closes > 0 AND closes < entry AND kind IN ('surplus', 'flat', 'shortfall', 'deleverage')) NOT VALID;
ALTER TABLE entries ADD CONSTRAINT entries_forced_check CHECK (NOT forced OR kind = 'takeover') NOT VALID;

ALTER TABLE adl_orders
    ADD COLUMN origin text COLLATE "C" NOT NULL DEFAULT 'shortfall' CHECK (origin IN ('shortfall', 'takeover', 'inventory')),
    ADD COLUMN unwound bigint NOT NULL DEFAULT 0,
    DROP CONSTRAINT adl_orders_symbol_cause_key,
    DROP CONSTRAINT adl_orders_uncovered_check,
    DROP CONSTRAINT adl_orders_state_check,
    ADD CONSTRAINT adl_orders_uncovered_check CHECK (uncovered >= 0 AND (origin = 'shortfall') = (uncovered > 0)),
    ADD CONSTRAINT adl_orders_state_check CHECK (state IN ('open', 'done')
        OR state = 'uncovered' AND origin = 'shortfall' OR state = 'returned' AND origin <> 'shortfall'),
    ADD CONSTRAINT adl_orders_unwound_check
        CHECK (unwound = 0 OR unwound > 0 AND origin = 'inventory' AND executed + unwound <= lots);
COMMENT ON COLUMN adl_orders.unwound IS 'Lots of an inventory order that the market took before ADL.';
CREATE UNIQUE INDEX adl_orders_by_shortfall ON adl_orders (symbol, cause) WHERE origin = 'shortfall';

ALTER TABLE adl_records DROP CONSTRAINT adl_records_kind_check;
ALTER TABLE adl_records ADD CONSTRAINT adl_records_kind_check
    CHECK (kind IN ('order', 'round', 'part', 'execution', 'unwind', 'end')) NOT VALID;
ALTER TABLE adl_records DROP CONSTRAINT adl_records_check1;
ALTER TABLE adl_records ADD CONSTRAINT adl_records_ranks_check
    CHECK ((first_rank IS NULL) = (kind IN ('execution', 'unwind', 'end'))) NOT VALID;

ALTER TABLE books ADD COLUMN mark_ts_max bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN books.mark_ts_max IS 'The latest time (ms) of all marks; an older mark relieves no inventory.';

CREATE TABLE tranches (
    symbol text COLLATE "C" NOT NULL,
    entry bigint NOT NULL,
    side text COLLATE "C" NOT NULL CHECK (side IN ('long', 'short')),
    lots bigint NOT NULL CHECK (lots > 0),
    price bigint NOT NULL CHECK (price >= 0),
    ts bigint NOT NULL CHECK (ts >= 0),
    forced boolean NOT NULL,
    PRIMARY KEY (symbol, entry),
    FOREIGN KEY (symbol, entry) REFERENCES entries
) WITH (fillfactor = 70);
COMMENT ON TABLE tranches IS 'The lots that are left of each takeover entry. The entries contain the same.';

CREATE TABLE holdings (
    symbol text COLLATE "C" NOT NULL REFERENCES funds,
    side text COLLATE "C" NOT NULL CHECK (side IN ('long', 'short')),
    taken numeric NOT NULL,
    unwound numeric NOT NULL CHECK (unwound >= 0),
    deleveraged numeric NOT NULL CHECK (deleveraged >= 0),
    held bigint NOT NULL CHECK (held >= 0),
    in_orders bigint NOT NULL CHECK (in_orders >= 0),
    returned_ts bigint,
    PRIMARY KEY (symbol, side),
    CONSTRAINT holdings_no_lot_is_lost CHECK (taken = unwound + deleveraged + held + in_orders)
) WITH (fillfactor = 50);
COMMENT ON TABLE holdings IS 'The lots of each side of a contract''s inventory since its first takeover.';
COMMENT ON COLUMN holdings.in_orders IS 'Lots of open takeover orders, which the fund does not hold.';
COMMENT ON COLUMN holdings.returned_ts IS 'The time (ms) of the last order that ended because no position was left to reduce.';
"""


def upgrade() -> None:
    """Adds columns and tables, and relaxes checks. Engines of the previous version continue to work, without takeovers."""
    run_script(op.get_bind(), _SCHEMA)
