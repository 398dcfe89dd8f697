"""Writes answers as CSV; the columns are their JSON fields."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from fundsvc.api.answers import Answer

CSV = "text/csv"


def _lines(rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def csv_header(kind: type[Answer]) -> bytes:
    """Returns the line with the names of the columns."""
    return _lines([[field.encode_name for field in msgspec.structs.fields(kind)]])


def csv_rows(answers: Iterable[Answer]) -> bytes:
    """Returns one line per answer."""
    return _lines([_text(value) for value in msgspec.structs.astuple(answer)] for answer in answers)


def _text(value: Any) -> Any:
    """Returns a truth value as in JSON; any other value unchanged."""
    return str(value).lower() if isinstance(value, bool) else value
