-- The statements on archives. The role fundsvc_archiver has the rights of those that write; all others need only to read.

-- name: bound
-- The last archived entry of a contract.
SELECT entry FROM archive_bounds WHERE symbol = $1;

-- name: files
-- The files with entries $2 to $3 of a contract.
SELECT path, first_entry, last_entry FROM archives
WHERE symbol = $1 AND last_entry >= $2 AND first_entry <= $3 ORDER BY last_entry;

-- name: stubs
-- The stubs of some contracts or, with NULL, of all, with the last archived entry of the contract.
SELECT a.symbol, a.first_entry, a.last_entry, a.previous_hash, a.last_hash, a.seq, a.clock, a.path, a.bytes AS size, a.digest,
       a.hours, a.checkpoint, a.signature, a.archived_at, coalesce(b.entry, 0) AS bound
FROM archives a LEFT JOIN archive_bounds b USING (symbol)
WHERE $1::text[] IS NULL OR a.symbol = ANY ($1) ORDER BY a.symbol, a.last_entry;

-- name: checkpoints
-- The states after the last archived entries of some contracts.
SELECT b.symbol, b.entry, a.clock, a.checkpoint
FROM archive_bounds b JOIN archives a ON a.symbol = b.symbol AND a.last_entry = b.entry
WHERE b.symbol = ANY ($1);

-- name: tranches
-- The tranches of a checkpoint. All but their lots is in their entries, which the table keeps.
SELECT e.symbol, CASE e.side WHEN 'sell' THEN 'long' ELSE 'short' END AS side, e.entry, k.lots, e.price, e.ts, e.forced
FROM unnest($2::bigint[], $3::bigint[]) AS k (entry, lots) JOIN entries e ON e.symbol = $1 AND e.entry = k.entry
ORDER BY e.entry;

-- name: tranches_of_walk
-- The entries of the tranches that a walk of the audit has stored.
SELECT entry FROM audit_tranches WHERE symbol = $1 AND walk = $2;

-- name: due
-- The contracts with something to archive or to remove. `upto` is the last entry that may be archived. It ends an hour before $1
-- (ms), and another hour with entries follows before $1, so that each later moment has an entry before it in the table. A fill
-- follows too, if there is one: producers continue after the newest. Hours that await a rebuild are not archived.
SELECT f.symbol, coalesce(a.last_entry, 0) AS archived, coalesce(b.entry, 0) AS bound, coalesce(b.removed, 0) AS removed,
       greatest(h.last_entry, b.entry) AS upto
FROM funds f
LEFT JOIN archive_bounds b USING (symbol)
LEFT JOIN LATERAL (SELECT x.last_entry FROM archives x WHERE x.symbol = f.symbol ORDER BY x.last_entry DESC LIMIT 1) a ON true
LEFT JOIN LATERAL (
    SELECT r.last_entry FROM (
        SELECT x.hour, x.last_entry FROM rollups x
        WHERE x.symbol = f.symbol AND x.hour <= $1::bigint - 3600000 ORDER BY x.hour DESC OFFSET 1
    ) r
    WHERE r.last_entry < coalesce((
        SELECT x.entry FROM entries x
        WHERE x.symbol = f.symbol AND x.kind IN ('surplus', 'flat', 'shortfall') ORDER BY x.entry DESC LIMIT 1
    ), 9223372036854775807) AND EXISTS (SELECT FROM rollup_progress p WHERE p.symbol = f.symbol AND p.sound = p.entry)
    ORDER BY r.hour DESC LIMIT 1
) h ON true
WHERE ($2::text[] IS NULL OR f.symbol = ANY ($2)) AND (h.last_entry > coalesce(b.entry, 0) OR b.removed < b.entry)
ORDER BY f.symbol;

-- name: range_end
-- The end of the next range after entry $2 and up to $3: the last hour with which it has at most $4 entries, or its first hour.
SELECT coalesce(
    (SELECT r.last_entry FROM rollups r
     WHERE r.symbol = $1 AND r.first_entry > $2 AND r.last_entry <= least($3, $2 + $4) ORDER BY r.first_entry DESC LIMIT 1),
    (SELECT r.last_entry FROM rollups r WHERE r.symbol = $1 AND r.first_entry = $2 + 1)
);

-- name: hours
-- The digest of the rollups of entries $2 to $3.
SELECT sha256(convert_to(coalesce(string_agg(concat_ws(
    '|', hour, first_entry, last_entry, opening, highest, lowest, closing, credited, paid, uncovered, repaid, covered, fills, earliest, latest
), '/' ORDER BY hour), ''), 'UTF8'))
FROM rollups WHERE symbol = $1 AND first_entry BETWEEN $2 AND $3;

-- name: stub_add
INSERT INTO archives (symbol, first_entry, last_entry, previous_hash, last_hash, seq, clock, path, bytes, digest, hours, checkpoint,
                      signature)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13);

-- name: bound_set
-- Readers use the files up to the bound from now on.
INSERT INTO archive_bounds AS b (symbol, entry) VALUES ($1, $2)
ON CONFLICT (symbol) DO UPDATE SET entry = excluded.entry, removed = least(b.removed, excluded.entry);

-- name: remove
-- Removes the archived entries $2 to $3 of a contract. These stay, because other rows or reads name them: entry 1, takeovers, moves of
-- balances, and the entries that ADL orders follow.
WITH gone AS (
    DELETE FROM entries e USING archive_bounds b
    WHERE b.symbol = $1 AND e.symbol = $1 AND e.entry BETWEEN $2 AND $3 AND e.entry <= b.entry
      AND e.entry > 1 AND e.kind NOT IN ('takeover', 'carry_out', 'carry_in')
      AND NOT EXISTS (SELECT FROM adl_orders o WHERE o.symbol = $1 AND o.cause = e.entry)
      AND e.entry <> ALL ($4::bigint[])
)
UPDATE archive_bounds SET removed = $3 WHERE symbol = $1 AND entry >= $3;

-- name: followed
-- The entries $2 to $3 that ADL orders for lots follow. Their records have them.
SELECT DISTINCT r.entry
FROM adl_orders o CROSS JOIN LATERAL (
    SELECT x.entry FROM adl_records x WHERE x.symbol = o.symbol AND x.adl = o.adl AND x.kind = 'order' LIMIT 1
) r
WHERE o.symbol = $1 AND o.origin <> 'shortfall' AND r.entry BETWEEN $2 AND $3;

-- name: restoring
UPDATE archive_bounds SET removed = least(removed, $2) WHERE symbol = $1;

-- name: restore
-- Inserts archived entries again; those that the table kept are skipped.
INSERT INTO entries (symbol, entry, seq, kind, change, balance, uncovered, repaid, side, lots, price, bankruptcy_price, trade_id,
                     order_id, account, ts, seal, closes, forced, recorded_at, hash)
SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[],
                     $9::text[], $10::bigint[], $11::bigint[], $12::bigint[], $13::text[], $14::text[], $15::text[], $16::bigint[],
                     $17::bytea[], $18::bigint[], $19::boolean[], $20::timestamptz[], $21::bytea[])
ON CONFLICT (symbol, entry) DO NOTHING;

-- name: archiver
-- Whether this session is the only archiver of the database.
SELECT pg_try_advisory_lock(1635017315);

-- name: hour_of
-- The first and the last entry of an hour of a contract.
SELECT first_entry, last_entry FROM rollups WHERE symbol = $1 AND hour = $2;

-- name: hour_before
-- The first entry of the hour of the last entry before $2.
SELECT first_entry FROM rollups WHERE symbol = $1 AND first_entry < $2 ORDER BY first_entry DESC LIMIT 1;

-- name: outstanding
-- The outstanding amount of a contract after entry $2, as `outstanding_at` defines it. Its hour begins with entry $4, and its entries up
-- to $2 add up to $3. $5 is the sequence of the next entry that is not late.
SELECT coalesce((SELECT sum(r.uncovered - r.repaid) FROM rollups r WHERE r.symbol = $1 AND r.first_entry < $4), 0) + $3::numeric
    - coalesce((SELECT sum(o.uncovered) FROM adl_orders o WHERE o.symbol = $1 AND o.cause <= $2), 0)
    + coalesce((
        SELECT sum(o.uncovered - o.recovered) FROM adl_orders o WHERE o.symbol = $1 AND o.state = 'uncovered' AND o.seq < $5
    ), 0);

-- name: late_entries
-- Those of entries $2 to $3 that were settled late.
SELECT entry FROM rejected WHERE symbol = $1 AND entry BETWEEN $2 AND $3;

-- name: sequence_from
-- The sequence of the first entry after $2 that was not settled late.
SELECT coalesce((
    SELECT e.seq FROM entries e
    WHERE e.symbol = $1 AND e.entry > $2 AND NOT EXISTS (SELECT FROM rejected r WHERE r.symbol = e.symbol AND r.entry = e.entry)
    ORDER BY e.entry LIMIT 1
), 9223372036854775807);

-- name: archived_spans
-- The archived entries of the hours from $1 to before $2, by contract, with the contract's scales.
SELECT r.symbol, min(r.first_entry) AS first_entry, max(r.last_entry) AS last_entry, c.price_decimals, c.settle_currency, c.settle_decimals
FROM archive_bounds b JOIN contracts c USING (symbol) JOIN rollups r USING (symbol)
WHERE r.hour >= $1 AND r.hour < $2 AND r.last_entry <= b.entry
GROUP BY r.symbol, c.price_decimals, c.settle_currency, c.settle_decimals ORDER BY r.symbol;
