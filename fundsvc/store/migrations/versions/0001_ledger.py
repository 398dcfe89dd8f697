"""The ledger: contracts, funds, append-only entries, ADL orders, rejected events, partitions and their leases, rollups."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0001"
down_revision = None

_SCHEMA = """
CREATE TABLE contracts (
    symbol text COLLATE "C" PRIMARY KEY,
    partition integer NOT NULL,
    settle_currency text NOT NULL,
    settle_decimals smallint NOT NULL CHECK (settle_decimals BETWEEN 0 AND 18),
    price_decimals smallint NOT NULL CHECK (price_decimals BETWEEN 0 AND 12),
    multiplier numeric NOT NULL CHECK (multiplier > 0),
    is_inverse boolean NOT NULL,
    specification json NOT NULL,
    listed_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE funds (
    symbol text COLLATE "C" PRIMARY KEY REFERENCES contracts,
    balance bigint NOT NULL CHECK (balance >= 0),
    outstanding bigint NOT NULL CHECK (outstanding >= 0),
    entry bigint NOT NULL CHECK (entry >= 0),
    seq bigint NOT NULL CHECK (seq >= 0),
    adl bigint NOT NULL CHECK (adl >= 0),
    head bytea NOT NULL CHECK (octet_length(head) = 32),
    updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

CREATE TABLE entries (
    symbol text COLLATE "C" NOT NULL,
    entry bigint NOT NULL CHECK (entry > 0),
    seq bigint NOT NULL CHECK (seq > 0),
    change bigint NOT NULL,
    balance bigint NOT NULL CHECK (balance >= 0 AND balance >= change),
    uncovered bigint NOT NULL,
    repaid bigint NOT NULL CHECK (repaid >= 0),
    lots bigint NOT NULL CHECK (lots > 0),
    price bigint NOT NULL CHECK (price > 0),
    bankruptcy_price bigint NOT NULL CHECK (bankruptcy_price > 0),
    ts bigint NOT NULL CHECK (ts >= 0),
    recorded_at timestamptz NOT NULL DEFAULT now(),
    kind text COLLATE "C" NOT NULL,
    side text COLLATE "C" NOT NULL CHECK (side IN ('sell', 'buy')),
    trade_id text NOT NULL,
    order_id text NOT NULL,
    account text NOT NULL,
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (symbol, entry),
    CHECK (CASE kind
        WHEN 'surplus' THEN change >= 0 AND change + repaid > 0 AND uncovered = 0
        WHEN 'flat' THEN change = 0 AND repaid = 0 AND uncovered = 0
        WHEN 'shortfall' THEN change <= 0 AND repaid = 0 AND uncovered >= 0 AND uncovered - change > 0
        WHEN 'refund' THEN change >= 0 AND change + repaid > 0 AND uncovered = 0
        ELSE false END)
);
CREATE INDEX entries_by_kind ON entries (symbol, kind, entry) WHERE kind <> 'surplus';

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the ledger is append-only: % of % is refused', lower(TG_OP), TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER entries_are_append_only BEFORE UPDATE OR DELETE ON entries
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER entries_are_never_emptied BEFORE TRUNCATE ON entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TABLE adl_orders (
    symbol text COLLATE "C" NOT NULL,
    adl bigint NOT NULL CHECK (adl > 0),
    cause bigint NOT NULL,
    reduce text NOT NULL CHECK (reduce IN ('long', 'short')),
    lots bigint NOT NULL CHECK (lots > 0),
    price bigint NOT NULL CHECK (price > 0),
    uncovered bigint NOT NULL CHECK (uncovered > 0),
    recovered bigint NOT NULL CHECK (recovered BETWEEN 0 AND uncovered),
    state text NOT NULL CHECK (state IN ('open', 'done', 'uncovered')),
    rounds json NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (symbol, adl),
    UNIQUE (symbol, cause)
);

CREATE TABLE partitions (
    partition integer PRIMARY KEY CHECK (partition >= 0),
    epoch bigint NOT NULL DEFAULT 0,
    owner text,
    lease_until timestamptz,
    last_id text NOT NULL DEFAULT '0-0',
    messages bigint NOT NULL DEFAULT 0,
    duplicates bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 20);

CREATE TABLE engines (
    engine text PRIMARY KEY,
    since timestamptz NOT NULL,
    seen_at timestamptz NOT NULL
);

CREATE TABLE rejected (
    partition integer NOT NULL,
    stream_id text NOT NULL,
    position integer NOT NULL,
    reason text NOT NULL,
    detail text NOT NULL,
    codec text NOT NULL,
    body bytea NOT NULL,
    rejected_at timestamptz NOT NULL DEFAULT now(),
    replayed_at timestamptz,
    settled_at timestamptz,
    symbol text COLLATE "C",
    entry bigint,
    PRIMARY KEY (partition, stream_id, position)
);
CREATE INDEX rejected_by_entry ON rejected (symbol, entry) WHERE entry IS NOT NULL;

CREATE TABLE rollups (
    symbol text COLLATE "C" NOT NULL,
    hour bigint NOT NULL CHECK (hour % 3600000 = 0),
    first_entry bigint NOT NULL,
    last_entry bigint NOT NULL,
    opening bigint NOT NULL,
    highest bigint NOT NULL,
    lowest bigint NOT NULL,
    closing bigint NOT NULL,
    credited numeric NOT NULL,
    paid numeric NOT NULL,
    uncovered numeric NOT NULL,
    repaid numeric NOT NULL,
    fills bigint NOT NULL,
    PRIMARY KEY (symbol, hour)
);
CREATE TABLE rollup_progress (
    symbol text COLLATE "C" PRIMARY KEY,
    entry bigint NOT NULL
);
"""

_ROLE = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'fundsvc_service') THEN
        CREATE ROLE fundsvc_service NOLOGIN;
    END IF;
END $$;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO fundsvc_service;
GRANT INSERT ON entries TO fundsvc_service;
GRANT INSERT, UPDATE ON contracts, funds, adl_orders, rejected, engines, rollup_progress, rollups TO fundsvc_service;
GRANT UPDATE ON partitions TO fundsvc_service;
GRANT DELETE ON engines, rollup_progress, rollups TO fundsvc_service;
"""


def upgrade() -> None:
    """Creates the tables and the least-privileged role of the service."""
    run_script(op.get_bind(), _SCHEMA + _ROLE)
