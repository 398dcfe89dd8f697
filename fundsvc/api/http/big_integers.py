"""Writes 64-bit integers as JSON strings for clients whose numbers are doubles, in answers and pushes."""

from typing import Annotated, Any, Literal

import msgspec

Numbers = Annotated[
    Literal["number", "string"],
    msgspec.Meta(description="`string` writes all integers as strings, because JavaScript rounds integers above 2^53"),
]
NUMBERS: tuple[Numbers, ...] = ("number", "string")

_DECODER = msgspec.json.Decoder(float_hook=lambda text: msgspec.Raw(text.encode()))
"""Keeps the bytes of fractions unchanged."""


def with_integers(body: bytes, numbers: Numbers) -> bytes:
    """Returns JSON with its integers as numbers or as strings."""
    return body if numbers == "number" else integers_as_strings(body)


def integers_as_strings(body: bytes) -> bytes:
    """Returns JSON with every integer quoted; all other values keep their bytes."""
    return msgspec.json.encode(_quoted(_DECODER.decode(body)))


def _quoted(value: Any) -> Any:
    kind = type(value)  # not isinstance: bool is a subclass of int
    if kind is dict:
        return {name: _quoted(part) for name, part in value.items()}
    if kind is list:
        return [_quoted(part) for part in value]
    return str(value) if kind is int else value
