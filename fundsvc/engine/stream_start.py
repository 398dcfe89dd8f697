"""Decides from which offset a session reads its stream, and handles streams that lack messages after the stored offset.

A stream that lost its tail is read from the newest checkpoint that it still has, or else from its start. A gap halts the
partition until an operator acknowledges it; with `stream.on_gap = "continue"` the partition continues after it.

The server's ids only rise. So a stream that has a settled message is a copy of the settled stream up to that message. A server
whose clock is behind may give the id of a lost message to another one. So the message must be the same, and the number of
messages that the stream ever had up to it.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

from prometheus_client import Counter
from structlog.typing import FilteringBoundLogger

from fundsvc.core.batch import Offset
from fundsvc.core.checkpoints import Checkpoint
from fundsvc.engine.continuity import find_gap, lost_tail, same_gap
from fundsvc.store.gaps import KnownGap
from fundsvc.store.writer import STREAM_START
from fundsvc.streams.source import Source, StreamState, id_order
from fundsvc.wire.codec import fingerprint


class Halted(Exception):
    """The partition must not continue before an operator acts; the message states the remedy."""


class Start(NamedTuple):
    """The offset from which to read, and the id up to which gaps are known.

    `known_ms` is set if the stream lost its tail: messages up to that stream time (ms) were settled before.
    """

    offset: Offset
    known_until: str
    known_ms: int | None = None


class Gaps(Protocol):
    """The gaps of a stream."""

    async def known(self) -> list[KnownGap]:
        """Returns all gaps found so far."""

    async def keep(self, gap: KnownGap) -> bool:
        """Stores a gap; returns whether it is new."""

    async def pass_over(self, until_id: str) -> None:
        """Acknowledges all deletions up to an id."""


class StreamStart:
    """Finds the start for one stream, and records stream regressions and gaps.

    `key` is the stream's key, `name` identifies it in commands. `regressions` and `gap_count` count what is found. Calls
    `count_step` for each step of a long search.
    """

    def __init__(
        self,
        source: Source,
        gaps: Gaps,
        on_gap: Literal["halt", "continue"],
        log: FilteringBoundLogger,
        *,
        key: str,
        name: str,
        regressions: Counter,
        gap_count: Counter,
        count_step: Callable[[], None],
    ) -> None:
        self._source = source
        self._gaps = gaps
        self._on_gap = on_gap
        self._log = log
        self._key = key
        self._name = name
        self._regressions = regressions
        self._gap_count = gap_count
        self._count_step = count_step

    async def find(self, stored: Offset, checkpoints: Sequence[Checkpoint]) -> Start:
        """Returns the start for the stored offset. Raises Halted if there is an unacknowledged gap.

        `checkpoints` are those that the ledger had when the offset was loaded.
        """
        stream = await self._source.state()
        known = await self._gaps.known()
        if not (lost_tail(stream, stored) or await self._lacks_settled(stream, stored)):
            return await self._after_gap(stream, stored, known)
        offset = await self._last_common(stream, known, checkpoints)
        self._regressions.inc()
        self._log.error(
            "stream regression",
            detail="the stream lost its tail: the engine reads it again and drops known events by their sequence;"
            " the matching engine should send again from /api/v1/ingest/cursor",
            stream_ends=stream.last_id,
            stream_id=stored.last_id,
            read_from=offset.last_id,
        )
        if stream.deleted_id != STREAM_START and id_order(stream.deleted_id) <= id_order(stored.last_id):
            # These were settled. Reading the stream again sets the offset before them, where a later load would miss them.
            await self._gaps.pass_over(stream.deleted_id)
        known_ms, _ = min(id_order(stream.last_id), id_order(stored.last_id))
        return Start(offset, stream.deleted_id, known_ms)

    async def _lacks_settled(self, stream: StreamState, stored: Offset) -> bool:
        """Whether the stream begins before the offset and lacks its message, which was not deleted: others replaced it."""
        settled = id_order(stored.last_id)
        if not stream.first_id or id_order(stream.first_id) > settled or id_order(stream.deleted_id) >= settled:
            return False
        return await self._source.message(stored.last_id) is None

    async def _last_common(self, stream: StreamState, gaps: Sequence[KnownGap], checkpoints: Sequence[Checkpoint]) -> Offset:
        """Returns the newest checkpoint whose message the stream has, or else the start of the stream.

        Not one after a gap: an older copy of the stream may have the messages of the gap.
        """
        start = Offset(STREAM_START, stream.added - stream.length)
        first = id_order(stream.first_id or stream.last_id)
        missing = [gap.after_id for gap in gaps if gap.messages and id_order(gap.until_id) >= first]
        last = min(map(id_order, [stream.last_id, *missing]))
        for one in sorted(checkpoints, key=lambda checkpoint: id_order(checkpoint.last_id), reverse=True):
            if first <= id_order(one.last_id) <= last:
                message = await self._source.message(one.last_id)
                if message and fingerprint(message) == one.fingerprint:
                    offset = Offset(one.last_id, one.messages)
                    return offset if await self._settled_or_gone(stream, offset) == offset.messages else start
        return start

    async def _after_gap(self, stream: StreamState, stored: Offset, known: list[KnownGap]) -> Start:
        """Returns the stored offset, after a gap that may be skipped if there is one."""
        skips = self._on_gap == "continue"
        known_until = max((gap.until_id for gap in known if skips or gap.acknowledged_at), key=id_order, default=STREAM_START)
        found = find_gap(stream, stored, STREAM_START)
        if found is None:
            return Start(stored, known_until)
        gap = next((one for one in known if same_gap(found, one)), None)
        if gap is None:
            missing = found.messages or max(1, await self._settled_or_gone(stream, stored) - stored.messages)
            gap = await self._record(KnownGap(found.after_id, found.until_id, missing, None), stored)
        if not skips and id_order(gap.until_id) > id_order(known_until):
            raise Halted(
                f"{gap.messages} messages after {gap.after_id}, up to {gap.until_id}, were deleted or trimmed from the stream"
                f" before they were settled: delete the stream (DEL {self._key}) and have the matching engine"
                f" send everything after its cursor again, or continue without them:"
                f" fundsvc stream acknowledge-gap {self._name}"
            )
        # Not the gap's own number: each load passes the gap while the offset is in it, and must not add that number again.
        offset = stored._replace(messages=await self._settled_or_gone(stream, stored))
        return Start(offset, max(known_until, gap.until_id, key=id_order))

    async def _settled_or_gone(self, stream: StreamState, stored: Offset) -> int:
        """Returns the number of messages that the stream ever had, minus those that it holds after the offset."""
        return stream.added - await self._source.count_between(stored.last_id, stream.last_id, self._count_step)

    async def _record(self, gap: KnownGap, stored: Offset) -> KnownGap:
        """Stores, logs and counts a gap, once for each gap."""
        if await self._gaps.keep(gap):
            self._gap_count.inc()
            self._log.error(
                "stream gap",
                detail="messages left the stream before they were settled",
                after_id=gap.after_id,
                until_id=gap.until_id,
                count=gap.messages,
                policy=self._on_gap,
                stream_id=stored.last_id,
            )
        return gap
