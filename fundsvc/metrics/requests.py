"""Counts HTTP requests as plain numbers, and converts them into prometheus_client's families when scraped.

Every request pays for its count: a counter and a histogram of that library take 3 µs of the 40 µs of a request.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class RequestMetrics(Collector):
    """Requests by route and status, and durations by route; `bounds` are the upper bounds of the buckets in seconds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._answered: dict[tuple[str, int], int] = {}
        self._durations: dict[str, _Durations] = {}

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Counts an answered request. `route` is a template, because raw paths are arbitrary."""
        key = route, status
        self._answered[key] = self._answered.get(key, 0) + 1
        durations = self._durations.get(route)
        if durations is None:
            durations = self._durations[route] = _Durations(len(self._bounds) + 1)
        durations.counts[bisect_left(self._bounds, seconds)] += 1
        durations.seconds += seconds

    def collect(self) -> Iterable[Metric]:
        """Returns the families. May run in another thread than `answered`."""
        requests = CounterMetricFamily(
            "fundsvc_http_requests", "Requests answered, by route and HTTP status.", labels=("route", "status")
        )
        for (route, status), number in list(self._answered.items()):
            requests.add_metric((route, str(status)), number)
        seconds = HistogramMetricFamily("fundsvc_http_seconds", "From a request's headers to its answer.", labels=("route",))
        ends = [*map(str, self._bounds), "+Inf"]
        for route, durations in list(self._durations.items()):
            buckets = list(zip(ends, accumulate(durations.counts), strict=True))
            seconds.add_metric((route,), buckets, durations.seconds)
        return requests, seconds


class _Durations:
    """The number of requests per bucket, the last one without a bound, and their total duration."""

    __slots__ = ("counts", "seconds")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets
        self.seconds = 0.0
