-- The rights of the service's role: it reads everything, and writes only the columns that its statements write (queries.sql, and the
-- copied columns of entries, ADL orders and ADL records). `fundsvc migrate` runs this after every upgrade of the schema. So rights of
-- a new column are here and in no migration; tests/store/test_rights.py compares both with the statements.

REVOKE ALL ON ALL TABLES IN SCHEMA public FROM fundsvc_service;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO fundsvc_service;

GRANT INSERT (symbol, entry, seq, kind, change, balance, uncovered, repaid, side, lots, price, bankruptcy_price, trade_id, order_id,
              account, ts, hash, seal, closes, forced) ON entries TO fundsvc_service;
GRANT INSERT (symbol, record, entry, kind, adl, round, seq, ts, account, lots, body, first_rank, hash)
    ON adl_records TO fundsvc_service;

GRANT INSERT (symbol, partition, settle_currency, settle_decimals, price_decimals, multiplier, is_inverse, specification),
      UPDATE (settle_currency, settle_decimals, price_decimals, multiplier, is_inverse, specification, suspended, closed_at,
              closed_seq, closed_price, updated_at)
    ON contracts TO fundsvc_service;
GRANT INSERT (symbol, balance, outstanding, entry, seq, adl, head, guard, adl_record, adl_head, commit),
      UPDATE (balance, outstanding, entry, seq, adl, head, guard, adl_record, adl_head, commit, updated_at)
    ON funds TO fundsvc_service;
GRANT INSERT (symbol, adl, cause, reduce, lots, price, deficit, deficit_lots, uncovered, recovered, executed, state, round, ts, seq,
              account, acknowledged, round_ms, policy_version, origin, unwound),
      UPDATE (recovered, executed, unwound, state, round, seq, acknowledged, round_ms, updated_at)
    ON adl_orders TO fundsvc_service;
GRANT INSERT (symbol, last_id, seq, mark, mark_ts, mark_ts_max, mark_seq, body),
      UPDATE (last_id, seq, mark, mark_ts, mark_ts_max, mark_seq, body, kept_at)
    ON books TO fundsvc_service;
GRANT INSERT (symbol, part, body), DELETE ON book_parts TO fundsvc_service;
GRANT INSERT (partition, currency, price, ts), UPDATE (price, ts) ON rates TO fundsvc_service;
GRANT INSERT (partition, version, body, stream_id) ON policies TO fundsvc_service;
GRANT INSERT (partition, stream_id, position, reason, detail, codec, body, event_symbol, event_seq, digest),
      UPDATE (reason, detail, rejected_at, replayed_at, settled_at, settled_by, symbol, entry)
    ON rejected TO fundsvc_service;

GRANT UPDATE (epoch, owner, lease_until, lease_seconds, last_id, messages, events, partial_id, halted, duplicates, commits)
    ON partitions TO fundsvc_service;
GRANT INSERT (partition, after_id, until_id, messages), UPDATE (acknowledged_at) ON stream_gaps TO fundsvc_service;
GRANT INSERT (partition, pool, last_id, messages, fingerprint), UPDATE (messages, fingerprint, stored_at), DELETE
    ON stream_checkpoints TO fundsvc_service;
GRANT INSERT (engine, since, seen_at, leaves), UPDATE (since, seen_at, leaves), DELETE ON engines TO fundsvc_service;
GRANT INSERT (partition, run_id), UPDATE (run_id, changes, changed_at) ON stream_servers TO fundsvc_service;
GRANT INSERT (symbol, entry, side, lots, price, ts, forced), UPDATE (lots), DELETE ON tranches TO fundsvc_service;
GRANT INSERT (symbol, side, taken, unwound, deleveraged, held, in_orders, returned_ts),
      UPDATE (taken, unwound, deleveraged, held, in_orders, returned_ts)
    ON holdings TO fundsvc_service;
GRANT INSERT (poster, epoch), UPDATE (epoch), DELETE ON posters TO fundsvc_service;
GRANT INSERT (partition, at), UPDATE (at) ON heartbeats TO fundsvc_service;
GRANT INSERT (partition, slot, commit, symbols), UPDATE (commit, symbols) ON moves TO fundsvc_service;

GRANT INSERT (symbol, hour, first_entry, last_entry, opening, highest, lowest, closing, credited, paid, uncovered, repaid, covered,
              fills, earliest, latest),
      UPDATE (last_entry, highest, lowest, closing, credited, paid, uncovered, repaid, covered, fills, earliest, latest, outstanding),
      DELETE
    ON rollups TO fundsvc_service;
GRANT INSERT (symbol, entry), UPDATE (entry, sound, clock) ON rollup_progress TO fundsvc_service;
GRANT INSERT (symbol, walk, entry, seq, balance, uncovered, repaid, head, outstanding, recovered, record, adl, adl_head, state, good,
              verified_at),
      UPDATE (entry, seq, balance, uncovered, repaid, head, outstanding, recovered, record, adl, adl_head, state, good, verified_at)
    ON audit_progress TO fundsvc_service;
GRANT INSERT (symbol, walk, entry, lots), UPDATE (walk, lots), DELETE ON audit_tranches TO fundsvc_service;
GRANT INSERT (symbol, rule, target, fullness_low, fullness_high, leverage_min, leverage_max, explanation, reason),
      UPDATE (rule, target, fullness_low, fullness_high, leverage_min, leverage_max, explanation, reason, computed_at)
    ON targets TO fundsvc_service;

GRANT INSERT (pool, home),
      UPDATE (balance, fees, inflow, released, settled, paid_out, share_index, weight, rem, time, next_cutoff, cycle, policies, seq,
              entry, head, terms, accounts, live, active, caps_left, duplicates, last_id, messages, events, partial_id, halted,
              updated_at)
    ON mutual_pools TO fundsvc_service;
GRANT INSERT (pool, version, rules, entry) ON mutual_terms TO fundsvc_service;
GRANT INSERT (pool, number, account, balance, arrears, payable, paid_out, accumulated, enabled, unfunded, cover, day, profits, activity,
              unfit_since),
      UPDATE (balance, arrears, payable, paid_out, accumulated, enabled, unfunded, cover, day, profits, activity, unfit_since,
              updated_at)
    ON mutual_accounts TO fundsvc_service;
GRANT INSERT (pool, policy, account, state, terms, face, cap, issued_at, active_at, expires_at, paid, moved, entered),
      UPDATE (state, active_at, expires_at, paid, moved, entered)
    ON mutual_policies TO fundsvc_service;
GRANT INSERT (pool, cycle, at, balance, caps_left, rate, budget, returned, weight, completed, share_index, rem, terms, entry)
    ON mutual_cycles TO fundsvc_service;
GRANT INSERT (pool, entry, seq, ts, kind, account, policy, amount, balance, profits, terms, seal, hash)
    ON mutual_entries TO fundsvc_service;
GRANT INSERT (pool, stream_id, position, reason, detail, codec, body, event_seq, digest),
      UPDATE (reason, detail, rejected_at, replayed_at, settled_at, settled_by)
    ON mutual_rejected TO fundsvc_service;
GRANT INSERT (pool, after_id, until_id, messages), UPDATE (acknowledged_at) ON mutual_gaps TO fundsvc_service;

-- The role of `fundsvc archive`: it reads everything, removes and restores archived entries, and writes stubs and bounds.
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'fundsvc_archiver') THEN
        REVOKE ALL ON ALL TABLES IN SCHEMA public FROM fundsvc_archiver;
        GRANT SELECT ON ALL TABLES IN SCHEMA public TO fundsvc_archiver;
        GRANT INSERT, DELETE ON entries TO fundsvc_archiver;
        GRANT INSERT (symbol, first_entry, last_entry, previous_hash, last_hash, seq, clock, path, bytes, digest, hours, checkpoint,
                      signature) ON archives TO fundsvc_archiver;
        GRANT INSERT (symbol, entry), UPDATE (entry, removed) ON archive_bounds TO fundsvc_archiver;
    END IF;
END $$;
