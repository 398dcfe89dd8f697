"""Which times an event may have: by the clock that put it into its stream, whose milliseconds begin the stream id."""

from fundsvc.core.events import Event, Reason, Rejection

AHEAD_SECONDS_MAX = 300.0
"""How far an engine's clock may be ahead of the stream's, unless configured: clocks that are kept by NTP differ by less."""

PLAUSIBLE_MS = 1_262_304_000_000
"""The start of 2010: a stream server's clock is later."""

SECONDS_MIN, SECONDS_MAX = 500_000_000, 100_000_000_000
"""Times of now in seconds lie between these; in milliseconds these are of January 1970 and of 1973."""

OLD_MS = 86_400_000
"""An event is old after a day: it is settled, but no live engine sends it."""


def check_time(event: Event | Rejection, latest_ms: int) -> None:
    """Raises Rejection for a time that is later than `latest_ms` or not in milliseconds."""
    ts = getattr(event, "ts", None)
    if ts is None:
        return
    if ts > latest_ms:
        raise Rejection(Reason.TS_OUT_OF_RANGE, f"ts {ts} is later than {latest_ms}, the latest time allowed")
    if SECONDS_MIN <= ts < SECONDS_MAX:
        raise Rejection(Reason.TS_OUT_OF_RANGE, f"ts {ts} looks like seconds: ts is in milliseconds since 1970")


def is_old(event: Event | Rejection, stream_ms: int) -> bool:
    """Whether an event happened over a day before it was put into its stream."""
    ts = getattr(event, "ts", None)
    return ts is not None and ts < stream_ms - OLD_MS


def is_time(stream_ms: int) -> bool:
    """Whether the milliseconds of a stream id are a time: its sender may have chosen another number."""
    return stream_ms >= PLAUSIBLE_MS


def time_of_id(stream_id: str) -> int:
    """The milliseconds that a stream id begins with."""
    return int(stream_id.partition("-")[0])
