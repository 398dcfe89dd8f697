-- All statements of the service by name. Parameters are numbered in the order of their use.

-- name: load_funds
SELECT c.symbol, c.settle_currency, c.settle_decimals, c.price_decimals, c.multiplier, c.is_inverse,
       f.balance, f.outstanding, f.entry, f.seq, f.adl, f.head, f.guard, f.adl_record, f.adl_head, c.suspended,
       c.closed_at, c.closed_seq, c.closed_price,
       coalesce(c.specification ->> 'successor', '') AS successor
FROM contracts c JOIN funds f USING (symbol)
WHERE c.partition = $1 AND ($2::text IS NULL OR c.symbol = $2);

-- name: stray_rows
-- The contracts of a partition with entries or ADL records beyond the last ones of their funds. No commit wrote these.
SELECT c.symbol, f.entry, f.adl_record
FROM contracts c JOIN funds f USING (symbol)
WHERE c.partition = $1 AND (EXISTS (SELECT FROM entries e WHERE e.symbol = f.symbol AND e.entry > f.entry)
                            OR EXISTS (SELECT FROM adl_records r WHERE r.symbol = f.symbol AND r.record > f.adl_record))
ORDER BY c.symbol;

-- name: load_position
SELECT last_id, messages, events, partial_id FROM partitions WHERE partition = $1 AND epoch = $2;

-- name: commit_contracts
-- Listed contracts, before `commit` writes their funds. Fails if a contract belongs to another partition.
WITH given AS (
    SELECT * FROM unnest($2::text[], $3::text[], $4::smallint[], $5::smallint[], $6::numeric[], $7::boolean[], $8::text[])
        AS l (symbol, settle_currency, settle_decimals, price_decimals, multiplier, is_inverse, specification)
), listed AS (
    INSERT INTO contracts AS c
        (symbol, partition, settle_currency, settle_decimals, price_decimals, multiplier, is_inverse, specification)
    SELECT symbol, $1, settle_currency, settle_decimals, price_decimals, multiplier, is_inverse, specification::json FROM given
    ON CONFLICT (symbol) DO UPDATE SET
        settle_currency = excluded.settle_currency, settle_decimals = excluded.settle_decimals,
        price_decimals = excluded.price_decimals, multiplier = excluded.multiplier, is_inverse = excluded.is_inverse,
        specification = excluded.specification, updated_at = now()
    WHERE c.partition = excluded.partition
    RETURNING c.symbol
)
SELECT CASE WHEN unwritten = '{}' THEN true ELSE refuse_commit(true, unwritten) END
FROM (SELECT ARRAY(SELECT symbol FROM given EXCEPT SELECT symbol FROM listed) AS unwritten) r;

-- name: commit
-- Moves the offset and writes the funds; of a small batch, it is the whole transaction and inserts the entries. PostgreSQL prepares
-- every part of a statement for each execution, so what few batches have is in statements of its own. Fails if the partition is no
-- longer owned, or if a fund was not written: the statement does not set a fund back.
WITH moved AS (
    UPDATE partitions SET last_id = $6, messages = $7, events = $8, partial_id = $9, duplicates = duplicates + $10,
                          commits = commits + 1
    WHERE partition = $1 AND epoch = $2 AND last_id = $3 AND events = $4 AND partial_id = $5
    RETURNING commits
), settled AS (
    INSERT INTO funds AS f (symbol, balance, outstanding, entry, seq, adl, head, guard, adl_record, adl_head, commit)
    SELECT symbol, balance, outstanding, entry, seq, adl, head, guard::json, adl_record, adl_head,
           coalesce((SELECT commits FROM moved), 0)
    FROM unnest($11::text[], $12::bigint[], $13::bigint[], $14::bigint[], $15::bigint[], $16::bigint[], $17::bytea[], $18::text[],
                $19::bigint[], $20::bytea[])
        AS s (symbol, balance, outstanding, entry, seq, adl, head, guard, adl_record, adl_head)
    ON CONFLICT (symbol) DO UPDATE SET
        balance = excluded.balance, outstanding = excluded.outstanding, entry = excluded.entry, seq = excluded.seq,
        adl = excluded.adl, head = excluded.head, guard = excluded.guard, adl_record = excluded.adl_record,
        adl_head = excluded.adl_head, commit = excluded.commit, updated_at = now()
    WHERE f.entry <= excluded.entry AND f.seq <= excluded.seq AND f.adl_record <= excluded.adl_record
    RETURNING f.symbol
), shown AS (
    INSERT INTO moves AS m (partition, slot, commit, symbols)
    SELECT $1, commits % 128, commits, CASE WHEN cardinality($11) <= 100 THEN $11 END FROM moved
    ON CONFLICT (partition, slot) DO UPDATE SET commit = excluded.commit, symbols = excluded.symbols
), written AS (
    INSERT INTO entries (symbol, entry, seq, kind, change, balance, uncovered, repaid, side, lots, price, bankruptcy_price, trade_id,
                         order_id, account, ts, seal, closes, forced, hash)
    SELECT * FROM unnest($21::text[], $22::bigint[], $23::bigint[], $24::text[], $25::bigint[], $26::bigint[], $27::bigint[],
                         $28::bigint[], $29::text[], $30::bigint[], $31::bigint[], $32::bigint[], $33::text[], $34::text[],
                         $35::text[], $36::bigint[], $37::bytea[], $38::bigint[], $39::boolean[], $40::bytea[])
        AS n (symbol, entry, seq, kind, change, balance, uncovered, repaid, side, lots, price, bankruptcy_price, trade_id, order_id,
              account, ts, seal, closes, forced, hash)
)
SELECT CASE WHEN is_ours AND unwritten = '{}' THEN true ELSE refuse_commit(is_ours, unwritten) END
FROM (SELECT (SELECT count(*) = 1 FROM moved) AS is_ours,
             ARRAY(SELECT unnest($11::text[]) EXCEPT SELECT symbol FROM settled) AS unwritten) r;

-- name: commit_rejected
INSERT INTO rejected (partition, stream_id, position, reason, detail, codec, body, event_symbol, event_seq, digest)
SELECT $1, * FROM unnest($2::text[], $3::integer[], $4::text[], $5::text[], $6::text[], $7::bytea[], $8::text[], $9::bigint[],
                         $10::bytea[])
    AS e (stream_id, position, reason, detail, codec, body, event_symbol, event_seq, digest)
ON CONFLICT (partition, stream_id, position) DO UPDATE SET
    reason = excluded.reason, detail = excluded.detail, rejected_at = now();

-- name: commit_replayed
UPDATE rejected r SET settled_at = now(), settled_by = d.settled_by, symbol = d.symbol, entry = d.entry
FROM unnest($2::text[], $3::integer[], $4::text[], $5::text[], $6::bigint[]) AS d (stream_id, position, settled_by, symbol, entry)
WHERE r.partition = $1 AND r.stream_id = d.stream_id AND r.position = d.position;

-- name: commit_orders
-- ADL orders that changed. COPY inserts new ones.
UPDATE adl_orders o SET recovered = m.recovered, executed = m.executed, unwound = m.unwound, state = m.state, round = m.round,
    seq = m.seq, acknowledged = m.acknowledged, round_ms = m.round_ms, updated_at = now()
FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[], $7::integer[], $8::bigint[],
            $9::boolean[], $10::bigint[])
    AS m (symbol, adl, recovered, executed, unwound, state, round, seq, acknowledged, round_ms)
WHERE o.symbol = m.symbol AND o.adl = m.adl;

-- name: commit_tranches
-- Tranches that changed. One without lots is closed.
WITH changed AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::boolean[])
        AS t (symbol, side, entry, lots, price, ts, forced)
), closed AS (
    DELETE FROM tranches t USING changed c WHERE t.symbol = c.symbol AND t.entry = c.entry AND c.lots = 0
)
INSERT INTO tranches AS t (symbol, side, entry, lots, price, ts, forced)
SELECT symbol, side, entry, lots, price, ts, forced FROM changed WHERE lots > 0
ON CONFLICT (symbol, entry) DO UPDATE SET lots = excluded.lots;

-- name: commit_holdings
INSERT INTO holdings AS h (symbol, side, taken, unwound, deleveraged, held, in_orders, returned_ts)
SELECT * FROM unnest($1::text[], $2::text[], $3::numeric[], $4::numeric[], $5::numeric[], $6::bigint[], $7::bigint[], $8::bigint[])
ON CONFLICT (symbol, side) DO UPDATE SET taken = excluded.taken, unwound = excluded.unwound, deleveraged = excluded.deleveraged,
    held = excluded.held, in_orders = excluded.in_orders, returned_ts = excluded.returned_ts;

-- name: commit_books
-- Saves books after message $1, and deletes the parts of those that are saved whole. `commit_book_parts` adds the new parts.
WITH kept AS (
    SELECT * FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bytea[],
                         $9::boolean[])
        AS k (symbol, seq, mark, mark_ts, mark_ts_max, mark_seq, body, is_whole)
), outdated AS (
    DELETE FROM book_parts p USING kept k WHERE p.symbol = k.symbol AND k.is_whole
)
INSERT INTO books AS b (symbol, last_id, seq, mark, mark_ts, mark_ts_max, mark_seq, body)
SELECT symbol, $1, seq, mark, mark_ts, mark_ts_max, mark_seq, body FROM kept
ON CONFLICT (symbol) DO UPDATE SET last_id = excluded.last_id, seq = excluded.seq, mark = excluded.mark,
    mark_ts = excluded.mark_ts, mark_ts_max = excluded.mark_ts_max, mark_seq = excluded.mark_seq, body = coalesce(excluded.body, b.body), kept_at = now();

-- name: commit_book_parts
INSERT INTO book_parts (symbol, part, body)
SELECT symbol, part, body FROM unnest($1::text[], $2::integer[], $3::bytea[]) AS p (symbol, part, body);

-- name: commit_rates
-- Rates of a batch. A rate older than the stored one changes nothing, unless the stored one is later than $5 (ms) and so invalid.
INSERT INTO rates AS r (partition, currency, price, ts)
SELECT $1, * FROM unnest($2::text[], $3::bigint[], $4::bigint[]) AS k (currency, price, ts)
ON CONFLICT (partition, currency) DO UPDATE SET price = excluded.price, ts = excluded.ts
WHERE excluded.ts >= r.ts OR r.ts > $5;

-- name: commit_suspensions
-- Marks the funds as changed, so that readers read their contracts.
WITH suspended AS (
    UPDATE contracts c SET suspended = s.suspended, updated_at = now()
    FROM unnest($1::text[], $2::boolean[]) AS s (symbol, suspended) WHERE c.symbol = s.symbol
    RETURNING c.symbol, c.partition
), shown AS (
    UPDATE moves m SET symbols = m.symbols || s.symbols
    FROM (SELECT partition, array_agg(symbol) AS symbols FROM suspended GROUP BY partition) s JOIN partitions p USING (partition)
    WHERE m.partition = p.partition AND m.slot = p.commits % 128 AND m.commit = p.commits AND m.symbols IS NOT NULL
)
UPDATE funds f SET commit = p.commits FROM suspended s JOIN partitions p USING (partition) WHERE f.symbol = s.symbol;

-- name: commit_closings
-- Closes contracts. The same commit writes their funds, so readers read the contracts again.
UPDATE contracts c SET closed_at = s.at, closed_seq = s.seq, closed_price = s.price, updated_at = now()
FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) AS s (symbol, at, seq, price) WHERE c.symbol = s.symbol;

-- name: load_policies
SELECT version, body FROM policies WHERE partition = $1 ORDER BY version;

-- name: first_policies
-- Records version 1 if the owner's partition has no policies yet.
INSERT INTO policies (partition, version, body, stream_id)
SELECT partition, 1, $3::json, last_id FROM partitions
WHERE partition = $1 AND epoch = $2 AND NOT EXISTS (SELECT FROM policies p WHERE p.partition = $1);

-- name: commit_policies
INSERT INTO policies (partition, version, body, stream_id)
SELECT $1, version, body::json, $2 FROM unnest($3::integer[], $4::text[]) AS p (version, body);

-- name: present_policies
-- The policies in force of each partition with recorded policies.
SELECT DISTINCT ON (partition) partition, version, body FROM policies ORDER BY partition, version DESC;

-- name: policies_of
-- All recorded policies of some contracts, by version.
SELECT c.symbol, p.version, coalesce(p.body -> 'contracts' -> c.name, p.body -> 'default') AS policy
FROM contracts c JOIN policies p USING (partition) WHERE c.symbol = ANY ($1) ORDER BY c.symbol, p.version;

-- name: halt
-- Records why a partition is halted, or "" when it continues.
UPDATE partitions SET halted = $3 WHERE partition = $1 AND epoch = $2 AND halted <> $3;

-- name: trim_bounds
-- What a partition's stream must still contain: the messages from the offset on, and those after which its books were stored.
SELECT p.last_id, p.messages, p.events, p.partial_id, ARRAY(
    SELECT coalesce(b.last_id, '0-0') FROM contracts c LEFT JOIN books b USING (symbol) WHERE c.partition = p.partition
) AS kept
FROM partitions p WHERE p.partition = $1;

-- name: gaps
SELECT after_id, until_id, messages, acknowledged_at FROM stream_gaps WHERE partition = $1 ORDER BY found_at;

-- name: gap_found
INSERT INTO stream_gaps (partition, after_id, until_id, messages) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING RETURNING true;

-- name: gap_acknowledge
UPDATE stream_gaps SET acknowledged_at = now() WHERE partition = $1 AND until_id = $2 AND acknowledged_at IS NULL;

-- name: gaps_acknowledge
UPDATE stream_gaps SET acknowledged_at = now() WHERE partition = $1 AND acknowledged_at IS NULL
RETURNING after_id, until_id, messages, acknowledged_at;

-- name: load_checkpoints
-- The checkpoints of a stream in the order in which they were stored, with their ages.
SELECT last_id, messages, fingerprint, extract(epoch FROM clock_timestamp() - stored_at)::float8
FROM stream_checkpoints WHERE partition = $1 AND pool = $2 ORDER BY stored_at;

-- name: commit_checkpoint
WITH dropped AS (DELETE FROM stream_checkpoints WHERE partition = $1 AND pool = $2 AND last_id = ANY ($6::text[]))
INSERT INTO stream_checkpoints (partition, pool, last_id, messages, fingerprint) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (partition, pool, last_id) DO UPDATE SET
    messages = excluded.messages, fingerprint = excluded.fingerprint, stored_at = now();

-- name: set_books_back
-- Books that are saved after the message of $2 also contain all messages up to it.
UPDATE books b SET last_id = $2 FROM contracts c
WHERE c.symbol = b.symbol AND c.partition = $1
  AND (split_part(b.last_id, '-', 1)::numeric, split_part(b.last_id, '-', 2)::numeric)
    > (split_part($2, '-', 1)::numeric, split_part($2, '-', 2)::numeric);

-- name: load_rates
SELECT currency, price, ts FROM rates WHERE partition = $1;

-- name: load_holdings
-- The sides of inventories of a partition's contracts; of a contract or, with NULL, of all contracts.
SELECT h.symbol, h.side, h.taken, h.unwound, h.deleveraged, h.held, h.in_orders, h.returned_ts
FROM holdings h JOIN contracts c USING (symbol) WHERE c.partition = $1 AND ($2::text IS NULL OR c.symbol = $2);

-- name: load_tranches
-- The tranches of the inventories of `load_holdings`.
SELECT t.symbol, t.side, t.entry, t.lots, t.price, t.ts, t.forced
FROM tranches t JOIN contracts c USING (symbol) WHERE c.partition = $1 AND ($2::text IS NULL OR c.symbol = $2)
ORDER BY t.symbol, t.entry;

-- name: load_orders
-- Open orders of a partition or, with NULL, of all partitions; of a contract or, with NULL, of all contracts.
SELECT o.symbol, o.adl, o.cause, o.reduce, o.lots, o.price, o.deficit, o.deficit_lots, o.uncovered, o.executed, o.state, o.round,
       o.ts, o.seq, o.account, o.acknowledged, o.round_ms, o.policy_version, o.origin, o.unwound
FROM adl_orders o JOIN contracts c USING (symbol)
WHERE ($1::integer IS NULL OR c.partition = $1) AND ($2::text IS NULL OR c.symbol = $2) AND o.state = 'open'
ORDER BY o.symbol, o.adl;

-- name: load_records
-- The records of the orders of `load_orders`.
SELECT r.symbol, r.adl, r.kind, r.account, r.lots, r.body
FROM adl_orders o JOIN contracts c USING (symbol) JOIN adl_records r USING (symbol, adl)
WHERE ($1::integer IS NULL OR c.partition = $1) AND ($2::text IS NULL OR c.symbol = $2) AND o.state = 'open'
ORDER BY r.symbol, r.record;

-- name: load_books
SELECT c.symbol, b.last_id, b.seq, b.mark, b.mark_ts, b.mark_ts_max, b.mark_seq, b.body,
       (SELECT count(*) FROM book_parts p WHERE p.symbol = c.symbol) AS parts
FROM contracts c LEFT JOIN books b USING (symbol)
WHERE c.partition = $1 AND ($2::text[] IS NULL OR c.symbol = ANY ($2));

-- name: saved_books
-- The saved books of a partition's contracts, without their positions.
SELECT c.symbol, b.last_id, b.seq, b.mark, b.mark_ts, b.mark_ts_max, b.mark_seq, NULL::bytea AS body,
       CASE WHEN b.body IS NULL THEN 0 ELSE greatest(1, (SELECT count(*) FROM book_parts p WHERE p.symbol = c.symbol)) END AS parts
FROM contracts c LEFT JOIN books b USING (symbol) WHERE c.partition = $1;

-- name: list_book_parts
-- The sizes of the parts of some books, without reading them.
SELECT symbol, part, octet_length(body) AS size FROM book_parts WHERE symbol = ANY ($1) ORDER BY symbol, part;

-- name: load_book_parts
SELECT symbol, body FROM unnest($1::text[], $2::integer[]) AS w (symbol, part) JOIN book_parts p USING (symbol, part)
ORDER BY symbol, part;

-- name: books_with_positions
-- Whether any contract of the partition ever had a position, or its fund an inventory, which needs the marks.
SELECT EXISTS (SELECT FROM books b JOIN contracts c USING (symbol) WHERE c.partition = $1 AND b.body IS NOT NULL)
    OR EXISTS (SELECT FROM holdings h JOIN contracts c USING (symbol) WHERE c.partition = $1);

-- name: rejected_places
-- The rejected events of some messages, with the message that settled each later.
SELECT stream_id, position, settled_by FROM rejected WHERE partition = $1 AND stream_id = ANY ($2);

-- name: reduced_sides
-- The sides that some orders reduce.
SELECT o.symbol, o.adl, o.reduce FROM unnest($1::text[], $2::bigint[]) AS a (symbol, adl) JOIN adl_orders o USING (symbol, adl);

-- name: rejected_open
SELECT settled_at IS NULL FROM rejected WHERE partition = $1 AND stream_id = $2 AND position = $3;

-- name: sequences_from
-- Up to $3 entries of each contract in the order of their sequences, from a sequence on. Sequences rise with entries, except those
-- of late events, which are skipped. So a binary search finds the first entry. `rejected` has only the first entry of a late event.
SELECT e.symbol, e.entry, e.seq, e.kind, e.closes, e.forced, e.side, e.lots, e.price, e.bankruptcy_price, e.trade_id, e.order_id,
       e.account, e.ts
FROM unnest($1::text[], $2::bigint[]) AS a (symbol, seq)
CROSS JOIN LATERAL (
    WITH RECURSIVE search (low, high) AS (
        SELECT 1::bigint, f.entry FROM funds f WHERE f.symbol = a.symbol
        UNION ALL
        SELECT CASE WHEN probe.seq < a.seq THEN probe.entry + 1 ELSE s.low END,
               CASE WHEN probe.seq < a.seq THEN s.high ELSE (s.low + s.high) / 2 - 1 END
        FROM search s LEFT JOIN LATERAL (
            SELECT p.entry, p.seq FROM entries p
            WHERE p.symbol = a.symbol AND p.entry BETWEEN (s.low + s.high) / 2 AND s.high
              AND NOT EXISTS (SELECT FROM rejected r WHERE r.symbol = p.symbol AND r.entry = p.entry)
              AND NOT EXISTS (SELECT FROM rejected r WHERE r.event_symbol = public_symbol(p.symbol) AND r.event_seq = p.seq AND r.entry IS NOT NULL)
            ORDER BY p.entry LIMIT 1
        ) probe ON true
        WHERE s.low <= s.high
    )
    SELECT max(low) AS entry FROM search
) first
CROSS JOIN LATERAL (
    SELECT * FROM entries x
    WHERE x.symbol = a.symbol AND x.entry >= first.entry
      AND NOT EXISTS (SELECT FROM rejected r WHERE r.symbol = x.symbol AND r.entry = x.entry)
      AND NOT EXISTS (SELECT FROM rejected r WHERE r.event_symbol = public_symbol(x.symbol) AND r.event_seq = x.seq AND r.entry IS NOT NULL)
    ORDER BY x.entry LIMIT $3
) e;

-- name: sequences_rest
-- The lots of the pieces of some unwinds after an entry each; the pieces of an unwind are consecutive.
SELECT k.symbol, k.seq, coalesce((
    SELECT sum(x.lots) FROM entries x
    WHERE x.symbol = k.symbol AND x.entry > k.entry AND x.seq = k.seq AND x.closes > 0 AND x.kind <> 'deleverage'
      AND x.entry < coalesce((
          SELECT y.entry FROM entries y WHERE y.symbol = k.symbol AND y.entry > k.entry AND y.seq <> k.seq ORDER BY y.entry LIMIT 1
      ), 9223372036854775807)
), 0)::bigint AS lots
FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS k (symbol, seq, entry);

-- name: sequences_late
-- Late entries of some contracts with some sequences. The entries of an event are consecutive, and `rejected` has the first.
SELECT x.symbol, x.entry, x.seq, x.kind, x.closes, x.forced, x.side, x.lots, x.price, x.bankruptcy_price, x.trade_id, x.order_id,
       x.account, x.ts
FROM rejected r JOIN entries e USING (symbol, entry)
CROSS JOIN LATERAL (
    SELECT * FROM entries p WHERE p.symbol = e.symbol AND p.entry >= e.entry AND p.seq = e.seq
      AND p.entry < coalesce((
          SELECT y.entry FROM entries y WHERE y.symbol = e.symbol AND y.entry > e.entry AND y.seq <> e.seq ORDER BY y.entry LIMIT 1
      ), 9223372036854775807)
) x
WHERE r.symbol = ANY ($1) AND e.seq = ANY ($2) ORDER BY x.symbol, x.entry;

-- name: sequences_takeovers
-- The takeover orders that events with some sequences caused, each of its own contract.
SELECT r.symbol, r.seq, o.cause, o.reduce, o.lots, o.price, o.account, o.ts
FROM adl_records r JOIN adl_orders o USING (symbol, adl)
WHERE (r.symbol, r.seq) IN (SELECT * FROM unnest($1::text[], $2::bigint[])) AND r.seq > 0 AND r.kind = 'order'
  AND o.origin = 'takeover';

-- name: sequences_adl
-- Executions and ends of rounds with some sequences, each of its own contract. Other kinds are left out: an order that ends at once
-- has the sequence of its fill or takeover.
SELECT symbol, seq, kind, adl, account, lots, ts FROM adl_records
WHERE (symbol, seq) IN (SELECT * FROM unnest($1::text[], $2::bigint[]))
  AND seq > 0 AND kind IN ('execution', 'round', 'end');

-- name: sequences_refused
-- Rejected events of some contracts with some sequences.
SELECT digest FROM rejected WHERE event_symbol = ANY ($1) AND event_seq = ANY ($2);

-- name: sequences_archived
-- The archived ranges of some contracts: the last entry, and the highest sequence up to it.
SELECT b.symbol, b.entry, a.seq FROM archive_bounds b JOIN archives a ON a.symbol = b.symbol AND a.last_entry = b.entry
WHERE b.symbol = ANY ($1);

-- name: sequences_settled
-- The settlements of some contracts with some sequences.
SELECT symbol, closed_seq AS seq, closed_price AS price, closed_at AS ts FROM contracts
WHERE symbol = ANY ($1) AND closed_seq = ANY ($2) AND closed_seq > 0;

-- name: set_session
-- Sets parameters for the session, which later changes of server, database or role do not affect. Returns synchronous_commit.
SELECT set_config('synchronous_commit', CASE WHEN now IN ('off', 'local') THEN 'on' ELSE now END, false)
FROM current_setting('synchronous_commit') AS now,
     (SELECT count(set_config(name, value, false)) FROM unnest($1::text[], $2::text[]) AS given (name, value)) AS others;

-- name: session_process
SELECT pg_backend_pid();

-- name: weak_settings
SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off' ORDER BY name;

-- name: archiving
SELECT current_setting('archive_mode') <> 'off' AND coalesce(last_failed_time > last_archived_time, last_failed_time IS NOT NULL) AS failing,
       coalesce(extract(epoch FROM last_archived_time), 0)::float8 AS archived
FROM pg_stat_archiver;

-- name: stream_servers
SELECT partition, run_id, changes FROM stream_servers;

-- name: stream_server_first
INSERT INTO stream_servers (partition, run_id) VALUES ($1, $2) ON CONFLICT DO NOTHING;

-- name: stream_server_changed
UPDATE stream_servers SET run_id = $2, changes = changes + 1, changed_at = now() WHERE partition = $1 AND changes = $3;

-- name: producer_epoch
SELECT epoch FROM posters WHERE poster = $1;

-- name: producer_confirms
WITH forgotten AS (DELETE FROM posters WHERE epoch < $2 AND poster <> $1)
INSERT INTO posters (poster, epoch) VALUES ($1, $2)
ON CONFLICT (poster) DO UPDATE SET epoch = greatest(posters.epoch, excluded.epoch);

-- name: engine_seen
-- An engine that leaves partitions to others ranks last, as if it had just joined.
INSERT INTO engines AS e (engine, since, seen_at, leaves) VALUES ($1, clock_timestamp(), clock_timestamp(), $2)
ON CONFLICT (engine) DO UPDATE SET seen_at = excluded.seen_at, leaves = excluded.leaves,
    since = CASE WHEN excluded.leaves > 0 THEN excluded.since ELSE e.since END;

-- name: engine_gone
DELETE FROM engines WHERE engine = $1 OR seen_at < clock_timestamp() - interval '1 day';

-- name: renew
-- Renews all leases of an engine except those of $3, which make no progress.
UPDATE partitions SET lease_until = clock_timestamp() + $2 * interval '1 second', lease_seconds = $2
WHERE owner = $1 AND partition <> ALL ($3::integer[])
RETURNING partition, epoch;

-- name: share
-- The share of an engine among the live ones. The longest present engines get the remainder, so that a joining engine moves as few
-- partitions as possible. Each engine may take all partitions that others leave.
WITH live AS (
    SELECT engine, row_number() OVER (ORDER BY since, engine) AS rank, count(*) OVER () AS engines,
           leaves, sum(leaves) OVER () AS all_leave
    FROM engines
    -- An engine seen in the future died before the clock was set back.
    WHERE engine = $1 OR abs(extract(epoch FROM clock_timestamp() - seen_at)) < $2
)
SELECT (greatest(0, partitions / engines + (rank <= partitions % engines)::int - leaves) + all_leave - leaves)::int
FROM live, (SELECT count(*) AS partitions FROM partitions WHERE moving_to IS NULL) p WHERE engine = $1;

-- name: other_engines
SELECT EXISTS (SELECT FROM engines WHERE engine <> $1 AND abs(extract(epoch FROM clock_timestamp() - seen_at)) < $2);

-- name: leases_of_others
-- An engine of an earlier version stored no duration; its leases count as long as those of this engine.
SELECT partition, lease_until, coalesce(lease_seconds, $2) AS seconds FROM partitions WHERE owner <> $1;

-- name: claim
-- Free are expired leases, and leases that still equal one of the given ones.
WITH free AS (
    SELECT partition, owner FROM partitions p
    WHERE (owner IS NULL OR lease_until < clock_timestamp() OR EXISTS (
        SELECT FROM unnest($5::integer[], $6::timestamptz[]) AS d (partition, lease_until)
        WHERE d.partition = p.partition AND d.lease_until = p.lease_until
    )) AND partition <> ALL ($4::integer[]) AND moving_to IS NULL
    ORDER BY partition LIMIT $2 FOR UPDATE SKIP LOCKED
)
UPDATE partitions p
SET owner = $1, epoch = p.epoch + 1, lease_until = clock_timestamp() + $3 * interval '1 second', lease_seconds = $3
FROM free WHERE p.partition = free.partition
RETURNING p.partition, p.epoch, free.owner AS previous;

-- name: disconnect_engine
-- A stopped process may hold a transaction open, so its sessions end before another engine writes its partition.
SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE application_name = $1 AND usename = current_user;

-- name: release
UPDATE partitions SET owner = NULL, lease_until = NULL WHERE partition = $1 AND epoch = $2;

-- name: partitions
SELECT partition, generation, epoch, owner, last_id, messages, events, partial_id, halted, duplicates,
       lease_until > clock_timestamp() AS live
FROM partitions ORDER BY partition;

-- name: engines
SELECT engine, since, extract(epoch FROM clock_timestamp() - seen_at)::float8 AS silent FROM engines ORDER BY since, engine;

-- name: rejected_waiting
SELECT reason, count(*) AS events FROM rejected WHERE settled_at IS NULL GROUP BY reason ORDER BY reason;

-- name: waiting
SELECT (SELECT count(*) FROM stream_gaps WHERE acknowledged_at IS NULL) AS gaps,
       (SELECT count(*) FROM adl_orders WHERE state = 'open') AS orders,
       (SELECT coalesce(array_agg(symbol ORDER BY symbol), '{}') FROM contracts WHERE suspended) AS suspended;

-- name: contracts
SELECT c.symbol, c.partition, c.settle_currency, c.settle_decimals, c.price_decimals, c.multiplier, c.is_inverse,
       c.specification, c.suspended, c.closed_at, c.closed_seq, c.closed_price
FROM contracts c WHERE $1::text[] IS NULL OR c.symbol = ANY ($1) ORDER BY c.symbol;

-- name: contract_counts
SELECT partition, count(*) AS contracts FROM contracts GROUP BY partition;

-- name: scales
-- The decimals of each currency's contracts, with one contract each.
SELECT settle_currency, settle_decimals, min(symbol) AS symbol FROM contracts GROUP BY 1, 2 ORDER BY 1, 2;

-- name: contract_states
-- All generations of some symbols, ascending.
SELECT c.symbol, c.settle_currency, c.settle_decimals, c.price_decimals, c.multiplier, c.is_inverse, c.suspended,
       f.entry > 0 OR f.adl > 0 AS has_entries, f.seq, c.closed_at, c.closed_seq, c.closed_price
FROM contracts c JOIN funds f USING (symbol) WHERE c.name = ANY ($1) ORDER BY c.name, c.generation;

-- name: ledger_key
-- The ledger key of the newest generation of a symbol.
SELECT symbol FROM contracts WHERE name = $1 ORDER BY generation DESC LIMIT 1;

-- name: funds
SELECT c.symbol, c.partition, c.settle_currency, c.settle_decimals, c.price_decimals, c.multiplier, c.is_inverse,
       c.base_currency, c.is_quanto, c.suspended, c.status, c.closed_at IS NOT NULL AS closed, c.updated_at AS listed_at,
       f.balance, f.outstanding, f.entry, f.seq, f.adl, f.head, f.guard, f.adl_record, f.adl_head, f.updated_at,
       EXISTS (SELECT FROM adl_orders o WHERE o.symbol = f.symbol AND o.state = 'open') AS escalated,
       EXISTS (SELECT FROM holdings h WHERE h.symbol = f.symbol) AS has_inventory
FROM funds f JOIN contracts c USING (symbol)
WHERE $1::text[] IS NULL OR c.symbol = ANY ($1)
ORDER BY c.symbol;

-- name: heartbeat
INSERT INTO heartbeats AS h (partition, at) SELECT unnest($1::integer[]), clock_timestamp()
ON CONFLICT (partition) DO UPDATE SET at = excluded.at;

-- name: newest_heartbeat
SELECT pg_is_in_recovery() AS is_replica, (SELECT (extract(epoch FROM max(at)) * 1000)::bigint FROM heartbeats) AS at_ms;

-- name: replica_at_end
-- Whether a replica streams and has replayed everything it received.
SELECT EXISTS (SELECT FROM pg_stat_wal_receiver)
   AND CASE WHEN pg_is_in_recovery()
       THEN NOT pg_is_wal_replay_paused() AND pg_last_wal_replay_lsn() >= pg_last_wal_receive_lsn() END IS TRUE;

-- name: tail_offsets
-- The last settled message of each partition that a cell has, or one row without any, the clock, and the time up to which the database has every commit: at a primary now;
-- at a replica the newest heartbeat, or the last replayed commit if no engine writes heartbeats.
SELECT p.partition, p.generation, p.last_id, p.events, p.epoch, p.commits, (extract(epoch FROM now()) * 1000)::bigint AS now_ms,
       (extract(epoch FROM CASE WHEN pg_is_in_recovery()
            THEN coalesce((SELECT max(h.at) FROM heartbeats h), pg_last_xact_replay_timestamp()) ELSE now() END
       ) * 1000)::bigint AS as_of_ms
FROM (VALUES (1)) always LEFT JOIN partitions p ON true;

-- name: cell_partitions
-- The partitions that a cell has, for operators.
SELECT p.partition, p.generation, p.moving_to, p.lease_until > clock_timestamp() IS TRUE AS live,
       count(f.symbol) AS contracts, coalesce(sum(f.entry), 0)::bigint AS entries
FROM partitions p LEFT JOIN contracts c USING (partition) LEFT JOIN funds f USING (symbol)
GROUP BY p.partition ORDER BY p.partition;

-- name: held_partitions
-- The partitions that a cell has, with their generations.
SELECT partition, generation FROM partitions;

-- name: rates
-- The newest rate of each currency over all partitions; one from the future only if there is no other.
SELECT DISTINCT ON (currency) currency, price, ts FROM rates
ORDER BY currency, ts > (extract(epoch FROM clock_timestamp()) * 1000)::bigint + $1, ts DESC;

-- name: fund_versions
-- The versions of the funds that some commits of partitions changed, and the times of their contracts' last listings. `moves` names
-- these funds. Where it lacks a commit, or the names, all funds of the partition are searched for those changed after commit $3.
-- LIMIT and OFFSET keep the planner from scanning all funds instead of their keys.
WITH noted AS MATERIALIZED (
    SELECT k.partition, k.after, m.symbols
    FROM unnest($1::integer[], $2::bigint[], $3::bigint[]) AS k (partition, commit, after)
    LEFT JOIN LATERAL (SELECT * FROM moves x WHERE x.partition = k.partition AND x.slot = k.commit % 128 LIMIT 1) m
        ON m.commit = k.commit
)
SELECT f.symbol, f.entry, f.seq, f.adl, c.updated_at AS listed_at
FROM (SELECT DISTINCT unnest(symbols) AS symbol FROM noted) n
CROSS JOIN LATERAL (SELECT * FROM funds x WHERE x.symbol = n.symbol LIMIT 1) f
CROSS JOIN LATERAL (SELECT * FROM contracts x WHERE x.symbol = n.symbol LIMIT 1) c
UNION ALL
SELECT f.*
FROM (SELECT DISTINCT partition, after FROM noted WHERE symbols IS NULL) n
CROSS JOIN LATERAL (
    SELECT x.symbol, x.entry, x.seq, x.adl, c.updated_at
    FROM contracts c JOIN funds x USING (symbol) WHERE c.partition = n.partition AND x.commit > n.after OFFSET 0
) f;

-- name: entries_between
-- Up to $3 entries of each contract after $2, for the public: without the account.
SELECT e.symbol, e.entry, e.seq, e.kind, e.change, e.balance, e.uncovered, e.repaid, e.side, e.lots, e.price,
       e.bankruptcy_price, e.trade_id, e.order_id, e.ts, e.seal, e.closes, e.forced, e.recorded_at, e.hash
FROM unnest($1::text[], $2::bigint[]) AS s (symbol, after) CROSS JOIN LATERAL (
    SELECT * FROM entries x WHERE x.symbol = s.symbol AND x.entry > s.after ORDER BY x.entry LIMIT $3
) e;

-- name: orders_changed
-- Those of some orders that changed since the transaction that wrote the known version.
SELECT o.symbol, o.adl, o.cause, o.reduce, o.lots, o.price, o.deficit, o.deficit_lots, o.uncovered, o.recovered, o.executed,
       o.state, o.round, o.ts, o.updated_at, o.acknowledged, o.policy_version, o.origin, o.unwound
FROM unnest($1::text[], $2::bigint[], $3::timestamptz[]) AS k (symbol, adl, updated_at)
CROSS JOIN LATERAL (SELECT * FROM adl_orders x WHERE x.symbol = k.symbol AND x.adl = k.adl LIMIT 1) o
WHERE o.updated_at <> k.updated_at ORDER BY o.symbol, o.adl;

-- name: orders_after
-- Up to $5 orders of some contracts after a number each: those after the order ($3, $4), ascending.
SELECT o.symbol, o.adl, o.cause, o.reduce, o.lots, o.price, o.deficit, o.deficit_lots, o.uncovered, o.recovered, o.executed,
       o.state, o.round, o.ts, o.updated_at, o.acknowledged, o.policy_version, o.origin, o.unwound
FROM unnest($1::text[], $2::bigint[]) AS k (symbol, adl) CROSS JOIN LATERAL (
    SELECT * FROM adl_orders x WHERE x.symbol = k.symbol AND x.adl > k.adl AND (x.symbol, x.adl) > ($3, $4) ORDER BY x.adl LIMIT $5
) o ORDER BY o.symbol, o.adl LIMIT $5;

-- name: orders_open
-- Up to $4 open orders of some contracts: those after the order ($2, $3), ascending.
SELECT o.symbol, o.adl, o.cause, o.reduce, o.lots, o.price, o.deficit, o.deficit_lots, o.uncovered, o.recovered, o.executed,
       o.state, o.round, o.ts, o.updated_at, o.acknowledged, o.policy_version, o.origin, o.unwound
FROM adl_orders o WHERE o.state = 'open' AND o.symbol = ANY ($1) AND (o.symbol, o.adl) > ($2, $3)
ORDER BY o.symbol, o.adl LIMIT $4;

-- name: reductions
-- Reductions of some accounts by some orders. All executions of an account in a round have the same body.
SELECT r.account, o.updated_at, r.symbol, r.adl, o.cause, r.round, o.reduce AS side, o.price, o.ts, sum(r.lots)::bigint AS executed,
       (array_agg(r.body))[1] AS body
FROM unnest($1::text[], $2::bigint[]) AS k (symbol, adl)
JOIN adl_orders o USING (symbol, adl) JOIN adl_records r USING (symbol, adl)
WHERE r.kind = 'execution' AND r.account = ANY ($3)
GROUP BY r.account, o.updated_at, r.symbol, r.adl, o.cause, r.round, o.reduce, o.price, o.ts ORDER BY r.symbol, r.adl, r.round;

-- name: reductions_since
-- An account's reductions by orders that are open, or began or changed since a time, ordered by the last change. An order begins
-- by the engine's clock and changes by the database's; a client may know either time.
SELECT r.account, o.updated_at, r.symbol, r.adl, o.cause, r.round, o.reduce AS side, o.price, o.ts, sum(r.lots)::bigint AS executed,
       (array_agg(r.body))[1] AS body
FROM adl_records r
CROSS JOIN LATERAL (SELECT * FROM adl_orders x WHERE x.symbol = r.symbol AND x.adl = r.adl LIMIT 1) o
WHERE r.kind = 'execution' AND r.account = $1 AND (
    o.state = 'open' OR o.updated_at >= $2 OR o.ts >= floor(extract(epoch FROM $2::timestamptz) * 1000)
)
GROUP BY r.account, o.updated_at, r.symbol, r.adl, o.cause, r.round, o.reduce, o.price, o.ts
ORDER BY o.updated_at, r.symbol, r.adl, r.round;

-- name: orders_caused
-- A shortfall has one order. A takeover has one for the lots that the fund did not accept, and those that relieve its tranche.
SELECT symbol, adl, cause, reduce, lots, price, deficit, deficit_lots, uncovered, recovered, executed, state, round, ts, updated_at,
       acknowledged, policy_version, origin, unwound
FROM adl_orders WHERE symbol = $1 AND cause = $2 AND origin = 'shortfall'
UNION ALL
SELECT symbol, adl, cause, reduce, lots, price, deficit, deficit_lots, uncovered, recovered, executed, state, round, ts, updated_at,
       acknowledged, policy_version, origin, unwound
FROM adl_orders WHERE symbol = $1 AND cause = $2 AND origin <> 'shortfall'
  AND EXISTS (SELECT FROM entries WHERE symbol = $1 AND entry = $2 AND kind = 'takeover')
ORDER BY adl LIMIT $3;

-- name: inventory
-- The tranches of a contract with the last entry of its fund, as `as_of`; one row without a tranche for an empty inventory.
SELECT f.symbol, t.side, t.entry, t.lots, t.price, t.ts, t.forced, f.entry AS as_of
FROM funds f LEFT JOIN tranches t USING (symbol) WHERE f.symbol = $1 ORDER BY t.entry;

-- name: inventory_entries
-- The entries after $2 up to $3 that changed the inventories of some contracts.
SELECT e.symbol, e.entry, e.side, e.lots, e.price, e.ts, e.closes, e.forced
FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS s (symbol, after, until) CROSS JOIN LATERAL (
    SELECT * FROM entries x
    WHERE x.symbol = s.symbol AND x.entry > s.after AND x.entry <= s.until AND (x.kind = 'takeover' OR x.closes > 0)
) e ORDER BY e.symbol, e.entry;

-- name: tranches_ascending
-- `promised` are the lots that open inventory orders still need.
SELECT t.entry, t.side, t.lots, coalesce(o.lots, 0)::bigint AS promised, t.price, t.ts, t.forced
FROM tranches t LEFT JOIN (
    SELECT cause, sum(lots - executed - unwound) AS lots FROM adl_orders
    WHERE symbol = $1 AND state = 'open' AND origin = 'inventory' GROUP BY cause
) o ON o.cause = t.entry
WHERE t.symbol = $1 AND t.entry BETWEEN $2 AND $3 AND ($4::text IS NULL OR t.side = $4) ORDER BY t.entry LIMIT $5;

-- name: tranches_descending
SELECT t.entry, t.side, t.lots, coalesce(o.lots, 0)::bigint AS promised, t.price, t.ts, t.forced
FROM tranches t LEFT JOIN (
    SELECT cause, sum(lots - executed - unwound) AS lots FROM adl_orders
    WHERE symbol = $1 AND state = 'open' AND origin = 'inventory' GROUP BY cause
) o ON o.cause = t.entry
WHERE t.symbol = $1 AND t.entry BETWEEN $2 AND $3 AND ($4::text IS NULL OR t.side = $4) ORDER BY t.entry DESC LIMIT $5;

-- name: marks
-- The last stored marks.
SELECT symbol, mark FROM books WHERE mark IS NOT NULL;

-- name: stored_mark
SELECT mark FROM books WHERE symbol = $1;

-- name: balances_at
-- The state of funds at some moments: before the first entry (`next`) that a chart places later. Hours that begin later name it
-- by their first entries; the hour of the moment and the entries without an hour are searched. Moments only advance, so the search
-- starts at the previous result, if there is one. OFFSET 0 keeps the planner from scanning the whole ledger instead of the key.
SELECT f.symbol, m.place, b.next, coalesce(e.balance, 0) AS balance, coalesce(e.ts, 0) AS ts
FROM funds f
CROSS JOIN unnest($2::bigint[]) WITH ORDINALITY AS m (moment, place)
LEFT JOIN unnest($3::text[], $4::bigint[], $5::bigint[]) AS k (symbol, place, next) ON k.symbol = f.symbol AND k.place = m.place
LEFT JOIN rollup_progress p ON p.symbol = f.symbol
CROSS JOIN LATERAL (
    SELECT least(
        f.entry + 1,
        CASE WHEN k.next IS NULL
        THEN (SELECT r.first_entry FROM rollups r WHERE r.symbol = f.symbol AND r.hour > m.moment ORDER BY r.hour LIMIT 1)
        ELSE (SELECT r.first_entry FROM rollups r
              WHERE r.symbol = f.symbol AND r.first_entry >= k.next AND r.hour > m.moment ORDER BY r.first_entry LIMIT 1) END,
        (SELECT own.entry
         FROM rollups r CROSS JOIN LATERAL (
             SELECT x.entry FROM entries x
             WHERE x.symbol = r.symbol AND x.entry BETWEEN greatest(r.first_entry, k.next) AND r.last_entry AND charted_at(x.ts, x.recorded_at) > m.moment
             ORDER BY x.entry LIMIT 1
         ) own
         WHERE r.symbol = f.symbol AND r.hour = m.moment - m.moment % 3600000),
        (SELECT x.entry FROM entries x
         WHERE x.symbol = f.symbol AND x.entry >= greatest(p.entry + 1, k.next, 1) AND charted_at(x.ts, x.recorded_at) > m.moment ORDER BY x.entry LIMIT 1)
    ) AS next OFFSET 0
) b
LEFT JOIN LATERAL (SELECT * FROM entries x WHERE x.symbol = f.symbol AND x.entry = b.next - 1 OFFSET 0) e ON true
WHERE $1::text[] IS NULL OR f.symbol = ANY ($1);

-- name: highest_since
-- The highest balance before or after any entry that a chart places later than a moment, of each fund with such entries. The hour
-- of the moment is searched only if its highest balance exceeds that of the later hours. The order and OFFSET keep the planner from
-- scanning the whole ledger for the newest entries.
SELECT f.symbol, greatest(later.highest, fresh.highest, own.highest) AS highest
FROM funds f
LEFT JOIN rollup_progress p ON p.symbol = f.symbol
CROSS JOIN LATERAL (
    SELECT max(r.highest) AS highest FROM rollups r WHERE r.symbol = f.symbol AND r.hour > $1
) later
CROSS JOIN LATERAL (
    SELECT max(greatest(n.balance, n.balance - n.change)) AS highest FROM (
        SELECT * FROM entries x
        WHERE x.symbol = f.symbol AND x.entry >= CASE WHEN p.clock > $1 THEN p.entry + 1 ELSE (
            SELECT y.entry FROM entries y
            WHERE y.symbol = f.symbol AND y.entry > coalesce(p.entry, 0) AND charted_at(y.ts, y.recorded_at) > $1 ORDER BY y.entry LIMIT 1
        ) END
        ORDER BY x.entry OFFSET 0
    ) n
) fresh
LEFT JOIN LATERAL (
    SELECT part.highest FROM rollups r CROSS JOIN LATERAL (
        SELECT max(greatest(x.balance, x.balance - x.change)) AS highest FROM entries x
        WHERE x.symbol = r.symbol AND x.entry <= r.last_entry AND x.entry >= (
            SELECT y.entry FROM entries y
            WHERE y.symbol = r.symbol AND y.entry BETWEEN r.first_entry AND r.last_entry AND charted_at(y.ts, y.recorded_at) > $1
            ORDER BY y.entry LIMIT 1
        )
    ) part
    WHERE r.symbol = f.symbol AND r.hour = $1 - $1 % 3600000 AND r.highest > coalesce(later.highest, -1) OFFSET 0
) own ON true
WHERE coalesce(later.highest, fresh.highest, own.highest) IS NOT NULL;

-- name: outstanding_at
-- The outstanding amount of a contract after entry $2, from that before the hour of the entry. The hours that lack it are added up.
SELECT coalesce(k.outstanding, 0) + a.amount + coalesce((
    SELECT sum(r.uncovered - r.repaid) FROM rollups r
    WHERE r.symbol = $1 AND r.first_entry >= coalesce(k.first_entry, 1) AND r.first_entry < h.first_entry
), 0) + coalesce((
    SELECT sum(n.uncovered - n.repaid) FROM (
        SELECT * FROM entries e WHERE e.symbol = $1 AND e.entry BETWEEN coalesce(h.first_entry, 1) AND $2 ORDER BY e.entry OFFSET 0
    ) n
), 0) AS outstanding
FROM (SELECT) one
LEFT JOIN LATERAL (
    SELECT r.first_entry FROM rollups r WHERE r.symbol = $1 AND r.first_entry <= $2 + 1 ORDER BY r.first_entry DESC LIMIT 1
) h ON true
LEFT JOIN LATERAL (
    SELECT r.first_entry, r.outstanding FROM rollups r
    WHERE r.symbol = $1 AND r.first_entry <= $2 + 1 AND r.outstanding IS NOT NULL ORDER BY r.first_entry DESC LIMIT 1
) k ON true
CROSS JOIN LATERAL adl_outstanding($1, coalesce(k.first_entry, 1), $2) a;

-- name: candles
-- The buckets of $4 milliseconds with entries from $2 to before $3 (both begin buckets), and the last bucket before them.
WITH hours AS (
    SELECT r.hour, r.first_entry, r.last_entry, r.opening, r.highest, r.lowest, r.closing, r.credited, r.paid, r.uncovered, r.fills
    FROM rollups r WHERE r.symbol = $1 AND r.hour >= coalesce((
        SELECT x.hour - x.hour % $4 FROM rollups x WHERE x.symbol = $1 AND x.hour < $2 ORDER BY x.hour DESC LIMIT 1
    ), $2) AND r.hour < $3
    UNION ALL
    SELECT h.hour, h.first_entry, h.last_entry, h.opening, h.highest, h.lowest, h.closing, h.credited, h.paid, h.uncovered, h.fills
    FROM funds f LEFT JOIN rollup_progress p USING (symbol)
    CROSS JOIN LATERAL chart_hours(f.symbol, coalesce(p.entry, 0), f.entry, coalesce(p.clock, 0)) h
    WHERE f.symbol = $1 AND h.hour < $3
)
SELECT h.hour - h.hour % $4 AS start, (array_agg(h.opening ORDER BY h.first_entry))[1] AS opening, max(h.highest) AS highest,
       min(h.lowest) AS lowest, (array_agg(h.closing ORDER BY h.last_entry DESC))[1] AS closing,
       sum(h.credited) AS credited, sum(h.paid) AS paid, sum(h.uncovered) AS uncovered, sum(h.fills) AS fills
FROM hours h GROUP BY 1 ORDER BY 1;

-- name: chart_ends
-- The times of a contract's first entry and of its last one on a chart, NULL without entries.
SELECT (SELECT charted_at(e.ts, e.recorded_at) FROM entries e WHERE e.symbol = $1 AND e.entry = 1) AS begin,
       greatest((SELECT p.clock FROM rollup_progress p WHERE p.symbol = $1 AND p.entry > 0), (
           SELECT max(charted_at(n.ts, n.recorded_at)) FROM (
               SELECT * FROM entries x
               WHERE x.symbol = $1 AND x.entry > coalesce((SELECT p.entry FROM rollup_progress p WHERE p.symbol = $1), 0)
               ORDER BY x.entry OFFSET 0
           ) n
       )) AS clock;

-- name: chart_hour_from
-- The first entry of the earliest hour that begins between two entries; NULL without one.
SELECT min(r.first_entry) AS entry FROM rollups r WHERE r.symbol = $1 AND r.first_entry BETWEEN $2 AND $3;

-- name: chart_clock_before
-- The chart clock before entry $2: the latest time of the entries of its hour, whose first one is later than all before.
SELECT max(charted_at(x.ts, x.recorded_at)) AS clock
FROM entries x
WHERE x.symbol = $1 AND x.entry < $2 AND x.entry >= coalesce((
    SELECT r.first_entry FROM rollups r WHERE r.symbol = $1 AND r.first_entry < $2 ORDER BY r.first_entry DESC LIMIT 1
), 1);

-- name: chart_buckets
-- The entries $2 to $3 in buckets of $5 milliseconds from $4 on, oldest first. $6 is the chart clock before entry $2. An entry is at
-- the latest time of all entries up to it, as in chart_hours. Amounts count as there too.
SELECT b.since, b.until, b.highest, b.lowest, z.balance AS closing, b.paid, b.uncovered, b.fills
FROM (
    SELECT min(t.clock) AS since, max(t.clock) AS until, max(t.entry) AS last_entry,
           max(greatest(t.balance, t.balance - t.change)) AS highest, min(least(t.balance, t.balance - t.change)) AS lowest,
           sum(greatest(-t.change, 0)) AS paid, sum(t.uncovered) AS uncovered,
           count(*) FILTER (WHERE t.kind NOT IN ('refund', 'cover', 'carry_out', 'carry_in')) AS fills
    FROM (
        SELECT x.entry, x.kind, x.change, x.balance, x.uncovered,
               greatest($6, max(charted_at(x.ts, x.recorded_at)) OVER so_far) AS clock
        FROM entries x WHERE x.symbol = $1 AND x.entry BETWEEN $2 AND $3
        WINDOW so_far AS (ORDER BY x.entry ROWS UNBOUNDED PRECEDING)
    ) t
    GROUP BY (t.clock - $4) / $5
) b
JOIN entries z ON z.symbol = $1 AND z.entry = b.last_entry
ORDER BY b.since;

-- name: entries_ascending
-- For the public: without the account. `bound` is the last archived entry, NULL without one.
SELECT symbol, entry, seq, kind, change, balance, uncovered, repaid, side, lots, price, bankruptcy_price, trade_id, order_id,
       ts, seal, closes, forced, recorded_at, hash, (SELECT b.entry FROM archive_bounds b WHERE b.symbol = $1) AS bound
FROM entries WHERE symbol = $1 AND entry BETWEEN $2 AND $3 AND ($4::text IS NULL OR kind = $4) AND ts BETWEEN $5 AND $6
ORDER BY entry LIMIT $7;

-- name: entries_descending
-- For the public: without the account. `bound` is the last archived entry, NULL without one.
SELECT symbol, entry, seq, kind, change, balance, uncovered, repaid, side, lots, price, bankruptcy_price, trade_id, order_id,
       ts, seal, closes, forced, recorded_at, hash, (SELECT b.entry FROM archive_bounds b WHERE b.symbol = $1) AS bound
FROM entries WHERE symbol = $1 AND entry BETWEEN $2 AND $3 AND ($4::text IS NULL OR kind = $4) AND ts BETWEEN $5 AND $6
ORDER BY entry DESC LIMIT $7;

-- name: last_seals
SELECT EXISTS (
    SELECT FROM contracts c JOIN funds f USING (symbol) JOIN entries e ON e.symbol = f.symbol AND e.entry = f.entry
    WHERE c.partition = $1 AND e.seal <> ''
);

-- name: entry_account
SELECT account FROM entries WHERE symbol = $1 AND entry = $2;

-- name: entry_spans
-- The runs of entries that may have a time from $2, which begins an hour, to $3, in order: the hours of that time, other hours
-- with late or early entries, and all entries without an hour.
-- The orders and OFFSET keep the planner from reading all hours of the contract.
SELECT first_entry, last_entry FROM (
    SELECT (SELECT r.first_entry FROM rollups r WHERE r.symbol = $1 AND r.hour BETWEEN $2 AND $3 ORDER BY r.hour LIMIT 1),
           (SELECT r.last_entry FROM rollups r WHERE r.symbol = $1 AND r.hour BETWEEN $2 AND $3 ORDER BY r.hour DESC LIMIT 1)
    UNION ALL
    SELECT r.first_entry, r.last_entry FROM (
        SELECT * FROM rollups x WHERE x.symbol = $1 AND (x.earliest < x.hour OR x.latest >= x.hour + 3600000) ORDER BY x.hour OFFSET 0
    ) r
    WHERE r.hour NOT BETWEEN $2 AND $3 AND r.earliest <= $3 AND r.latest >= $2
    UNION ALL
    SELECT coalesce((SELECT p.entry FROM rollup_progress p WHERE p.symbol = $1), 0) + 1, 9223372036854775807
) s (first_entry, last_entry)
WHERE first_entry IS NOT NULL ORDER BY first_entry;

-- name: entries_after
SELECT symbol, entry, seq, kind, change, balance, uncovered, repaid, side, lots, price, bankruptcy_price, trade_id, order_id,
       account, ts, seal, closes, forced, recorded_at, hash
FROM entries WHERE symbol = $1 AND entry > $2 ORDER BY entry LIMIT $3;

-- name: records_after
SELECT symbol, record, entry, kind, adl, round, seq, ts, account, lots, body, hash, recorded_at
FROM adl_records WHERE symbol = $1 AND record > $2 ORDER BY record LIMIT $3;

-- name: orders_ascending
SELECT symbol, adl, cause, reduce, lots, price, deficit, deficit_lots, uncovered, recovered, executed, state, round, ts, updated_at,
       acknowledged, policy_version, origin, unwound
FROM adl_orders WHERE symbol = $1 AND adl BETWEEN $2 AND $3 AND ($4::text IS NULL OR state = $4) ORDER BY adl LIMIT $5;

-- name: orders_descending
SELECT symbol, adl, cause, reduce, lots, price, deficit, deficit_lots, uncovered, recovered, executed, state, round, ts, updated_at,
       acknowledged, policy_version, origin, unwound
FROM adl_orders WHERE symbol = $1 AND adl BETWEEN $2 AND $3 AND ($4::text IS NULL OR state = $4) ORDER BY adl DESC LIMIT $5;

-- name: orders_latest
-- The $1 orders of all contracts that changed last, among the last $1 of each contract. Only contracts whose last order is among the
-- $1 that changed last are read further, so the cost depends on the number of contracts and not on that of orders.
SELECT o.symbol, o.adl, o.cause, o.reduce, o.lots, o.price, o.deficit, o.deficit_lots, o.uncovered, o.recovered, o.executed,
       o.state, o.round, o.ts, o.updated_at, o.acknowledged, o.policy_version, o.origin, o.unwound
FROM (
    SELECT c.symbol FROM contracts c CROSS JOIN LATERAL (
        SELECT updated_at FROM adl_orders x WHERE x.symbol = c.symbol ORDER BY x.adl DESC LIMIT 1
    ) n
    ORDER BY n.updated_at DESC, c.symbol LIMIT $1
) k
CROSS JOIN LATERAL (SELECT * FROM adl_orders x WHERE x.symbol = k.symbol ORDER BY x.adl DESC LIMIT $1) o
ORDER BY o.updated_at DESC, o.symbol, o.adl DESC LIMIT $1;

-- name: order_steps
-- The records of some orders by round and kind: the time of the last one, and the sum of their lots. Without those of further positions.
SELECT r.symbol, r.adl, r.round, r.kind, max(r.ts) AS ts, sum(r.lots)::bigint AS lots
FROM unnest($1::text[], $2::bigint[]) AS k (symbol, adl) JOIN adl_records r USING (symbol, adl)
WHERE r.kind <> 'part' GROUP BY r.symbol, r.adl, r.round, r.kind ORDER BY r.symbol, r.adl, r.round, max(r.record);

-- name: rounds_promised
-- The rounds of some orders that do not begin at rank 1, each with the rounds of other orders of the side that were open when it
-- began and that begin at a better rank: the last record of such a round, and its best rank. Of the twenty orders before and after.
SELECT r.adl, r.round, o.adl AS other, p.kind, p.body, f.first_rank
FROM adl_records r
JOIN adl_orders b ON b.symbol = r.symbol AND b.adl = r.adl
JOIN adl_orders o ON o.symbol = r.symbol AND o.adl BETWEEN r.adl - 20 AND r.adl + 20 AND o.adl <> r.adl AND o.reduce = b.reduce
    AND (o.state = 'open' OR o.updated_at >= r.recorded_at)
CROSS JOIN LATERAL (
    SELECT x.kind, x.body, x.round FROM adl_records x
    WHERE x.symbol = r.symbol AND x.adl = o.adl AND x.kind IN ('order', 'round', 'part') AND x.record < r.record
    ORDER BY x.record DESC LIMIT 1
) p
CROSS JOIN LATERAL (
    SELECT min(x.first_rank) AS first_rank FROM adl_records x
    WHERE x.symbol = r.symbol AND x.adl = o.adl AND x.round = p.round AND x.record < r.record
) f
WHERE r.symbol = $1 AND r.adl = ANY ($2) AND r.kind IN ('order', 'round') AND r.first_rank > 1 AND f.first_rank < r.first_rank
  AND (o.state = 'open' OR EXISTS (
      SELECT FROM adl_records x WHERE x.symbol = r.symbol AND x.adl = o.adl AND x.record > r.record
  ))
ORDER BY r.adl, r.round, o.adl;

-- name: rounds
-- The record that began each round of some orders. It contains the first positions by rank.
SELECT adl, round, kind, body FROM adl_records
WHERE symbol = $1 AND adl = ANY ($2) AND kind IN ('order', 'round') ORDER BY adl, round;

-- name: round_parts
-- Up to $5 records of a round with its positions from a rank on.
SELECT kind, body FROM adl_records
WHERE symbol = $1 AND adl = $2 AND round = $3 AND kind IN ('order', 'round', 'part') AND record >= coalesce((
    SELECT max(p.record) FROM adl_records p
    WHERE p.symbol = $1 AND p.adl = $2 AND p.round = $3 AND p.kind IN ('order', 'round', 'part') AND p.first_rank <= $4::bigint
), 0)
ORDER BY record LIMIT $5;

-- name: executed_rounds
-- Lots executed in each round of some orders.
SELECT adl, round, sum(lots)::bigint AS executed FROM adl_records
WHERE symbol = $1 AND adl = ANY ($2) AND kind = 'execution' GROUP BY 1, 2;

-- name: executed_accounts
-- Lots executed by some accounts in each round of some orders.
SELECT adl, round, account, sum(lots)::bigint AS executed FROM adl_records
WHERE symbol = $1 AND adl = ANY ($2) AND kind = 'execution' AND account = ANY ($3) GROUP BY 1, 2, 3;

-- name: reductions_after
-- Up to $5 reductions of an account's positions after a place, in the order of their first executions. ORDER BY and LIMIT keep the
-- planner from reading all executions and orders. Records that an unfinished move copied have no orders, and do not count.
SELECT r.account, r.updated_at, r.symbol, r.adl, r.cause, r.round, r.side, r.price, r.ts, e.executed, r.body, r.recorded_at, r.record
FROM (
    SELECT x.account, x.symbol, x.adl, x.round, x.body, x.recorded_at, x.record, o.updated_at, o.cause, o.reduce AS side, o.price, o.ts
    FROM adl_records x
    CROSS JOIN LATERAL (SELECT * FROM adl_orders y WHERE y.symbol = x.symbol AND y.adl = x.adl LIMIT 1) o
    WHERE x.kind = 'execution' AND x.account = $1 AND (x.recorded_at, x.symbol, x.record) > ($2, $3, $4) AND x.record = (
        SELECT y.record FROM adl_records y
        WHERE y.kind = 'execution' AND y.account = x.account AND y.symbol = x.symbol AND y.adl = x.adl AND y.round = x.round
        ORDER BY y.record LIMIT 1
    )
    ORDER BY x.recorded_at, x.symbol, x.record LIMIT $5
) r
CROSS JOIN LATERAL (
    SELECT sum(x.lots)::bigint AS executed FROM adl_records x
    WHERE x.kind = 'execution' AND x.account = r.account AND x.symbol = r.symbol AND x.adl = r.adl AND x.round = r.round
) e
ORDER BY r.recorded_at, r.symbol, r.record;

-- name: reductions_before
-- Up to $5 reductions of an account's positions before a place, the newest first.
SELECT r.account, r.updated_at, r.symbol, r.adl, r.cause, r.round, r.side, r.price, r.ts, e.executed, r.body, r.recorded_at, r.record
FROM (
    SELECT x.account, x.symbol, x.adl, x.round, x.body, x.recorded_at, x.record, o.updated_at, o.cause, o.reduce AS side, o.price, o.ts
    FROM adl_records x
    CROSS JOIN LATERAL (SELECT * FROM adl_orders y WHERE y.symbol = x.symbol AND y.adl = x.adl LIMIT 1) o
    WHERE x.kind = 'execution' AND x.account = $1 AND (x.recorded_at, x.symbol, x.record) < ($2, $3, $4) AND x.record = (
        SELECT y.record FROM adl_records y
        WHERE y.kind = 'execution' AND y.account = x.account AND y.symbol = x.symbol AND y.adl = x.adl AND y.round = x.round
        ORDER BY y.record LIMIT 1
    )
    ORDER BY x.recorded_at DESC, x.symbol DESC, x.record DESC LIMIT $5
) r
CROSS JOIN LATERAL (
    SELECT sum(x.lots)::bigint AS executed FROM adl_records x
    WHERE x.kind = 'execution' AND x.account = r.account AND x.symbol = r.symbol AND x.adl = r.adl AND x.round = r.round
) e
ORDER BY r.recorded_at DESC, r.symbol DESC, r.record DESC;

-- name: reductions_page
-- Reductions of an account's positions from number $2 to $3, numbered from 1 in the order of their first executions: the first $5
-- with $4 (forward), else the last $5. The numbers are counted in an index; only the returned rows are read.
SELECT d.number, r.account, o.updated_at, r.symbol, r.adl, o.cause, r.round, o.reduce AS side, o.price, o.ts, e.executed, r.body
FROM (
    SELECT n.symbol, n.record, n.number FROM (
        SELECT f.symbol, f.record, row_number() OVER (ORDER BY f.recorded_at, f.symbol, f.record) AS number FROM (
            SELECT DISTINCT ON (x.symbol, x.adl, x.round) x.symbol, x.record, x.recorded_at FROM adl_records x
            WHERE x.kind = 'execution' AND x.account = $1 ORDER BY x.symbol, x.adl, x.round, x.record
        ) f
    ) n
    WHERE n.number BETWEEN $2 AND $3 ORDER BY CASE WHEN $4::boolean THEN n.number ELSE -n.number END LIMIT $5
) d
CROSS JOIN LATERAL (SELECT * FROM adl_records x WHERE x.symbol = d.symbol AND x.record = d.record LIMIT 1) r
CROSS JOIN LATERAL (SELECT * FROM adl_orders x WHERE x.symbol = d.symbol AND x.adl = r.adl LIMIT 1) o
CROSS JOIN LATERAL (
    SELECT sum(x.lots)::bigint AS executed FROM adl_records x
    WHERE x.kind = 'execution' AND x.account = r.account AND x.symbol = r.symbol AND x.adl = r.adl AND x.round = r.round
) e
ORDER BY CASE WHEN $4::boolean THEN d.number ELSE -d.number END;

-- name: reduction_places
-- The reductions of an account in a cell, by their first executions.
SELECT symbol, adl, round, min(record) AS record, min(recorded_at) AS at
FROM adl_records WHERE kind = 'execution' AND account = $1 GROUP BY symbol, adl, round;

-- name: reductions_at
-- Reductions by the records of their first executions.
SELECT k.symbol, k.record, r.account, o.updated_at, r.adl, o.cause, r.round, o.reduce AS side, o.price, o.ts, s.executed, r.body
FROM unnest($1::text[], $2::bigint[]) AS k (symbol, record)
JOIN adl_records r USING (symbol, record)
CROSS JOIN LATERAL (SELECT * FROM adl_orders x WHERE x.symbol = r.symbol AND x.adl = r.adl LIMIT 1) o
CROSS JOIN LATERAL (
    SELECT sum(x.lots)::bigint AS executed FROM adl_records x
    WHERE x.symbol = r.symbol AND x.adl = r.adl AND x.round = r.round AND x.kind = 'execution' AND x.account = r.account
) s;

-- name: carried_lots
-- The lots that each fund holds, with those in its open takeover orders.
SELECT symbol, (sum(held) + sum(in_orders))::bigint AS lots FROM holdings GROUP BY symbol;

-- name: all_tranches
SELECT symbol, side, entry, lots, price, ts, forced FROM tranches ORDER BY symbol, entry;

-- name: latest_orders
-- The last orders of every contract, each with the record that began its current round.
SELECT o.symbol, o.adl, o.origin, o.reduce, o.lots, o.price, c.price_decimals, o.deficit, o.deficit_lots, o.uncovered,
       o.recovered, o.executed, o.state, o.round, a.kind, a.body
FROM contracts c
CROSS JOIN LATERAL (SELECT * FROM adl_orders WHERE symbol = c.symbol ORDER BY adl DESC LIMIT $1) o
CROSS JOIN LATERAL (
    SELECT kind, body FROM adl_records
    WHERE symbol = o.symbol AND adl = o.adl AND round = o.round AND kind IN ('order', 'round') LIMIT 1
) a
ORDER BY o.symbol, o.adl;

-- name: orders_of_span
SELECT o.symbol, o.adl, o.origin, o.reduce, o.lots, o.executed, o.state, o.uncovered, o.recovered, c.settle_currency, c.settle_decimals, o.ts
FROM adl_orders o JOIN contracts c USING (symbol) WHERE o.ts >= $1 AND o.ts < $2 ORDER BY o.ts, o.symbol, o.adl;

-- name: largest_shortfalls
-- The $3 largest shortfalls of each settlement currency, in the hours from $1 to before $2.
SELECT symbol, entry, side, lots, price, bankruptcy_price, price_decimals, paid, uncovered, settle_currency, settle_decimals, ts
FROM (
    SELECT e.symbol, e.entry, e.side, e.lots, e.price, e.bankruptcy_price, c.price_decimals, -e.change AS paid, e.uncovered,
           c.settle_currency, c.settle_decimals, e.ts,
           row_number() OVER (
               PARTITION BY c.settle_currency ORDER BY (e.uncovered - e.change) / 10::numeric ^ c.settle_decimals DESC, e.symbol, e.entry
           ) AS place
    FROM rollups r JOIN contracts c USING (symbol)
    JOIN entries e ON e.symbol = r.symbol AND e.entry BETWEEN r.first_entry AND r.last_entry
    WHERE r.hour >= $1 AND r.hour < $2 AND e.kind = 'shortfall'
) s
WHERE place <= $3 ORDER BY settle_currency, place;

-- name: audit_states
SELECT symbol, bool_and(good) AS good, max(verified_at) AS verified_at FROM audit_progress GROUP BY symbol ORDER BY symbol;

-- name: executed_since
-- Executions of orders that began with a later sequence.
SELECT r.symbol, r.account, r.lots, r.body
FROM adl_records r JOIN adl_records b ON b.symbol = r.symbol AND b.adl = r.adl AND b.kind = 'order'
WHERE r.kind = 'execution' AND b.seq > $1;

-- name: rejected_list
-- In stream order: the parts of an id compare as numbers.
SELECT partition, stream_id, position, reason, detail, codec, body, rejected_at, replayed_at, settled_at, symbol, entry
FROM rejected
WHERE ($1::text IS NULL OR reason = $1) AND ($2::boolean OR settled_at IS NULL)
  AND ($3::integer IS NULL OR (partition, stream_id, position) = ($3, $4, $5))
ORDER BY partition, split_part(stream_id, '-', 1)::numeric, split_part(stream_id, '-', 2)::numeric, position LIMIT $6;

-- name: rejected_among
-- The rejected events of some messages.
SELECT reason, detail, event_symbol, event_seq, digest FROM rejected
WHERE partition = $1 AND stream_id = ANY ($2) ORDER BY reason, detail;

-- name: rejected_kept
-- Of some numbered events, those that were ever rejected and that no replay has settled.
SELECT r.event_symbol, r.event_seq, r.digest, min(r.reason) AS reason
FROM unnest($1::text[], $2::bigint[], $3::bytea[]) AS k (symbol, seq, digest)
JOIN rejected r ON r.event_symbol = k.symbol AND r.event_seq = k.seq AND r.digest = k.digest
WHERE r.settled_at IS NULL GROUP BY 1, 2, 3;

-- name: rejected_sent
UPDATE rejected SET replayed_at = now() WHERE partition = $1 AND stream_id = $2 AND position = $3;

-- name: rollup_due
-- The contracts of a partition whose rollups do not reach their last entries, or are unsound.
SELECT f.symbol, coalesce(p.entry, 0) AS condensed, coalesce(p.sound, 0) AS sound, coalesce(p.clock, 0) AS clock, f.entry
FROM funds f JOIN contracts c USING (symbol) LEFT JOIN rollup_progress p USING (symbol)
WHERE (f.entry > coalesce(p.entry, 0) OR p.sound <> p.entry) AND c.partition = $1
ORDER BY f.symbol;

-- name: rollup_lock
INSERT INTO rollup_progress AS p (symbol, entry) SELECT unnest($1::text[]), 0
ON CONFLICT (symbol) DO UPDATE SET entry = p.entry
RETURNING p.symbol, p.entry, p.sound, p.clock;

-- name: rollup_hours
-- The hours of some contracts' entries after one, at which the chart clock is `clock`, up to another.
SELECT d.symbol, h.*
FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) AS d (symbol, condensed, upto, clock)
CROSS JOIN LATERAL chart_hours(d.symbol, d.condensed, d.upto, d.clock) h;

-- name: rollup_keep
-- Adds hours to the stored ones, and moves the rollup progress of their contracts to their ends.
WITH hours AS (
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
                         $8::bigint[], $9::numeric[], $10::numeric[], $11::numeric[], $12::numeric[], $13::numeric[],
                         $14::bigint[], $15::bigint[], $16::bigint[], $17::bigint[])
        AS h (symbol, hour, first_entry, last_entry, opening, highest, lowest, closing, credited, paid, uncovered, repaid, covered,
              fills, earliest, latest, clock)
), kept AS (
    INSERT INTO rollups AS r (symbol, hour, first_entry, last_entry, opening, highest, lowest, closing, credited, paid, uncovered,
                              repaid, covered, fills, earliest, latest)
    SELECT symbol, hour, first_entry, last_entry, opening, highest, lowest, closing, credited, paid, uncovered, repaid, covered,
           fills, earliest, latest
    FROM hours
    ON CONFLICT (symbol, hour) DO UPDATE SET
        last_entry = excluded.last_entry, closing = excluded.closing,
        highest = greatest(r.highest, excluded.highest), lowest = least(r.lowest, excluded.lowest),
        credited = r.credited + excluded.credited, paid = r.paid + excluded.paid,
        uncovered = r.uncovered + excluded.uncovered, repaid = r.repaid + excluded.repaid,
        covered = r.covered + excluded.covered, fills = r.fills + excluded.fills,
        earliest = least(r.earliest, excluded.earliest), latest = greatest(r.latest, excluded.latest)
)
UPDATE rollup_progress p SET entry = h.entry, sound = h.entry, clock = h.clock
FROM (SELECT symbol, max(last_entry) AS entry, max(clock) AS clock FROM hours GROUP BY symbol) h WHERE p.symbol = h.symbol;

-- name: rollups_without_outstanding
-- The contracts of a partition with hours that lack their outstanding amounts: the first entry of the last hour before these, and its
-- amount. Only sound hours get them.
SELECT n.symbol, coalesce(k.first_entry, 1) AS first_entry, coalesce(k.outstanding, 0) AS outstanding
FROM (SELECT symbol, min(first_entry) AS first_entry FROM rollups WHERE outstanding IS NULL GROUP BY symbol) n
JOIN contracts c USING (symbol) JOIN rollup_progress p USING (symbol)
LEFT JOIN LATERAL (
    SELECT * FROM rollups r WHERE r.symbol = n.symbol AND r.first_entry < n.first_entry ORDER BY r.first_entry DESC LIMIT 1
) k ON true
WHERE c.partition = $1 AND p.sound = p.entry ORDER BY n.symbol;

-- name: rollup_outstanding
-- The outstanding amounts before up to $4 hours of a contract, from the hour that begins with entry $2 on, before which it is $3.
SELECT symbol, hour, (sum(step) OVER (ORDER BY first_entry))::bigint AS outstanding, first_entry
FROM (
    SELECT h.symbol, h.hour, h.first_entry,
           lag(h.uncovered - h.repaid + a.amount, 1, $3::bigint) OVER (ORDER BY h.first_entry) AS step
    FROM (SELECT * FROM rollups r WHERE r.symbol = $1 AND r.first_entry >= $2 ORDER BY r.first_entry LIMIT $4) h
    CROSS JOIN LATERAL adl_outstanding(h.symbol, h.first_entry, h.last_entry) a
) s
ORDER BY first_entry;

-- name: rollup_outstanding_keep
UPDATE rollups r SET outstanding = k.outstanding
FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS k (symbol, hour, outstanding)
WHERE r.symbol = k.symbol AND r.hour = k.hour AND r.outstanding IS NULL;

-- name: rollups_of
-- The hours of a contract after an entry, which ends an hour.
SELECT hour, first_entry, last_entry, opening, highest, lowest, closing, credited, paid, uncovered, repaid, covered, fills, earliest,
       latest, outstanding
FROM rollups WHERE symbol = $1 AND first_entry > $2 ORDER BY hour;

-- name: rollup_progress
SELECT entry, sound, clock FROM rollup_progress WHERE symbol = $1;

-- name: rollups_delete
-- Deletes the hours of a contract after an entry, which ends an hour.
DELETE FROM rollups WHERE symbol = $1 AND first_entry > $2;

-- name: rollups_mark_unsound
UPDATE rollup_progress SET sound = 0;

-- name: cell
SELECT name, partitions FROM cell;

-- name: schema_version
SELECT version_num FROM alembic_version;

-- name: ping
SELECT 1;

-- name: heads
SELECT f.symbol, f.entry, f.head FROM funds f ORDER BY f.symbol;

-- name: chain_heads
-- The heads of both chains of every contract.
SELECT f.symbol, f.entry, encode(f.head, 'hex') AS head, f.adl_record, encode(f.adl_head, 'hex') AS adl_head
FROM funds f ORDER BY f.symbol;

-- name: chain_links
-- Whether some contracts are listed, and the hashes of an entry and of an ADL record of each.
SELECT k.symbol, c.symbol IS NOT NULL AS listed, encode(e.hash, 'hex') AS head, encode(r.hash, 'hex') AS adl_head
FROM unnest($1::text[], $2::bigint[], $3::bigint[]) WITH ORDINALITY AS k (symbol, entry, record, place)
LEFT JOIN contracts c ON c.symbol = k.symbol
LEFT JOIN entries e ON e.symbol = k.symbol AND e.entry = k.entry
LEFT JOIN adl_records r ON r.symbol = k.symbol AND r.record = k.record
ORDER BY k.place;

-- name: audited
-- Every symbol of entries, contracts or funds, so that a removed fund or contract is found too. The recursion skips through the
-- entries' index from symbol to symbol.
WITH RECURSIVE written (symbol) AS (
    (SELECT symbol FROM entries ORDER BY symbol LIMIT 1)
    UNION ALL
    SELECT (SELECT e.symbol FROM entries e WHERE e.symbol > w.symbol ORDER BY e.symbol LIMIT 1)
    FROM written w WHERE w.symbol IS NOT NULL
), known AS (
    SELECT symbol FROM written WHERE symbol IS NOT NULL UNION SELECT symbol FROM contracts UNION SELECT symbol FROM funds
)
SELECT symbol, coalesce(f.entry, 0) AS entry FROM known LEFT JOIN funds f USING (symbol) ORDER BY symbol;

-- name: audit_progress
-- The progress of walks through the ledgers, the time since each last verified an end without a difference, and the last archived
-- entry, which walks do not read.
SELECT p.symbol, p.entry, p.good, extract(epoch FROM clock_timestamp() - p.verified_at)::float8 AS age_seconds,
       coalesce(b.entry, 0) AS archived
FROM audit_progress p LEFT JOIN archive_bounds b USING (symbol) WHERE p.walk = $1;

-- name: audit_of
-- The walks through the ledger of a contract.
SELECT walk, entry, good, verified_at FROM audit_progress WHERE symbol = $1;

-- name: audit_checkpoints
SELECT symbol, entry, seq, balance, uncovered, repaid, head, outstanding, recovered, record, adl, adl_head, state
FROM audit_progress WHERE symbol = ANY ($1) AND walk = $2;

-- name: audit_entries
-- The next entries of some contracts, each after its own number and up to its own count.
SELECT e.symbol, e.entry, seq, kind, change, balance, uncovered, repaid, side, lots, price, bankruptcy_price, trade_id, order_id,
       account, ts, seal, closes, forced, recorded_at, hash
FROM unnest($1::text[], $2::bigint[], $3::integer[]) AS k (symbol, entry, entries)
CROSS JOIN LATERAL (SELECT * FROM entries x WHERE x.symbol = k.symbol AND x.entry > k.entry ORDER BY x.entry LIMIT k.entries) e;

-- name: audit_records
-- The next ADL records of some contracts, each after its own number and up to its own count.
SELECT r.symbol, r.record, r.entry, r.kind, r.adl, r.round, r.seq, r.ts, r.account, r.lots, r.body, r.hash
FROM unnest($1::text[], $2::bigint[], $3::integer[]) AS k (symbol, record, records)
CROSS JOIN LATERAL (
    SELECT * FROM adl_records x WHERE x.symbol = k.symbol AND x.record > k.record ORDER BY x.record LIMIT k.records
) r;

-- name: audit_opened
-- All records of some orders, up to a record number per contract. A separate step sorts them: in the order of the records' key the
-- planner would search all orders for each record.
WITH found AS MATERIALIZED (
    SELECT r.symbol, r.record, r.entry, r.kind, r.adl, r.round, r.seq, r.ts, r.account, r.lots, r.body
    FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS k (symbol, adl, record)
    CROSS JOIN LATERAL (
        SELECT * FROM adl_records x WHERE x.symbol = k.symbol AND x.adl = k.adl AND x.record <= k.record OFFSET 0
    ) r
)
SELECT * FROM found ORDER BY symbol, record;

-- name: audit_order_rows
-- Each row is the first from its number on. So PostgreSQL uses the index by number even without statistics, instead of searching
-- all orders of the contract for each number.
SELECT o.symbol, o.adl, o.cause, o.reduce, o.lots, o.price, o.deficit, o.deficit_lots, o.uncovered, o.recovered, o.executed,
       o.state, o.round, o.ts, o.seq, o.account, o.acknowledged, o.round_ms, o.policy_version, o.origin, o.unwound
FROM unnest($1::text[], $2::bigint[]) AS k (symbol, adl)
CROSS JOIN LATERAL (
    SELECT * FROM adl_orders x WHERE x.symbol = k.symbol AND x.adl >= k.adl ORDER BY x.adl LIMIT 1
) o
WHERE o.adl = k.adl;

-- name: audit_funds
SELECT c.symbol, c.settle_currency, c.settle_decimals, c.price_decimals, c.multiplier, c.is_inverse, c.specification, c.partition,
       (SELECT partitions FROM cell) AS partitions,
       (SELECT min(recorded_at) FROM policies WHERE partition = c.partition) AS policies_since,
       f.balance, f.outstanding, f.entry, f.seq, f.adl, f.head, f.guard, f.adl_record, f.adl_head,
       coalesce((
           SELECT greatest(x.seq, b.closed_seq) FROM contracts b JOIN funds x USING (symbol)
           WHERE b.name = c.name AND b.generation = c.generation - 1
       ), 0) AS since, c.closed_at, c.closed_seq, c.closed_price,
       ARRAY(
           SELECT e.entry FROM entries e
           WHERE e.symbol = c.symbol AND e.kind IN ('carry_out', 'carry_in') AND (
               -- A count, and a kind that the index by kind has, so that PostgreSQL searches that index for each entry.
               SELECT count(*) FROM entries o
               WHERE o.symbol = regexp_replace(substr(e.order_id, 7), '@1$', '') AND o.kind <> 'surplus'
                 AND o.kind = CASE e.kind WHEN 'carry_in' THEN 'carry_out' ELSE 'carry_in' END
                 AND o.change = -e.change AND o.order_id = 'carry/' || c.name || '@' || c.generation
           ) <> 1
       ) AS unpaired
FROM funds f JOIN contracts c USING (symbol) WHERE c.symbol = ANY ($1);

-- name: audit_late
SELECT r.symbol, r.entry
FROM unnest($1::text[], $2::bigint[], $3::integer[]) AS k (symbol, entry, entries)
JOIN rejected r ON r.symbol = k.symbol AND r.entry > k.entry AND r.entry <= k.entry + k.entries;

-- name: audit_late_sequences
-- Sequences of some contracts whose events were settled late.
SELECT event_symbol AS symbol, event_seq AS seq FROM rejected
WHERE (event_symbol, event_seq) IN (SELECT * FROM unnest($1::text[], $2::bigint[])) AND event_seq IS NOT NULL AND entry IS NOT NULL;

-- name: audit_orders
SELECT k.symbol, t.recovered, t.open, t.seq, t.orders
FROM unnest($1::text[]) AS k (symbol)
CROSS JOIN LATERAL (
    SELECT coalesce(sum(recovered), 0)::numeric AS recovered,
           coalesce(sum(uncovered - recovered) FILTER (WHERE state = 'open'), 0)::numeric AS open,
           coalesce(max(seq), 0) AS seq, count(*) AS orders
    FROM adl_orders WHERE symbol = k.symbol
) t;

-- name: audit_verified
INSERT INTO audit_progress AS p (symbol, walk, entry, seq, balance, uncovered, repaid, head, outstanding, recovered, record, adl,
                                 adl_head, state, good, verified_at)
SELECT symbol, walk, entry, seq, balance, uncovered, repaid, head, outstanding, recovered, record, adl, adl_head, state, true,
       CASE WHEN ended THEN clock_timestamp() END
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::numeric[], $7::numeric[], $8::bytea[],
            $9::bigint[], $10::numeric[], $11::bigint[], $12::bigint[], $13::bytea[], $14::bytea[], $15::boolean[])
    AS h (symbol, walk, entry, seq, balance, uncovered, repaid, head, outstanding, recovered, record, adl, adl_head, state, ended)
ON CONFLICT (symbol, walk) DO UPDATE SET
    entry = excluded.entry, seq = excluded.seq, balance = excluded.balance, uncovered = excluded.uncovered,
    repaid = excluded.repaid, head = excluded.head, outstanding = excluded.outstanding, recovered = excluded.recovered,
    record = excluded.record, adl = excluded.adl, adl_head = excluded.adl_head, state = excluded.state, good = true,
    verified_at = coalesce(excluded.verified_at, p.verified_at);

-- name: audit_differs
INSERT INTO audit_progress (symbol, walk, good) SELECT unnest($1::text[]), $2, false
ON CONFLICT (symbol, walk) DO UPDATE SET good = false;

-- name: audit_holdings
SELECT symbol, side, taken, unwound, deleveraged, held, in_orders, returned_ts FROM holdings WHERE symbol = ANY ($1);

-- name: audit_tranches_all
-- A page of the tranches of some contracts, after one of them.
SELECT symbol, side, entry, lots, price, ts, forced FROM tranches
WHERE symbol = ANY ($1) AND (symbol, entry) > ($2, $3) ORDER BY symbol, entry LIMIT $4;

-- name: audit_tranches_named
SELECT symbol, side, entry, lots, price, ts, forced
FROM tranches JOIN unnest($1::text[], $2::bigint[]) AS k (symbol, entry) USING (symbol, entry);

-- name: audit_tranches_kept
-- A page of the tranches at the checkpoint of a walk, after one of them. All but their lots is in their entries.
SELECT symbol, CASE e.side WHEN 'sell' THEN 'long' ELSE 'short' END AS side, entry, k.lots, e.price, e.ts, e.forced
FROM audit_tranches k JOIN entries e USING (symbol, entry)
WHERE symbol = $1 AND k.walk = $2 AND entry > $3 AND entry <= $4 ORDER BY entry LIMIT $5;

-- name: audit_tranches_changed
-- Tranches that changed up to the checkpoints of a walk. One without lots is closed.
WITH changed AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[]) AS c (symbol, walk, entry, lots)
), closed AS (
    DELETE FROM audit_tranches k USING changed c
    WHERE k.symbol = c.symbol AND k.walk = c.walk AND k.entry = c.entry AND c.lots = 0
)
INSERT INTO audit_tranches AS k (symbol, walk, entry, lots) SELECT symbol, walk, entry, lots FROM changed WHERE lots > 0
ON CONFLICT (symbol, walk, entry) DO UPDATE SET lots = excluded.lots;

-- name: audit_tranches_outdated
DELETE FROM audit_tranches WHERE symbol = ANY ($1) AND walk = 'newest';

-- name: audit_tranches_ended
UPDATE audit_tranches SET walk = 'newest' WHERE symbol = ANY ($1) AND walk = 'full';

-- name: newest_fills
-- Every symbol with the terms of its newest generation, and the sequence and time of the newest fill in that; 0 without one.
SELECT c.name AS symbol, c.settle_currency, c.settle_decimals, c.price_decimals, c.multiplier, c.is_inverse,
       coalesce(e.seq, 0) AS seq, coalesce(e.ts, 0) AS ts
FROM contracts c LEFT JOIN LATERAL (
    SELECT x.seq, x.ts FROM entries x WHERE x.symbol = c.symbol AND x.kind IN ('surplus', 'flat', 'shortfall')
    ORDER BY x.entry DESC LIMIT 1
) e ON true
WHERE NOT EXISTS (SELECT FROM contracts n WHERE n.name = c.name AND n.generation > c.generation);

-- name: totals_since
-- The sums of entries after the given ones, by currency and kind, in the finest unit of any contract of the currency.
SELECT c.currency, c.decimals, e.kind, count(*) AS entries,
       sum(greatest(e.change, 0) * c.unit) AS credited, sum(greatest(-e.change, 0) * c.unit) AS paid,
       sum(e.uncovered * c.unit) AS uncovered, sum(e.repaid * c.unit) AS repaid
FROM (
    SELECT symbol, settle_currency AS currency, max(settle_decimals) OVER of_currency AS decimals,
           (10::numeric ^ (max(settle_decimals) OVER of_currency - settle_decimals))::numeric(19, 0) AS unit
    FROM contracts WINDOW of_currency AS (PARTITION BY settle_currency)
) c
LEFT JOIN unnest($1::text[], $2::bigint[]) AS k (symbol, entry) USING (symbol)
JOIN LATERAL (SELECT * FROM entries x WHERE x.symbol = c.symbol AND x.entry > coalesce(k.entry, 0)) e ON true
GROUP BY 1, 2, 3 ORDER BY 1, 3;

-- name: currency_days
-- The total balance of a currency's funds, and its changes per day ($3 milliseconds) from $2 on, in the finest unit of any of them.
WITH scaled AS (
    SELECT symbol, f.balance, f.entry, max(c.settle_decimals) OVER () AS decimals,
           (10::numeric ^ (max(c.settle_decimals) OVER () - c.settle_decimals))::numeric(19, 0) AS unit
    FROM funds f JOIN contracts c USING (symbol) WHERE c.settle_currency = $1
), moved AS (
    SELECT r.hour, (r.credited - r.paid) * s.unit AS change
    FROM scaled s
    CROSS JOIN LATERAL (SELECT * FROM rollups x WHERE x.symbol = s.symbol AND x.hour >= $2 ORDER BY x.hour OFFSET 0) r
    UNION ALL
    SELECT h.hour, (h.credited - h.paid) * s.unit
    FROM scaled s LEFT JOIN rollup_progress p USING (symbol)
    CROSS JOIN LATERAL chart_hours(s.symbol, coalesce(p.entry, 0), s.entry, coalesce(p.clock, 0)) h
    WHERE h.hour >= $2
), days AS (
    SELECT hour - hour % $3 AS day, sum(change) AS change FROM moved GROUP BY 1
), held AS (
    SELECT coalesce(sum(balance * unit), 0) AS held, max(decimals) AS decimals FROM scaled
)
SELECT held, decimals, day, change FROM held LEFT JOIN days ON true;

-- name: currency_buckets
-- The total balance of each currency's funds, and its changes in buckets of $2 milliseconds from $1 on, in the finest unit of any
-- fund of the currency.
WITH scaled AS (
    SELECT c.settle_currency AS currency, symbol, f.balance, f.entry, max(c.settle_decimals) OVER of_currency AS decimals,
           (10::numeric ^ (max(c.settle_decimals) OVER of_currency - c.settle_decimals))::numeric(19, 0) AS unit
    FROM funds f JOIN contracts c USING (symbol) WINDOW of_currency AS (PARTITION BY c.settle_currency)
), moved AS (
    SELECT s.currency, r.hour, r.credited * s.unit AS credited, r.paid * s.unit AS paid, r.uncovered * s.unit AS uncovered, r.fills
    FROM scaled s
    CROSS JOIN LATERAL (SELECT * FROM rollups x WHERE x.symbol = s.symbol AND x.hour >= $1 ORDER BY x.hour OFFSET 0) r
    UNION ALL
    SELECT s.currency, h.hour, h.credited * s.unit, h.paid * s.unit, h.uncovered * s.unit, h.fills
    FROM scaled s LEFT JOIN rollup_progress p USING (symbol)
    CROSS JOIN LATERAL chart_hours(s.symbol, coalesce(p.entry, 0), s.entry, coalesce(p.clock, 0)) h
    WHERE h.hour >= $1
), buckets AS (
    SELECT currency, hour - hour % $2 AS start, sum(credited) AS credited, sum(paid) AS paid, sum(uncovered) AS uncovered,
           sum(fills) AS fills
    FROM moved GROUP BY 1, 2
), held AS (
    SELECT currency, sum(balance * unit) AS held, max(decimals) AS decimals FROM scaled GROUP BY 1
)
SELECT currency, held, decimals, start, credited, paid, uncovered, fills
FROM held LEFT JOIN buckets USING (currency) ORDER BY currency, start;

-- name: fund_hours
-- The hours with entries from $1 on of each contract: the balance before them, the lowest and the last one.
WITH hours AS (
    SELECT r.symbol, r.hour, r.last_entry, r.opening, r.lowest, r.closing
    FROM funds f
    CROSS JOIN LATERAL (SELECT * FROM rollups x WHERE x.symbol = f.symbol AND x.hour >= $1 ORDER BY x.hour OFFSET 0) r
    UNION ALL
    SELECT f.symbol, h.hour, h.last_entry, h.opening, h.lowest, h.closing
    FROM funds f LEFT JOIN rollup_progress p USING (symbol)
    CROSS JOIN LATERAL chart_hours(f.symbol, coalesce(p.entry, 0), f.entry, coalesce(p.clock, 0)) h
    WHERE h.hour >= $1
)
SELECT symbol, hour, (array_agg(opening ORDER BY last_entry))[1] AS opening, min(lowest) AS lowest, (array_agg(closing ORDER BY last_entry DESC))[1] AS closing
FROM hours GROUP BY 1, 2 ORDER BY 1, 2;

-- name: adl_turns
-- The begins of a contract's ADL by the engine's clock, with the balance, and its ends by the database's clock; newest first. An
-- order for lots may have no entry as its cause; its first record has the entry before it. Only the orders of the result read these.
SELECT t.ts, t.began, CASE WHEN t.began THEN coalesce(e.balance, 0) END AS balance
FROM (
    SELECT * FROM (
        SELECT symbol, adl, origin, cause, ts, true AS began FROM adl_orders WHERE symbol = $1
        UNION ALL
        SELECT symbol, adl, origin, cause, floor(extract(epoch FROM updated_at) * 1000)::bigint, false
        FROM adl_orders WHERE symbol = $1 AND state <> 'open'
    ) o
    WHERE o.ts BETWEEN $2 AND $3 ORDER BY o.ts DESC LIMIT $4
) t
LEFT JOIN LATERAL (
    SELECT x.entry FROM adl_records x WHERE x.symbol = t.symbol AND x.adl = t.adl AND x.kind = 'order' LIMIT 1
) r ON true
LEFT JOIN LATERAL (
    SELECT x.balance FROM entries x WHERE x.symbol = t.symbol AND x.entry = CASE t.origin WHEN 'shortfall' THEN t.cause ELSE r.entry END LIMIT 1
) e ON true
ORDER BY t.ts DESC;

-- name: deficits
-- Deficits of some contracts by periods of $2 milliseconds: the $4 largest of the last $3 completed periods of each contract's
-- history, which ends with its last charted hour. The present period is not complete: its deficit may still grow. A `cover` entry pays an
-- amount that counted as uncovered before, so `covered` is subtracted.
SELECT h.symbol, h.start_ms, h.last_ms + h.period AS end_ms, ((h.last_ms - h.start_ms) / h.period + 1)::int AS periods, d.number, d.largest
FROM (
    SELECT a.symbol, a.period, a.rank, z.hour - z.hour % a.period AS last_ms,
           greatest(o.hour - o.hour % a.period, z.hour - z.hour % a.period - (a.periods_max - 1) * a.period) AS start_ms
    FROM (
        SELECT *, (extract(epoch FROM now()) * 1000)::bigint / period * period AS present_ms
        FROM unnest($1::text[], $2::bigint[], $3::int[], $4::int[]) AS u (symbol, period, periods_max, rank)
    ) a
    CROSS JOIN LATERAL (SELECT r.hour FROM rollups r WHERE r.symbol = a.symbol ORDER BY r.hour LIMIT 1) o
    CROSS JOIN LATERAL (
        SELECT r.hour FROM rollups r WHERE r.symbol = a.symbol AND r.hour < a.present_ms
        ORDER BY r.hour DESC LIMIT 1
    ) z
) h
CROSS JOIN LATERAL (
    SELECT count(*)::int AS number, (array_agg(p.deficit ORDER BY p.deficit DESC))[:h.rank] AS largest
    FROM (
        SELECT sum(r.paid + r.uncovered - r.covered) AS deficit
        FROM rollups r WHERE r.symbol = h.symbol AND r.hour >= h.start_ms AND r.hour < h.last_ms + h.period
        GROUP BY r.hour / h.period HAVING sum(r.paid + r.uncovered - r.covered) > 0
    ) p
) d;

-- name: leverages
-- The listed leverages.
SELECT symbol, specification ->> 'maxLeverage' AS leverage_max FROM contracts WHERE symbol = ANY ($1);

-- name: keep_targets
INSERT INTO targets AS t (symbol, rule, target, fullness_low, fullness_high, leverage_min, leverage_max, explanation, reason)
SELECT symbol, rule, target, fullness_low, fullness_high, leverage_min, leverage_max, explanation::json, reason
FROM unnest($1::text[], $2::text[], $3::numeric[], $4::float8[], $5::float8[], $6::float8[], $7::float8[], $8::text[], $9::text[])
    AS k (symbol, rule, target, fullness_low, fullness_high, leverage_min, leverage_max, explanation, reason)
ON CONFLICT (symbol) DO UPDATE SET
    rule = excluded.rule, target = excluded.target, fullness_low = excluded.fullness_low, fullness_high = excluded.fullness_high,
    leverage_min = excluded.leverage_min, leverage_max = excluded.leverage_max, explanation = excluded.explanation,
    reason = excluded.reason, computed_at = now();

-- name: targets
SELECT symbol, rule, target, fullness_low, fullness_high, leverage_min, leverage_max FROM targets;

-- name: target
SELECT rule, target, fullness_low, fullness_high, leverage_min, leverage_max, explanation, reason, computed_at
FROM targets WHERE symbol = $1;
