"""What the service counts, in Prometheus' words; each process has its own registry."""

from collections import Counter as Tally
from operator import attrgetter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from fundsvc.core.contracts import Contract
from fundsvc.core.partition import Batch
from fundsvc.core.settlement import FundState

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_SYMBOL_AND_KIND = attrgetter("symbol", "kind")
_FILLS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000)


class Metrics:
    """The metrics of one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.entries = Counter("fundsvc_entries", "Ledger entries written.", ["symbol", "kind"], registry=registry)
        self.duplicates = Counter(
            "fundsvc_duplicates", "Events ignored because their sequence was settled before.", ["symbol"], registry=registry
        )
        self.rejected = Counter("fundsvc_rejected", "Events rejected and kept.", ["reason"], registry=registry)
        self.balance = Gauge(
            "fundsvc_balance",
            "Balance of a contract's fund, in its settlement currency.",
            ["symbol", "currency"],
            registry=registry,
        )
        self.outstanding = Gauge(
            "fundsvc_outstanding",
            "What auto-deleveraging failed to recover, in the settlement currency.",
            ["symbol", "currency"],
            registry=registry,
        )
        self.batch_fills = Histogram(
            "fundsvc_batch_entries", "Ledger entries per transaction.", buckets=_FILLS, registry=registry
        )
        self.commit_seconds = Histogram(
            "fundsvc_commit_seconds", "Duration of the transaction that writes a batch.", buckets=_SECONDS, registry=registry
        )
        self.lag_messages = Gauge(
            "fundsvc_stream_lag_messages", "Messages in the stream that are not settled yet.", ["partition"], registry=registry
        )
        self.lag_seconds = Gauge(
            "fundsvc_stream_lag_seconds", "Age of the last settled message while others wait.", ["partition"], registry=registry
        )
        self.epoch = Gauge(
            "fundsvc_partition_epoch", "Epoch under which this process owns a partition.", ["partition"], registry=registry
        )
        self.stream_regressions = Counter(
            "fundsvc_stream_regressions",
            "Times a stream was found to end before the stored offset.",
            ["partition"],
            registry=registry,
        )
        self.http_requests = Counter(
            "fundsvc_http_requests", "Requests answered, by route and HTTP status.", ["route", "status"], registry=registry
        )
        self.http_seconds = Histogram(
            "fundsvc_http_seconds", "From a request's headers to its answer.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.faults = Counter("fundsvc_faults", "Times the database or the stream was away.", ["part"], registry=registry)

    def committed(self, batch: Batch, seconds: float) -> None:
        """Counts a durable batch."""
        self.batch_fills.observe(len(batch.entries))
        self.commit_seconds.observe(seconds)
        for (symbol, kind), number in Tally(map(_SYMBOL_AND_KIND, batch.entries)).items():
            self.entries.labels(symbol, kind).inc(number)
        for symbol, number in batch.duplicates.items():
            self.duplicates.labels(symbol).inc(number)
        for reason, number in Tally(event.reason for event in batch.rejected).items():
            self.rejected.labels(reason).inc(number)
        for state in batch.funds:
            self.fund(batch.changed[state.symbol].contract, state)

    def fund(self, contract: Contract, state: FundState) -> None:
        """Shows a fund as it now stands."""
        labels = (contract.symbol, contract.settle_currency)
        self.balance.labels(*labels).set(state.balance / 10**contract.settle_decimals)
        self.outstanding.labels(*labels).set(state.outstanding / 10**contract.settle_decimals)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Counts an answered HTTP request; `route` is a template, because raw paths are whatever clients invent."""
        self.http_requests.labels(route, status).inc()
        self.http_seconds.labels(route).observe(seconds)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)
