"""Reads that do not add up the history: the outstanding amount before each hour, and an account's reductions in order."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0029"
down_revision = "0028"

_SCHEMA = """
CREATE INDEX adl_records_by_end ON adl_records (symbol, entry) WHERE kind = 'end';
CREATE INDEX adl_records_by_reduction ON adl_records (account, symbol, adl, round, record) INCLUDE (recorded_at)
    WHERE kind = 'execution';
CREATE INDEX adl_records_by_execution ON adl_records (account, recorded_at, symbol, record) WHERE kind = 'execution';
DROP INDEX adl_records_by_account;

ALTER TABLE rollups ADD COLUMN outstanding bigint;
COMMENT ON COLUMN rollups.outstanding IS 'The outstanding amount before the first entry; NULL until it is computed.';
CREATE INDEX rollups_without_outstanding ON rollups (symbol, first_entry) WHERE outstanding IS NULL;

-- What the ADL orders of contract $1 add to its outstanding amount from entry $2 to $3, beside `uncovered` less `repaid` of the
-- entries: the uncovered amount of an order is not outstanding from its cause on; its rest is, once it ended uncovered. That
-- is after the entry of the record, or with the next entry if the fund covers of it at once. An end without an entry, as the
-- first version of the records has it, counts at entry 1.
CREATE FUNCTION adl_outstanding(text, bigint, bigint) RETURNS TABLE (amount numeric) LANGUAGE sql STABLE AS $$
    SELECT coalesce((
        SELECT sum(o.uncovered - o.recovered)
        FROM adl_records r
        CROSS JOIN LATERAL (SELECT * FROM adl_orders x WHERE x.symbol = r.symbol AND x.adl = r.adl LIMIT 1) o
        WHERE r.symbol = $1 AND r.kind = 'end' AND r.entry BETWEEN $2 - 1 AND $3 AND o.state = 'uncovered'
          AND greatest(1, r.entry + EXISTS (
              SELECT FROM entries e
              WHERE e.symbol = r.symbol AND e.entry = r.entry + 1 AND e.kind = 'cover' AND e.order_id = 'adl/' || r.adl
          )::int) BETWEEN $2 AND $3
    ), 0) - coalesce((
        SELECT sum(n.uncovered) FROM (
            SELECT * FROM adl_orders x
            WHERE x.symbol = $1 AND x.origin = 'shortfall' AND x.cause BETWEEN $2 AND $3 ORDER BY x.cause OFFSET 0
        ) n
    ), 0)
$$;
"""


def upgrade() -> None:
    """Adds a column, which engines fill. Engines of the previous version continue to work, and leave it empty.

    Where it is empty, readers add up the hours as before.
    """
    run_script(op.get_bind(), _SCHEMA)
