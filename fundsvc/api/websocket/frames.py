"""What is sent, as bytes: messages in KuCoin's shapes, each made once however many clients it goes to."""

from collections.abc import Iterable
from struct import Struct
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from fundsvc.api.http.big_integers import Numbers, written

LENGTH_7_BITS_MAX = 125
LENGTH_16_BITS_MAX = 0xFFFF
"""What RFC 6455, section 5.2, writes in the second byte of a frame itself, and in the next two."""

_TEXT_7, _TEXT_16, _TEXT_64 = (Struct(layout).pack for layout in ("!BB", "!BBH", "!BBQ"))
_CLOSE_FRAME = Struct("!BBH").pack
_WHOLE_TEXT, _CLOSE, _PONG = 0x81, 0x88, 0x8A

Id = str | int
"""A client's own name for a message, which comes back as it was."""


class _Message(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    type: str
    id: Id | UnsetType = UNSET
    code: int | UnsetType = UNSET
    topic: str | UnsetType = UNSET
    channel_type: str | UnsetType = UNSET
    subject: str | UnsetType = UNSET
    data: Any = UNSET


class Frames:
    """Pushes, in order, as the bytes that any number of clients are sent: made once for each way to write integers."""

    def __init__(self, payloads: Iterable[bytes]) -> None:
        self.payloads = tuple(payloads)
        self._encoded: dict[Numbers, bytes] = {}

    def encode(self, numbers: Numbers) -> bytes:
        """The frames, with integers as numbers or as strings."""
        if numbers not in self._encoded:
            self._encoded[numbers] = b"".join(_frame(written(payload, numbers)) for payload in self.payloads)
        return self._encoded[numbers]


def concatenate(pushes: Iterable[Frames]) -> Frames:
    """Several pushes in one piece."""
    return Frames(payload for frames in pushes for payload in frames.payloads)


def welcome(connect_id: str) -> bytes:
    """The first message of a connection."""
    return _text(_Message(id=connect_id, type="welcome"))


def ack(message_id: Id) -> bytes:
    """A message was understood."""
    return _text(_Message(id=message_id, type="ack"))


def pong(message_id: Id) -> bytes:
    """The answer to a ping."""
    return _text(_Message(id=message_id, type="pong"))


def error(message_id: Id, code: int, detail: str) -> bytes:
    """A message was not understood; the detail says what to do."""
    return _text(_Message(id=message_id, type="error", code=code, data=detail))


def push(topic: str, subject: str, data: object, *, private: bool = False) -> Frames:
    """Something new in a topic."""
    channel = "private" if private else UNSET
    message = _Message(topic=topic, type="message", channel_type=channel, subject=subject, data=data)
    return Frames((msgspec.json.encode(message),))


def close_frame(code: int, reason: str) -> bytes:
    """The last frame of a connection (RFC 6455, section 5.5.1); a reason that is too long is cut."""
    text = reason.encode()[: LENGTH_7_BITS_MAX - 2].decode(errors="ignore").encode()
    return _CLOSE_FRAME(_CLOSE, 2 + len(text), code) + text


def pong_frame(payload: bytes) -> bytes:
    """The answer to a ping of the protocol (RFC 6455, section 5.5.3), which has its payload, at most 125 bytes."""
    return _TEXT_7(_PONG, len(payload)) + payload


def _text(message: _Message) -> bytes:
    return _frame(msgspec.json.encode(message))


def _frame(payload: bytes) -> bytes:
    """A whole, unmasked text frame (RFC 6455, section 5.2): a server's frames are the same for every client."""
    length = len(payload)
    if length <= LENGTH_7_BITS_MAX:
        return _TEXT_7(_WHOLE_TEXT, length) + payload
    if length <= LENGTH_16_BITS_MAX:
        return _TEXT_16(_WHOLE_TEXT, LENGTH_7_BITS_MAX + 1, length) + payload
    return _TEXT_64(_WHOLE_TEXT, LENGTH_7_BITS_MAX + 2, length) + payload
