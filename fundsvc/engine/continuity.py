"""Whether a stream still holds all that lies after an offset: its tail may be lost, unread messages may be deleted or trimmed.

Both are looked for with every read, before anything of it is settled. Ids decide; the server's counts say how many are missing.
"""

from typing import NamedTuple

from fundsvc.core.batch import Offset
from fundsvc.engine.pipeline import Reading
from fundsvc.store.gaps import KnownGap
from fundsvc.store.writer import STREAM_START
from fundsvc.streams.client import StreamFault
from fundsvc.streams.source import Source, StreamState, id_order


class Gap(NamedTuple):
    """Messages that left the stream before they were settled: all of them after one id, and up to another one.

    Their number is known where everything up to that id is gone.
    """

    after_id: str
    until_id: str
    messages: int | None


class GapFound(StreamFault):
    """There is a gap after the offset: nothing of what follows it may be settled yet."""


def lost_tail(stream: StreamState, offset: Offset) -> bool:
    """Whether the stream ends before an offset, or is another than that which was settled: its new ids may lie beyond it.

    It is another where it had fewer messages, or has dropped fewer than were settled and yet holds none of these.
    """
    reached = max(offset.last_id, offset.partial_id or STREAM_START, key=id_order)
    if id_order(stream.last_id) < id_order(reached) or stream.added < offset.messages:
        return True
    begins_later = bool(stream.first_id) and id_order(stream.first_id) > id_order(reached)
    return begins_later and stream.added - stream.length < offset.messages


def find_gap(stream: StreamState, offset: Offset, known_until: str) -> Gap | None:
    """The gap after an offset, unless it ends before an id up to which gaps are known."""
    known = max(id_order(offset.last_id), id_order(known_until))
    if id_order(stream.deleted_id) > known:
        return Gap(offset.last_id, stream.deleted_id, None)
    first = stream.first_id or stream.last_id
    dropped = stream.added - stream.length - offset.messages
    if dropped > 0 and id_order(first) > known:
        return Gap(offset.last_id, first, dropped)
    return None


def same_gap(found: Gap, known: KnownGap) -> bool:
    """Whether a gap was found before; further messages may have come after it, or some before it may be settled."""
    if found.messages is None:
        return id_order(found.until_id) <= id_order(known.until_id)
    return (found.after_id, found.messages) == (known.after_id, known.messages)


def unsettled_messages(stream: StreamState, offset: Offset) -> int:
    """How many messages the stream holds after an offset; those that were deleted unread may count until its end is reached."""
    if not stream.final_id or id_order(stream.final_id) <= id_order(offset.last_id):
        return 0
    return max(1, stream.added - offset.messages)


class CheckedSource:
    """A partition's stream as it is settled; `known_until` is the id up to which gaps are known."""

    def __init__(self, source: Source, known_until: str) -> None:
        self._source = source
        self._known_until = known_until

    async def read(self, after: Offset, block_ms: int) -> Reading:
        """Messages after an offset; raises StreamFault where the tail is lost, GapFound where unread messages are gone."""
        messages, stream = await self._source.look(after.last_id, block_ms)
        if lost_tail(stream, after):
            raise StreamFault(f"the stream ends at {stream.last_id}, before the offset {after.last_id}")
        gap = find_gap(stream, after, self._known_until)
        # What was deleted in the moment after it was read is not missing.
        if gap and not (gap.until_id == stream.deleted_id and any(gap.until_id == one.stream_id for one in messages)):
            raise GapFound(f"unread messages up to {gap.until_id} left the stream")
        at_end = bool(messages) and messages[-1].stream_id == stream.final_id
        return Reading(messages, stream.added if at_end else None)
