"""Checks of the time of an event against the time of its stream id, which the stream server's clock gives."""

from fundsvc.core.events import Event, Reason, Rejection

AHEAD_SECONDS_MAX = 300.0
"""The default limit for a matching engine's clock ahead of the stream server's. Clocks synchronised by NTP differ by less."""

PLAUSIBLE_MS = 1_262_304_000_000
"""The start of 2010. The clock of every stream server is later."""

SECONDS_MIN, SECONDS_MAX = 500_000_000, 100_000_000_000
"""Current times in seconds lie between these. In milliseconds, these are times of January 1970 and of 1973."""

OLD_MS = 86_400_000
"""An event is old after a day. It is settled, but counted, because a live matching engine does not send it."""


def check_time(event: Event | Rejection, latest_ms: int) -> None:
    """Raises Rejection if the event's time is later than `latest_ms` or not in milliseconds."""
    ts = getattr(event, "ts", None)
    if ts is None:
        return
    if ts > latest_ms:
        raise Rejection(Reason.TS_OUT_OF_RANGE, f"ts {ts} is later than {latest_ms}, the latest time allowed")
    if SECONDS_MIN <= ts < SECONDS_MAX:
        raise Rejection(Reason.TS_OUT_OF_RANGE, f"ts {ts} looks like seconds: ts is in milliseconds since 1970")


def is_time(stream_ms: int) -> bool:
    """Whether the first part of a stream id is a time. A producer may choose another number."""
    return stream_ms >= PLAUSIBLE_MS


def time_of_id(stream_id: str) -> int:
    """Returns the first part of a stream id, in milliseconds."""
    return int(stream_id.partition("-")[0])
