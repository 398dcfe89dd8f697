"""Validates configuration tables against the structs they become, and reports all errors with the allowed values."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin

import msgspec
from msgspec import inspect

SHOWN_LENGTH_MAX = 60
"""Characters of a wrong value in an error message."""

HIDDEN = "***"
"""The text that replaces a secret."""

SECRET, ADDRESS = {"hide": "all"}, {"hide": "password"}
"""The `extra` of types whose values are not shown, or shown without a password. Another key, `form`, describes a pattern in
words.
"""

_PASSWORD = re.compile(r"(?<=://)([^:@/]*):.*@|(?<=[?&])((?:ssl)?password=)[^&]*", re.DOTALL)
"""Matches generously, because an unescaped password may contain any character."""


class Key(NamedTuple):
    """The path of a key from the outermost table, and the type of its values."""

    path: tuple[str, ...]
    kind: Any


class Complaint(NamedTuple):
    """An error in the value at a dotted path, and the allowed values."""

    path: str
    text: str


def keys(struct: type[msgspec.Struct], path: tuple[str, ...] = ()) -> Iterator[Key]:
    """Yields all keys of a struct and of its nested structs, without the keys of the tables themselves."""
    for field in msgspec.structs.fields(struct):
        inner = struct_of(field.type)
        if inner:
            yield from keys(inner, (*path, field.name))
        else:
            yield Key((*path, field.name), field.type)


def find(struct: type[msgspec.Struct], name: str) -> Key | None:
    """Returns the key or table whose path, joined by underscores, is `name`."""
    for field in msgspec.structs.fields(struct):
        if field.name == name:
            return Key((name,), field.type)
        inner = struct_of(field.type)
        if inner and name.startswith(f"{field.name}_") and (found := find(inner, name[len(field.name) + 1 :])):
            return Key((field.name, *found.path), found.kind)
    return None


def struct_of(kind: Any) -> type[msgspec.Struct] | None:
    """Returns the struct of a table with fixed keys, or None for another type."""
    kinds = get_args(kind) if get_origin(kind) is UnionType else (kind,)
    return next((one for one in kinds if isinstance(one, type) and issubclass(one, msgspec.Struct)), None)


def from_text(text: str, kind: Any) -> Any:
    """Parses a value from text: numbers, lists with commas, tables as JSON.

    Returns other text unchanged. Raises ValueError for a table that is not JSON.
    """
    if struct_of(kind) or get_origin(kind) is dict:
        return json.loads(text)
    if get_origin(kind) is tuple:
        return text.split(",") if text else []
    try:
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError:
        return text


def complaints(value: Any, kind: Any, path: str = "") -> Iterator[Complaint]:
    """Yields all errors of a value of a type."""
    struct = struct_of(kind)
    if struct and isinstance(value, Mapping):
        yield from _of_table(value, struct, path)
    elif get_origin(kind) is dict and isinstance(value, Mapping):
        for key, inner in value.items():
            yield from complaints(inner, get_args(kind)[1], _join(path, key))
    else:
        yield from _of_value(value, kind, path)


def allowed(kind: Any) -> str:
    """Returns the allowed values of a type, in words."""
    return _allowed(inspect.type_info(kind))


def span(kind: Any) -> str:
    """Returns the range of a number's type as a reference shows it ("above 0 to 3600"), or ""."""
    return _span(inspect.type_info(kind))


def presentable(value: Any, kind: Any) -> Any:
    """Returns a value without secrets, for display."""
    if get_origin(kind) is dict and (struct := struct_of(get_args(kind)[1])):
        return {name: _presentable_table(table, struct) for name, table in value.items()}
    hide = _extra(kind).get("hide")
    if value and hide == "all":
        return HIDDEN
    if hide == "password":
        return _PASSWORD.sub(lambda found: f"{found[2]}{HIDDEN}" if found[2] else f"{found[1]}:{HIDDEN}@", value)
    return value


def _presentable_table(table: Mapping[str, Any], struct: type[msgspec.Struct]) -> dict[str, Any]:
    kinds = {field.name: field.type for field in msgspec.structs.fields(struct)}
    return {name: presentable(value, kinds[name]) for name, value in table.items()}


def _of_table(table: Mapping[str, Any], struct: type[msgspec.Struct], path: str) -> Iterator[Complaint]:
    kinds = {field.name: field.type for field in msgspec.structs.fields(struct)}
    wrong = False
    for key, value in table.items():
        for complaint in complaints(value, kinds[key], _join(path, key)) if key in kinds else _unknown(key, kinds, path):
            wrong = True
            yield complaint
    if not wrong:
        yield from _of_value(table, struct, path)


def _of_value(value: Any, kind: Any, path: str) -> Iterator[Complaint]:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ValueError):  # a rule of the struct, with its own message
            yield Complaint(path, f"{path}: {error.__cause__}" if path else str(error.__cause__))
        else:
            yield Complaint(path, f"{path} is {_shown(value, kind)}: it must be {allowed(kind)}")


def _unknown(key: str, kinds: Mapping[str, Any], path: str) -> Iterator[Complaint]:
    near = get_close_matches(key, kinds, 1)
    meant = f"did you mean {_join(path, near[0])}?" if near else f"{path or 'the configuration'} has {', '.join(kinds)}"
    yield Complaint(_join(path, key), f"{_join(path, key)} is not a key: {meant}")


def _extra(kind: Any) -> dict[str, Any]:
    found = inspect.type_info(kind)
    return (found.extra or {}) if isinstance(found, inspect.Metadata) else {}


def _shown(value: Any, kind: Any) -> str:
    struct = struct_of(kind)
    if "hide" in _extra(kind) or (struct and any("hide" in _extra(key.kind) for key in keys(struct))):
        return HIDDEN
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= SHOWN_LENGTH_MAX else f"{text[:SHOWN_LENGTH_MAX]}..."


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _allowed(found: inspect.Type) -> str:
    match found:
        case inspect.LiteralType(values=values):
            words = _either([json.dumps(value) for value in values])
        case inspect.IntType() | inspect.FloatType() | inspect.DecimalType():
            noun = "a whole number" if isinstance(found, inspect.IntType) else "a number"
            words = ", ".join(filter(None, (noun, _span(found))))
        case inspect.VarTupleType() | inspect.TupleType():
            words = _list_of(found)
        case inspect.DictType(value_type=inner):
            words = f"a table, each of it {_allowed(inner)}"
        case inspect.StructType(fields=fields):
            words = f"a table of {', '.join(field.name for field in fields)}"
        case inspect.UnionType(types=types):
            words = _either([_allowed(one) for one in types if not isinstance(one, inspect.NoneType)])
        case inspect.Metadata(extra={"form": str(form)}):
            words = form
        case inspect.Metadata(type=inner):
            words = _allowed(inner)
        case inspect.StrType(min_length=1):
            words = "text, not empty"
        case _:
            words = "true or false" if isinstance(found, inspect.BoolType) else "text"
    return words


def _list_of(found: inspect.VarTupleType | inspect.TupleType) -> str:
    if isinstance(found, inspect.VarTupleType):
        return f"a list, each of it {_allowed(found.item_type)}"
    return f"a list of {' and '.join(map(_allowed, found.item_types))}"


def _span(found: inspect.Type) -> str:
    if not isinstance(found, inspect.IntType | inspect.FloatType):
        return ""
    least = f"above {_plain(found.gt)}" if found.gt is not None else _plain(found.ge)
    most = f"below {_plain(found.lt)}" if found.lt is not None else _plain(found.le)
    return f"{least} to {most}" if most else f"{least} or more" if least else ""


def _plain(number: float | None) -> str:
    return "" if number is None else str(int(number)) if number == int(number) else str(number)


def _either(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
