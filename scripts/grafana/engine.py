"""Engine health: what moves the funds, from the stream to the database and to those who look."""

import limits
from board import ENGINE, board, choice
from grafana_foundation_sdk.builders.dashboard import Dashboard
from panels import COUNT, QUARTER, RATE, SECONDS, THIRD, AnyPanel, Ask, lines, number, rows
from promql import pace, percentile
from serving import served

CHOSEN = 'partition=~"$partition"'
LAG = f"partition:fundsvc_stream_lag_seconds:max{{{CHOSEN}}}"
COMMIT = "instance:fundsvc_commit_seconds:p99_5m >= 0"
"""Without a transaction it is not a number."""


def dashboard() -> Dashboard:
    """The dashboard that operations look at first."""
    return board(
        ENGINE,
        "Engine health",
        "What moves the funds: partitions and their owners, the stream, batches, what they need, HTTP, and audits.",
        "operations",
        choices=[choice("partition", "Partition", "fundsvc_partition_owned")],
        orders_of=".+",
        rows={
            "Now": _now(),
            "Stream": _stream(),
            "Batches": _batches(),
            "Partitions": _partitions(),
            "What it needs": _needs(),
            "HTTP": served(),
            "Audits": _audits(),
        },
    )


def _now() -> list[AnyPanel]:
    return [
        number(
            "Without an owner",
            "Partitions that no engine settles.",
            COUNT,
            Ask("max(fundsvc_partitions) - fundsvc:partitions_owned:count", "partitions"),
            thresholds=limits.none_of("PartitionWithoutOwner"),
        ),
        number(
            "Furthest behind",
            "How old the last settled message is where others wait, in the partition that is furthest behind.",
            SECONDS,
            Ask(f"max({LAG})", "age"),
            thresholds=limits.bad_from("StreamLag", "StreamStalled"),
        ),
        number(
            "Rejected",
            "Events that could not be settled and were kept, in 10 minutes.",
            COUNT,
            Ask("sum(reason:fundsvc_rejected:increase10m) or vector(0)", "events"),
            thresholds=limits.none_of("EventsRejected"),
        ),
        number(
            "Commit",
            "What 99 of 100 transactions take at most, in the slowest process.",
            SECONDS,
            Ask(f"max({COMMIT})", "99 of 100"),
            thresholds=limits.bad_from("CommitSlow"),
        ),
        number(
            "Processes down",
            "Processes whose metrics do not answer.",
            COUNT,
            Ask('count(up{job=~"fundsvc.*"} == 0) or vector(0)', "processes"),
            thresholds=limits.none_of("ProcessDown"),
        ),
        number(
            "Audits that differ",
            "Contracts whose ledger is not what was written.",
            COUNT,
            Ask("count(min by (symbol) (fundsvc_audit_success) == 0) or vector(0)", "contracts"),
            thresholds=limits.none_of("AuditFailed"),
        ),
    ]


def _stream() -> list[AnyPanel]:
    return [
        lines(
            "Lag",
            "How old each partition's last settled message is while others wait.",
            SECONDS,
            Ask(LAG, "{{partition}}"),
            thresholds=limits.bad_from("StreamLag", "StreamStalled"),
        ),
        lines(
            "Messages waiting",
            "Messages of each partition that are not settled yet.",
            COUNT,
            Ask(f"partition:fundsvc_stream_lag_messages:max{{{CHOSEN}}}", "{{partition}}"),
        ),
        lines(
            "Entries a second",
            "Ledger entries, by what they do.",
            RATE,
            Ask(pace("fundsvc_entries_total", "kind"), "{{kind}}"),
            stacked=True,
            width=QUARTER,
        ),
        lines(
            "Duplicates a second",
            "Events ignored because their sequence was settled before, by contract: the ten with most.",
            RATE,
            Ask("topk(10, symbol:fundsvc_duplicates:rate5m > 0)", "{{symbol}}"),
            thresholds=limits.bad_from("DuplicatesStorm"),
            width=QUARTER,
        ),
        lines(
            "Rejected in 10 minutes",
            "Events that could not be settled and were kept, by reason.",
            COUNT,
            Ask("reason:fundsvc_rejected:increase10m", "{{reason}}"),
            thresholds=limits.bad_from("EventsRejected"),
            width=QUARTER,
        ),
        lines(
            "Lost ends in 15 minutes",
            "Times that a partition's stream was found to end before what is settled.",
            COUNT,
            Ask(f"partition:fundsvc_stream_regressions:increase15m{{{CHOSEN}}}", "{{partition}}"),
            thresholds=limits.bad_from("StreamLostTail"),
            width=QUARTER,
        ),
    ]


def _batches() -> list[AnyPanel]:
    parts = ("decode", "settle", "commit", "announce")
    return [
        lines(
            "What the parts of a batch take",
            "What 99 of 100 batches take at most to decode, settle, commit and announce, in all processes.",
            SECONDS,
            *(Ask(percentile(f"fundsvc_{part}_seconds", 0.99), part) for part in parts),
            width=THIRD,
        ),
        lines(
            "Commit",
            "What 99 of 100 transactions take at most, by process.",
            SECONDS,
            Ask(COMMIT, "{{instance}}"),
            thresholds=limits.bad_from("CommitSlow"),
            width=THIRD,
        ),
        lines(
            "Entries of a transaction",
            "How many entries a transaction writes: more when many events wait.",
            COUNT,
            Ask(percentile("fundsvc_batch_entries", 0.5), "half of them"),
            Ask(percentile("fundsvc_batch_entries", 0.99), "99 of 100"),
            width=THIRD,
        ),
    ]


def _partitions() -> list[AnyPanel]:
    return [
        lines(
            "Partitions owned",
            "How many partitions each process settles.",
            COUNT,
            Ask("sum by (instance) (fundsvc_partition_owned)", "{{instance}}"),
            stacked=True,
        ),
        lines(
            "Epochs",
            "The epoch of each partition: one more each time that it changes hands.",
            COUNT,
            Ask(f"max by (partition) (fundsvc_partition_epoch{{{CHOSEN}}})", "{{partition}}"),
        ),
        rows("Owners", "Who settles what now.", f"fundsvc_partition_owned{{{CHOSEN}}} == 1", "partition", "instance"),
    ]


def _needs() -> list[AnyPanel]:
    return [
        lines(
            "Faults in a minute",
            "Times that the database or the stream was away.",
            COUNT,
            Ask("part:fundsvc_faults:increase1m", "{{part}}"),
            thresholds=limits.bad_from("DatabaseAway"),
        ),
        lines(
            "Database connections",
            "Open connections of the pools, by process.",
            COUNT,
            Ask("sum by (instance, state) (fundsvc_database_connections)", "{{instance}} {{state}}"),
            stacked=True,
        ),
    ]


def _audits() -> list[AnyPanel]:
    return [
        lines(
            "Longest not audited",
            "How long ago ledgers were last found good to their end: the ten with the longest time.",
            SECONDS,
            Ask("topk(10, time() - max by (symbol) (fundsvc_audit_last_timestamp_seconds))", "{{symbol}}"),
            thresholds=limits.bad_from("AuditStale"),
            width=THIRD,
        ),
        lines(
            "Entries recomputed a second",
            "How fast the background audit goes.",
            RATE,
            Ask(pace("fundsvc_audit_entries_total"), "entries"),
            width=THIRD,
        ),
        lines(
            "Conservation errors",
            "Contracts whose books do not balance, in atoms; none is right.",
            COUNT,
            Ask("max by (symbol) (abs(fundsvc_conservation_error_atoms)) > 0", "{{symbol}}"),
            thresholds=limits.bad_from("ConservationError"),
            width=THIRD,
        ),
    ]
