"""A chart clock that never goes back, one definition of chart hours, and heartbeats."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0012"
down_revision = "0011"

_SCHEMA = """
ALTER TABLE rollups
    ADD COLUMN covered numeric NOT NULL DEFAULT 0,
    ADD COLUMN earliest bigint,
    ADD COLUMN latest bigint;
COMMENT ON COLUMN rollups.covered IS 'What `cover` entries moved: it was counted as uncovered before.';
COMMENT ON COLUMN rollups.earliest IS 'The earliest `ts` of the entries; of a late one, it lies before the hour.';
COMMENT ON COLUMN rollups.latest IS 'The latest `ts` of the entries; of one ahead of its time, it lies after the hour.';

ALTER TABLE rollup_progress
    ADD COLUMN sound bigint NOT NULL DEFAULT 0,
    ADD COLUMN clock bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN rollup_progress.sound IS
    'Equal to `entry` while the hours are those of chart_hours; else they are built anew, and read as they are until then.';
COMMENT ON COLUMN rollup_progress.clock IS 'The chart clock at `entry`.';

CREATE INDEX rollups_astray ON rollups (symbol, hour) WHERE earliest < hour OR latest >= hour + 3600000;

-- The time of an entry on a chart, without regard to earlier entries. A `ts` over five minutes ahead is the sender's mistake.
CREATE FUNCTION charted_at(ts bigint, recorded_at timestamptz) RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE WHEN ts > date_part('epoch', recorded_at) * 1000 + 300000
    THEN floor(extract(epoch FROM recorded_at) * 1000)::bigint ELSE ts END;

-- The hours of the entries of contract $1 after entry $2 and up to $3. An entry is at the latest time of all entries up to it,
-- so the hours are runs of entries in order. $4 is the chart clock at entry $2; `clock` is the chart clock at the hour's end.
CREATE FUNCTION chart_hours(text, bigint, bigint, bigint) RETURNS TABLE (
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
               sum(t.repaid) AS repaid, coalesce(sum(-t.change) FILTER (WHERE t.kind = 'cover'), 0) AS covered,
               count(*) FILTER (WHERE t.kind NOT IN ('refund', 'cover')) AS fills,
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

CREATE TABLE heartbeats (
    partition integer PRIMARY KEY,
    at timestamptz NOT NULL
) WITH (fillfactor = 20);
GRANT SELECT, INSERT, UPDATE ON heartbeats TO fundsvc_service;
"""


def upgrade() -> None:
    """Adds the definition and the table. Engines rebuild the existing hours by it, one contract at a time. Until then all
    versions read the existing hours.
    """
    run_script(op.get_bind(), _SCHEMA)
