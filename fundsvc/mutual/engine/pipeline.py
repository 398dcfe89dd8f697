"""The settlement pipeline of one pool: read, decode, settle, commit, announce; the smaller sibling of the reserve's.

Two tasks share a `Pool` in memory; see `fundsvc.engine.settling`. An event with a long cut-off takes many slices, between which
nothing is taken.

Replayed events do not overlap with commits: everything before them is committed first, so that the ledger determines whether
they were applied meanwhile.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from hashlib import sha256
from typing import NamedTuple, Protocol

import msgspec

from fundsvc.core.batch import EventPlace, Offset
from fundsvc.core.checkpoints import Saving
from fundsvc.core.events import Reason, Rejected, Rejection
from fundsvc.core.times import time_of_id
from fundsvc.engine.settling import Committed, Settling, SettlingContext, Source
from fundsvc.mutual.codec import DECODER
from fundsvc.mutual.core.batch import Batch, Draft
from fundsvc.mutual.core.events import Event, Numbered
from fundsvc.mutual.core.pool import Pool
from fundsvc.mutual.store.rows import Applied, Totals
from fundsvc.wire.codec import REPLAY_KEY, RUN_EVENTS, Contents, Message

TAKE_ROWS_MAX = 1_000
"""A batch with more rows is taken in a thread, because each row takes up to two microseconds."""

OPEN_MAX = 10_000
"""Known sequences of rejected events; beyond this number, those that cannot be applied any more are dropped."""


class Ledger(Protocol):
    """A pool's ledger. It refuses commits of an old epoch."""

    async def is_open(self, stream_id: str, position: int) -> bool:
        """Whether the event at this place is kept as rejected and may still be applied."""

    async def commit(
        self,
        batch: Batch,
        totals: Totals,
        applied: Sequence[Applied],
        before: Offset,
        after: Offset,
        saving: Saving | None,
    ) -> None:
        """Writes a batch, moves the offset, and stores a checkpoint if one is given, in one transaction."""


class Writing(NamedTuple):
    """The batch of a transaction: its effects, rejected events that were applied later, and the place of its last event.

    A pool has no books, and each of its batches may be divided.
    """

    batch: Batch
    totals: Totals
    applied: Sequence[Applied]
    place: EventPlace | None
    books: Sequence[object] = ()
    uncut: bool = False

    @property
    def events(self) -> int:
        """The number of settled events."""
        return self.batch.events


class PoolPipeline(Settling[Writing]):
    """Settles one pool's stream into its ledger; see `Settling` for the arguments.

    `opened` are the sequences of rejected events that later ones may have.
    """

    def __init__(
        self,
        pool: Pool,
        source: Source,
        ledger: Ledger,
        announce: Callable[[Committed[Writing]], Awaitable[None]],
        context: SettlingContext,
        opened: Iterable[int],
    ) -> None:
        super().__init__(source, announce, context)
        self._pool = pool
        self._ledger = ledger
        self._open = set(opened)
        self._steps: Iterator[None] | None = None
        self._applied: list[Applied] = []
        self._place: EventPlace | None = None

    @property
    def _draft(self) -> Draft:
        return self._pool.draft

    @property
    def _is_divided(self) -> bool:
        return self._steps is not None

    async def _settle(self, messages: Sequence[Message], stop: asyncio.Event) -> None:
        for message in messages:
            await self._settle_message(message, stop)
            if stop.is_set():
                return

    async def _settle_message(self, message: Message, stop: asyncio.Event) -> None:
        """Settles a message; after `stop` possibly only a part of it."""
        contents = self._decode(partial(Contents, message, DECODER))
        if message.replay_of:
            await self._settle_replay(message, contents)
            return
        position = self._settled.settled_of(message.stream_id)
        if position >= contents.size:
            self._pass(message)
        while position < contents.size:
            room = min(RUN_EVENTS, self._bound.room(self._pool.draft))
            events = self._decode(partial(contents.run, position, room))
            position = await self._exclusive.run(partial(self._settle_slice, message, contents, position, events))
            if self._is_due():
                await self._hand_over()
                if stop.is_set() and not self._steps:
                    return

    def _settle_slice(self, message: Message, contents: Contents, position: int, events: Sequence[Event | Rejection]) -> int:
        """Settles events from a position on until the slice ends; returns the position of the first unsettled event."""
        started, first, stream_id = time.perf_counter(), position, message.stream_id
        stream_ms = time_of_id(stream_id)
        for event in events:
            try:
                if self._refused and self._steps is None:
                    self._check_refused(EventPlace(stream_id, position))
                if not self._apply(event, stream_id, stream_ms):
                    break
            except Rejection as rejection:
                self._steps = None
                self._reject(message, contents.raw(position), EventPlace(stream_id, position), rejection, event)
            position += 1
            if time.perf_counter() >= self._slice_ends:
                break
        if position > first:
            self._count(EventPlace(stream_id, position - 1), position - first)
        if position >= contents.size:
            self._pass(message)
        elif position:
            self._settled = self._settled._replace(events=position, partial_id=stream_id)
        self._settle_seconds += time.perf_counter() - started
        return position

    def _apply(self, event: Event | Rejection, stream_id: str, stream_ms: int) -> bool:
        """Applies an event, or continues with it; returns whether it is applied. It is not when the slice ends first."""
        pool = self._pool
        before = pool.ledger.seq
        if self._steps is None and not pool.is_cutoff_due(event):
            pool.apply(event, stream_ms)
        elif not self._continue(self._steps or pool.steps(event, stream_ms)):
            return False
        if self._open and pool.ledger.seq != before:
            self._note_applied(pool.ledger.seq, stream_id)
        return True

    def _continue(self, steps: Iterator[None]) -> bool:
        """Takes steps until the slice ends; returns whether all are taken."""
        self._steps = steps
        for _ in steps:
            if time.perf_counter() >= self._slice_ends:
                return False
        self._steps = None
        return True

    def _note_applied(self, seq: int, stream_id: str) -> None:
        """Records that a later event had the sequence of a rejected one."""
        if seq in self._open:
            self._open.discard(seq)
            self._applied.append(Applied(None, None, seq, stream_id))

    async def _settle_replay(self, message: Message, contents: Contents) -> None:
        """Applies a rejected event that was sent again, unless it or its sequence was applied already."""
        match = REPLAY_KEY.fullmatch(message.replay_of)
        place = EventPlace(message.stream_id, 0)
        if match is None:
            rejection = Rejection(Reason.UNDECODABLE, f"replayOf {message.replay_of[:60]!r} is not a stream id/position")
            self._reject(message, contents.raw(0), place, rejection)
        else:
            await self._until_committed()
            key = EventPlace(match[1], int(match[2]))
            if await self._ledger.is_open(*key):
                await self._replay(message, contents, key)
        self._count(place, 1)
        self._pass(message)

    async def _replay(self, message: Message, contents: Contents, key: EventPlace) -> None:
        try:
            self._check_refused(EventPlace(message.stream_id, 0))
            event = _only(contents.run(0, contents.size))
            seq = getattr(event, "seq", None)
            is_late = seq is not None and seq <= self._pool.ledger.seq
            apply = self._pool.steps_late if is_late else self._pool.steps
            steps = apply(event, time_of_id(message.stream_id))
            while not await self._exclusive.run(partial(self._continue, steps)):
                await asyncio.sleep(0)
                self._begin_slice()
            self._open.discard(seq)
            self._applied.append(Applied(*key, seq, message.stream_id))
        except Rejection as rejection:
            self._steps = None
            self._reject(message, contents.raw(0), key, rejection)

    def _check_refused(self, place: EventPlace) -> None:
        """Raises Rejection if the database refused the event at a place."""
        if place in self._refused:
            raise Rejection(Reason.DATABASE_REFUSED, self._refused[place])

    def _reject(self, message: Message, body: bytes, key: EventPlace, rejection: Rejection, event: object = None) -> None:
        # A Rejection raised while decoding has a traceback, which would keep the whole message alive in a cycle.
        rejection.__traceback__ = None
        identity = identity_of(event)
        if identity and identity[1] > self._pool.ledger.seq:
            self._note_open(identity[1])
        rejected = Rejected(*key, rejection.reason, rejection.detail, message.codec, body, identity)
        self._pool.draft.reject(rejected)

    def _note_open(self, seq: int) -> None:
        if len(self._open) >= OPEN_MAX:
            self._open = {one for one in self._open if one > self._pool.ledger.seq}
        self._open.add(seq)

    def _count(self, place: EventPlace, events: int) -> None:
        self._pool.draft.events += events
        self._place = place

    def _take(self) -> Writing:
        register = self._pool.register
        totals = Totals(len(register.policies), len(register.distribution), register.distribution.caps_left)
        applied, self._applied = self._applied, []
        return Writing(self._pool.take(), totals, applied, self._place)

    def _is_long_to_take(self) -> bool:
        return self._pool.draft.rows() > TAKE_ROWS_MAX

    async def _commit(self, written: Writing, after: Offset, saving: Saving | None) -> None:
        await self._ledger.commit(written.batch, written.totals, written.applied, self._committed, after, saving)


def _only(events: Sequence[Event | Rejection]) -> Event | Rejection:
    """Returns the only event of a replay; raises Rejection if there are several."""
    if len(events) != 1:
        raise Rejection(Reason.UNDECODABLE, f"{len(events)} events: send rejected events again one by one")
    return events[0]


def identity_of(event: object) -> tuple[str, int, bytes] | None:
    """Returns the pool, the sequence and the digest under which a rejected event is stored; None without a sequence."""
    if isinstance(event, Numbered):
        return event.pool, event.seq, sha256(msgspec.msgpack.encode(event)).digest()
    return None
