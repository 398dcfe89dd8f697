"""Bytes to events and back, at every boundary, by one strict decoder.

A stream entry carries one field, `json` or `msgpack`, whose value is one event or an array of events. Unknown fields are
refused: a misspelt optional field must not vanish silently. Any bytes give legal events or a Rejection, nothing else.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

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
    Snapshot,
)
from fundsvc.keys import RepeatedKey, check_keys, may_repeat

Codec = Literal["json", "msgpack"]

AnyEvent = Fill | Mark | Position | Snapshot | AdlFill | AdlEnd | AdlAck | AdlTimeout | Rate | PolicyChange | Listing

EVENTS_PER_MESSAGE_MAX = 10_000
"""A message is settled in one go, so its size bounds how long the loop is held and how much one commit writes."""


class Message(msgspec.Struct, frozen=True, gc=False):
    """One entry of a partition's stream: its id, the codec its field names, and the field's value.

    `replay_of` is set where an operator sends a rejected event again: "stream id/position" of what was rejected.
    `codec` is empty when the entry has no such field; `body` then holds what it had, as a MessagePack array.
    """

    stream_id: str
    codec: Codec | Literal[""]
    body: bytes
    replay_of: str = ""


class _Tagged(msgspec.Struct):
    type: str


_DECODERS: dict[str, tuple[Any, Any, Any]] = {
    "json": (
        msgspec.json.Decoder(list[AnyEvent] | AnyEvent),
        msgspec.json.Decoder(list[msgspec.Raw]),
        msgspec.json.Decoder(AnyEvent),
    ),
    "msgpack": (
        msgspec.msgpack.Decoder(list[AnyEvent] | AnyEvent),
        msgspec.msgpack.Decoder(list[msgspec.Raw]),
        msgspec.msgpack.Decoder(AnyEvent),
    ),
}
_TAGS: dict[str, Any] = {"json": msgspec.json.Decoder(_Tagged), "msgpack": msgspec.msgpack.Decoder(_Tagged)}
_TYPES = tuple(event.__struct_config__.tag for event in AnyEvent.__args__)
_DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode(message: Message) -> Sequence[Event | Rejection]:
    """The events of a message in order; what is not a legal event stands as a Rejection in its place."""
    if not message.codec:
        return [Rejection(Reason.UNDECODABLE, "the stream entry needs exactly one field, named json or msgpack")]
    try:
        decoded = _DECODERS[message.codec][0].decode(message.body)
    except _DECODE_ERRORS:
        return _decode_each(message.codec, message.body)
    events: list[Event] = decoded if isinstance(decoded, list) else [decoded]
    if len(events) > EVENTS_PER_MESSAGE_MAX:
        return [_too_many(len(events))]
    return _decode_each(message.codec, message.body) if _repeats(message.codec, message.body, events) else events


def raw_event(message: Message, position: int) -> bytes:
    """The bytes of the event at a position of a message, or of the whole message where it cannot be taken apart."""
    elements = _elements(message.codec, message.body)
    if elements is None or len(elements) > EVENTS_PER_MESSAGE_MAX:
        return message.body
    return bytes(elements[position])


def raw_events(codec: Codec, body: bytes) -> Sequence[bytes | msgspec.Raw]:
    """The bytes of each event of an array, in order; the body alone where it is no array."""
    elements = _elements(codec, body)
    return [body] if elements is None else elements


def array_of(raws: Iterable[bytes | msgspec.Raw], codec: Codec) -> bytes:
    """An array of events as one message body, each in the bytes given."""
    elements = list(map(msgspec.Raw, raws))
    return msgspec.json.encode(elements) if codec == "json" else msgspec.msgpack.encode(elements)


def encode(events: Sequence[Event], codec: Codec = "json") -> bytes:
    """An array of events as one message body."""
    return msgspec.json.encode(events) if codec == "json" else msgspec.msgpack.encode(events)


def _elements(codec: str, body: bytes) -> list[msgspec.Raw] | None:
    """The undecoded events of an array; None for a single event, or for bytes that are no array."""
    try:
        elements: list[msgspec.Raw] = _DECODERS[codec][1].decode(body)
    except (KeyError, *_DECODE_ERRORS):
        return None
    return elements


def _decode_each(codec: Codec, body: bytes) -> list[Event | Rejection]:
    elements = _elements(codec, body)
    if elements is None:
        return [decode_event(codec, body)]
    if len(elements) > EVENTS_PER_MESSAGE_MAX:
        return [_too_many(len(elements))]
    return [decode_event(codec, element) for element in elements]


def _too_many(events: int) -> Rejection:
    return Rejection(Reason.UNDECODABLE, f"{events} events: send at most {EVENTS_PER_MESSAGE_MAX} in a message")


def decode_event(codec: Codec, raw: bytes | msgspec.Raw) -> Event | Rejection:
    """One event, or why it is none."""
    try:
        event: Event = _DECODERS[codec][2].decode(raw)
        if may_repeat(codec, bytes(raw), [event]):
            check_keys(codec, bytes(raw))
    except msgspec.ValidationError as error:
        return _refusal(codec, raw, str(error))
    except _DECODE_ERRORS as error:
        return Rejection(Reason.UNDECODABLE, f"not {codec}: {error}")
    return event


def _repeats(codec: Codec, body: bytes, events: Sequence[Event]) -> bool:
    """Whether an object in a message has a key twice."""
    try:
        if may_repeat(codec, body, events):
            check_keys(codec, body)
    except (RepeatedKey, RecursionError):
        return True
    return False


def _refusal(codec: Codec, raw: bytes | msgspec.Raw, detail: str) -> Rejection:
    try:
        tag = _TAGS[codec].decode(raw).type
    except _DECODE_ERRORS:
        return Rejection(Reason.UNDECODABLE, f"not an event: {detail}")
    if tag not in _TYPES:
        return Rejection(Reason.UNKNOWN_TYPE, f"type {tag[:40]!r} is none of {', '.join(map(str, _TYPES))}")
    if tag == "fill" and detail.endswith("`bankruptcyPrice`"):
        return Rejection(
            Reason.NOT_A_LIQUIDATION, "a fill without bankruptcyPrice is not a liquidation: the fund is not for it"
        )
    return Rejection(Reason.INVALID_FIELD, f"{tag}: {detail}")
