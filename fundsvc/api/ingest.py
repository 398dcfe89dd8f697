"""Events over HTTP, for engines that have no client of the stream: they go onto the same streams, in the same bytes.

What is accepted is on the stream, in order, and will be settled; what is refused is there too, and the engine keeps it with
its reason (`fundsvc rejected`), as it keeps what it refuses of any message. The answer foresees that; who settles decides it,
and may refuse for what the ledger alone can tell, such as an amount out of range or an ADL order that is closed.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import msgspec
import structlog
from aiohttp import hdrs, web
from msgspec import UNSET, UnsetType

from fundsvc.api.answers import Answer, Envelope
from fundsvc.api.http.access import Gate, Roles, allowed
from fundsvc.api.http.errors import BadParameter, TooLarge, Unavailable, WrongMedia
from fundsvc.api.http.parameters import PostQuery, read_query
from fundsvc.api.http.routes import JSON, Endpoint, Media
from fundsvc.api.ingest_checks import Foresight
from fundsvc.api.stream_epochs import Poster, StreamEpochs, poster_name
from fundsvc.config.settings import Config
from fundsvc.core.events import Event, Listing, PolicyChange, Reason, Rejection
from fundsvc.logs.faults import ThrottledFaults
from fundsvc.store.reader import Reader
from fundsvc.streams.client import StreamFault, stream_key
from fundsvc.streams.producer import Producer
from fundsvc.wire.codec import (
    EVENTS_PER_MESSAGE_MAX,
    WHOLE_BYTES_MAX,
    Codec,
    Message,
    PostedEvent,
    array_of,
    decode,
    decode_event,
    raw_events,
)

ENGINES: Roles = frozenset({"engine"})

CHUNK_EVENTS = 500
"""Checked between two looks at the loop: a few milliseconds, which is what others may wait."""

NDJSON = "application/x-ndjson"
MSGPACK = "application/msgpack"

_CODECS: Mapping[str, Codec] = {JSON: "json", NDJSON: "json", MSGPACK: "msgpack"}

_LINE = re.compile(rb"\S[^\r\n]*")
"""What stands in a line, from its first character that is no white space."""

log = structlog.get_logger()


class MessageAnswer(Answer, frozen=True):
    """A message that was appended: to the stream of which partition, its id there, and the run id of the stream's server."""

    partition: int
    stream: str
    id: str
    run_id: str


class RefusedAnswer(Answer, frozen=True):
    """An event that will not be settled: which of the body's, from 0, and why."""

    index: int
    reason: str
    detail: str


class GapAnswer(Answer, frozen=True):
    """An event that will be settled although its `prevSeq` is not `lastSeq`, the last sequence of its contract known here."""

    index: int
    symbol: str
    seq: int
    prev_seq: int
    last_seq: int


class IngestAnswer(Answer, frozen=True):
    """How many events were accepted, which messages carry them, which were refused, and before which some are missing.

    When `streamEpoch` changes, what was posted before may be lost: then the cursor must be asked for.
    """

    accepted: int
    messages: list[MessageAnswer]
    rejected: list[RefusedAnswer]
    stream_epoch: int
    gaps: list[GapAnswer] | UnsetType = UNSET


class Submission(NamedTuple):
    """What a body holds: the bytes of each event and what they say, and the whole where that can be a message as it is."""

    codec: Codec
    raws: Sequence[bytes | msgspec.Raw]
    events: Sequence[Event | Rejection]
    whole: bytes | None

    @property
    def is_refused_whole(self) -> bool:
        """Whether it is one thing, no array, and not an event."""
        return self.raws[0] is self.whole and isinstance(self.events[0], Rejection)


class Ingest:
    """Appends what engines post to the streams; the gate counts their events."""

    def __init__(self, config: Config, reader: Reader, producer: Producer, epochs: StreamEpochs, gate: Gate) -> None:
        self._foresight = Foresight(config, reader)
        self._producer = producer
        self._epochs = epochs
        self._gate = gate
        self._partitions = config.stream.partitions
        self._bytes_max = config.http.ingest_bytes_max
        self._away = ThrottledFaults(log, "ingest")
        events = list[PostedEvent] | PostedEvent
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

    async def post(self, request: web.Request) -> web.Response:
        """Appends events to the streams of their contracts, in order, a message for each partition.

        The body is an event or an array of up to 10,000, as JSON or MessagePack, or one JSON event a line. Refused events are
        kept with their reason, and so is a body that is no JSON or MessagePack at all, which is answered 400. When the stream
        is away the answer says which partitions have theirs; sending all again is safe, for known `seq` are ignored. After the
        stream's server was restarted or replaced the answer is 409 until the poster has asked for the cursor.
        """
        query = read_query(PostQuery, request.query)
        body = await request.clone(client_max_size=self._bytes_max).read()
        submission = await read_submission(request.content_type, body)
        if any(isinstance(event, PolicyChange) for event in submission.events):
            raise BadParameter("a policy event is not taken over HTTP: engines append it when their configuration changes")
        caller = allowed(request, ENGINES)
        self._gate.charge(request, len(submission.raws))
        poster = Poster(poster_name(caller, query.producer_id), query.stream_epoch or 0)
        await self._epochs.admit(poster)
        answer = await self._submit(submission, poster)
        if submission.events and all(map(_is_no_event, submission.events)):
            raise BadParameter(f"{answer.rejected[0].detail}; it is kept among the rejected events")
        return web.Response(body=msgspec.json.encode(Envelope(data=answer)), content_type=JSON)

    async def _submit(self, submission: Submission, poster: Poster) -> IngestAnswer:
        glance = await self._foresight.look(submission.events)
        refused: dict[int, RefusedAnswer] = {}
        gaps: list[GapAnswer] = []
        for start in range(0, len(submission.events), CHUNK_EVENTS):
            for index, event in enumerate(submission.events[start : start + CHUNK_EVENTS], start):
                try:
                    gap = glance.check(event)
                except Rejection as rejection:
                    rejection.__traceback__ = None  # It would keep the whole body in a cycle.
                    refused[index] = RefusedAnswer(index, rejection.reason, rejection.detail)
                else:
                    gaps += [GapAnswer(index, gap.symbol, gap.seq, gap.prev_seq, gap.last)] if gap else []
            await asyncio.sleep(0)
        messages = await self._append(submission, poster)
        self._foresight.accept(glance)
        accepted = len(submission.events) - len(refused)
        return IngestAnswer(accepted, messages, list(refused.values()), self._epochs.epoch, gaps or UNSET)

    async def _append(self, submission: Submission, poster: Poster) -> list[MessageAnswer]:
        """Appends each partition's part; raises Unavailable, saying which have theirs."""
        appended: list[MessageAnswer] = []
        for partition, bodies in sorted(self._parts(submission).items()):
            try:
                ids = await self._epochs.append(poster, partition, submission.codec, bodies)
            except StreamFault as fault:
                self._away.note(fault, partition=partition)
                have = ", ".join(sorted({str(message.partition) for message in appended})) or "none"
                raise Unavailable(f"the stream is away; partitions that have theirs: {have}; send all of it again") from None
            run_id = self._epochs.run_id(partition)
            appended += (MessageAnswer(partition, stream_key(partition), message, run_id) for message in ids)
        return appended

    def _parts(self, submission: Submission) -> Mapping[int, list[bytes]]:
        """Message bodies by partition: the whole body where all of it goes to one, else an array of the same bytes.

        Lines that are no events at all would spoil an array: they go together, as a message of their own.
        """
        if submission.whole and submission.raws and (self._partitions == 1 or submission.is_refused_whole):
            return {0: [submission.whole]}
        routed: dict[int, list[bytes | msgspec.Raw]] = defaultdict(list)
        spoilt: list[bytes] = []
        for raw, event in zip(submission.raws, submission.events, strict=True):
            if submission.whole is None and _is_no_event(event):
                spoilt.append(bytes(raw))
            else:
                for partition in self._destinations(event):
                    routed[partition].append(raw)
        parts = {partition: [array_of(raws, submission.codec)] for partition, raws in routed.items()}
        return {**parts, 0: [*parts.get(0, []), b"\n".join(spoilt)]} if spoilt else parts

    def _destinations(self, event: Event | Rejection) -> Iterable[int]:
        """Where an event goes; one that nothing can be known of goes to the first partition, which keeps it as well as any.

        A listing that is refused goes to its contract's partition, too: other terms suspend the contract there.
        """
        if isinstance(event, Rejection) or (isinstance(event, Listing) and not isinstance(event.contract.get("symbol"), str)):
            return (0,)
        return self._producer.destinations(event)


async def read_submission(content_type: str, body: bytes) -> Submission:
    """The events of a body; raises WrongMedia, TooLarge, or BadParameter for none at all.

    Events are counted before any is decoded, and decoded some at a time, so that a body of any size costs little more than it.
    """
    if not body:
        raise BadParameter("the body is empty: it must be an event, or several")
    codec = _CODECS.get(content_type)
    if codec is None:
        raise WrongMedia(f"Content-Type is {content_type}: it must be {JSON}, {NDJSON} or {MSGPACK}")
    in_lines = content_type == NDJSON
    raws = _lines(body) if in_lines else raw_events(codec, body)
    if len(raws) > EVENTS_PER_MESSAGE_MAX:
        raise TooLarge(f"at least {len(raws)} events: send at most {EVENTS_PER_MESSAGE_MAX} at once")
    if not in_lines and len(raws) <= CHUNK_EVENTS and len(body) <= WHOLE_BYTES_MAX:
        return Submission(codec, raws, decode(Message("", codec, body)), body)
    events: list[Event | Rejection] = []
    for start in range(0, len(raws), CHUNK_EVENTS):
        events += [decode_event(codec, raw) for raw in raws[start : start + CHUNK_EVENTS]]
        await asyncio.sleep(0)
    return Submission(codec, raws, events, None if in_lines else body)


def _lines(body: bytes) -> list[bytes]:
    """The lines that are not blank, at most one more than are taken."""
    return [found[0] for found in islice(_LINE.finditer(body), EVENTS_PER_MESSAGE_MAX + 1)]


def _is_no_event(event: Event | Rejection) -> bool:
    """Whether bytes could not be decoded, or were too large to try."""
    return isinstance(event, Rejection) and event.reason in (Reason.UNDECODABLE, Reason.TOO_LARGE)
