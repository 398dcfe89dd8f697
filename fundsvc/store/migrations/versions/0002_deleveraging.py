"""ADL: rounds and allocations of orders, stored books, drawdown guards, and the entry kind `cover`."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0002"
down_revision = "0001"

_SCHEMA = """
ALTER TABLE adl_orders
    DROP COLUMN rounds,
    ADD COLUMN deficit bigint CHECK (deficit >= uncovered),
    ADD COLUMN deficit_lots bigint CHECK (deficit_lots >= lots),
    ADD COLUMN executed bigint NOT NULL DEFAULT 0 CHECK (executed BETWEEN 0 AND lots),
    ADD COLUMN round integer NOT NULL DEFAULT 1 CHECK (round > 0),
    ADD COLUMN ts bigint,
    ADD COLUMN seq bigint;
UPDATE adl_orders o SET deficit = e.uncovered - e.change, deficit_lots = e.lots, ts = e.ts, seq = e.seq
FROM entries e WHERE e.symbol = o.symbol AND e.entry = o.cause;
ALTER TABLE adl_orders
    ALTER COLUMN deficit SET NOT NULL,
    ALTER COLUMN deficit_lots SET NOT NULL,
    ALTER COLUMN ts SET NOT NULL,
    ALTER COLUMN seq SET NOT NULL,
    ADD CHECK ((state = 'done') = (executed = lots)),
    ADD CHECK (recovered = least(uncovered, div(deficit::numeric * executed, deficit_lots::numeric)));
CREATE INDEX adl_orders_open ON adl_orders (symbol) WHERE state = 'open';

CREATE TABLE adl_allocations (
    symbol text COLLATE "C" NOT NULL,
    adl bigint NOT NULL,
    round integer NOT NULL CHECK (round > 0),
    account text NOT NULL,
    side text NOT NULL CHECK (side IN ('long', 'short')),
    lots bigint NOT NULL CHECK (lots > 0),
    entry_price bigint NOT NULL CHECK (entry_price > 0),
    margin bigint NOT NULL CHECK (margin >= 0),
    mark_price bigint NOT NULL CHECK (mark_price > 0),
    unrealised_pnl numeric NOT NULL,
    return_on_entry double precision NOT NULL,
    leverage double precision NOT NULL,
    score double precision NOT NULL,
    rank integer NOT NULL CHECK (rank > 0),
    ranked integer NOT NULL CHECK (ranked >= rank),
    lights smallint NOT NULL CHECK (lights BETWEEN 1 AND 5),
    asked bigint NOT NULL CHECK (asked BETWEEN 1 AND lots),
    executed bigint NOT NULL CHECK (executed BETWEEN 0 AND asked),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (symbol, adl, round, account)
);
CREATE INDEX adl_allocations_by_account ON adl_allocations (account, symbol, adl);

CREATE TABLE books (
    symbol text COLLATE "C" PRIMARY KEY,
    last_id text NOT NULL,
    seq bigint NOT NULL,
    mark bigint,
    body bytea,
    kept_at timestamptz NOT NULL DEFAULT now()
);

ALTER TABLE funds ADD COLUMN guard json;

ALTER TABLE entries DROP CONSTRAINT entries_check1;
ALTER TABLE entries ADD CONSTRAINT entries_add_up CHECK (CASE kind
    WHEN 'surplus' THEN change >= 0 AND change + repaid > 0 AND uncovered = 0
    WHEN 'flat' THEN change = 0 AND repaid = 0 AND uncovered = 0
    WHEN 'shortfall' THEN change <= 0 AND repaid = 0 AND uncovered >= 0 AND uncovered - change > 0
    WHEN 'refund' THEN change > 0 AND repaid = 0 AND uncovered = 0
    WHEN 'cover' THEN change < 0 AND repaid = -change AND uncovered = 0
    ELSE false END) NOT VALID;
ALTER TABLE entries VALIDATE CONSTRAINT entries_add_up;

GRANT SELECT, INSERT, UPDATE ON adl_allocations, books TO fundsvc_service;
"""


def upgrade() -> None:
    """Adds the tables and columns of ADL. Existing orders had one round without candidates."""
    run_script(op.get_bind(), _SCHEMA)
