"""The dashboard of engine health: partitions, streams, batches, servers, HTTP and audits."""

import limits
from board import ENGINE, board, choice
from grafana_foundation_sdk.builders.dashboard import Dashboard
from mutual import pools
from panels import BYTES, COUNT, HALF, QUARTER, RATE, SECONDS, SHARE, THIRD, AnyPanel, Query, lines, number, rows
from promql import pace, percentile
from serving import served

CHOSEN = 'partition=~"$partition"'
LAG = f"partition:fundsvc_stream_lag_seconds:max{{{CHOSEN}}}"
COMMIT = "instance:fundsvc_commit_seconds:p99_5m >= 0"
"""The comparison removes NaN, the value without transactions."""


def dashboard() -> Dashboard:
    """Returns the first dashboard for operations."""
    return board(
        ENGINE,
        "Engine health",
        "Partitions and their owners, streams, batches, servers, HTTP, and audits.",
        "operations",
        choices=[choice("partition", "Partition", "fundsvc_partition_owned")],
        orders_of=".+",
        rows={
            "Now": _now(),
            "Stream": _stream(),
            "Batches": _batches(),
            "Partitions": _partitions(),
            "Servers": _servers(),
            "HTTP": served(),
            "Audits": _audits(),
            "Loss cover": pools(),
        },
    )


def _now() -> list[AnyPanel]:
    return [
        number(
            "Without an owner",
            "Partitions without an owner.",
            COUNT,
            Query("max(fundsvc_partitions) - fundsvc:partitions_owned:count", "partitions"),
            thresholds=limits.none_of("PartitionWithoutOwner"),
        ),
        number(
            "Furthest behind",
            "Age of the last settled message while others wait, in the partition with the greatest age.",
            SECONDS,
            Query(f"max({LAG})", "age"),
            thresholds=limits.bad_from("StreamLag", "StreamStalled"),
        ),
        number(
            "Rejected",
            "Rejected events within 10 minutes.",
            COUNT,
            Query("sum(reason:fundsvc_rejected:increase10m) or vector(0)", "events"),
            thresholds=limits.none_of("EventsRejected"),
        ),
        number(
            "Commit",
            "99th percentile of the duration of transactions, in the slowest process.",
            SECONDS,
            Query(f"max({COMMIT})", "99th percentile"),
            thresholds=limits.bad_from("CommitSlow"),
        ),
        number(
            "Processes down",
            "Processes that do not answer Prometheus.",
            COUNT,
            Query('count(up{job=~"fundsvc.*"} == 0) or vector(0)', "processes"),
            thresholds=limits.none_of("ProcessDown"),
        ),
        number(
            "Audit differences",
            "Contracts with an audit difference.",
            COUNT,
            Query("count(min by (symbol) (fundsvc_audit_success) == 0) or vector(0)", "contracts"),
            thresholds=limits.none_of("AuditFailed"),
        ),
    ]


def _stream() -> list[AnyPanel]:
    return [
        lines(
            "Lag",
            "Age of the last settled message while others wait, by partition.",
            SECONDS,
            Query(LAG, "{{partition}}"),
            thresholds=limits.bad_from("StreamLag", "StreamStalled"),
        ),
        lines(
            "Messages waiting",
            "Unsettled messages by partition.",
            COUNT,
            Query(f"partition:fundsvc_stream_lag_messages:max{{{CHOSEN}}}", "{{partition}}"),
        ),
        lines(
            "Memory of streams",
            "Memory of each partition's stream, measured once a minute, and the limit.",
            BYTES,
            Query(f"partition:fundsvc_stream_bytes:max{{{CHOSEN}}}", "{{partition}}"),
            Query("max(fundsvc_stream_retention_bytes > 0)", "limit"),
            width=HALF,
        ),
        lines(
            "Books that are not loaded",
            "Contracts whose ADL book is not loaded yet after a restart, by partition.",
            COUNT,
            Query(f"max by (partition) (fundsvc_adl_books_awaited{{{CHOSEN}}})", "{{partition}}"),
            width=HALF,
        ),
        lines(
            "Entries per second",
            "Ledger entries by kind.",
            RATE,
            Query(pace("fundsvc_entries_total", "kind"), "{{kind}}"),
            stacked=True,
            width=QUARTER,
        ),
        lines(
            "Duplicates per second",
            "Events that had been settled before, for the ten contracts with most of them.",
            RATE,
            Query("topk(10, symbol:fundsvc_duplicates:rate5m > 0)", "{{symbol}}"),
            thresholds=limits.bad_from("DuplicatesStorm"),
            width=QUARTER,
        ),
        lines(
            "Rejected in 10 minutes",
            "Rejected events by reason.",
            COUNT,
            Query("reason:fundsvc_rejected:increase10m", "{{reason}}"),
            thresholds=limits.bad_from("EventsRejected"),
            width=QUARTER,
        ),
        lines(
            "Stream regressions in 15 minutes",
            "Number of times that a stream ended before the stored offset, by partition.",
            COUNT,
            Query(f"partition:fundsvc_stream_regressions:increase15m{{{CHOSEN}}}", "{{partition}}"),
            thresholds=limits.bad_from("StreamLostTail"),
            width=QUARTER,
        ),
        lines(
            "Stream gaps in 15 minutes",
            "Number of times that messages left a stream unsettled, by partition.",
            COUNT,
            Query(f"sum by (partition) (increase(fundsvc_stream_gaps_total{{{CHOSEN}}}[15m]))", "{{partition}}"),
            width=QUARTER,
        ),
        lines(
            "Sequence gaps in 10 minutes",
            "Events whose prevSeq was not the last settled sequence, for the ten contracts with most of them.",
            COUNT,
            Query("topk(10, sum by (symbol) (increase(fundsvc_sequence_gaps_total[10m])))", "{{symbol}}"),
            thresholds=limits.bad_from("SequenceGap"),
            width=QUARTER,
        ),
        lines(
            "Repeated trade ids in 10 minutes",
            "Fills settled with a trade id that a recent fill had, for the ten contracts with most of them.",
            COUNT,
            Query("topk(10, sum by (symbol) (increase(fundsvc_trade_ids_repeated_total[10m])))", "{{symbol}}"),
            width=QUARTER,
        ),
        lines(
            "Old events in 10 minutes",
            "Events settled over a day after their time, for the ten contracts with most of them.",
            COUNT,
            Query("topk(10, sum by (symbol) (increase(fundsvc_old_events_total[10m])))", "{{symbol}}"),
            width=QUARTER,
        ),
    ]


def _batches() -> list[AnyPanel]:
    parts = ("decode", "settle", "commit", "announce")
    return [
        lines(
            "Phases of a batch",
            "99th percentile of the time to decode, settle, commit and announce a batch, over all processes.",
            SECONDS,
            *(Query(percentile(f"fundsvc_{part}_seconds", 0.99), part) for part in parts),
            width=THIRD,
        ),
        lines(
            "Commit",
            "99th percentile of the duration of transactions, by process.",
            SECONDS,
            Query(COMMIT, "{{instance}}"),
            thresholds=limits.bad_from("CommitSlow"),
            width=THIRD,
        ),
        lines(
            "Entries per transaction",
            "Entries that a transaction writes; the number grows with the backlog.",
            COUNT,
            Query(percentile("fundsvc_batch_entries", 0.5), "median"),
            Query(percentile("fundsvc_batch_entries", 0.99), "99th percentile"),
            width=THIRD,
        ),
    ]


def _partitions() -> list[AnyPanel]:
    return [
        lines(
            "Partitions owned",
            "Partitions by owner.",
            COUNT,
            Query("sum by (instance) (fundsvc_partition_owned)", "{{instance}}"),
            stacked=True,
        ),
        lines(
            "Epochs",
            "Epoch by partition; each new owner increments it.",
            COUNT,
            Query(f"max by (partition) (fundsvc_partition_epoch{{{CHOSEN}}})", "{{partition}}"),
        ),
        rows("Owners", "The owner of each partition.", f"fundsvc_partition_owned{{{CHOSEN}}} == 1", "partition", "instance"),
    ]


def _servers() -> list[AnyPanel]:
    return [
        lines(
            "Faults in a minute",
            "Faults of the database and of the stream server.",
            COUNT,
            Query("part:fundsvc_faults:increase1m", "{{part}}"),
            thresholds=limits.bad_from("DatabaseAway"),
        ),
        lines(
            "Database connections",
            "Open connections of the pools, by process.",
            COUNT,
            Query("sum by (instance, state) (fundsvc_database_connections)", "{{instance}} {{state}}"),
            stacked=True,
        ),
        lines(
            "Memory of the stream server",
            "Share of maxmemory, or of the memory of its host without a limit.",
            SHARE,
            Query("max(fundsvc_stream_memory_bytes / fundsvc_stream_memory_max_bytes)", "used"),
            thresholds=limits.bad_from("StreamMemoryHigh"),
            width=THIRD,
        ),
        lines(
            "Age of the archive",
            "Time since PostgreSQL last archived a file of its write-ahead log.",
            SECONDS,
            Query("time() - max(fundsvc_wal_archived_timestamp_seconds > 0)", "age"),
            width=THIRD,
        ),
        lines(
            "Age of rates",
            "Time of the newest rate to USDT, by currency.",
            SECONDS,
            Query("time() - max by (currency) (fundsvc_rate_timestamp_seconds)", "{{currency}}"),
            thresholds=limits.bad_from("RateStale"),
            width=THIRD,
        ),
    ]


def _audits() -> list[AnyPanel]:
    return [
        lines(
            "Oldest audits",
            "Time since the last audit without a difference, for the ten contracts with the longest time, and until the"
            " end of the walk from entry 1.",
            SECONDS,
            Query("topk(10, time() - max by (symbol) (fundsvc_audit_last_timestamp_seconds))", "{{symbol}}"),
            Query("max(fundsvc_audit_remaining_seconds)", "until the end"),
            thresholds=limits.bad_from("AuditStale"),
            width=QUARTER,
        ),
        lines(
            "Entries recomputed per second",
            "Speed of the background audit.",
            RATE,
            Query(pace("fundsvc_audit_entries_total"), "entries"),
            width=QUARTER,
        ),
        lines(
            "Conservation errors",
            "Contracts whose amounts do not balance, in atoms; correct is none.",
            COUNT,
            Query("max by (symbol) (abs(fundsvc_conservation_error_atoms)) > 0", "{{symbol}}"),
            thresholds=limits.bad_from("ConservationError"),
            width=QUARTER,
        ),
        lines(
            "Age of the saved heads",
            "Time since a process saved the heads of the chains; no series without audit.heads_directory.",
            SECONDS,
            Query("time() - max by (instance) (fundsvc_heads_saved_timestamp_seconds > 0)", "{{instance}}"),
            thresholds=limits.bad_from("HeadsNotSaved"),
            width=QUARTER,
        ),
    ]
