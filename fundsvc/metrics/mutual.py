"""The metrics of the pools that this process settles. Money is in whole units of the pool's asset."""

from collections import Counter as Tally
from collections.abc import Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from fundsvc.core.batch import Durations
from fundsvc.core.events import Reason, Rejected
from fundsvc.mutual.core.rows import CycleRow, PoolRow
from fundsvc.mutual.core.standing import SCALE
from fundsvc.mutual.core.terms import PPM, Rules

_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0)


class PoolView(NamedTuple):
    """A pool as of a commit: its row, the terms in force, and the numbers of its active policies and their caps left."""

    row: PoolRow
    rules: Rules
    active: int
    caps_left: int


class MutualMetrics:
    """The metrics of pools; see `Metrics`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, documentation: str) -> Gauge:
            return Gauge(f"fundsvc_mutual_{name}", documentation, ["pool"], registry=registry)

        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(f"fundsvc_mutual_{name}", documentation, ["pool", *labels], registry=registry)

        self.balance = gauge("balance", "Balance of a pool.")
        self.health = gauge("health_ratio", "Available balance of a pool / what its active policies can still be paid.")
        self.identity_error = gauge("identity_error", "Money of a pool that does not add up, in units of its asset: must be 0.")
        self.active = gauge("active_policies", "Active policies of a pool.")
        self.unfunded = gauge("unfunded_accounts", "Accounts of a pool that are unfunded.")
        self.ratio = gauge("payout_ratio", "What the last 30 cut-offs released / faces of the policies issued in that time.")
        self.late = gauge("cutoff_late_seconds", "Time since a cut-off was due that has not happened yet, else 0.")
        self.not_configured = gauge(
            "not_configured", "1 for a pool of the ledger that the configuration does not name, else 0."
        )
        self.halted = gauge("halted", "1 while a pool is halted, else 0.")
        self.halts = counter("halts", "Attempts to settle a pool that halted it.")
        self.lag_messages = gauge("stream_lag_messages", "Messages in a pool's stream that are not settled yet.")
        self.cutoff_seconds = Histogram(
            "fundsvc_mutual_cutoff_seconds",
            "Settling a batch with cut-offs of a pool.",
            ["pool"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.rejected = counter("rejected", "Events of a pool rejected and kept.", "reason")
        self.duplicates = counter("duplicates", "Events of a pool ignored because their sequence was applied before.")
        self.entries = counter("entries", "Ledger entries of a pool written.")
        self.stream_regressions = counter("stream_regressions", "Regressions of a pool's stream.")
        self.stream_gaps = counter("stream_gaps", "Gaps: messages left a pool's stream before they were settled.")
        self.audit_success = gauge("audit_success", "1 if the last audit of a pool's ledger found no difference, else 0.")
        self.audit_failures = counter("audit_failures", "Audits of a pool's ledger that found a difference.")
        self.audit_last = gauge(
            "audit_last_timestamp_seconds", "Time of the last audit of a pool's ledger to its end without a difference."
        )
        self.audit_entries = Counter(
            "fundsvc_mutual_audit_entries", "Ledger entries of pools that the audit recomputed.", registry=registry
        )
        self._gauges = (self.balance, self.health, self.identity_error, self.active, self.unfunded, self.ratio, self.late)
        self._states = (self.halted, self.lag_messages)

    def own(self, pool: str) -> None:
        """Shows that this process settles a pool."""
        self.halted.labels(pool).set(0)
        self.identity_error.labels(pool).set(0)
        for reason in Reason:
            self.rejected.labels(pool, reason)
        for counted in (
            self.duplicates,
            self.entries,
            self.stream_regressions,
            self.stream_gaps,
            self.halts,
            self.audit_failures,
        ):
            counted.labels(pool)

    def show_halted(self, pool: str, halted: int) -> None:
        """Shows whether an attempt halted a pool (1), or it settles (0)."""
        self.halted.labels(pool).set(halted)
        self.halts.labels(pool).inc(halted)

    def release(self, pool: str) -> None:
        """Hides a pool that this process no longer settles. The counts are kept."""
        for one in (*self._gauges, *self._states):
            one.remove(pool)

    def audited(self, pool: str, *, good: bool) -> None:
        """Shows whether the audit of a pool found no difference."""
        self.audit_success.labels(pool).set(good)
        self.audit_failures.labels(pool).inc(not good)
        if good:
            self.audit_last.labels(pool).set_to_current_time()

    def recomputed(self, entries: int) -> None:
        """Counts entries that the audit recomputed."""
        self.audit_entries.inc(entries)

    def release_audit(self, pool: str) -> None:
        """Hides the results of the audit of a pool that this process no longer settles."""
        self.audit_success.remove(pool)
        self.audit_last.remove(pool)

    def show(self, view: PoolView) -> None:
        """Shows a pool as it was loaded, or after a commit."""
        name, unit = view.row.pool, 10**view.rules.decimals
        self.balance.labels(name).set(view.row.balance / unit)
        self.active.labels(name).set(view.active)
        available = view.row.balance - view.rules.reserve_floor
        if view.caps_left > 0:
            self.health.labels(name).set((available * PPM // view.caps_left) / PPM)
        else:
            self.health.remove(name)

    def committed(
        self,
        view: PoolView,
        durations: Durations,
        *,
        entries: int,
        cycles: Sequence[CycleRow],
        rejected: Sequence[Rejected],
        duplicates: int,
        identity_error: int,
    ) -> None:
        """Counts a durable batch. `identity_error` is in atoms times SCALE."""
        name = view.row.pool
        self.show(view)
        self.entries.labels(name).inc(entries)
        self.duplicates.labels(name).inc(duplicates)
        for reason, number in Tally(event.reason for event in rejected).items():
            self.rejected.labels(name, reason).inc(number)
        if cycles:
            self.cutoff_seconds.labels(name).observe(durations.settle)
        self.identity_error.labels(name).set(identity_error / SCALE / 10**view.rules.decimals)
