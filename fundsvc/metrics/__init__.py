"""What the service counts, in Prometheus' words; each process has its own registry."""

import time
from collections import Counter as Tally
from collections.abc import Iterable
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from fundsvc.core.adl import AdlOrder, OrderState
from fundsvc.core.batch import Batch
from fundsvc.core.book import Book
from fundsvc.core.contracts import Contract, partition_of
from fundsvc.core.settlement import FundState

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_ADL_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
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
        self.adl_orders = Counter(
            "fundsvc_adl_orders",
            "ADL orders that came into a state: open, done or uncovered.",
            ["symbol", "state"],
            registry=registry,
        )
        self.adl_open = Gauge("fundsvc_adl_open_orders", "ADL orders that are open.", ["symbol"], registry=registry)
        self.adl_rounds = Counter("fundsvc_adl_rounds", "Rounds of ADL orders.", ["symbol"], registry=registry)
        self.adl_lots_needed = Counter("fundsvc_adl_lots_needed", "Lots that ADL orders needed.", ["symbol"], registry=registry)
        self.adl_lots_taken = Counter("fundsvc_adl_lots_taken", "Lots executed for ADL orders.", ["symbol"], registry=registry)
        self.adl_uncovered = Counter(
            "fundsvc_adl_uncovered",
            "What funds could not pay and ADL was asked for, in the settlement currency.",
            ["symbol", "currency"],
            registry=registry,
        )
        self.adl_recovered = Counter(
            "fundsvc_adl_recovered", "What ADL recovered of that.", ["symbol", "currency"], registry=registry
        )
        self.adl_overshoot = Counter(
            "fundsvc_adl_overshoot",
            "What completed ADL orders took beyond what they needed: less than one lot's deficit each, refunded to the fund.",
            ["symbol", "currency"],
            registry=registry,
        )
        self.adl_seconds = Histogram(
            "fundsvc_adl_seconds", "From a shortfall to the end of its ADL order.", buckets=_ADL_SECONDS, registry=registry
        )
        self.adl_positions = Gauge(
            "fundsvc_adl_positions", "Open positions in the ADL book.", ["symbol", "side"], registry=registry
        )
        self.rank_seconds = Histogram(
            "fundsvc_adl_rank_seconds",
            "Ranking a side of a book for who asked over HTTP.",
            buckets=(0.00001, 0.0001, *_SECONDS),
            registry=registry,
        )
        self.books_age_seconds = Gauge(
            "fundsvc_adl_books_age_seconds",
            "Time since the ADL books that HTTP shows were known to be where the ledger is.",
            registry=registry,
        )
        self.tail_heard = Gauge(
            "fundsvc_tail_heard_timestamp_seconds",
            "When the funds that HTTP shows were last known to be where the ledger is.",
            registry=registry,
        )
        self.websocket_clients = Gauge("fundsvc_websocket_clients", "Connections to live topics.", registry=registry)
        self.websocket_subscriptions = Gauge(
            "fundsvc_websocket_subscriptions", "Subscriptions to live topics, one for each contract.", registry=registry
        )
        self.websocket_frames = Counter("fundsvc_websocket_frames", "Changes sent to live topics.", registry=registry)
        self.websocket_overflows = Counter(
            "fundsvc_websocket_overflows",
            "Connections that read too slowly: their balances were coalesced, or they were closed.",
            ["action"],
            registry=registry,
        )
        self._orders: dict[tuple[str, int], OrderState] = {}
        self._began: dict[tuple[str, int], float] = {}
        self.faults = Counter("fundsvc_faults", "Times the database or the stream was away.", ["part"], registry=registry)

        # Finding a child by its labels takes longer than setting it; a commit may set thousands, a second as many.
        self._requests_of = cache(self.http_requests.labels)
        self._seconds_of = cache(self.http_seconds.labels)
        self._entries_of = cache(self.entries.labels)
        self._balance_of = cache(self.balance.labels)
        self._outstanding_of = cache(self.outstanding.labels)

    def committed(self, batch: Batch, seconds: float) -> None:
        """Counts a durable batch."""
        self.batch_fills.observe(batch.count())
        self.commit_seconds.observe(seconds)
        for (symbol, kind), number in batch.kinds().items():
            self._entries_of(symbol, kind).inc(number)
        for symbol, number in batch.duplicates.items():
            self.duplicates.labels(symbol).inc(number)
        for reason, number in Tally(event.reason for event in batch.rejected).items():
            self.rejected.labels(reason).inc(number)
        for state in batch.funds:
            self.fund(batch.changed[state.symbol].contract, state)
        for symbol, number in Tally(round_.order.symbol for round_ in batch.rounds).items():
            self.adl_rounds.labels(symbol).inc(number)
        for order in batch.orders.values():
            self._order(batch.changed[order.symbol].contract, order)

    def fund(self, contract: Contract, state: FundState) -> None:
        """Shows a fund as it now stands."""
        labels = (contract.symbol, contract.settle_currency)
        self._balance_of(*labels).set(state.balance / 10**contract.settle_decimals)
        self._outstanding_of(*labels).set(state.outstanding / 10**contract.settle_decimals)

    def reopened(self, orders: Iterable[AdlOrder]) -> None:
        """Takes up orders that were open when their partition was loaded; they began when the engine says they did."""
        for order in orders:
            key = order.symbol, order.adl
            self._orders[key] = order.written()
            self._began[key] = order.ts / 1000
            self.adl_open.labels(order.symbol).inc()

    def let_go(self, partition: int, partitions: int) -> None:
        """Forgets the open orders of a partition that is not consumed here any more."""
        for key in [key for key in self._orders if partition_of(key[0], partitions) == partition]:
            del self._orders[key], self._began[key]
            self.adl_open.labels(key[0]).dec()

    def positions(self, books: Iterable[tuple[Contract, Book]]) -> None:
        """Shows how many positions are open in books."""
        for contract, book in books:
            for name, side in book.sides.items():
                self.adl_positions.labels(contract.symbol, name).set(side.open)

    def _order(self, contract: Contract, order: OrderState) -> None:
        """Counts what became of an order since it was last seen."""
        key = order.symbol, order.adl
        money = contract.symbol, contract.settle_currency
        unit: int = 10**contract.settle_decimals
        before = self._orders.pop(key, None)
        if before is None:
            self.adl_orders.labels(order.symbol, "open").inc()
            self.adl_open.labels(order.symbol).inc()
            self.adl_lots_needed.labels(order.symbol).inc(order.lots)
            self.adl_uncovered.labels(*money).inc(order.uncovered / unit)
            self._began[key] = time.time()
        self.adl_lots_taken.labels(order.symbol).inc(order.executed - (before.executed if before else 0))
        self.adl_recovered.labels(*money).inc((order.recovered - (before.recovered if before else 0)) / unit)
        if order.state == "open":
            self._orders[key] = order
            return
        self.adl_orders.labels(order.symbol, order.state).inc()
        self.adl_open.labels(order.symbol).dec()
        self.adl_seconds.observe(max(0.0, time.time() - self._began.pop(key)))
        taken = order.deficit * order.executed // order.deficit_lots
        self.adl_overshoot.labels(*money).inc(max(0, taken - order.uncovered) / unit)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Counts an answered HTTP request; `route` is a template, because raw paths are whatever clients invent."""
        self._requests_of(route, status).inc()
        self._seconds_of(route).observe(seconds)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)
