-- All statements of the mutual by name. Parameters are numbered in the order of their use.

-- name: open_pool
-- Records a new pool with version 1 of its terms, if its home partition has the owner's epoch.
WITH opened AS (
    INSERT INTO mutual_pools (pool, home) SELECT $1, partition FROM partitions WHERE partition = $2 AND epoch = $3
    ON CONFLICT DO NOTHING RETURNING pool
)
INSERT INTO mutual_terms (pool, version, rules, entry) SELECT pool, 1, $4::json, 1 FROM opened;

-- name: load_pool
-- The state of a pool whose home partition has the owner's epoch.
SELECT m.* FROM mutual_pools m JOIN partitions p ON p.partition = m.home WHERE m.pool = $1 AND m.home = $2 AND p.epoch = $3;

-- name: pool_home
SELECT home FROM mutual_pools WHERE pool = $1;

-- name: stray_entries
-- The first entry of a pool beyond its last one. No commit wrote it.
SELECT min(entry) FROM mutual_entries WHERE pool = $1 AND entry > $2;

-- name: load_terms
SELECT version, rules, entry, recorded_at FROM mutual_terms WHERE pool = $1 ORDER BY version;

-- name: load_accounts
-- Up to $3 accounts of a pool from number $2 on.
SELECT account, balance, arrears, payable, paid_out, accumulated, enabled, unfunded, cover, day, profits, activity, unfit_since
FROM mutual_accounts WHERE pool = $1 AND number >= $2 ORDER BY number LIMIT $3;

-- name: load_policies
-- Up to $3 live policies of a pool after number $2.
SELECT policy, account, state, terms, face, cap, issued_at, active_at, expires_at, paid, moved, entered
FROM mutual_policies WHERE pool = $1 AND policy > $2 AND state <= 2 ORDER BY policy LIMIT $3;

-- name: load_owners
-- The accounts of up to $3 policies of a pool after number $2.
SELECT account FROM mutual_policies WHERE pool = $1 AND policy > $2 ORDER BY policy LIMIT $3;

-- name: load_open
-- The sequences of rejected events that a later event may still have.
SELECT DISTINCT event_seq FROM mutual_rejected WHERE pool = $1 AND settled_at IS NULL AND event_seq > $2;

-- name: last_seal
SELECT seal <> '' FROM mutual_entries WHERE pool = $1 AND entry = $2;

-- name: is_open
-- Whether an event is kept as rejected and may be applied. One in conflict with an applied event may not.
SELECT settled_at IS NULL AND reason <> 'conflict' FROM mutual_rejected WHERE pool = $1 AND stream_id = $2 AND position = $3;

-- name: commit
-- Moves the state and the offset of a pool; returns whether its home partition has the owner's epoch and the offset was as expected.
WITH moved AS (
    UPDATE mutual_pools m SET
        balance = $6, fees = $7, inflow = $8, released = $9, settled = $10, paid_out = $11, share_index = $12, weight = $13,
        rem = $14, time = $15, next_cutoff = $16, cycle = $17, policies = $18, seq = $19, entry = $20, head = $21, terms = $22,
        accounts = $23, live = $24, active = $25, caps_left = $26, duplicates = m.duplicates + $27,
        last_id = $28, messages = $29, events = $30, partial_id = $31, updated_at = now()
    WHERE m.pool = $1 AND m.last_id = $3 AND m.events = $4 AND m.partial_id = $5 AND m.entry <= $20 AND m.seq <= $19
      AND EXISTS (SELECT FROM partitions p WHERE p.partition = m.home AND p.epoch = $2)
    RETURNING m.pool
), refused AS (
    INSERT INTO mutual_rejected (pool, stream_id, position, reason, detail, codec, body, event_seq, digest)
    SELECT $1, * FROM unnest($32::text[], $33::integer[], $34::text[], $35::text[], $36::text[], $37::bytea[], $38::bigint[], $39::bytea[])
        AS e (stream_id, position, reason, detail, codec, body, event_seq, digest)
    ON CONFLICT (pool, stream_id, position) DO UPDATE SET
        reason = excluded.reason, detail = excluded.detail, rejected_at = now()
)
SELECT count(*) = 1 FROM moved;

-- name: commit_settled
-- Marks rejected events that were applied later, by their place or their sequence.
UPDATE mutual_rejected r SET settled_at = now(), settled_by = d.settled_by
FROM unnest($2::text[], $3::integer[], $4::bigint[], $5::text[]) AS d (stream_id, position, event_seq, settled_by)
WHERE r.pool = $1 AND r.settled_at IS NULL AND r.reason <> 'conflict'
  AND (r.stream_id = d.stream_id AND r.position = d.position OR r.event_seq = d.event_seq);

-- name: commit_accounts
UPDATE mutual_accounts a SET balance = c.balance, arrears = c.arrears, payable = c.payable, paid_out = c.paid_out,
    accumulated = c.accumulated, enabled = c.enabled, unfunded = c.unfunded, cover = c.cover::bigint[], day = c.day,
    profits = c.profits, activity = c.activity::bigint[], unfit_since = c.unfit_since, updated_at = now()
FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::boolean[], $9::boolean[],
            $10::text[], $11::bigint[], $12::bigint[], $13::text[], $14::bigint[])
    AS c (account, balance, arrears, payable, paid_out, accumulated, enabled, unfunded, cover, day, profits, activity, unfit_since)
WHERE a.pool = $1 AND a.account = c.account;

-- name: commit_policies
UPDATE mutual_policies p SET state = c.state, active_at = c.active_at, expires_at = c.expires_at, paid = c.paid, moved = c.moved,
    entered = c.entered
FROM unnest($2::bigint[], $3::smallint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::numeric[])
    AS c (policy, state, active_at, expires_at, paid, moved, entered)
WHERE p.pool = $1 AND p.policy = c.policy;

-- name: commit_terms
INSERT INTO mutual_terms (pool, version, rules, entry)
SELECT $1, version, rules::json, entry FROM unnest($2::integer[], $3::text[], $4::bigint[]) AS t (version, rules, entry);

-- name: halt
-- Records why a pool is halted, or "" when it continues.
UPDATE mutual_pools m SET halted = $3
WHERE m.pool = $1 AND m.halted <> $3 AND EXISTS (SELECT FROM partitions p WHERE p.partition = m.home AND p.epoch = $2);

-- name: gaps
SELECT after_id, until_id, messages, acknowledged_at FROM mutual_gaps WHERE pool = $1 ORDER BY found_at;

-- name: gap_found
INSERT INTO mutual_gaps (pool, after_id, until_id, messages) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING RETURNING true;

-- name: gap_acknowledge
UPDATE mutual_gaps SET acknowledged_at = now() WHERE pool = $1 AND until_id = $2 AND acknowledged_at IS NULL;

-- name: gaps_acknowledge
UPDATE mutual_gaps SET acknowledged_at = now() WHERE pool = $1 AND acknowledged_at IS NULL
RETURNING after_id, until_id, messages, acknowledged_at;

-- name: offset
SELECT last_id, messages, events, partial_id FROM mutual_pools WHERE pool = $1;

-- name: pools
-- All pools by name or, with a name, one of them, with the terms in force.
SELECT m.*, t.rules, p.lease_until > now() AS live_owner
FROM mutual_pools m JOIN mutual_terms t ON t.pool = m.pool AND t.version = m.terms
LEFT JOIN partitions p ON p.partition = m.home
WHERE $1::text IS NULL OR m.pool = $1 ORDER BY m.pool;

-- name: pools_of_account
SELECT pool FROM mutual_accounts WHERE account = $1 ORDER BY pool;

-- name: account
SELECT account, balance, arrears, payable, paid_out, accumulated, enabled, unfunded, cover, day, profits, activity, unfit_since
FROM mutual_accounts WHERE pool = $1 AND account = $2;

-- name: changed_accounts
-- Those of the accounts $2 that a commit after the one at $3 changed.
SELECT account FROM mutual_accounts WHERE pool = $1 AND account = ANY($2::text[]) AND updated_at > $3;

-- name: live_policies
SELECT policy, account, state, terms, face, cap, issued_at, active_at, expires_at, paid, moved, entered
FROM mutual_policies WHERE pool = $1 AND account = $2 AND state <= 2 ORDER BY policy LIMIT $3;

-- name: policies_descending
-- Up to $4 policies of an account before number $3, the newest first.
SELECT policy, account, state, terms, face, cap, issued_at, active_at, expires_at, paid, moved, entered
FROM mutual_policies WHERE pool = $1 AND account = $2 AND policy < $3 ORDER BY policy DESC LIMIT $4;

-- name: policies_page
-- Up to $3 policies of a pool after number $2.
SELECT policy, account, state, terms, face, cap, issued_at, active_at, expires_at, paid, moved, entered
FROM mutual_policies WHERE pool = $1 AND policy > $2 ORDER BY policy LIMIT $3;

-- name: policies_numbered
-- Policies of a pool by number, live or ended.
SELECT policy, account, state, terms, face, cap, issued_at, active_at, expires_at, paid, moved, entered
FROM mutual_policies WHERE pool = $1 AND policy = ANY ($2::bigint[]);

-- name: audited_pools
-- Every pool of entries or of mutual_pools, so that a removed pool is found too, with the number of its last entry.
WITH RECURSIVE written (pool) AS (
    (SELECT pool FROM mutual_entries ORDER BY pool LIMIT 1)
    UNION ALL
    SELECT (SELECT e.pool FROM mutual_entries e WHERE e.pool > w.pool ORDER BY e.pool LIMIT 1)
    FROM written w WHERE w.pool IS NOT NULL
), known AS (
    SELECT pool FROM written WHERE pool IS NOT NULL UNION SELECT pool FROM mutual_pools
)
SELECT pool, coalesce(m.entry, 0) AS entry FROM known LEFT JOIN mutual_pools m USING (pool) ORDER BY pool;

-- name: last_entry
SELECT entry FROM mutual_pools WHERE pool = $1;

-- name: cycles_descending
SELECT cycle, at, balance, caps_left, rate, budget, returned, weight, completed, share_index, rem, terms, entry
FROM mutual_cycles WHERE pool = $1 AND cycle < $2 ORDER BY cycle DESC LIMIT $3;

-- name: cycles_ascending
SELECT cycle, at, balance, caps_left, rate, budget, returned, weight, completed, share_index, rem, terms, entry
FROM mutual_cycles WHERE pool = $1 AND cycle > $2 ORDER BY cycle LIMIT $3;

-- name: payouts
-- What the last $2 cut-offs of a pool released, and the faces of the policies issued since the cut-off before them.
WITH last AS (SELECT at, budget - returned AS released FROM mutual_cycles WHERE pool = $1 ORDER BY cycle DESC LIMIT $2)
SELECT (SELECT coalesce(sum(released), 0) FROM last) AS released,
       (SELECT coalesce(sum(face), 0) FROM mutual_policies
        WHERE pool = $1 AND issued_at >= (SELECT min(at) FROM last) - $3 AND issued_at < (SELECT max(at) FROM last)) AS faces,
       (SELECT count(*) FROM last) AS cycles;

-- name: unfunded
SELECT count(*) FROM mutual_accounts WHERE pool = $1 AND unfunded;

-- name: statement_descending
-- Up to $4 entries of an account before number $3, the newest first.
SELECT pool, entry, seq, ts, kind, account, policy, amount, balance, profits, terms, seal, hash, recorded_at
FROM mutual_entries WHERE pool = $1 AND account = $2 AND account <> '' AND entry < $3 ORDER BY entry DESC LIMIT $4;

-- name: statement_ascending
SELECT pool, entry, seq, ts, kind, account, policy, amount, balance, profits, terms, seal, hash, recorded_at
FROM mutual_entries WHERE pool = $1 AND account = $2 AND account <> '' AND entry > $3 ORDER BY entry LIMIT $4;

-- name: entries_after
SELECT pool, entry, seq, ts, kind, account, policy, amount, balance, profits, terms, seal, hash, recorded_at
FROM mutual_entries WHERE pool = $1 AND entry > $2 ORDER BY entry LIMIT $3;

-- name: rejected_list
SELECT pool, stream_id, position, reason, detail, codec, body, event_seq, rejected_at, replayed_at, settled_at, settled_by
FROM mutual_rejected
WHERE ($1::text IS NULL OR pool = $1) AND ($2::text IS NULL OR reason = $2) AND ($3 OR settled_at IS NULL)
  AND ($4::text IS NULL OR stream_id = $4 AND position = $5::integer)
ORDER BY pool, split_part(stream_id, '-', 1)::bigint, split_part(stream_id, '-', 2)::bigint, position LIMIT $6;

-- name: rejected_sent
UPDATE mutual_rejected SET replayed_at = now() WHERE pool = $1 AND stream_id = $2 AND position = $3;
