"""Encodes the messages of the service in KuCoin's shapes. A push is encoded once, however many clients receive it."""

from collections.abc import Iterable
from struct import Struct
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from fundsvc.api.http.big_integers import Numbers, with_integers

LENGTH_7_BITS_MAX = 125
LENGTH_16_BITS_MAX = 0xFFFF
"""The longest payloads whose length fits the second byte of a frame, and the two bytes after it (RFC 6455, section 5.2)."""

_TEXT_7, _TEXT_16, _TEXT_64 = (Struct(layout).pack for layout in ("!BB", "!BBH", "!BBQ"))
_CLOSE_FRAME = Struct("!BBH").pack
_WHOLE_TEXT, _CLOSE, _PONG = 0x81, 0x88, 0x8A

Id = str | int
"""The id that a client gave a message. The answer repeats it unchanged."""


class Welcome(msgspec.Struct, tag_field="type", tag="welcome"):
    """The first message of a connection, with its `connectId`."""

    id: str


class Ack(msgspec.Struct, tag_field="type", tag="ack"):
    """The acknowledgement of a command that requested a `response`."""

    id: Id


class Pong(msgspec.Struct, tag_field="type", tag="pong"):
    """The answer to a ping message."""

    id: Id


class CommandFailure(msgspec.Struct, tag_field="type", tag="error"):
    """The rejection of a message. `code` is an HTTP status; `data` contains the problem and its remedy."""

    id: Id
    code: int
    data: str


class Push(msgspec.Struct, tag_field="type", tag="message", rename="camel"):
    """A push of a topic. `channelType` is present if the topic is private."""

    topic: str
    subject: str
    data: Any
    channel_type: Literal["private"] | UnsetType = UNSET


class Frames:
    """An ordered sequence of pushes, encoded once for each representation of integers."""

    def __init__(self, payloads: Iterable[bytes]) -> None:
        self.payloads = tuple(payloads)
        self._encoded: dict[Numbers, bytes] = {}

    def encode(self, numbers: Numbers) -> bytes:
        """Returns the frames with integers as numbers or as strings."""
        if numbers not in self._encoded:
            self._encoded[numbers] = b"".join(_frame(with_integers(payload, numbers)) for payload in self.payloads)
        return self._encoded[numbers]


def concatenate(pushes: Iterable[Frames]) -> Frames:
    """Joins several pushes, so that one write sends them."""
    return Frames(payload for frames in pushes for payload in frames.payloads)


def welcome(connect_id: str) -> bytes:
    """Encodes the first message of a connection."""
    return _text(Welcome(connect_id))


def ack(message_id: Id) -> bytes:
    """Encodes the acknowledgement of a command."""
    return _text(Ack(message_id))


def pong(message_id: Id) -> bytes:
    """Encodes the answer to a ping message."""
    return _text(Pong(message_id))


def error(message_id: Id, code: int, detail: str) -> bytes:
    """Encodes the rejection of a message. The detail contains the problem and its remedy."""
    return _text(CommandFailure(message_id, code, detail))


def push(topic: str, subject: str, data: object, *, private: bool = False) -> Frames:
    """Encodes a push of a topic."""
    return Frames((msgspec.json.encode(Push(topic, subject, data, "private" if private else UNSET)),))


def close_frame(code: int, reason: str) -> bytes:
    """Encodes the close frame (RFC 6455, section 5.5.1). Truncates a reason that is too long."""
    text = reason.encode()[: LENGTH_7_BITS_MAX - 2].decode(errors="ignore").encode()
    return _CLOSE_FRAME(_CLOSE, 2 + len(text), code) + text


def pong_frame(payload: bytes) -> bytes:
    """Encodes the answer to a ping frame (RFC 6455, section 5.5.3) with the same payload, at most 125 bytes."""
    return _TEXT_7(_PONG, len(payload)) + payload


def _text(message: Welcome | Ack | Pong | CommandFailure) -> bytes:
    return _frame(msgspec.json.encode(message))


def _frame(payload: bytes) -> bytes:
    """Encodes an unfragmented text frame (RFC 6455, section 5.2). Servers do not mask, so all clients share the bytes."""
    length = len(payload)
    if length <= LENGTH_7_BITS_MAX:
        return _TEXT_7(_WHOLE_TEXT, length) + payload
    if length <= LENGTH_16_BITS_MAX:
        return _TEXT_16(_WHOLE_TEXT, LENGTH_7_BITS_MAX + 1, length) + payload
    return _TEXT_64(_WHOLE_TEXT, LENGTH_7_BITS_MAX + 2, length) + payload
