"""Escapes text from outside for display: characters that are not printable, or that change the order of the following text."""

import re

_UNPRINTABLE = re.compile(r"[^ -~]")
"""Characters that may not be printable. All others are printable ASCII."""


def visible(text: str, *, keeps: str = "") -> str:
    r"""Returns a text with Python escapes, such as \x1b and \u202e; characters of `keeps` stay."""
    if text.isprintable():
        return text
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0].isprintable() or found[0] in keeps else _escaped(found[0]), text)


def visible_json(text: str) -> str:
    r"""Returns an equal JSON document with such characters as \uXXXX; newlines between values stay."""
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0].isprintable() or found[0] == "\n" else _json(found[0]), text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _json(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))
