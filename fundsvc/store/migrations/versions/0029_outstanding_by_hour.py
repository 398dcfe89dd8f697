"""The outstanding amount before each hour, so that an earlier balance does not add up the whole history."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0029"
down_revision = "0026"

_SCHEMA = """
CREATE INDEX adl_records_by_end ON adl_records (symbol, entry) WHERE kind = 'end';

ALTER TABLE rollups ADD COLUMN outstanding bigint;
COMMENT ON COLUMN rollups.outstanding IS 'The outstanding amount before the first entry; NULL until it is computed.';
CREATE INDEX rollups_without_outstanding ON rollups (symbol, first_entry) WHERE outstanding IS NULL;

-- What the ADL orders of contract $1 add to its outstanding amount from entry $2 to entry $3 (`uncovered` and `repaid` of entries count
-- apart): the uncovered amount of an order is not outstanding from its cause on, and the rest of it is after the order has ended
-- uncovered. An end without an entry, as the first version of the records has it, counts at entry 1.
CREATE FUNCTION adl_outstanding(text, bigint, bigint) RETURNS TABLE (amount numeric) LANGUAGE sql STABLE AS $$
    SELECT coalesce((
        SELECT sum(o.uncovered - o.recovered)
        FROM adl_records r
        CROSS JOIN LATERAL (SELECT * FROM adl_orders x WHERE x.symbol = r.symbol AND x.adl = r.adl LIMIT 1) o
        WHERE r.symbol = $1 AND r.kind = 'end' AND r.entry BETWEEN CASE $2 WHEN 1 THEN 0 ELSE $2 END AND $3
          AND o.state = 'uncovered'
    ), 0) - coalesce((
        SELECT sum(n.uncovered) FROM (
            SELECT * FROM adl_orders x
            WHERE x.symbol = $1 AND x.origin = 'shortfall' AND x.cause BETWEEN $2 AND $3 ORDER BY x.cause OFFSET 0
        ) n
    ), 0)
$$;
"""


def upgrade() -> None:
    """Adds a column that is empty at first. Engines fill it; those of the previous version continue to work, and leave it empty.

    Where it is empty, readers add up the hours as before.
    """
    run_script(op.get_bind(), _SCHEMA)
