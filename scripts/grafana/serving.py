"""How clients are served: over HTTP, and by live topics."""

import limits
from panels import COUNT, RATE, SECONDS, THIRD, AnyPanel, Ask, lines
from promql import pace, percentile


def served() -> list[AnyPanel]:
    """The panels of HTTP and of live topics."""
    return [
        lines(
            "Requests a second",
            "Requests answered, by status.",
            RATE,
            Ask(pace("fundsvc_http_requests_total", "status"), "{{status}}"),
            stacked=True,
            width=THIRD,
        ),
        lines(
            "Time to answer",
            "What 99 of 100 requests take at most from their headers to their answer, by route.",
            SECONDS,
            Ask(percentile("fundsvc_http_seconds", 0.99, "route"), "{{route}}"),
            width=THIRD,
        ),
        lines(
            "Age of what HTTP shows",
            "How long ago its funds were last known to be where the ledger is, by process.",
            SECONDS,
            Ask("time() - max by (instance) (fundsvc_tail_heard_timestamp_seconds > 0)", "{{instance}}"),
            thresholds=limits.bad_from("ApiBehind"),
            width=THIRD,
        ),
        lines(
            "Live topics",
            "Connections to live topics, and their subscriptions.",
            COUNT,
            Ask("sum(fundsvc_websocket_clients)", "connections"),
            Ask("sum(fundsvc_websocket_subscriptions)", "subscriptions"),
            width=THIRD,
        ),
        lines(
            "Changes sent a second",
            "Changes that went to subscribers of live topics.",
            RATE,
            Ask(pace("fundsvc_websocket_frames_total"), "changes"),
            width=THIRD,
        ),
        lines(
            "Slow connections a second",
            "Connections to live topics that did not keep up, and what was done with them.",
            RATE,
            Ask(pace("fundsvc_websocket_overflows_total", "action"), "{{action}}"),
            width=THIRD,
        ),
    ]
