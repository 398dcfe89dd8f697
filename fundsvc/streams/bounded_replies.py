"""Parses replies of the stream server incrementally, in bounded memory.

A message may exceed every limit. It is never completely in memory: a long value is reduced to its beginning, size and digest,
a long array to its first elements.
"""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

HEAD_BYTES = 1000
"""Bytes kept of a value. The names and ids in a reply are shorter."""

ELEMENTS_MAX = 100
"""Elements kept of an array. Only messages with unused fields have more."""

LINE_BYTES_MAX = 4096
"""Lines contain sizes and numbers, or an error."""


class Skimmed(NamedTuple):
    """A value reduced to its beginning, its size in bytes, and its SHA-256."""

    head: bytes
    size: int
    digest: str


class Skimmer:
    """Parses one reply in the protocol RESP2 or RESP3. Call `feed` until `done`; then `reply` has the form that the driver
    returns.

    Values of more than `HEAD_BYTES` are Skimmed. Maps are dicts, all other aggregates lists.
    """

    def __init__(self) -> None:
        self.done = False
        self.reply: Any = None
        self._open: list[_Aggregate] = []
        self._line = bytearray()
        self._value: _Value | None = None

    def feed(self, data: bytes) -> None:
        """Parses the next bytes; raises ResponseError if the reply is an error."""
        rest = memoryview(data)
        while rest and not self.done:
            rest = self._take_value(self._value, rest) if self._value else self._take_line(rest)

    def _take_value(self, value: "_Value", rest: memoryview) -> memoryview:
        rest = value.take(rest)
        if value.is_whole:
            self._value = None
            self._put(value.result())
        return rest

    def _take_line(self, rest: memoryview) -> memoryview:
        data = bytes(rest[: LINE_BYTES_MAX + 2])
        end = data.find(b"\n") + 1
        self._line += data[: end or len(data)]
        if len(self._line) > LINE_BYTES_MAX:
            raise ResponseError(f"a line of more than {LINE_BYTES_MAX} bytes")
        if end:
            line = bytes(self._line[:-2])
            self._line.clear()
            self._read(line[:1], line[1:])
        return rest[end or len(data) :]

    def _read(self, kind: bytes, text: bytes) -> None:
        match kind:
            case b"-" | b"!":
                raise ResponseError(text.decode(errors="replace"))
            case b"$" | b"=" if int(text) >= 0:
                self._value = _Value(int(text))
            case b"*" | b"~" | b"%" if int(text) >= 0:
                self._begin(_Aggregate(int(text) * (2 if kind == b"%" else 1), is_map=kind == b"%"))
            case b":":
                self._put(int(text))
            case b"+":
                self._put(text)
            case _:
                self._put(None)

    def _begin(self, aggregate: "_Aggregate") -> None:
        if aggregate.left:
            self._open.append(aggregate)
        else:
            self._put(aggregate.result())

    def _put(self, element: Any) -> None:
        """Adds an element to the open aggregate, and completes aggregates that have all their elements."""
        while self._open:
            self._open[-1].put(element)
            if self._open[-1].left:
                return
            element = self._open.pop().result()
        self.reply, self.done = element, True


class _Aggregate:
    """An array or map: the number of missing elements, and the first elements."""

    def __init__(self, left: int, *, is_map: bool) -> None:
        self.left = left
        self._is_map = is_map
        self._elements: list[Any] = []

    def put(self, element: Any) -> None:
        self.left -= 1
        if len(self._elements) < ELEMENTS_MAX:
            self._elements.append(element)

    def result(self) -> Any:
        return dict(_pairs(self._elements)) if self._is_map else self._elements


class _Value:
    """A string of a known size, and the line end after it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._left = size + 2
        self._head = bytearray()
        self._digest = hashlib.sha256()

    @property
    def is_whole(self) -> bool:
        return not self._left

    def take(self, rest: memoryview) -> memoryview:
        """Consumes the bytes of this value; returns the rest."""
        own = rest[: max(0, self._left - 2)]
        self._head += own[: HEAD_BYTES - len(self._head)]
        self._digest.update(own)
        taken = min(len(rest), self._left)
        self._left -= taken
        return rest[taken:]

    def result(self) -> bytes | Skimmed:
        head = bytes(self._head)
        return head if self._size == len(head) else Skimmed(head, self._size, self._digest.hexdigest())


def _pairs(elements: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(elements[::2], elements[1::2], strict=False)
