"""Decodes bytes to events of the mutual, and encodes events, with the limits and the strictness of the other streams.

A stream entry has one field, `json` or `msgpack`, whose value is one event or an array of events. Any bytes decode to legal
events or Rejections.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from fundsvc.core.events import Reason, Rejection
from fundsvc.mutual.core.events import (
    Cancel,
    Disable,
    Enable,
    Event,
    Payout,
    TermsChange,
    Tick,
    TopUp,
    Trade,
    Transfer,
)
from fundsvc.wire.codec import EVENT_BYTES_MAX, EVENTS_PER_MESSAGE_MAX, Codec, EventDecoder, raw_events
from fundsvc.wire.duplicate_keys import check_keys, may_repeat, may_repeat_one

PostedEvent = Transfer | Enable | Disable | Trade | TopUp | Cancel | Payout
"""The events that exchanges send."""

OwnEvent = Tick | TermsChange
"""The events that the owners of partitions append."""

AnyEvent = PostedEvent | OwnEvent


class _Tagged(msgspec.Struct):
    type: str


class _Pooled(msgspec.Struct):
    pool: str


_WHOLE: dict[str, Any] = {
    "json": msgspec.json.Decoder(list[AnyEvent] | AnyEvent),
    "msgpack": msgspec.msgpack.Decoder(list[AnyEvent] | AnyEvent),
}
_ONE: dict[str, Any] = {"json": msgspec.json.Decoder(AnyEvent), "msgpack": msgspec.msgpack.Decoder(AnyEvent)}
_TAGS: dict[str, Any] = {"json": msgspec.json.Decoder(_Tagged), "msgpack": msgspec.msgpack.Decoder(_Tagged)}
_POOLS: dict[str, Any] = {"json": msgspec.json.Decoder(_Pooled), "msgpack": msgspec.msgpack.Decoder(_Pooled)}
_TYPES = tuple(str(event.__struct_config__.tag) for event in AnyEvent.__args__)
_POSTED_TYPES = tuple(str(event.__struct_config__.tag) for event in PostedEvent.__args__)
_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode(codec: Codec, body: bytes) -> Sequence[Event | Rejection]:
    """Returns the events of a message in order, with a Rejection in place of each illegal event."""
    whole = _decode_whole(codec, body) if len(body) <= EVENT_BYTES_MAX else None
    if whole is not None:
        return whole
    raws = raw_events(codec, body)
    if len(raws) > EVENTS_PER_MESSAGE_MAX:
        return [_too_many(len(raws))]
    return [decode_event(codec, raw) for raw in raws]


def decode_event(codec: Codec, raw: bytes | msgspec.Raw) -> Event | Rejection:
    """Decodes one event; returns a Rejection if it is illegal."""
    if len(raw) > EVENT_BYTES_MAX:
        return Rejection(Reason.TOO_LARGE, f"an event of {len(raw)} bytes: send at most {EVENT_BYTES_MAX}")
    try:
        event: Event = _ONE[codec].decode(raw)
        if may_repeat_one(codec, raw, event):
            check_keys(codec, bytes(raw))
    except msgspec.ValidationError as error:
        return _refusal(codec, raw, str(error))
    except _ERRORS as error:
        return Rejection(Reason.UNDECODABLE, f"not {codec}: {error}")
    return event


def pool_of(codec: Codec, raw: bytes | msgspec.Raw) -> str | None:
    """Returns the pool that an event names, legal or not; None for one that names none."""
    try:
        pool: str = _POOLS[codec].decode(raw).pool
    except _ERRORS:
        return None
    return pool


def encode(events: Sequence[Event], codec: Codec = "json") -> bytes:
    """Encodes an array of events as one message body."""
    return msgspec.json.encode(events) if codec == "json" else msgspec.msgpack.encode(events)


def _decode_whole(codec: Codec, body: bytes) -> Sequence[Event | Rejection] | None:
    """Returns the events of a body at once if all are legal; None for any other."""
    try:
        decoded = _WHOLE[codec].decode(body)
        events: list[Event] = decoded if isinstance(decoded, list) else [decoded]
        if len(events) > EVENTS_PER_MESSAGE_MAX:
            return [_too_many(len(events))]
        if may_repeat(codec, body, events):
            check_keys(codec, body)
    except _ERRORS:
        return None
    return events


def _too_many(events: int) -> Rejection:
    return Rejection(Reason.UNDECODABLE, f"at least {events} events: send at most {EVENTS_PER_MESSAGE_MAX} in a message")


def _refusal(codec: Codec, raw: bytes | msgspec.Raw, detail: str) -> Rejection:
    try:
        tag = _TAGS[codec].decode(raw).type
    except _ERRORS:
        return Rejection(Reason.UNDECODABLE, f"not an event: {detail}")
    if tag not in _TYPES:
        return Rejection(Reason.UNKNOWN_TYPE, f"type {tag[:40]!r} is unknown: use one of {', '.join(_POSTED_TYPES)}")
    return Rejection(Reason.INVALID_FIELD, f"{tag}: {detail}")


DECODER = EventDecoder(_decode_whole, decode_event)
"""Decodes the events of a message's `Contents`."""
