"""Frames of WebSocket clients must be masked (RFC 6455, section 5.1), which aiohttp's reader does not ask for."""

from typing import Protocol

FRAGMENTS_MAX = 100
"""Frames of one message. A message is 16 kB at most, so more are sent to cost work: empty ones have no other bound."""

ILLEGAL = b"\xff\x80\x00\x00\x00\x00"
"""A frame whose reserved bits are set: the reader closes the connection with 1002, as it does for other wrong frames."""

MASK_BYTES = 4

_MASKED, _FINAL, _CONTROL, _LENGTH = 0x80, 0x80, 0x08, 0x7F
_EXTENDED = {126: 2, 127: 8}
"""How many bytes hold the length where its seven bits say so (RFC 6455, section 5.2)."""


class FrameReader(Protocol):
    """What takes the bytes of a connection."""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Takes bytes; whether the connection is over, and what was left."""

    def feed_eof(self) -> None:
        """There are no more."""


class MaskCheck:
    """Hands frames on to a reader; instead of one that is not masked, or of a fragment too many, one that is illegal."""

    def __init__(self, reader: FrameReader) -> None:
        self._reader = reader
        self._incomplete = b""
        self._skip = 0
        self._fragments = 0
        self._rejected = False

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Takes bytes, however frames are cut; the beginning of a head waits for the rest of it."""
        if self._rejected:
            return True, b""
        data = self._incomplete + data
        end, self._rejected = self._scan(data)
        if self._rejected:
            return self._reader.feed_data(data[:end] + ILLEGAL)
        self._incomplete = data[end:]
        return self._reader.feed_data(data[:end]) if end else (False, b"")

    def feed_eof(self) -> None:
        """There are no more."""
        self._reader.feed_eof()

    def _scan(self, data: bytes) -> tuple[int, bool]:
        """Where the first head begins that is not whole, or not legal, or else the end; and whether one is not legal."""
        position = 0
        while True:
            step = min(self._skip, len(data) - position)
            self._skip -= step
            position += step
            head = data[position : position + 2]
            if len(head) < 2:  # noqa: PLR2004 - what every head has
                return position, False
            if not head[1] & _MASKED or self._fragments > FRAGMENTS_MAX:
                return position, True
            extended = _EXTENDED.get(head[1] & _LENGTH, 0)
            length = data[position + 2 : position + 2 + extended]
            if len(length) < extended:
                return position, False
            self._skip = MASK_BYTES + (int.from_bytes(length, "big") if extended else head[1] & _LENGTH)
            self._count(head[0])
            position += 2 + extended

    def _count(self, first: int) -> None:
        """Counts the fragments of a message; frames of control may come between them."""
        if not first & _CONTROL:
            self._fragments = 0 if first & _FINAL else self._fragments + 1
