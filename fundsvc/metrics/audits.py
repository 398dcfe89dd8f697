"""The results of the background audit, by contract."""

from collections.abc import Callable
from operator import attrgetter

from prometheus_client import CollectorRegistry, Counter, Gauge

from fundsvc.metrics.exposition import Family, labels_text


class AuditMetrics:
    """The audit results of one contract.

    By walk: whether the last part had no difference, and when the walk last verified the end of the ledger (seconds since the
    epoch). `failures` counts the parts of walks with a difference. `error` is the conservation error in atoms, `lots_error`
    that of the inventory in lots.
    """

    def __init__(self, symbol: str) -> None:
        self.label = labels_text(symbol=symbol)
        self.good: dict[str, bool] = {}
        self.verified_at: dict[str, float] = {}
        self.failures = 0
        self.error: int | None = None
        self.lots_error: int | None = None

    def note(self, walk: str, good: bool, verified_at: float | None) -> None:
        """Records the result of a walk."""
        self.good[walk] = good
        self.failures += not good
        if verified_at is not None:
            self.verified_at[walk] = verified_at

    def success(self) -> int | None:
        """Returns 1 if the last recomputation found no difference, else 0; None before the first."""
        found = list(self.good.values())
        return int(all(found)) if found else None

    def latest(self) -> float | None:
        """Returns when a walk last verified the end of the ledger."""
        return max(list(self.verified_at.values()), default=None)


class AuditProgress:
    """The progress of the audit over all contracts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.entries = Counter("fundsvc_audit_entries", "Ledger entries that the audit recomputed.", registry=registry)
        self.remaining = Gauge(
            "fundsvc_audit_remaining_seconds",
            "Expected time until the audit from entry 1 has reached the ends of all ledgers, at its speed; 0 at the ends.",
            registry=registry,
        )


_LABEL: Callable[[AuditMetrics], str] = attrgetter("label")

AUDIT_FAMILIES: tuple[Family[AuditMetrics], ...] = (
    Family(
        "fundsvc_audit_success",
        "gauge",
        "1 if the last recomputation of a contract's ledger found no difference, else 0.",
        _LABEL,
        AuditMetrics.success,
    ),
    Family(
        "fundsvc_audit_failures_total",
        "counter",
        "Recomputed parts of a contract's ledger with a difference.",
        _LABEL,
        lambda audit: audit.failures,
    ),
    Family(
        "fundsvc_audit_last_timestamp_seconds",
        "gauge",
        "Time of the last audit of a contract's ledger to its end without a difference.",
        _LABEL,
        AuditMetrics.latest,
    ),
    Family(
        "fundsvc_audit_full_timestamp_seconds",
        "gauge",
        "Time of the last audit of a contract's ledger from entry 1 without a difference.",
        _LABEL,
        lambda audit: audit.verified_at.get("full"),
    ),
    Family(
        "fundsvc_conservation_error_atoms",
        "gauge",
        "Uncovered less recovered, repaid, outstanding and open in ADL, recomputed from a contract's ledger: 0.",
        _LABEL,
        lambda audit: audit.error,
    ),
    Family(
        "fundsvc_inventory_conservation_error_lots",
        "gauge",
        "Lots taken over less unwound, deleveraged, held and in takeover orders, recomputed from a contract's ledger: 0.",
        _LABEL,
        lambda audit: audit.lots_error,
    ),
)
"""The families in the order of the exposition."""
