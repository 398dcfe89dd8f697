"""Text of others as people may safely see it: what is not printable, or turns the order of what follows, is escaped."""

import re

_UNPRINTABLE = re.compile(r"[^ -~]")
"""What may not be printable; the rest is ASCII that is."""


def visible(text: str, *, keeps: str = "") -> str:
    r"""A text with escapes as Python writes them, such as \x1b and \u202e; `keeps` are characters that stay."""
    if text.isprintable():
        return text
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0].isprintable() or found[0] in keeps else _escaped(found[0]), text)


def visible_json(text: str) -> str:
    r"""A JSON document that says the same with such characters as \uXXXX; newlines between values stay."""
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0].isprintable() or found[0] == "\n" else _json(found[0]), text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _json(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))
