"""What dashboards ask of counters and histograms; `of` is a selector's inside, `by` one label or more, or "" for one series."""


def pace(counter: str, by: str = "", of: str = "") -> str:
    """How much of a counter a second."""
    return f"sum by ({by}) (rate({counter}{_inside(of)}[$__rate_interval]))"


def grown(counter: str, by: str = "", of: str = "") -> str:
    """How much was counted in the time shown."""
    return f"sum by ({by}) (increase({counter}{_inside(of)}[$__range]))"


def flow(counter: str, by: str, of: str) -> str:
    """How much of a counter an hour."""
    return f"{pace(counter, by, of)} * 3600"


def percentile(histogram: str, share: float, by: str = "") -> str:
    """What this share of what a histogram observed is at or below; no series while nothing is observed."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share}, {pace(f'{histogram}_bucket', labels)}) >= 0"


def _inside(of: str) -> str:
    return f"{{{of}}}" if of else ""
