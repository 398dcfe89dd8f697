-- Statements of moves between cells, which run as the owner of the schema. The service has no right to them.

-- name: lock
SELECT pg_try_advisory_lock(7630193, $1);

-- name: lock_archives
-- Excludes the archiver of the database, which holds this lock alone.
SELECT pg_try_advisory_lock_shared(1635017315);

-- name: holder
SELECT p.generation, p.moving_to, (SELECT name FROM cell) AS cell FROM partitions p WHERE p.partition = $1;

-- name: state
SELECT (SELECT version_num FROM alembic_version) AS revision, (SELECT name FROM cell) AS cell, (SELECT partitions FROM cell) AS partitions;

-- name: columns
-- The columns of a table that are stored, in alphabetical order.
SELECT attname FROM pg_attribute
WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attname;

-- name: pools
SELECT array_agg(pool ORDER BY pool) FROM mutual_pools WHERE home = $1;

-- name: begin
INSERT INTO arriving (partition, generation) VALUES ($1, $2)
ON CONFLICT (partition) DO UPDATE SET generation = greatest(arriving.generation, excluded.generation) RETURNING generation;

-- name: ends
-- The last entry and ADL record of each contract of a partition.
SELECT symbol, f.entry, f.adl_record, f.head, f.adl_head FROM contracts c JOIN funds f USING (symbol) WHERE c.partition = $1 ORDER BY symbol;

-- name: copied
SELECT symbol, source, number FROM copied WHERE symbol = ANY ($1);

-- name: note_copied
INSERT INTO copied (symbol, source, number) SELECT symbol, $4, number FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS k (symbol, after, number)
ON CONFLICT (symbol, source) DO UPDATE SET number = excluded.number WHERE copied.number < excluded.number
RETURNING symbol;

-- name: rows_of_spans
-- The rows of a chain that belong to some spans of contracts.
SELECT {columns} FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS k (of_symbol, after, upto) CROSS JOIN LATERAL (
    SELECT * FROM {table} x WHERE x.symbol = k.of_symbol AND x.{number} > k.after AND x.{number} <= k.upto ORDER BY x.{number}
) e

-- name: rows_of_partition
SELECT {columns} FROM {table} WHERE partition = $1

-- name: rows_of_contracts
SELECT {columns} FROM {table} WHERE symbol IN (SELECT c.symbol FROM contracts c WHERE c.partition = $1)

-- name: checksum
-- The number of rows, and the sums of two hashes of their text, which no order changes. Hash-partitioned tables and indexes rely on
-- these hashes too, so they are the same in all versions of PostgreSQL.
SELECT count(*), sum(hashtextextended(row, 0)) AS first, sum(hashtextextended(row, 1)) AS second
FROM (SELECT q::text COLLATE "C" AS row FROM ({rows}) q OFFSET 0) t

-- name: rollup_sums
-- The same for the rollups of some contracts, by spans of $2 milliseconds.
SELECT symbol, part, count(*), sum(hashtextextended(row, 0)) AS first, sum(hashtextextended(row, 1)) AS second
FROM (
    SELECT symbol, hour / $2::bigint AS part, q::text COLLATE "C" AS row FROM (SELECT {columns} FROM rollups WHERE symbol = ANY ($1)) q OFFSET 0
) t GROUP BY symbol, part

-- name: rollups_of_parts
SELECT {columns} FROM unnest($1::text[], $2::bigint[]) AS k (of_symbol, part) CROSS JOIN LATERAL (
    SELECT * FROM rollups x WHERE x.symbol = k.of_symbol AND x.hour >= k.part * $3::bigint AND x.hour < (k.part + 1) * $3::bigint
) r

-- name: delete_rollups
DELETE FROM rollups r USING unnest($1::text[], $2::bigint[]) AS k (symbol, part)
WHERE r.symbol = k.symbol AND r.hour >= k.part * $3::bigint AND r.hour < (k.part + 1) * $3::bigint;

-- name: symbols
SELECT symbol FROM contracts WHERE partition = $1 ORDER BY symbol;

-- name: delete_of_contracts
DELETE FROM {table} WHERE symbol = ANY ($1);

-- name: delete_of_partition
DELETE FROM {table} WHERE partition = $1;

-- name: pause
-- The new epoch fences the owner: a commit of its own has ended before, or fails.
UPDATE partitions SET moving_to = $2, owner = NULL, lease_until = NULL, epoch = epoch + 1
WHERE partition = $1 AND coalesce(moving_to, $2) = $2 RETURNING generation;

-- name: arrive
-- Ends the copy. It fails if the move was undone.
DELETE FROM arriving WHERE partition = $1 AND generation = $2 RETURNING generation;

-- name: hold
UPDATE partitions SET generation = $2, moving_to = NULL WHERE partition = $1;

-- name: forget_copied
DELETE FROM copied WHERE symbol = ANY ($1);

-- name: heads
-- The contracts whose copied chains do not end with the heads of their funds.
SELECT f.symbol FROM funds f JOIN contracts c USING (symbol)
LEFT JOIN entries e ON e.symbol = f.symbol AND e.entry = f.entry
LEFT JOIN adl_records r ON r.symbol = f.symbol AND r.record = f.adl_record
WHERE c.partition = $1 AND (f.entry > 0 AND e.hash IS DISTINCT FROM f.head OR f.adl_record > 0 AND r.hash IS DISTINCT FROM f.adl_head)
ORDER BY f.symbol;

-- name: restored
-- The number of restored entries of each contract with files: those after the bound that files have too.
SELECT a.symbol, count(e.entry) FROM contracts c
JOIN (SELECT symbol, max(last_entry) AS last_entry FROM archives GROUP BY symbol) a USING (symbol)
LEFT JOIN archive_bounds b USING (symbol)
LEFT JOIN entries e ON e.symbol = a.symbol AND e.entry > coalesce(b.entry, 0) AND e.entry <= a.last_entry
WHERE c.partition = $1 GROUP BY a.symbol ORDER BY a.symbol;

-- name: depart
INSERT INTO departed (symbol, partition, generation)
SELECT symbol, partition, $2 FROM contracts WHERE partition = $1 ON CONFLICT DO NOTHING;

-- name: undo
DELETE FROM arriving WHERE partition = $1;

-- name: resume
UPDATE partitions SET moving_to = NULL, generation = generation + 1 WHERE partition = $1 AND moving_to IS NOT NULL;

-- name: discard
-- The copies of an undone move may be deleted like those of contracts that left.
INSERT INTO departed (symbol, partition, generation)
SELECT s, $2, 0 FROM unnest($1::text[]) AS s WHERE NOT EXISTS (SELECT FROM contracts c WHERE c.symbol = s) ON CONFLICT DO NOTHING;

-- name: departed
SELECT symbol FROM departed WHERE partition = $1 ORDER BY symbol;

-- name: purge_entries
DELETE FROM entries WHERE symbol = $1 AND entry IN (SELECT entry FROM entries WHERE symbol = $1 ORDER BY entry LIMIT $2) RETURNING 1;

-- name: purge_records
DELETE FROM adl_records WHERE symbol = $1 AND record IN (SELECT record FROM adl_records WHERE symbol = $1 ORDER BY record LIMIT $2) RETURNING 1;

-- name: forget_departed
DELETE FROM departed WHERE symbol = $1;
