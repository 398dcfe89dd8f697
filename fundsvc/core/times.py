"""Which times an event may have: by the clock that put it into its stream, whose milliseconds begin the stream id."""

from fundsvc.core.events import Event, Reason, Rejection

AHEAD_SECONDS_MAX = 300.0
"""How far an engine's clock may be ahead of the stream's, unless configured: clocks that are kept by NTP differ by less."""

PLAUSIBLE_MS = 1_262_304_000_000
"""The start of 2010, before which there was nothing to liquidate. Seconds in place of milliseconds lie in January 1970."""

OLD_MS = 86_400_000
"""An event is old after a day: it is settled, but no live engine sends it."""


def check_time(event: Event | Rejection, latest_ms: int) -> None:
    """Raises Rejection for a time that is later than `latest_ms` or not in milliseconds."""
    ts = getattr(event, "ts", None)
    if ts is None:
        return
    if ts > latest_ms:
        raise Rejection(Reason.TS_OUT_OF_RANGE, f"ts {ts} is later than {latest_ms}, the latest time allowed")
    if ts < PLAUSIBLE_MS:
        raise Rejection(Reason.TS_OUT_OF_RANGE, f"ts {ts} lies before 2010: ts is in milliseconds since 1970")


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
