"""The balance of a closed contract may move to its successor, by a pair of entries."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0021"
down_revision = "0020"

_SCHEMA = """
-- Existing entries satisfy the previous checks, so NOT VALID avoids a scan of the whole ledger.
ALTER TABLE entries DROP CONSTRAINT entries_seq_check;
ALTER TABLE entries ADD CONSTRAINT entries_seq_check CHECK (seq > 0 OR seq = 0 AND kind = 'carry_in') NOT VALID;
ALTER TABLE entries DROP CONSTRAINT entries_lots_check;
ALTER TABLE entries ADD CONSTRAINT entries_lots_check
    CHECK ((lots > 0) = (kind NOT IN ('carry_out', 'carry_in')) AND lots >= 0) NOT VALID;
ALTER TABLE entries DROP CONSTRAINT entries_price_check;
ALTER TABLE entries ADD CONSTRAINT entries_price_check
    CHECK (price > 0 OR price = 0 AND kind IN ('refund', 'cover', 'takeover', 'deleverage', 'carry_out', 'carry_in')) NOT VALID;
ALTER TABLE entries DROP CONSTRAINT entries_add_up;
ALTER TABLE entries ADD CONSTRAINT entries_add_up CHECK (CASE kind
    WHEN 'surplus' THEN change >= 0 AND change + repaid > 0 AND uncovered = 0
    WHEN 'flat' THEN change = 0 AND repaid = 0 AND uncovered = 0
    WHEN 'shortfall' THEN change <= 0 AND repaid = 0 AND uncovered >= 0 AND uncovered - change > 0
    WHEN 'refund' THEN change > 0 AND repaid = 0 AND uncovered = 0
    WHEN 'cover' THEN change < 0 AND repaid = -change AND uncovered = 0
    WHEN 'takeover' THEN change = 0 AND repaid = 0 AND uncovered = 0 AND price = bankruptcy_price
    WHEN 'deleverage' THEN change = 0 AND repaid = 0 AND uncovered = 0 AND price = bankruptcy_price
    WHEN 'carry_out' THEN change < 0 AND balance = 0 AND repaid = 0 AND uncovered = 0 AND order_id LIKE 'carry/%'
    WHEN 'carry_in' THEN change > 0 AND repaid = 0 AND uncovered = 0 AND order_id LIKE 'carry/%'
    ELSE false END) NOT VALID;

-- As before, but entries that move a balance count neither as fills nor as deficits.
CREATE OR REPLACE FUNCTION chart_hours(text, bigint, bigint, bigint) RETURNS TABLE (
    hour bigint, first_entry bigint, last_entry bigint, opening bigint, highest bigint, lowest bigint, closing bigint,
    credited numeric, paid numeric, uncovered numeric, repaid numeric, covered numeric, fills bigint,
    earliest bigint, latest bigint, clock bigint
) LANGUAGE sql STABLE AS $$
    SELECT h.hour, h.first_entry, h.last_entry, a.balance - a.change, h.highest, h.lowest, z.balance,
           h.credited, h.paid, h.uncovered, h.repaid, h.covered, h.fills, h.earliest, h.latest, h.clock
    FROM (
        SELECT t.clock - t.clock % 3600000 AS hour, min(t.entry) AS first_entry, max(t.entry) AS last_entry,
               max(greatest(t.balance, t.balance - t.change)) AS highest, min(least(t.balance, t.balance - t.change)) AS lowest,
               sum(greatest(t.change, 0)) AS credited, sum(greatest(-t.change, 0)) AS paid, sum(t.uncovered) AS uncovered,
               sum(t.repaid) AS repaid, coalesce(sum(-t.change) FILTER (WHERE t.kind IN ('cover', 'carry_out')), 0) AS covered,
               count(*) FILTER (WHERE t.kind NOT IN ('refund', 'cover', 'carry_out', 'carry_in')) AS fills,
               min(t.ts) AS earliest, max(t.ts) AS latest, max(t.clock) AS clock
        FROM (
            SELECT x.*, greatest($4, max(charted_at(x.ts, x.recorded_at)) OVER so_far) AS clock
            FROM entries x WHERE x.symbol = $1 AND x.entry > $2 AND x.entry <= $3
            WINDOW so_far AS (ORDER BY x.entry ROWS UNBOUNDED PRECEDING)
        ) t
        GROUP BY 1
    ) h
    JOIN entries a ON a.symbol = $1 AND a.entry = h.first_entry
    JOIN entries z ON z.symbol = $1 AND z.entry = h.last_entry
$$;
"""


def upgrade() -> None:
    """Relaxes checks. Engines of the previous version continue to work, and move no balances."""
    run_script(op.get_bind(), _SCHEMA)
