"""PromQL over counters and histograms. `of` is the inside of a selector; `by` is labels, or "" for one series."""


def pace(counter: str, by: str = "", of: str = "") -> str:
    """Returns the rate of a counter per second."""
    return f"sum by ({by}) (rate({counter}{_inside(of)}[$__rate_interval]))"


def grown(counter: str, by: str = "", of: str = "") -> str:
    """Returns the increase of a counter within the time range."""
    return f"sum by ({by}) (increase({counter}{_inside(of)}[$__range]))"


def flow(counter: str, by: str, of: str) -> str:
    """Returns the rate of a counter per hour."""
    return f"{pace(counter, by, of)} * 3600"


def percentile(histogram: str, share: float, by: str = "") -> str:
    """Returns a quantile of a histogram; without observations it returns no series."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share}, {pace(f'{histogram}_bucket', labels)}) >= 0"


def _inside(of: str) -> str:
    return f"{{{of}}}" if of else ""
