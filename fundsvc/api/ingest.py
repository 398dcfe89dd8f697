"""Ingest: appends events that engines post over HTTP to the streams of their partitions.

The service appends accepted and rejected events in order. Settlement keeps rejected events with their reason (`fundsvc
rejected`). The answer predicts the decision of settlement. Settlement decides, and can reject further events for reasons that
only the ledger shows, such as an amount out of range or an ADL order that has ended.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import msgspec
import structlog
from aiohttp import hdrs, web
from msgspec import UNSET, UnsetType

from fundsvc.api.answers import Answer, Envelope
from fundsvc.api.http.access import AccessControl, Roles
from fundsvc.api.http.big_integers import with_integers
from fundsvc.api.http.errors import BadParameter, TooLarge, Unavailable, WrongMedia
from fundsvc.api.http.parameters import PostQuery, read_query
from fundsvc.api.http.routes import JSON, Endpoint, Media
from fundsvc.api.http.tokens import Caller
from fundsvc.api.ingest_checks import BodyChecks, IngestChecks, PoolChecks
from fundsvc.api.stream_epochs import HttpProducer, StreamEpochs, producer_name
from fundsvc.config.settings import Config
from fundsvc.core.contracts import partition_of
from fundsvc.core.events import Event, Listing, Reason, Rejection
from fundsvc.core.sequences import Gap
from fundsvc.logs.faults import ThrottledFaults
from fundsvc.mutual.codec import OwnEvent as OwnPoolEvent
from fundsvc.mutual.codec import PostedEvent as PostedPoolEvent
from fundsvc.mutual.codec import decode_event as decode_pool_event
from fundsvc.mutual.core.events import Event as PoolEvent
from fundsvc.store.reader import Reader
from fundsvc.streams.client import StreamFault, pool_stream_key, stream_key
from fundsvc.streams.producer import Producer
from fundsvc.wire.codec import (
    EVENTS_PER_MESSAGE_MAX,
    WHOLE_BYTES_MAX,
    Codec,
    Message,
    OwnEvent,
    PostedEvent,
    array_of,
    decode,
    decode_event,
    raw_events,
)

ENGINES: Roles = frozenset({"engine"})

CHUNK_EVENTS = 500
"""Events that are checked before other tasks run: a few milliseconds."""

NDJSON = "application/x-ndjson"
MSGPACK = "application/msgpack"

_CODECS: Mapping[str, Codec] = {JSON: "json", NDJSON: "json", MSGPACK: "msgpack"}

_LINE = re.compile(rb"\S[^\r\n]*")
"""The content of a line from its first character that is not white space."""

Target = int | str
"""A stream: the number of a partition, or the name of a pool."""

PoolOf = Callable[[Codec, bytes | msgspec.Raw], str | None]
"""Returns the configured pool that the bytes of an event name, or None."""

log = structlog.get_logger()


class MessageAnswer(Answer, frozen=True):
    """An appended message: its partition and stream, its id, and the run id of the stream server.

    The stream of a pool has the partition whose owner settles the pool.
    """

    partition: int
    stream: str
    id: str
    run_id: str


class RejectedAnswer(Answer, frozen=True):
    """An event that settlement will reject: its index in the body from 0, and the reason."""

    index: int
    reason: str
    detail: str


class GapAnswer(Answer, frozen=True):
    """An accepted event whose `prevSeq` is not `lastSeq`, the last known sequence of its contract: events are missing."""

    index: int
    symbol: str
    seq: int
    prev_seq: int
    last_seq: int


class IngestAnswer(Answer, frozen=True):
    """The number of accepted events, the appended messages, the rejected events, and the gaps before accepted events.

    When `streamEpoch` changes, earlier posted events may be lost: read the cursor and resend.
    """

    accepted: int
    messages: list[MessageAnswer]
    rejected: list[RejectedAnswer]
    stream_epoch: int
    gaps: list[GapAnswer] | UnsetType = UNSET


class Submission(NamedTuple):
    """The content of a body: the bytes of each event, the decoded events, and the body if it can be one message unchanged."""

    codec: Codec
    raws: Sequence[bytes | msgspec.Raw]
    events: Sequence[Event | PoolEvent | Rejection]
    whole: bytes | None


class Ingest:
    """Appends posted events to the streams; `access_control` limits events by client."""

    def __init__(
        self, config: Config, reader: Reader, producer: Producer, epochs: StreamEpochs, access_control: AccessControl
    ) -> None:
        self._checks = IngestChecks(config, reader)
        self._pools = PoolChecks(config)
        self._producer = producer
        self._epochs = epochs
        self._access_control = access_control
        self._partitions = config.stream.partitions
        self._bytes_max = config.http.ingest_bytes_max
        self._stream_faults = ThrottledFaults(log, "ingest")
        events = list[PostedEvent | PostedPoolEvent] | PostedEvent | PostedPoolEvent
        self.endpoint = Endpoint(
            "/api/v1/ingest/events",
            self.post,
            {200: Media(JSON, IngestAnswer, in_envelope=True)},
            hdrs.METH_POST,
            PostQuery,
            bodies=(Media(JSON, events), Media(NDJSON), Media(MSGPACK, bytes)),
            roles=ENGINES,
            fails=frozenset({400, 409, 413, 415, 429, 503}),
        )

    async def post(self, request: web.Request, caller: Caller) -> web.Response:
        """Appends events to the streams of their contracts and pools, in order, as one message per stream.

        The body is an event, an array of up to 10,000 events as JSON or MessagePack, or one JSON event per line. The service
        keeps rejected events with their reason. It also keeps a body that cannot be decoded, and answers it with 400. If a
        stream server is unreachable, the error names the partitions that have their events. Resending all of them is safe,
        because known sequences are ignored. After a stream server was restarted or replaced, the answer is 409 until the
        producer has read the cursor.
        """
        query = read_query(PostQuery, request.query)
        body = await request.clone(client_max_size=self._bytes_max).read()
        submission = await read_submission(request.content_type, body, self._pools.known)
        check_senders(submission.events)
        self._access_control.charge(request, len(submission.raws))
        producer = HttpProducer(producer_name(caller, query.producer_id), query.stream_epoch or 0)
        await self._epochs.admit(producer)
        answer = await self._submit(submission, producer)
        if submission.events and all(map(_is_undecodable, submission.events)):
            raise BadParameter(f"{answer.rejected[0].detail}; the body is kept as a rejected event")
        return web.Response(body=with_integers(msgspec.json.encode(Envelope(data=answer)), query.numbers), content_type=JSON)

    async def _submit(self, submission: Submission, producer: HttpProducer) -> IngestAnswer:
        checks = await self._checks.of([event for event in submission.events if not isinstance(event, PoolEvent)])
        rejected: dict[int, RejectedAnswer] = {}
        gaps: list[GapAnswer] = []
        for start in range(0, len(submission.events), CHUNK_EVENTS):
            for index, event in enumerate(submission.events[start : start + CHUNK_EVENTS], start):
                try:
                    gap = self._check(checks, event)
                except Rejection as rejection:
                    rejection.__traceback__ = None  # The traceback refers to the whole body.
                    rejected[index] = RejectedAnswer(index, rejection.reason, rejection.detail)
                else:
                    gaps += [GapAnswer(index, gap.symbol, gap.seq, gap.prev_seq, gap.last)] if gap else []
            await asyncio.sleep(0)
        messages = await self._append(submission, producer)
        self._checks.accept(checks)
        accepted = len(submission.events) - len(rejected)
        return IngestAnswer(accepted, messages, list(rejected.values()), self._epochs.epoch, gaps or UNSET)

    def _check(self, checks: BodyChecks, event: Event | PoolEvent | Rejection) -> Gap | None:
        """Raises Rejection for an event that settlement will reject; returns the gap before an accepted event, if any."""
        if isinstance(event, PoolEvent):
            self._pools.check(event)
            return None
        return checks.check(event)

    async def _append(self, submission: Submission, producer: HttpProducer) -> list[MessageAnswer]:
        """Appends the events of each stream; raises Unavailable with the partitions and pools that have their events."""
        appended: list[MessageAnswer] = []
        complete: list[str] = []
        for target, bodies in sorted(self._parts(submission).items(), key=str):
            try:
                appended += await self._append_to(target, submission.codec, bodies, producer)
            except StreamFault as fault:
                self._stream_faults.note(fault, stream=target)
                raise Unavailable(
                    f"the stream server is unreachable; partitions with all events: {', '.join(complete) or 'none'};"
                    " resend the whole body"
                ) from None
            complete.append(str(target) if isinstance(target, int) else f"pool {target}")
        return appended

    async def _append_to(
        self, target: Target, codec: Codec, bodies: Sequence[bytes], producer: HttpProducer
    ) -> Iterable[MessageAnswer]:
        if isinstance(target, int):
            partition, key = target, stream_key(target)
            ids = await self._epochs.append(producer, partition, codec, bodies)
        else:
            partition, key = partition_of(target, self._partitions), pool_stream_key(target)
            # A pool's stream has no version of its own: the loss of messages is noticed by the stream of its partition.
            await self._epochs.examine(partition)
            await self._epochs.admit(producer)
            ids = await self._producer.append_to(key, codec, bodies)
        run_id = self._epochs.run_id(partition)
        return (MessageAnswer(partition, key, message, run_id) for message in ids)

    def _parts(self, submission: Submission) -> Mapping[Target, list[bytes]]:
        """Returns the message bodies by stream: the whole body if one stream receives it, else arrays of its bytes.

        Lines that cannot be decoded would invalidate an array. They form a separate message.
        """
        pairs = zip(submission.raws, submission.events, strict=True)
        destinations = [tuple(self._destinations(submission.codec, raw, event)) for raw, event in pairs]
        if submission.whole and len(set(destinations)) == 1 and len(destinations[0]) == 1:
            return {destinations[0][0]: [submission.whole]}
        routed: dict[Target, list[bytes | msgspec.Raw]] = defaultdict(list)
        undecodable: list[bytes] = []
        for raw, event, targets in zip(submission.raws, submission.events, destinations, strict=True):
            if submission.whole is None and _is_undecodable(event):
                undecodable.append(bytes(raw))
            else:
                for target in targets:
                    routed[target].append(raw)
        parts = {target: [array_of(raws, submission.codec)] for target, raws in routed.items()}
        return {**parts, 0: [*parts.get(0, []), b"\n".join(undecodable)]} if undecodable else parts

    def _destinations(self, codec: Codec, raw: bytes | msgspec.Raw, event: Event | PoolEvent | Rejection) -> Iterable[Target]:
        """Returns the partitions of an event, or its pool; the first partition for an event without a known one.

        A rejected listing goes to its contract's partition, because changed terms suspend the contract there.
        """
        if isinstance(event, PoolEvent | Rejection) and (pool := self._pools.known(codec, raw)):
            return (pool,)
        if isinstance(event, PoolEvent | Rejection) or (
            isinstance(event, Listing) and not isinstance(event.contract.get("symbol"), str)
        ):
            return (0,)
        return self._producer.destinations(event)


def check_senders(events: Iterable[Event | PoolEvent | Rejection]) -> None:
    """Raises BadParameter if one of the events is of a type that only the service appends."""
    for index, event in enumerate(events):
        if isinstance(event, OwnEvent | OwnPoolEvent):
            tag = event.__struct_config__.tag
            raise BadParameter(
                f"event {index} has the type {tag}, which only the service appends to its streams: remove it, and post the"
                " others again"
            )


async def read_submission(content_type: str, body: bytes, pool_of: PoolOf = lambda _codec, _raw: None) -> Submission:
    """Decodes the events of a body; raises WrongMedia, TooLarge, or BadParameter for an empty body.

    `pool_of` returns the configured pool that the bytes of an event name.

    Counts the events before it decodes them, and decodes them in parts. Memory is therefore bounded by a small multiple of the
    body's size, and other tasks run in between.
    """
    if not body:
        raise BadParameter("the body is empty: send one or more events")
    codec = _CODECS.get(content_type)
    if codec is None:
        raise WrongMedia(f"Content-Type is {content_type}: use {JSON}, {NDJSON} or {MSGPACK}")
    in_lines = content_type == NDJSON
    raws = _lines(body) if in_lines else raw_events(codec, body)
    if len(raws) > EVENTS_PER_MESSAGE_MAX:
        raise TooLarge(f"the body has at least {len(raws)} events: send at most {EVENTS_PER_MESSAGE_MAX}")
    if not in_lines and len(raws) <= CHUNK_EVENTS and len(body) <= WHOLE_BYTES_MAX:
        return Submission(codec, raws, _of_any_kind(codec, raws, decode(Message("", codec, body)), pool_of), body)
    events: list[Event | PoolEvent | Rejection] = []
    for start in range(0, len(raws), CHUNK_EVENTS):
        part = raws[start : start + CHUNK_EVENTS]
        events += _of_any_kind(codec, part, [decode_event(codec, raw) for raw in part], pool_of)
        await asyncio.sleep(0)
    return Submission(codec, raws, events, None if in_lines else body)


def _of_any_kind(
    codec: Codec, raws: Sequence[bytes | msgspec.Raw], events: Sequence[Event | Rejection], pool_of: PoolOf
) -> Sequence[Event | PoolEvent | Rejection]:
    """Returns the events of a run, with those of configured pools in place of the rejections of their types."""
    if len(raws) != len(events) or not any(map(_is_foreign, events)):
        return events
    return [
        decode_pool_event(codec, raw) if _is_foreign(event) and pool_of(codec, raw) else event
        for raw, event in zip(raws, events, strict=True)
    ]


def _is_foreign(event: Event | Rejection) -> bool:
    """Returns whether an event names a pool and has no type of the reserve."""
    return isinstance(event, Rejection) and event.reason == Reason.UNKNOWN_POOL


def _lines(body: bytes) -> list[bytes]:
    """Returns the lines that are not blank, at most one more than the limit."""
    return [found[0] for found in islice(_LINE.finditer(body), EVENTS_PER_MESSAGE_MAX + 1)]


def _is_undecodable(event: Event | PoolEvent | Rejection) -> bool:
    """Returns whether the bytes of an event could not be decoded, or exceed the size that is decoded."""
    return isinstance(event, Rejection) and event.reason in (Reason.UNDECODABLE, Reason.TOO_LARGE)
