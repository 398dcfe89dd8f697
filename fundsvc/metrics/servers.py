"""The metrics of what the service depends on: settings, archive and memory of the servers, rates, the certificate."""

from prometheus_client import CollectorRegistry, Gauge


class ServerMetrics:
    """Gauges; see `Metrics`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.durability_off = Gauge(
            "fundsvc_durability_off",
            "1 for a durability setting that is off, so that a crash may lose confirmed data.",
            ["setting"],
            registry=registry,
        )
        self.archive_failing = Gauge(
            "fundsvc_wal_archive_failing",
            "1 while the last attempt of PostgreSQL to archive its write-ahead log failed, else 0; 0 without archiving.",
            registry=registry,
        )
        self.archived = Gauge(
            "fundsvc_wal_archived_timestamp_seconds",
            "Last time at which PostgreSQL archived a file of its write-ahead log; 0 before the first.",
            registry=registry,
        )
        self.memory = Gauge(
            "fundsvc_stream_memory_bytes",
            "Memory that the stream server uses, or the fullest primary of a cluster.",
            registry=registry,
        )
        self.memory_max = Gauge(
            "fundsvc_stream_memory_max_bytes",
            "maxmemory of that server, or the memory of its host without a limit.",
            registry=registry,
        )
        self.stream_bytes = Gauge("fundsvc_stream_bytes", "Memory of a stream on its server.", ["partition"], registry=registry)
        self.retention_bytes = Gauge(
            "fundsvc_stream_retention_bytes", "Limit of the memory of a stream, 0 without one.", registry=registry
        )
        self.rate = Gauge(
            "fundsvc_rate_timestamp_seconds", "Time of the newest rate to USDT of a currency.", ["currency"], registry=registry
        )
        self.certificate = Gauge(
            "fundsvc_certificate_expiry_timestamp_seconds",
            "Time at which the loaded certificate of HTTPS expires; 0 without HTTPS.",
            registry=registry,
        )
        self._tail_heard = Gauge(
            "fundsvc_tail_heard_timestamp_seconds",
            "Newest time for which the funds that HTTP shows are known to equal the ledger.",
            registry=registry,
        )
        self._cell_heard = Gauge(
            "fundsvc_cell_heard_timestamp_seconds",
            "Newest time for which the funds that HTTP shows are known to equal the ledger of a cell.",
            ["cell"],
            registry=registry,
        )
        self._heard: dict[str, float] = {}

    def heard(self, cell: str, seconds: float) -> None:
        """Sets the newest time for which the shown funds are known to equal the ledger of a cell, and so that of all cells."""
        self._heard[cell] = seconds
        self._cell_heard.labels(cell).set(seconds)
        self._tail_heard.set(min(self._heard.values()))
