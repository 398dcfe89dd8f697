"""Decodes bytes to events and encodes events, at every boundary, with one strict decoder.

A stream entry has one field, `json` or `msgpack`, whose value is one event or an array of events. Unknown fields are rejected,
so that a misspelt optional field is noticed. Any bytes decode to legal events or Rejections.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Any, Literal, NamedTuple

import msgspec

from fundsvc.core.events import (
    AdlAck,
    AdlEnd,
    AdlFill,
    AdlTimeout,
    Event,
    Fill,
    Listing,
    Mark,
    PolicyChange,
    Position,
    Rate,
    Reason,
    Rejection,
    Settle,
    Snapshot,
    Takeover,
    Unwind,
)
from fundsvc.wire.duplicate_keys import RepeatedKey, check_keys, may_repeat, may_repeat_one

Codec = Literal["json", "msgpack"]

PostedEvent = Fill | Takeover | Unwind | Settle | Mark | Position | Snapshot | AdlFill | AdlEnd | AdlAck | Rate | Listing
"""The events that matching engines send."""

OwnEvent = AdlTimeout | PolicyChange
"""The events that the owners of partitions append."""

AnyEvent = PostedEvent | OwnEvent

EVENTS_PER_MESSAGE_MAX = 10_000
"""A message is decoded in one go, so its size bounds how long the event loop is held."""

EVENT_BYTES_MAX = 262_144
"""An event is decoded in one go; one of this size takes a few milliseconds. KuCoin's contracts have some kilobytes."""

WHOLE_BYTES_MAX = 65_536
"""A body up to this size is decoded at once: that takes half a millisecond and is quicker than event by event."""

RUN_EVENTS = 500
"""Events of a larger body that are decoded at a time, in half a millisecond."""

EXCERPT_BYTES = 1000
"""Bytes kept of the body of a message that is too large."""

FINGERPRINT_BYTES = 4096
"""Bytes of a body by which a message is recognised, beside its size: a microsecond per kilobyte on the event loop."""

REPLAY_KEY = re.compile(r"(\d{1,20}-\d{1,20})/(\d{1,8})", re.ASCII)
"""The format of `replay_of`: a stream id, and the position of an event in that message."""


class Message(msgspec.Struct, frozen=True, gc=False):
    """An entry of a partition's stream: its id, the codec of its field, and the field's value.

    `replay_of` ("stream id/position") names the rejected event that an operator sends again. `codec` is "" if the entry has no
    such field; `body` then contains all its fields as a MessagePack array. `too_large` describes a message that is larger than
    allowed; `body` then contains only its first bytes.
    """

    stream_id: str
    codec: Codec | Literal[""]
    body: bytes
    replay_of: str = ""
    too_large: str = ""


class _Tagged(msgspec.Struct):
    type: str
    pool: Any = None


_ELEMENTS = msgspec.defstruct(
    "_Elements",
    [(f"element{number}", msgspec.Raw, msgspec.Raw()) for number in range(EVENTS_PER_MESSAGE_MAX + 1)],
    array_like=True,
    gc=False,
)
"""An array of up to one element more than a message may have. The decoder skips further elements without storing them: a list
of a message of single digits would take thirty times its size."""

_DECODERS: dict[str, tuple[Any, Any, Any, Any]] = {
    "json": (
        msgspec.json.Decoder(list[AnyEvent] | AnyEvent),
        msgspec.json.Decoder(list[msgspec.Raw]),
        msgspec.json.Decoder(AnyEvent),
        msgspec.json.Decoder(_ELEMENTS),
    ),
    "msgpack": (
        msgspec.msgpack.Decoder(list[AnyEvent] | AnyEvent),
        msgspec.msgpack.Decoder(list[msgspec.Raw]),
        msgspec.msgpack.Decoder(AnyEvent),
        msgspec.msgpack.Decoder(_ELEMENTS),
    ),
}
_TAGS: dict[str, Any] = {"json": msgspec.json.Decoder(_Tagged), "msgpack": msgspec.msgpack.Decoder(_Tagged)}
_TYPES = tuple(event.__struct_config__.tag for event in AnyEvent.__args__)
_POSTED_TYPES = tuple(str(event.__struct_config__.tag) for event in PostedEvent.__args__)
_DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def fingerprint(message: Message) -> bytes:
    """Returns a digest by which a message is recognised: of its fields, and of its body's size and first bytes."""
    head = (message.codec, message.replay_of, message.too_large, len(message.body), message.body[:FINGERPRINT_BYTES])
    return hashlib.blake2b(msgspec.msgpack.encode(head), digest_size=16).digest()


class EventDecoder(NamedTuple):
    """Decodes the events of a kind of streams: all of a body at once (None unless all are legal), or one."""

    whole: Callable[[Codec, bytes], Sequence[Any] | None]
    one: Callable[[Codec, bytes | msgspec.Raw], Any]


def decode(message: Message) -> Sequence[Event | Rejection]:
    """Returns the events of a message in order, with a Rejection in place of each illegal event."""
    if not message.codec or message.too_large:
        return [_unreadable(message)]
    events = _decode_whole(message.codec, message.body) if len(message.body) <= EVENT_BYTES_MAX else None
    return _decode_each(message.codec, message.body) if events is None else events


def _unreadable(message: Message) -> Rejection:
    """Returns the rejection of a message that is too large, or has no codec."""
    if message.too_large:
        return Rejection(Reason.TOO_LARGE, message.too_large)
    return Rejection(Reason.UNDECODABLE, "the stream entry needs exactly one field, named json or msgpack")


def _decode_whole(codec: Codec, body: bytes) -> Sequence[Event | Rejection] | None:
    """Returns the events of a body at once if all are legal; None for any other."""
    try:
        decoded = _DECODERS[codec][0].decode(body)
    except _DECODE_ERRORS:
        return None
    events: list[Event] = decoded if isinstance(decoded, list) else [decoded]
    if len(events) > EVENTS_PER_MESSAGE_MAX:
        return [_too_many(len(events))]
    return None if _repeats(codec, body, events) else events


class Contents:
    """The events of a message. Those of a large message are decoded in portions, so that it does not hold the event loop.

    Contents parses the message at most once. `message` is the message, and `size` the number of its events, including illegal
    ones, which are Rejections. Without `decoder` they are events of the reserve.
    """

    def __init__(self, message: Message, decoder: EventDecoder | None = None) -> None:
        self.message = message
        self._decoder = decoder or RESERVE
        self._raws: Sequence[msgspec.Raw] | None = None
        self._first = 0
        self._events: Sequence[Any] = ()
        if not message.codec or message.too_large:
            self._events = [_unreadable(message)]
        elif len(message.body) > WHOLE_BYTES_MAX or (whole := self._decoder.whole(message.codec, message.body)) is None:
            self._take_apart(message.codec)
        else:
            self._events = whole
        self.size = len(self._events) or len(self._raws or ())

    def run(self, start: int, count: int) -> Sequence[Any]:
        """Returns up to `count` events from a position on, at least one."""
        if not self._first <= start < self._first + len(self._events):
            self._decode(start)
        start -= self._first
        return self._events if not start and count >= len(self._events) else self._events[start : start + count]

    def _decode(self, start: int) -> None:
        raws = (self._raws or ())[start : start + RUN_EVENTS]
        self._first, self._events = start, [self._decoder.one(self.message.codec, raw) for raw in raws]  # type: ignore[arg-type]

    def _take_apart(self, codec: Codec) -> None:
        self._raws = _elements(codec, self.message.body)
        if self._raws is None:
            self._events = [self._decoder.one(codec, self.message.body)]
        elif len(self._raws) > EVENTS_PER_MESSAGE_MAX:
            self._events = [_too_many(len(self._raws))]

    def raw(self, position: int) -> bytes:
        """Returns the bytes of an event, or of the whole message if it cannot be split or has no event there."""
        if self._raws is None:
            self._raws = _elements(self.message.codec, self.message.body) or ()
        if position >= len(self._raws) or self.size != len(self._raws):
            return self.message.body
        return bytes(self._raws[position])


def excerpt(message: Message, bytes_max: int) -> Message:
    """Reduces a message that is too large to its first bytes, its size and its digest."""
    too_large = excess(len(message.body), hashlib.sha256(message.body).hexdigest(), bytes_max)
    return msgspec.structs.replace(message, body=message.body[:EXCERPT_BYTES], too_large=too_large)


def excess(size: int, digest: str, bytes_max: int) -> str:
    """Returns the description of a message that is too large."""
    return f"a message of {size} bytes, sha256 {digest}: send at most {bytes_max}"


def raw_events(codec: Codec, body: bytes) -> Sequence[bytes | msgspec.Raw]:
    """Returns the bytes of each event of an array, at most one more than a message may have; else only the body."""
    elements = _elements(codec, body)
    return [body] if elements is None else elements


def array_of(raws: Iterable[bytes | msgspec.Raw], codec: Codec) -> bytes:
    """Encodes an array of events as one message body, each event with the bytes given."""
    elements = list(map(msgspec.Raw, raws))
    return msgspec.json.encode(elements) if codec == "json" else msgspec.msgpack.encode(elements)


def encode(events: Sequence[Event], codec: Codec = "json") -> bytes:
    """Encodes an array of events as one message body."""
    return msgspec.json.encode(events) if codec == "json" else msgspec.msgpack.encode(events)


def _elements(codec: str, body: bytes) -> list[msgspec.Raw] | None:
    """Returns the undecoded events of an array, at most one more than a message may have; None for a single event."""
    try:
        if len(body) <= EVENTS_PER_MESSAGE_MAX:  # each element has at least one byte
            elements: list[msgspec.Raw] = _DECODERS[codec][1].decode(body)
            return elements
        return list(takewhile(len, msgspec.structs.astuple(_DECODERS[codec][3].decode(body))))
    except (KeyError, *_DECODE_ERRORS):
        return None


def _decode_each(codec: Codec, body: bytes) -> list[Event | Rejection]:
    elements = _elements(codec, body)
    if elements is None:
        return [decode_event(codec, body)]
    if len(elements) > EVENTS_PER_MESSAGE_MAX:
        return [_too_many(len(elements))]
    return [decode_event(codec, element) for element in elements]


def _too_many(events: int) -> Rejection:
    return Rejection(Reason.UNDECODABLE, f"at least {events} events: send at most {EVENTS_PER_MESSAGE_MAX} in a message")


def decode_event(codec: Codec, raw: bytes | msgspec.Raw) -> Event | Rejection:
    """Decodes one event; returns a Rejection if it is illegal."""
    if len(raw) > EVENT_BYTES_MAX:
        return Rejection(Reason.TOO_LARGE, f"an event of {len(raw)} bytes: send at most {EVENT_BYTES_MAX}")
    try:
        event: Event = _DECODERS[codec][2].decode(raw)
        if may_repeat_one(codec, raw, event):
            check_keys(codec, bytes(raw))
    except msgspec.ValidationError as error:
        return _refusal(codec, raw, str(error))
    except _DECODE_ERRORS as error:
        return Rejection(Reason.UNDECODABLE, f"not {codec}: {error}")
    return event


RESERVE = EventDecoder(_decode_whole, decode_event)


def _repeats(codec: Codec, body: bytes, events: Sequence[Event]) -> bool:
    """Returns whether an object in a message has a duplicate key."""
    try:
        if may_repeat(codec, body, events):
            check_keys(codec, body)
    except (RepeatedKey, RecursionError):
        return True
    return False


def _refusal(codec: Codec, raw: bytes | msgspec.Raw, detail: str) -> Rejection:
    try:
        tagged = _TAGS[codec].decode(raw)
    except _DECODE_ERRORS:
        return Rejection(Reason.UNDECODABLE, f"not an event: {detail}")
    tag: str = tagged.type
    if tag not in _TYPES and isinstance(tagged.pool, str):
        name = tagged.pool[:40]
        return Rejection(
            Reason.UNKNOWN_POOL, f"no pool {name!r} is configured: correct the name or configure it, then send again"
        )
    if tag not in _TYPES:
        return Rejection(Reason.UNKNOWN_TYPE, f"type {tag[:40]!r} is unknown: use one of {', '.join(_POSTED_TYPES)}")
    if tag == "fill" and detail.endswith("`bankruptcyPrice`"):
        return Rejection(
            Reason.NOT_A_LIQUIDATION, "a fill without bankruptcyPrice is not a liquidation: send only liquidation fills"
        )
    return Rejection(Reason.INVALID_FIELD, f"{tag}: {detail}")
