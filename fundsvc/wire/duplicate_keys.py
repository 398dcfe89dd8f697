"""Detects duplicate keys of an object, which the decoder accepts: parsers disagree about which value counts.

Every field of an event needs a key. So no key is repeated if a text has as many colons as fields, or if a MessagePack value has
its shortest length. Only values that fail this quick check are read a second time, key by key.
"""

import json
from collections.abc import Callable, Sequence
from operator import attrgetter, ne
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET

from fundsvc.core.events import Fill, Listing

T = TypeVar("T")

KEYS_OF_FILL = 8
"""The number of required fields of a fill, including `type`."""

FIXMAP, MAP16, MAP32, FIXARRAY, ARRAY16, ARRAY32 = 0x80, 0xDE, 0xDF, 0x90, 0xDC, 0xDD
"""First bytes of MessagePack maps and arrays; short ones contain the length in their lower four bits."""

_ARRAY = msgspec.msgpack.Decoder(list[msgspec.Raw])
_MAP = msgspec.msgpack.Decoder(dict[Any, msgspec.Raw])


class RepeatedKey(msgspec.ValidationError):
    """An object has a duplicate key."""


def may_repeat(codec: str, body: bytes, events: Sequence[msgspec.Struct]) -> bool:
    """Returns whether the bytes of decoded events may contain a duplicate key; rarely true for events of engines."""
    if codec == "json":
        return body.count(b":") != sum([_COUNTS[type(event)](event) for event in events])
    length = len(msgspec.msgpack.encode(events))
    return len(body) not in (length, length - 1)  # an event alone has no header of an array


def may_repeat_one(codec: str, raw: bytes | msgspec.Raw, event: msgspec.Struct) -> bool:
    """Returns the same for a single event."""
    if codec == "json":
        return bytes(raw).count(b":") != _COUNTS[type(event)](event)
    return len(raw) != len(msgspec.msgpack.encode(event))


def check_keys(codec: str, body: bytes) -> None:
    """Raises RepeatedKey for a duplicate key of an object, at any depth of a valid JSON text or MessagePack value."""
    if codec == "json":
        json.loads(body.decode(), strict=False, object_pairs_hook=_object, parse_int=len, parse_float=len)
    else:
        _check_packed(body)


def decode_json(text: str | bytes, kind: type[T]) -> T:
    """Decodes a JSON text without duplicate keys; raises msgspec.DecodeError, UnicodeDecodeError or RecursionError."""
    decoded = msgspec.json.decode(text, type=kind)
    check_keys("json", text.encode() if isinstance(text, str) else text)
    return decoded


def _keys_of_fill(fill: Fill) -> int:
    return KEYS_OF_FILL + (fill.trade_id != "") + (fill.order_id != "") + (fill.account != "") + (fill.prev_seq is not UNSET)


def _counter_of(kind: type[msgspec.Struct]) -> Callable[[Any], int]:
    """Returns a function that counts the keys an event must have had: its fields that differ from their defaults."""
    fields, defaults = kind.__struct_fields__, kind.__struct_defaults__
    required = 1 + len(fields) - len(defaults)
    optional = fields[len(fields) - len(defaults) :]
    if len(optional) < 2:  # noqa: PLR2004 - attrgetter makes no tuple of one attribute
        return lambda event: required + sum(getattr(event, name) != defaults[0] for name in optional)
    read = attrgetter(*optional)

    def count(event: msgspec.Struct) -> int:
        found = read(event)
        return required if found == defaults else required + sum(map(ne, found, defaults))

    return count


class _Counters(dict[type, Callable[[Any], int]]):
    """Functions that count the keys of an event, by its type; made at the first event of a type."""

    def __missing__(self, kind: type[msgspec.Struct]) -> Callable[[Any], int]:
        self[kind] = _counter_of(kind)
        return self[kind]


_COUNTS = _Counters({Fill: _keys_of_fill, Listing: lambda _: -1_000_000})
"""Always true for listings: their object may have any keys, so the number of colons proves nothing."""


def _object(pairs: list[tuple[str, Any]]) -> None:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise RepeatedKey(f"Object has the key `{next(key for key in keys if keys.count(key) > 1)}` twice")


def _check_packed(value: bytes) -> None:
    length = _length(value)
    if length is None:
        return
    if value[0] & 0xF0 == FIXARRAY or value[0] in (ARRAY16, ARRAY32):
        elements = _ARRAY.decode(value)
    else:
        fields = _MAP.decode(value)
        if len(fields) != length:
            raise RepeatedKey("Object has a key twice")
        elements = list(fields.values())
    for element in elements:
        _check_packed(bytes(element))


def _length(value: bytes) -> int | None:
    """Returns the number of elements or pairs of a MessagePack array or map; None for other values."""
    first = value[0]
    if first & 0xF0 in (FIXMAP, FIXARRAY):
        return first & 0x0F
    if first in (MAP16, ARRAY16):
        return int.from_bytes(value[1:3], "big")
    return int.from_bytes(value[1:5], "big") if first in (MAP32, ARRAY32) else None
