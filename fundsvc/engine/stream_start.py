"""Decides from which offset a session reads its stream, and handles streams that lack messages after the stored offset.

A stream that lost its tail is read from its start. A gap halts the partition until an operator acknowledges it; with
`stream.on_gap = "continue"` the partition continues after it.
"""

from typing import Literal, NamedTuple, Protocol

from prometheus_client import Counter
from structlog.typing import FilteringBoundLogger

from fundsvc.core.batch import Offset
from fundsvc.engine.continuity import find_gap, lost_tail, same_gap
from fundsvc.store.gaps import KnownGap
from fundsvc.store.writer import STREAM_START
from fundsvc.streams.source import Source, StreamState, id_order


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

    `key` is the stream's key, `name` identifies it in commands. `regressions` and `gap_count` count what is found.
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
    ) -> None:
        self._source = source
        self._gaps = gaps
        self._on_gap = on_gap
        self._log = log
        self._key = key
        self._name = name
        self._regressions = regressions
        self._gap_count = gap_count

    async def find(self, stored: Offset) -> Start:
        """Returns the start for the stored offset. Raises Halted if there is an unacknowledged gap."""
        stream = await self._source.state()
        known = await self._gaps.known()
        if not lost_tail(stream, stored):
            return await self._after_gap(stream, stored, known)
        self._regressions.inc()
        self._log.error(
            "stream regression",
            detail="the stream lost its tail: the engine reads it from the start and drops known events by their sequence;"
            " the matching engine should send again from /api/v1/ingest/cursor",
            stream_ends=stream.last_id,
            stream_id=stored.last_id,
        )
        if stream.deleted_id != STREAM_START and id_order(stream.deleted_id) <= id_order(stored.last_id):
            # These were settled. Reading the stream again sets the offset before them, where a later load would miss them.
            await self._gaps.pass_over(stream.deleted_id)
        known_ms, _ = min(id_order(stream.last_id), id_order(stored.last_id))
        return Start(Offset(STREAM_START, stream.added - stream.length), stream.deleted_id, known_ms)

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
        return stream.added - await self._source.count_between(stored.last_id, stream.last_id)

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
