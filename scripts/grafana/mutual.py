"""Panels of the pools of the mutual."""

import limits
from panels import COUNT, HALF, MONEY, QUARTER, RATE, SECONDS, SHARE, AnyPanel, Query, lines
from promql import pace


def pools() -> list[AnyPanel]:
    """Returns the panels of all pools."""
    return [
        lines(
            "Balance of pools",
            "Balance in whole units of the asset, by pool.",
            MONEY,
            Query("max by (pool) (fundsvc_mutual_balance)", "{{pool}}"),
            width=QUARTER,
        ),
        lines(
            "Health of pools",
            "Available balance / what the active policies can still be paid.",
            SHARE,
            Query("max by (pool) (fundsvc_mutual_health_ratio)", "{{pool}}"),
            width=QUARTER,
        ),
        lines(
            "Payout ratio",
            "What the last 30 cut-offs released / faces of the policies issued in that time.",
            SHARE,
            Query("max by (pool) (fundsvc_mutual_payout_ratio)", "{{pool}}"),
            width=QUARTER,
        ),
        lines(
            "Policies and accounts",
            "Active policies and unfunded accounts, by pool.",
            COUNT,
            Query("max by (pool) (fundsvc_mutual_active_policies)", "{{pool}} active policies"),
            Query("max by (pool) (fundsvc_mutual_unfunded_accounts)", "{{pool}} unfunded accounts"),
            width=QUARTER,
        ),
        lines(
            "Cut-offs",
            "99th percentile of the time to settle a batch with cut-offs, by pool.",
            SECONDS,
            Query(
                "histogram_quantile(0.99, sum by (le, pool) (rate(fundsvc_mutual_cutoff_seconds_bucket[$__rate_interval])))",
                "{{pool}}",
            ),
            width=QUARTER,
        ),
        lines(
            "Late cut-offs",
            "Time since a cut-off was due that has not happened yet, by pool.",
            SECONDS,
            Query("max by (pool) (fundsvc_mutual_cutoff_late_seconds)", "{{pool}}"),
            thresholds=limits.bad_from("MutualCutoffLate"),
            width=QUARTER,
        ),
        lines(
            "Events of pools per second",
            "Ledger entries, and events that had been applied before, by pool.",
            RATE,
            Query(pace("fundsvc_mutual_entries_total", "pool"), "{{pool}} entries"),
            Query(pace("fundsvc_mutual_duplicates_total", "pool"), "{{pool}} duplicates"),
            width=QUARTER,
        ),
        lines(
            "Streams of pools",
            "Unsettled messages, and stream regressions and gaps in 15 minutes, by pool.",
            COUNT,
            Query("max by (pool) (fundsvc_mutual_stream_lag_messages)", "{{pool}} waiting"),
            Query("sum by (pool) (increase(fundsvc_mutual_stream_regressions_total[15m]))", "{{pool}} regressions"),
            Query("sum by (pool) (increase(fundsvc_mutual_stream_gaps_total[15m]))", "{{pool}} gaps"),
            width=QUARTER,
        ),
        lines(
            "Audit of pools",
            "Time since a pool was last audited to its end without a difference.",
            SECONDS,
            Query("time() - max by (pool) (fundsvc_mutual_audit_last_timestamp_seconds)", "{{pool}}"),
            width=HALF,
        ),
        lines(
            "Recomputed entries of pools",
            "Entries of pools that the audit recomputed per second.",
            RATE,
            Query(pace("fundsvc_mutual_audit_entries_total", "instance"), "{{instance}}"),
            width=HALF,
        ),
    ]
