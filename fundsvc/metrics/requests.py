"""What HTTP requests are counted by: plain numbers, made into prometheus_client's families when scraped.

Every request pays for its own counting: a counter and a histogram of that library's take 3 µs of the 40 that a request takes.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class RequestMetrics(Collector):
    """Requests by route and status, and how long they took by route; `bounds` are the buckets' upper ends in seconds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._answered: dict[tuple[str, int], int] = {}
        self._durations: dict[str, _Durations] = {}

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Counts an answered request; `route` is a template, because raw paths are whatever clients invent."""
        key = route, status
        self._answered[key] = self._answered.get(key, 0) + 1
        durations = self._durations.get(route)
        if durations is None:
            durations = self._durations[route] = _Durations(len(self._bounds) + 1)
        durations.counts[bisect_left(self._bounds, seconds)] += 1
        durations.seconds += seconds

    def collect(self) -> Iterable[Metric]:
        """The families; may run in another thread than what counts."""
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
    """How many requests lie in each bucket, the last one without an end, and how long all of them took."""

    __slots__ = ("counts", "seconds")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets
        self.seconds = 0.0
