"""Integers of 64 bits for readers whose numbers are doubles: as JSON strings, in every answer and push in the same way."""

from typing import Annotated, Any, Literal

import msgspec

Numbers = Annotated[
    Literal["number", "string"],
    msgspec.Meta(description="how integers are written: JavaScript rounds those above 2^53 unless they are strings"),
]
NUMBERS: tuple[Numbers, ...] = ("number", "string")

_DECODER = msgspec.json.Decoder(float_hook=lambda text: msgspec.Raw(text.encode()))
"""Keeps fractions as they are written, to the byte."""


def with_integers(body: bytes, numbers: Numbers) -> bytes:
    """JSON with its integers written as a reader wants them."""
    return body if numbers == "number" else integers_as_strings(body)


def integers_as_strings(body: bytes) -> bytes:
    """JSON with every integer in quotes, of any size, and all else as it was."""
    return msgspec.json.encode(_quoted(_DECODER.decode(body)))


def _quoted(value: Any) -> Any:
    kind = type(value)  # exactly: true and false are integers too
    if kind is dict:
        return {name: _quoted(part) for name, part in value.items()}
    if kind is list:
        return [_quoted(part) for part in value]
    return str(value) if kind is int else value
