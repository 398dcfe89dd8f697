"""Rejects frames without a mask. RFC 6455, section 5.1, requires one of clients, and aiohttp's reader does not check it."""

from typing import Protocol

FRAGMENTS_MAX = 100
"""Frames of one message. A message has at most 16 kB, so only an attacker needs more; nothing else bounds empty frames."""

ILLEGAL = b"\xff\x80\x00\x00\x00\x00"
"""A frame with reserved bits set. aiohttp's reader closes the connection with 1002, as after any other protocol error."""

MASK_BYTES = 4

_MASKED, _FINAL, _CONTROL, _LENGTH = 0x80, 0x80, 0x08, 0x7F
_EXTENDED = {126: 2, 127: 8}
"""Bytes of the extended length, by the value of the seven-bit length (RFC 6455, section 5.2)."""


class FrameReader(Protocol):
    """aiohttp's parser of a connection's bytes."""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Parses bytes. Returns whether the connection is over, and the unparsed rest."""

    def feed_eof(self) -> None:
        """Ends the input."""


class MaskCheck:
    """Passes frames to a reader. Replaces an unmasked frame, or a fragment beyond the limit, by an illegal one."""

    def __init__(self, reader: FrameReader) -> None:
        self._reader = reader
        self._incomplete = b""
        self._skip = 0
        self._fragments = 0
        self._rejected = False

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Passes bytes on. Frames may be split anywhere; an incomplete header waits for its rest."""
        if self._rejected:
            return True, b""
        data = self._incomplete + data
        end, self._rejected = self._scan(data)
        if self._rejected:
            return self._reader.feed_data(data[:end] + ILLEGAL)
        self._incomplete = data[end:]
        return self._reader.feed_data(data[:end]) if end else (False, b"")

    def feed_eof(self) -> None:
        """Ends the input."""
        self._reader.feed_eof()

    def _scan(self, data: bytes) -> tuple[int, bool]:
        """Returns the position of the first incomplete or illegal header, else the end, and whether a header is illegal."""
        position = 0
        while True:
            step = min(self._skip, len(data) - position)
            self._skip -= step
            position += step
            head = data[position : position + 2]
            if len(head) < 2:  # noqa: PLR2004 - the smallest header
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
        """Counts the fragments of a message. Control frames may come between them."""
        if not first & _CONTROL:
            self._fragments = 0 if first & _FINAL else self._fragments + 1
