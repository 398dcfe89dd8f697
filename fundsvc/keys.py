"""Keys that stand twice in an object, which the decoder lets pass: the last one would win here, and maybe not elsewhere.

Every field that an event has must have had a key. So none is repeated where a text has as many colons as there are fields, or
where a MessagePack value is as short as it can be. Only what fails this quick look is read a second time, key by key.
"""

import json
from collections.abc import Callable, Sequence
from operator import attrgetter, ne
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET

from fundsvc.core.events import Event, Fill, Listing

T = TypeVar("T")

KEYS_OF_FILL = 8
"""Those that a fill must have, with `type`."""

FIXMAP, MAP16, MAP32, FIXARRAY, ARRAY16, ARRAY32 = 0x80, 0xDE, 0xDF, 0x90, 0xDC, 0xDD
"""First bytes of MessagePack's maps and arrays; those of short ones hold the length in their lower four bits."""

_ARRAY = msgspec.msgpack.Decoder(list[msgspec.Raw])
_MAP = msgspec.msgpack.Decoder(dict[Any, msgspec.Raw])


class RepeatedKey(msgspec.ValidationError):
    """An object has a key twice."""


def may_repeat(codec: str, body: bytes, events: Sequence[Event]) -> bool:
    """Whether the bytes that events were decoded from might have a key twice; rarely true of what engines send."""
    if codec == "json":
        return body.count(b":") != sum([_COUNTS[type(event)](event) for event in events])
    length = len(msgspec.msgpack.encode(events))
    return len(body) not in (length, length - 1)  # an event alone has no header of an array


def may_repeat_one(codec: str, raw: bytes | msgspec.Raw, event: Event) -> bool:
    """The same of an event alone."""
    if codec == "json":
        return bytes(raw).count(b":") != _COUNTS[type(event)](event)
    return len(raw) != len(msgspec.msgpack.encode(event))


def check_keys(codec: str, body: bytes) -> None:
    """Raises RepeatedKey for a key that an object has twice, at any depth of a legal JSON text or MessagePack value."""
    if codec == "json":
        json.loads(body.decode(), strict=False, object_pairs_hook=_object, parse_int=len, parse_float=len)
    else:
        _check_packed(body)


def decode_json(text: str | bytes, kind: type[T]) -> T:
    """What a JSON text says, each key once; raises msgspec.DecodeError, UnicodeDecodeError or RecursionError."""
    decoded = msgspec.json.decode(text, type=kind)
    check_keys("json", text.encode() if isinstance(text, str) else text)
    return decoded


def _keys_of_fill(fill: Fill) -> int:
    return KEYS_OF_FILL + (fill.trade_id != "") + (fill.order_id != "") + (fill.account != "") + (fill.prev_seq is not UNSET)


def _counter_of(kind: type[Event]) -> Callable[[Any], int]:
    """What counts the keys that an event of a kind must have had: those of its fields that are not at their defaults."""
    fields, defaults = kind.__struct_fields__, kind.__struct_defaults__
    required = 1 + len(fields) - len(defaults)
    optional = fields[len(fields) - len(defaults) :]
    if len(optional) < 2:  # noqa: PLR2004 - attrgetter makes no tuple of one attribute
        return lambda event: required + sum(getattr(event, name) != defaults[0] for name in optional)
    read = attrgetter(*optional)

    def count(event: Event) -> int:
        found = read(event)
        return required if found == defaults else required + sum(map(ne, found, defaults))

    return count


_COUNTS: dict[type, Callable[[Any], int]] = {
    **{kind: _counter_of(kind) for kind in Event.__subclasses__()},
    Fill: _keys_of_fill,
    Listing: lambda _: -1_000_000,
}
"""A listing's object may have any keys: no number of colons tells."""


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
    """How many elements or pairs a MessagePack array or map says it has; None for anything else."""
    first = value[0]
    if first & 0xF0 in (FIXMAP, FIXARRAY):
        return first & 0x0F
    if first in (MAP16, ARRAY16):
        return int.from_bytes(value[1:3], "big")
    return int.from_bytes(value[1:5], "big") if first in (MAP32, ARRAY32) else None
