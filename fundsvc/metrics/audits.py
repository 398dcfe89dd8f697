"""What the audit in the background has found of each contract."""

from collections.abc import Callable
from operator import attrgetter

from fundsvc.metrics.exposition import Family, labels_text


class AuditMetrics:
    """Of one contract: by walk, whether everything held when it was last looked at, and when an end was last reached where it
    did (seconds since the epoch); and by how many atoms conservation fails.
    """

    def __init__(self, symbol: str) -> None:
        self.label = labels_text(symbol=symbol)
        self.good: dict[str, bool] = {}
        self.verified_at: dict[str, float] = {}
        self.error: int | None = None

    def note(self, walk: str, good: bool, verified_at: float | None) -> None:
        """Takes in what a walk found."""
        self.good[walk] = good
        if verified_at is not None:
            self.verified_at[walk] = verified_at

    def success(self) -> int | None:
        """1 while everything held when it was last looked at; None before that."""
        found = list(self.good.values())
        return int(all(found)) if found else None

    def latest(self) -> float | None:
        """When the end of the ledger was last reached."""
        return max(list(self.verified_at.values()), default=None)


_LABEL: Callable[[AuditMetrics], str] = attrgetter("label")

AUDIT_FAMILIES: tuple[Family[AuditMetrics], ...] = (
    Family(
        "fundsvc_audit_success",
        "gauge",
        "1 while everything held when a contract's ledger was last recomputed, else 0.",
        _LABEL,
        AuditMetrics.success,
    ),
    Family(
        "fundsvc_audit_last_timestamp_seconds",
        "gauge",
        "When a contract's ledger was last found good to its end.",
        _LABEL,
        AuditMetrics.latest,
    ),
    Family(
        "fundsvc_audit_full_timestamp_seconds",
        "gauge",
        "When a contract's ledger was last found good from entry 1 on.",
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
)
"""In the order in which they are shown."""
