"""Checks of entries and funds that a statement prepares faster: PostgreSQL parses them for each commit."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0027"
down_revision = "0026"

_SCHEMA = """
-- A session compiles a function once, but parses the expression of a CHECK for every statement that writes.
CREATE FUNCTION entry_adds_up(
    kind text, entry bigint, seq bigint, change bigint, balance bigint, uncovered bigint, repaid bigint, lots bigint,
    price bigint, bankruptcy_price bigint, order_id text, closes bigint, forced boolean
) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    IF kind IN ('carry_out', 'carry_in') THEN
        RETURN lots = 0 AND price >= 0 AND closes = 0 AND NOT forced AND repaid = 0 AND uncovered = 0
            AND order_id LIKE 'carry/%'
            AND CASE kind WHEN 'carry_in' THEN seq >= 0 AND change > 0 ELSE seq > 0 AND change < 0 AND balance = 0 END;
    END IF;
    RETURN seq > 0 AND lots > 0
        AND (price > 0 OR price = 0 AND kind IN ('refund', 'cover', 'takeover', 'deleverage'))
        AND (closes = 0 OR closes > 0 AND closes < entry AND kind IN ('surplus', 'flat', 'shortfall', 'deleverage'))
        AND (NOT forced OR kind = 'takeover')
        AND CASE kind
            WHEN 'surplus' THEN change >= 0 AND change + repaid > 0 AND uncovered = 0
            WHEN 'flat' THEN change = 0 AND repaid = 0 AND uncovered = 0
            WHEN 'shortfall' THEN change <= 0 AND repaid = 0 AND uncovered >= 0 AND uncovered - change > 0
            WHEN 'refund' THEN change > 0 AND repaid = 0 AND uncovered = 0
            WHEN 'cover' THEN change < 0 AND repaid = -change AND uncovered = 0
            WHEN 'takeover' THEN change = 0 AND repaid = 0 AND uncovered = 0 AND price = bankruptcy_price
            WHEN 'deleverage' THEN change = 0 AND repaid = 0 AND uncovered = 0 AND price = bankruptcy_price
            ELSE false END;
END $$;
-- Existing entries satisfy the previous checks, so NOT VALID avoids a scan of the whole ledger.
ALTER TABLE entries
    DROP CONSTRAINT entries_entry_check,
    DROP CONSTRAINT entries_seq_check,
    DROP CONSTRAINT entries_check,
    DROP CONSTRAINT entries_repaid_check,
    DROP CONSTRAINT entries_lots_check,
    DROP CONSTRAINT entries_price_check,
    DROP CONSTRAINT entries_bankruptcy_price_check,
    DROP CONSTRAINT entries_ts_check,
    DROP CONSTRAINT entries_side_check,
    DROP CONSTRAINT entries_hash_check,
    DROP CONSTRAINT entries_seal_check,
    DROP CONSTRAINT entries_add_up,
    DROP CONSTRAINT entries_closes_check,
    DROP CONSTRAINT entries_forced_check,
    ADD CONSTRAINT entries_lots_check CHECK (lots >= 0) NOT VALID,
    ADD CONSTRAINT entries_check CHECK (
        entry > 0 AND balance >= 0 AND balance >= change AND repaid >= 0 AND bankruptcy_price >= 0 AND ts >= 0
        AND (side = 'sell' OR side = 'buy') AND octet_length(hash) = 32
        AND (octet_length(seal) = 36 AND account <> '' OR octet_length(seal) = 0)
    ) NOT VALID,
    -- The commonest entry needs no call of the function.
    ADD CONSTRAINT entries_add_up CHECK (
        kind = 'surplus' AND change >= 0 AND change + repaid > 0 AND uncovered = 0 AND seq > 0 AND lots > 0 AND price > 0
        AND closes = 0 AND NOT forced
        OR entry_adds_up(kind, entry, seq, change, balance, uncovered, repaid, lots, price, bankruptcy_price, order_id,
                         closes, forced)
    ) NOT VALID;
ALTER TABLE funds
    DROP CONSTRAINT funds_balance_check,
    DROP CONSTRAINT funds_outstanding_check,
    DROP CONSTRAINT funds_entry_check,
    DROP CONSTRAINT funds_seq_check,
    DROP CONSTRAINT funds_adl_check,
    DROP CONSTRAINT funds_head_check,
    DROP CONSTRAINT funds_adl_record_check,
    DROP CONSTRAINT funds_adl_head_check,
    ADD CONSTRAINT funds_check CHECK (
        least(balance, outstanding, entry, seq, adl, adl_record) >= 0
        AND octet_length(head) = 32 AND octet_length(adl_head) = 32
    );
"""


def upgrade() -> None:
    """Replaces constraints by equivalent ones. Engines of the previous version continue to work."""
    run_script(op.get_bind(), _SCHEMA)
