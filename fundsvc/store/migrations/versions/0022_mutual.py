"""The mutual: pools with terms, accounts, policies, cycles and append-only entries. No table refers to one of the reserve."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0022"
down_revision = "0021"

_SCHEMA = """
CREATE TABLE mutual_pools (
    pool text COLLATE "C" PRIMARY KEY,
    home integer NOT NULL CHECK (home >= 0),
    balance bigint NOT NULL DEFAULT 0 CHECK (balance >= 0),
    fees bigint NOT NULL DEFAULT 0 CHECK (fees >= 0),
    inflow bigint NOT NULL DEFAULT 0 CHECK (inflow >= 0),
    released bigint NOT NULL DEFAULT 0 CHECK (released >= 0),
    settled bigint NOT NULL DEFAULT 0 CHECK (settled <= released),
    paid_out bigint NOT NULL DEFAULT 0 CHECK (paid_out BETWEEN 0 AND settled),
    share_index numeric NOT NULL DEFAULT 0 CHECK (share_index >= 0),
    weight numeric NOT NULL DEFAULT 0 CHECK (weight >= 0),
    rem numeric NOT NULL DEFAULT 0 CHECK (rem >= 0),
    time bigint NOT NULL DEFAULT 0 CHECK (time >= 0),
    next_cutoff bigint NOT NULL DEFAULT 0 CHECK (next_cutoff >= 0),
    cycle bigint NOT NULL DEFAULT 0 CHECK (cycle >= 0),
    policies bigint NOT NULL DEFAULT 0 CHECK (policies >= 0),
    seq bigint NOT NULL DEFAULT 0 CHECK (seq >= 0),
    entry bigint NOT NULL DEFAULT 0 CHECK (entry >= 0),
    head bytea NOT NULL DEFAULT decode(repeat('00', 32), 'hex') CHECK (octet_length(head) = 32),
    terms integer NOT NULL DEFAULT 1 CHECK (terms > 0),
    accounts bigint NOT NULL DEFAULT 0 CHECK (accounts >= 0),
    live bigint NOT NULL DEFAULT 0 CHECK (live BETWEEN 0 AND policies),
    active bigint NOT NULL DEFAULT 0 CHECK (active BETWEEN 0 AND live),
    caps_left numeric NOT NULL DEFAULT 0,
    duplicates bigint NOT NULL DEFAULT 0,
    last_id text NOT NULL DEFAULT '0-0',
    messages bigint NOT NULL DEFAULT 0,
    events integer NOT NULL DEFAULT 0,
    partial_id text NOT NULL DEFAULT '',
    halted text NOT NULL DEFAULT '',
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT mutual_pools_no_money_is_lost CHECK (inflow = released + balance)
) WITH (fillfactor = 20);
COMMENT ON TABLE mutual_pools IS 'The state of each pool, and its offset in its stream.';
COMMENT ON COLUMN mutual_pools.home IS 'The partition whose owner settles the pool. It decides ownership and nothing else.';
COMMENT ON COLUMN mutual_pools.caps_left IS 'The most that the active policies can still accrue, in atoms.';

CREATE TABLE mutual_terms (
    pool text COLLATE "C" NOT NULL REFERENCES mutual_pools,
    version integer NOT NULL CHECK (version > 0),
    rules json NOT NULL,
    entry bigint NOT NULL CHECK (entry > 0),
    recorded_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pool, version)
);
COMMENT ON COLUMN mutual_terms.entry IS 'Entries from this one on have this version or a later one.';

CREATE TABLE mutual_accounts (
    pool text COLLATE "C" NOT NULL REFERENCES mutual_pools,
    number bigint NOT NULL CHECK (number >= 0),
    account text COLLATE "C" NOT NULL,
    balance bigint NOT NULL CHECK (balance >= 0),
    arrears bigint NOT NULL CHECK (arrears >= 0),
    payable bigint NOT NULL CHECK (payable >= 0),
    paid_out bigint NOT NULL CHECK (paid_out >= 0),
    accumulated bigint NOT NULL CHECK (accumulated >= 0),
    enabled boolean NOT NULL,
    unfunded boolean NOT NULL,
    cover bigint[] NOT NULL,
    day bigint NOT NULL,
    profits bigint NOT NULL CHECK (profits >= 0),
    activity bigint[] NOT NULL,
    unfit_since bigint NOT NULL CHECK (unfit_since >= 0),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pool, account),
    UNIQUE (pool, number)
) WITH (fillfactor = 70);
COMMENT ON COLUMN mutual_accounts.number IS 'Accounts of a pool count from 0 in the order of their first event.';
COMMENT ON COLUMN mutual_accounts.cover IS 'Times (ms) at which cover begins and ends, in turn.';
CREATE INDEX mutual_accounts_by_name ON mutual_accounts (account);
CREATE INDEX mutual_accounts_unfunded ON mutual_accounts (pool) WHERE unfunded;

CREATE TABLE mutual_policies (
    pool text COLLATE "C" NOT NULL REFERENCES mutual_pools,
    policy bigint NOT NULL CHECK (policy > 0),
    account text COLLATE "C" NOT NULL,
    state smallint NOT NULL CHECK (state BETWEEN 0 AND 5),
    terms integer NOT NULL CHECK (terms > 0),
    face bigint NOT NULL CHECK (face > 0),
    cap bigint NOT NULL CHECK (cap > 0),
    issued_at bigint NOT NULL CHECK (issued_at >= 0),
    active_at bigint NOT NULL CHECK (active_at >= issued_at),
    expires_at bigint NOT NULL CHECK (expires_at >= issued_at),
    paid bigint NOT NULL CHECK (paid BETWEEN 0 AND cap),
    moved bigint NOT NULL CHECK (moved BETWEEN 0 AND paid),
    entered numeric NOT NULL CHECK (entered >= 0),
    PRIMARY KEY (pool, policy),
    CONSTRAINT mutual_policies_only_active_ones_share CHECK (state = 1 OR moved = 0 AND entered = 0)
) WITH (fillfactor = 70);
COMMENT ON COLUMN mutual_policies.state IS '0 waiting, 1 active, 2 frozen, 3 completed, 4 expired, 5 cancelled.';
COMMENT ON COLUMN mutual_policies.entered IS 'The index at which an active policy entered the distribution.';
CREATE INDEX mutual_policies_by_account ON mutual_policies (pool, account, policy);
CREATE INDEX mutual_policies_live ON mutual_policies (pool, account, policy) WHERE state <= 2;
CREATE INDEX mutual_policies_issued ON mutual_policies (pool, issued_at) INCLUDE (face);

CREATE TABLE mutual_cycles (
    pool text COLLATE "C" NOT NULL REFERENCES mutual_pools,
    cycle bigint NOT NULL CHECK (cycle > 0),
    at bigint NOT NULL,
    balance bigint NOT NULL CHECK (balance >= 0),
    caps_left numeric NOT NULL,
    rate integer NOT NULL CHECK (rate BETWEEN 0 AND 1000000),
    budget bigint NOT NULL CHECK (budget >= 0),
    returned bigint NOT NULL CHECK (returned >= 0),
    weight numeric NOT NULL,
    completed bigint NOT NULL CHECK (completed >= 0),
    share_index numeric NOT NULL,
    rem numeric NOT NULL,
    terms integer NOT NULL,
    entry bigint NOT NULL CHECK (entry > 0),
    PRIMARY KEY (pool, cycle)
);
COMMENT ON COLUMN mutual_cycles.balance IS 'The balance of the pool before the cut-off.';

CREATE TABLE mutual_entries (
    pool text COLLATE "C" NOT NULL,
    entry bigint NOT NULL CHECK (entry > 0),
    seq bigint NOT NULL CHECK (seq >= 0),
    ts bigint NOT NULL CHECK (ts >= 0),
    policy bigint NOT NULL CHECK (policy >= 0),
    amount bigint NOT NULL,
    balance bigint NOT NULL CHECK (balance >= 0),
    profits bigint NOT NULL CHECK (profits >= 0),
    recorded_at timestamptz NOT NULL DEFAULT now(),
    terms integer NOT NULL,
    kind text COLLATE "C" NOT NULL,
    account text COLLATE "C" NOT NULL,
    seal bytea NOT NULL,
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (pool, entry),
    CONSTRAINT mutual_entries_add_up CHECK (CASE kind
        WHEN 'transfer' THEN amount <> 0 AND policy = 0
        WHEN 'topUp' THEN amount > 0 AND account = '' AND policy = 0
        WHEN 'loss' THEN amount > 0 AND policy = 0
        WHEN 'issue' THEN amount > 0 AND policy > 0
        WHEN 'premium' THEN amount >= 0 AND policy = 0
        WHEN 'payout' THEN amount > 0 AND policy = 0
        WHEN 'cycle' THEN account = '' AND policy = 0
        WHEN 'covered' THEN amount = 0 AND policy = 0
        WHEN 'uncovered' THEN amount = 0 AND policy = 0
        WHEN 'activate' THEN amount = 0 AND policy > 0
        WHEN 'thaw' THEN amount = 0 AND policy > 0
        WHEN 'freeze' THEN amount >= 0 AND policy > 0
        WHEN 'expire' THEN amount >= 0 AND policy > 0
        WHEN 'cancel' THEN amount >= 0 AND policy > 0
        WHEN 'complete' THEN amount >= 0 AND policy > 0
        ELSE false END)
);
CREATE INDEX mutual_entries_by_account ON mutual_entries (pool, account, entry) WHERE account <> '';

CREATE TRIGGER mutual_entries_are_append_only BEFORE UPDATE OR DELETE ON mutual_entries
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER mutual_entries_are_never_emptied BEFORE TRUNCATE ON mutual_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER mutual_cycles_are_append_only BEFORE UPDATE OR DELETE ON mutual_cycles
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER mutual_cycles_are_never_emptied BEFORE TRUNCATE ON mutual_cycles
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER mutual_terms_are_append_only BEFORE UPDATE OR DELETE ON mutual_terms
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

CREATE TABLE mutual_rejected (
    pool text COLLATE "C" NOT NULL,
    stream_id text NOT NULL,
    position integer NOT NULL,
    reason text NOT NULL,
    detail text NOT NULL,
    codec text NOT NULL,
    body bytea NOT NULL,
    event_seq bigint,
    digest bytea,
    rejected_at timestamptz NOT NULL DEFAULT now(),
    replayed_at timestamptz,
    settled_at timestamptz,
    settled_by text,
    PRIMARY KEY (pool, stream_id, position)
);
COMMENT ON COLUMN mutual_rejected.settled_by IS 'The message that applied the event, or another one with its sequence, later.';
CREATE INDEX mutual_rejected_open ON mutual_rejected (pool, event_seq) WHERE settled_at IS NULL AND event_seq IS NOT NULL;

CREATE TABLE mutual_gaps (
    pool text COLLATE "C" NOT NULL,
    after_id text NOT NULL,
    until_id text NOT NULL,
    messages bigint NOT NULL,
    found_at timestamptz NOT NULL DEFAULT now(),
    acknowledged_at timestamptz,
    PRIMARY KEY (pool, until_id)
);
COMMENT ON TABLE mutual_gaps IS 'Messages that left the stream of a pool before they were settled.';
"""


def upgrade() -> None:
    """Adds the tables. Engines of the previous version continue to work, without pools."""
    run_script(op.get_bind(), _SCHEMA)
