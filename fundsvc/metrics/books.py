"""The metrics of the ADL books of partitions."""

from prometheus_client import CollectorRegistry, Gauge


class BookMetrics:
    """Contracts of each partition whose book or mark is stale, or whose book is not loaded."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._stale_marks = Gauge(
            "fundsvc_adl_stale_marks", "Contracts with open positions whose mark is stale.", ["partition"], registry=registry
        )
        self._stale_books = Gauge(
            "fundsvc_adl_stale_books", "Contracts whose ADL book waits for a snapshot.", ["partition"], registry=registry
        )
        self._awaited = Gauge(
            "fundsvc_adl_books_awaited",
            "Contracts whose ADL book is not loaded yet after a restart.",
            ["partition"],
            registry=registry,
        )

    def show(self, partition: int, *, stale_marks: int, stale_books: int, awaited: int) -> None:
        """Shows the numbers of contracts of a partition."""
        self._stale_marks.labels(partition).set(stale_marks)
        self._stale_books.labels(partition).set(stale_books)
        self._awaited.labels(partition).set(awaited)

    def release(self, partition: int) -> None:
        """Hides a partition that this process no longer owns."""
        for gauge in (self._stale_marks, self._stale_books, self._awaited):
            gauge.remove(partition)
