"""The metrics of the service for Prometheus. Each process has a separate registry.

Counters begin at 0 with the process. Balances and all other states come from the ledger when a partition is loaded. Money is in
whole units of the settlement currency, exact to about fifteen digits, as a double.
"""

import time
from collections import ChainMap
from collections import Counter as Tally
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from fundsvc.core.adl.book import Book
from fundsvc.core.adl.order import AdlOrder, OrderState
from fundsvc.core.batch import Batch, Durations
from fundsvc.core.contracts import Contract, partition_of
from fundsvc.core.events import Reason
from fundsvc.core.fund.fullness import Target
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.takeover import Exposure
from fundsvc.metrics.audits import AUDIT_FAMILIES, AuditMetrics, AuditProgress
from fundsvc.metrics.books import BookMetrics
from fundsvc.metrics.exposition import exposition, yielding
from fundsvc.metrics.families import FUND_FAMILIES
from fundsvc.metrics.funds import FundMetrics, FundView
from fundsvc.metrics.mutual import MutualMetrics
from fundsvc.metrics.requests import RequestMetrics
from fundsvc.metrics.servers import ServerMetrics

DURABLE_SETTINGS = ("fsync", "full_page_writes", "appendonly")
"""Durability settings of PostgreSQL and of the stream server."""

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_ADL_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
_FILLS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000)


class Pool(Protocol):
    """A connection pool of the database."""

    def get_size(self) -> int:
        """Returns the number of open connections."""

    def get_idle_size(self) -> int:
        """Returns the number of unused open connections."""


class Metrics:
    """The metrics of one process."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # They double the number of counters; no alert uses them.
        self.registry = registry = CollectorRegistry()
        self._funds: dict[str, FundMetrics] = {}
        self._epochs: dict[int, int] = {}
        self._peaks: Mapping[str, int] = {}
        self._peaks_of_cells: dict[str, dict[str, int]] = {}
        self._audits: dict[str, AuditMetrics] = {}
        self._pools: list[Pool] = []
        self.partitions = Gauge("fundsvc_partitions", "Number of partitions.", registry=registry)
        self.owned = Gauge(
            "fundsvc_partition_owned", "1 for a partition that this process owns.", ["partition"], registry=registry
        )
        self.rejected = Counter("fundsvc_rejected", "Events rejected and kept.", ["reason"], registry=registry)
        for reason in Reason:
            self.rejected.labels(reason)
        self.batch_entries = Histogram(
            "fundsvc_batch_entries", "Ledger entries per transaction.", buckets=_FILLS, registry=registry
        )
        self.decode_seconds = _duration(registry, "fundsvc_decode_seconds", "Decoding the messages of a batch.")
        self.settle_seconds = _duration(registry, "fundsvc_settle_seconds", "Settling the events of a batch.")
        self.commit_seconds = _duration(registry, "fundsvc_commit_seconds", "The transaction that writes a batch.")
        self.announce_seconds = _duration(
            registry, "fundsvc_announce_seconds", "Announcing, counting and logging a durable batch."
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
            "Stream regressions: the stream ended before the stored offset, or lacked its message.",
            ["partition"],
            registry=registry,
        )
        self.stream_gaps = Counter(
            "fundsvc_stream_gaps",
            "Gaps: messages left the stream before they were settled.",
            ["partition"],
            registry=registry,
        )
        self.halted = Gauge(
            "fundsvc_partition_halted", "1 while a partition is halted, else 0.", ["partition"], registry=registry
        )
        self.halts = Counter(
            "fundsvc_partition_halts", "Attempts to settle a partition that halted it.", ["partition"], registry=registry
        )
        self.adl_unacknowledged = Gauge(
            "fundsvc_adl_unacknowledged_rounds", "ADL rounds without an acknowledgement.", ["partition"], registry=registry
        )
        self.adl_unacknowledged_seconds = Gauge(
            "fundsvc_adl_unacknowledged_seconds",
            "Age of the oldest ADL round without an acknowledgement.",
            ["partition"],
            registry=registry,
        )
        self.adl_announced_again = Counter(
            "fundsvc_adl_announced_again", "Repeated announcements of ADL rounds.", ["partition"], registry=registry
        )
        self.heads_saved = Gauge(
            "fundsvc_heads_saved_timestamp_seconds",
            "Last time at which the heads of the hour were saved, or the engine started; 0 without audit.heads_directory.",
            registry=registry,
        )
        self.connections_refused = Counter(
            "fundsvc_connections_refused", "Connections refused, by the limit that was reached.", ["limit"], registry=registry
        )
        for limit in ("all", "client"):
            self.connections_refused.labels(limit)
        self.audit_progress = AuditProgress(registry)
        requests = RequestMetrics(_SECONDS)
        registry.register(requests)
        self.answered = requests.answered
        self.adl_seconds = Histogram(
            "fundsvc_adl_seconds", "From a shortfall to the end of its ADL order.", buckets=_ADL_SECONDS, registry=registry
        )
        self.rank_seconds = Histogram(
            "fundsvc_adl_rank_seconds",
            "Ranking a side of a book for an HTTP request.",
            buckets=(0.00001, 0.0001, *_SECONDS),
            registry=registry,
        )
        self.books_age_seconds = Gauge(
            "fundsvc_adl_books_age_seconds",
            "Age of the ADL books that HTTP shows.",
            registry=registry,
        )
        self.websocket_clients = Gauge("fundsvc_websocket_clients", "WebSocket connections.", registry=registry)
        self.websocket_subscriptions = Gauge(
            "fundsvc_websocket_subscriptions", "WebSocket subscriptions, one per contract and topic.", registry=registry
        )
        self.websocket_frames = Counter("fundsvc_websocket_frames", "Changes sent over WebSocket.", registry=registry)
        self.websocket_overflows = Counter(
            "fundsvc_websocket_overflows",
            "Slow WebSocket connections whose balances were coalesced, or that were closed.",
            ["action"],
            registry=registry,
        )
        for action in ("coalesced", "closed"):
            self.websocket_overflows.labels(action)
        self.faults = Counter("fundsvc_faults", "Faults of the database or the stream.", ["part"], registry=registry)
        for part in ("database", "stream"):
            self.faults.labels(part)
        self.mutual = MutualMetrics(registry)
        self.servers = ServerMetrics(registry)
        self.books = BookMetrics(registry)
        connections = Gauge("fundsvc_database_connections", "Open database connections of pools.", ["state"], registry=registry)
        connections.labels("used").set_function(lambda: self._open() - self._idle())
        connections.labels("idle").set_function(self._idle)

    def own(self, partition: int, epoch: int) -> None:
        """Shows that this process owns a partition."""
        self._epochs[partition] = epoch
        self.owned.labels(partition).set(1)
        for counted in (self.stream_regressions, self.stream_gaps, self.adl_announced_again, self.halted, self.halts):
            counted.labels(partition)
        self.epoch.labels(partition).set(epoch)

    def release(self, partition: int, epoch: int, partitions: int) -> None:
        """Hides a partition that this process owned in an epoch, unless it owns it again: in another cell.

        The counts of its contracts begin at 0 if this process owns it again. Alerts take the first value of a new series as
        an increase, so that value must not contain what was counted before.
        """
        if self._epochs.get(partition) != epoch:
            return
        self.owned.labels(partition).set(0)
        shown = (self.epoch, self.lag_messages, self.lag_seconds, self.halted, self.servers.stream_bytes)
        for gauge in (*shown, self.adl_unacknowledged, self.adl_unacknowledged_seconds):
            gauge.remove(partition)
        self.books.release(partition)
        for symbol in [symbol for symbol in self._funds if partition_of(symbol, partitions) == partition]:
            del self._funds[symbol]
        for symbol in [symbol for symbol in self._audits if partition_of(symbol, partitions) == partition]:
            del self._audits[symbol]

    def unacknowledged(self, partition: int, rounds: int, seconds: float) -> None:
        """Shows the number of ADL rounds of a partition without an acknowledgement, and the age of the oldest."""
        self.adl_unacknowledged.labels(partition).set(rounds)
        self.adl_unacknowledged_seconds.labels(partition).set(seconds)

    def show_halted(self, partition: int, halted: int) -> None:
        """Shows whether an attempt halted a partition (1), or it settles (0)."""
        self.halted.labels(partition).set(halted)
        self.halts.labels(partition).inc(halted)

    def set_weak_settings(self, settings: Collection[str]) -> None:
        """Shows which durability settings of the servers are off."""
        for setting in DURABLE_SETTINGS:
            self.servers.durability_off.labels(setting).set(setting in settings)

    def refused(self, limit: str) -> None:
        """Counts a connection that a limit (`all`, `client`) refused."""
        self.connections_refused.labels(limit).inc()

    def announced_again(self, partition: int, rounds: int) -> None:
        """Counts repeated announcements of ADL rounds."""
        self.adl_announced_again.labels(partition).inc(rounds)

    def loaded(self, funds: Iterable[Fund], orders: Iterable[AdlOrder]) -> None:
        """Shows funds that were loaded from the ledger, and their open orders."""
        for fund in funds:
            self._take_up(fund)
        for order in orders:
            self._funds[order.symbol].reopen(order)

    def committed(self, batch: Batch, durations: Durations) -> None:
        """Counts a durable batch, except for its ADL orders."""
        self.batch_entries.observe(batch.count())
        self.decode_seconds.observe(durations.decode)
        self.settle_seconds.observe(durations.settle)
        self.commit_seconds.observe(durations.commit)
        for symbol in batch.listings:
            self._list(batch.changed[symbol])
        for state, moved in zip(batch.funds, batch.moved, strict=True):
            self._funds[state.symbol].update(state, moved)
        for (symbol, kind), number in batch.kinds().items():
            self._funds[symbol].kinds[kind] += number
        self._count_takeovers(batch)
        for symbol, number in batch.duplicates.items():
            self._funds[symbol].duplicates += number
        for round_ in batch.rounds:
            self._funds[round_.order.symbol].rounds += 1
        for reason, number in Tally(event.reason for event in batch.rejected).items():
            self.rejected.labels(reason).inc(number)
        self._count_anomalies(batch)

    def moved(self, orders: Iterable[OrderState]) -> None:
        """Counts ADL orders that durable batches opened or changed."""
        for order in orders:
            seconds = self._funds[order.symbol].order(order)
            if seconds is not None:
                self.adl_seconds.observe(seconds)

    def _count_takeovers(self, batch: Batch) -> None:
        """Counts the outcomes of takeovers, and shows the lots that funds hold."""
        for (symbol, outcome), number in batch.outcomes.items():
            self._funds[symbol].outcomes[outcome] += number
            self._funds[symbol].outcome_lots[outcome] += batch.outcome_lots[symbol, outcome]
        for holding in batch.holdings:
            self._funds[holding.symbol].held[holding.side] = holding.held

    def _count_anomalies(self, batch: Batch) -> None:
        """Counts settled events with an anomaly."""
        for symbol, suspended in batch.suspensions.items():
            self._funds[symbol].suspended = suspended
        for fund in batch.changed.values() if batch.policies else ():
            self._funds[fund.contract.symbol].policy = fund.policy
        for symbol in batch.old.keys() & self._funds.keys():
            self._funds[symbol].old += batch.old[symbol]
        for symbol, number in batch.repeated_trades.items():
            self._funds[symbol].repeated_trades += number
        for gap in batch.gaps:
            self._funds[gap.symbol].gaps += 1
        for uncarried in batch.uncarried:
            self._funds[uncarried.symbol].uncarried += 1

    def positions(self, books: Iterable[tuple[Contract, Book]]) -> None:
        """Shows the number of open positions of books."""
        for contract, book in books:
            if contract.symbol in self._funds:
                self._funds[contract.symbol].positions = {name: side.open for name, side in book.sides.items()}

    def exposed(self, exposures: Iterable[tuple[str, Exposure | None]]) -> None:
        """Shows what inventories mean for their funds, by symbol."""
        for symbol, exposure in exposures:
            if symbol in self._funds:
                self._funds[symbol].expose(exposure)

    def target(self, symbol: str, target: Target) -> None:
        """Shows a fund's target from now on."""
        if symbol in self._funds:
            self._funds[symbol].target = target

    def set_peaks(self, peaks: dict[str, int], cell: str) -> None:
        """Shows the highest balances of the last eight hours, in atoms. Funds absent from `peaks` use their current balance.

        `peaks` replaces the peaks of the same cell.
        """
        self._peaks_of_cells[cell] = peaks
        self._peaks = ChainMap(*self._peaks_of_cells.values())
        for symbol, fund in self._funds.items():
            fund.set_peak(self._peaks.get(symbol, 0))

    def audited(self, symbol: str, walk: str, *, good: bool, verified_at: float | None) -> None:
        """Shows a walk's result for a ledger: whether its last part had no difference, and when it last verified the end."""
        self._audits.setdefault(symbol, AuditMetrics(symbol)).note(walk, good, verified_at)

    def conserved(self, symbol: str, error: int, lots_error: int) -> None:
        """Shows a contract's conservation errors, in atoms and in lots of its inventory."""
        audit = self._audits.setdefault(symbol, AuditMetrics(symbol))
        audit.error, audit.lots_error = error, lots_error

    def recomputed(self, entries: int) -> None:
        """Counts entries that the audit recomputed."""
        self.audit_progress.entries.inc(entries)

    def remaining(self, seconds: float) -> None:
        """Shows the expected time until the audit from entry 1 has reached the ends of all ledgers."""
        self.audit_progress.remaining.set(seconds)

    def add_pool(self, pool: Pool) -> None:
        """Includes a pool in the counts of database connections."""
        self._pools.append(pool)

    def render(self) -> bytes:
        """Returns the exposition text. It takes long with many contracts, and may run in a thread."""
        now = time.time()
        funds = list(self._funds.values())
        views = [FundView(fund, now) for fund in yielding(funds)]
        contracts = exposition(FUND_FAMILIES, views) + exposition(AUDIT_FAMILIES, list(self._audits.values()))
        return generate_latest(self.registry) + contracts.encode()

    def _take_up(self, fund: Fund) -> None:
        symbol = fund.contract.symbol
        known = self._funds.get(symbol)
        if known:
            known.load(fund)
        else:
            self._funds[symbol] = FundMetrics(fund, self._peaks.get(symbol, 0))

    def _list(self, fund: Fund) -> None:
        """Shows a listed contract if it is new, or has no entries, so that its terms may have changed."""
        known = self._funds.get(fund.contract.symbol)
        if known is None or not known.state.entry:
            self._take_up(Fund(fund.contract, policy=fund.policy))

    def _open(self) -> int:
        return sum(pool.get_size() for pool in self._pools)

    def _idle(self) -> int:
        return sum(pool.get_idle_size() for pool in self._pools)


def _duration(registry: CollectorRegistry, name: str, documentation: str) -> Histogram:
    return Histogram(name, documentation, buckets=_SECONDS, registry=registry)
