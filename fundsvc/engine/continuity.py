"""Detects that a stream lacks messages after an offset: it lost its tail, or unread messages were deleted or trimmed.

Each read checks both before any of its messages is settled. Ids decide; the server's counters give the number of lost messages.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

from fundsvc.core.batch import Offset
from fundsvc.engine.settling import Reading
from fundsvc.store.gaps import KnownGap
from fundsvc.store.writer import STREAM_START
from fundsvc.streams.client import StreamClient, StreamFault
from fundsvc.streams.idle import IdleStreams, milliseconds_to_tick
from fundsvc.streams.source import Source, StreamState, id_order
from fundsvc.streams.survey import Survey
from fundsvc.wire.codec import Message


class Streams(NamedTuple):
    """The stream server as all sessions of an engine share it."""

    client: StreamClient
    idle: IdleStreams
    survey: Survey


class StreamGap(NamedTuple):
    """Messages that left the stream before they were settled: those after `after_id`, up to and including `until_id`.

    `messages` is their number if all messages up to `until_id` are missing, else None.
    """

    after_id: str
    until_id: str
    messages: int | None


class GapFound(StreamFault):
    """There is a gap after the offset. Nothing after the gap may be settled before the gap is handled."""


def lost_tail(stream: StreamState, offset: Offset) -> bool:
    """Whether the stream ends before the offset or was replaced by another stream, whose ids may exceed the offset.

    It was replaced if it counts fewer messages than were settled, or dropped fewer than were settled and holds none of them.
    """
    reached = max(offset.last_id, offset.partial_id or STREAM_START, key=id_order)
    if id_order(stream.last_id) < id_order(reached) or stream.added < offset.messages:
        return True
    begins_later = bool(stream.first_id) and id_order(stream.first_id) > id_order(reached)
    return begins_later and stream.added - stream.length < offset.messages


def find_gap(stream: StreamState, offset: Offset, known_until: str) -> StreamGap | None:
    """Returns the gap after an offset; None if there is none, or if it ends before `known_until`."""
    known = max(id_order(offset.last_id), id_order(known_until))
    if id_order(stream.deleted_id) > known:
        return StreamGap(offset.last_id, stream.deleted_id, None)
    first = stream.first_id or stream.last_id
    dropped = stream.added - stream.length - offset.messages
    if dropped > 0 and id_order(first) > known:
        return StreamGap(offset.last_id, first, dropped)
    return None


def same_gap(found: StreamGap, known: KnownGap) -> bool:
    """Whether two gaps are the same. Meanwhile the gap may have grown, and messages before it may have been settled."""
    if found.messages is None:
        return id_order(found.until_id) <= id_order(known.until_id)
    return (found.after_id, found.messages) == (known.after_id, known.messages)


def unsettled_messages(stream: StreamState, offset: Offset) -> int:
    """Returns how many messages the stream holds after an offset. May count deleted unread ones until its end is reached."""
    if not stream.final_id or id_order(stream.final_id) <= id_order(offset.last_id):
        return 0
    return max(1, stream.added - offset.messages)


class CheckedSource:
    """A partition's stream that verifies its continuity at each read. Gaps up to the id `known_until` are known.

    While the stream has no messages, it waits together with others, and verifies what the survey found.
    """

    def __init__(self, source: Source, known_until: str, streams: Streams) -> None:
        self._source = source
        self._known_until = known_until
        self._streams = streams
        self._is_idle = False
        self._read_at = 0.0

    async def read(self, after: Offset, block_ms: int) -> Reading:
        """Returns messages after an offset; raises StreamFault if the tail is lost, GapFound if unread messages are missing."""
        if self._is_idle and not await self._streams.idle.wait(self._source.key, after.last_id):
            if seen := self._streams.survey.seen(self._source, self._read_at):
                self._check(seen.state, after, ())
            return Reading((), None)
        messages, stream = await self._source.read_with_state(after.last_id, min(block_ms, milliseconds_to_tick()))
        self._is_idle, self._read_at = not messages, time.monotonic()
        self._check(stream, after, messages)
        at_end = bool(messages) and messages[-1].stream_id == stream.final_id
        return Reading(messages, stream.added if at_end else None)

    def _check(self, stream: StreamState, after: Offset, messages: Sequence[Message]) -> None:
        """Compares the state of the stream with an offset, and with the messages after it that were read just before."""
        if lost_tail(stream, after):
            raise StreamFault(f"the stream ends at {stream.last_id}, before the offset {after.last_id}")
        gap = find_gap(stream, after, self._known_until)
        # A message that was deleted right after this read returned it is not missing.
        if gap and not (gap.until_id == stream.deleted_id and any(gap.until_id == one.stream_id for one in messages)):
            raise GapFound(f"unread messages up to {gap.until_id} left the stream")
