"""Panels of HTTP and topics."""

import limits
from panels import COUNT, QUARTER, RATE, SECONDS, THIRD, AnyPanel, Query, lines
from promql import pace, percentile


def served() -> list[AnyPanel]:
    """Returns the panels of HTTP and topics."""
    return [
        lines(
            "Requests per second",
            "Answered requests by status.",
            RATE,
            Query(pace("fundsvc_http_requests_total", "status"), "{{status}}"),
            stacked=True,
            width=THIRD,
        ),
        lines(
            "Time to answer",
            "99th percentile from the headers of a request to its answer, by route.",
            SECONDS,
            Query(percentile("fundsvc_http_seconds", 0.99, "route"), "{{route}}"),
            width=THIRD,
        ),
        lines(
            "Age of the funds over HTTP",
            "Time since the funds of a process were last known to equal the ledger.",
            SECONDS,
            Query("time() - max by (instance, cell) (fundsvc_cell_heard_timestamp_seconds > 0)", "{{instance}} {{cell}}"),
            thresholds=limits.bad_from("ApiBehind"),
            width=THIRD,
        ),
        lines(
            "Topics",
            "WebSocket connections and their subscriptions.",
            COUNT,
            Query("sum(fundsvc_websocket_clients)", "connections"),
            Query("sum(fundsvc_websocket_subscriptions)", "subscriptions"),
            width=QUARTER,
        ),
        lines(
            "Pushes per second",
            "Changes sent to subscribers.",
            RATE,
            Query(pace("fundsvc_websocket_frames_total"), "changes"),
            width=QUARTER,
        ),
        lines(
            "Slow connections per second",
            "WebSocket connections that read too slowly, by action.",
            RATE,
            Query(pace("fundsvc_websocket_overflows_total", "action"), "{{action}}"),
            width=QUARTER,
        ),
        lines(
            "Connections refused in 10 minutes",
            "Refused connections by limit: all connections of a process, or those of one client.",
            COUNT,
            Query("sum by (limit) (increase(fundsvc_connections_refused_total[10m]))", "{{limit}}"),
            width=QUARTER,
        ),
    ]
