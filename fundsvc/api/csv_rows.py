"""Writes entries as CSV."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from fundsvc.api.answers import EntryAnswer

CSV = "text/csv"


def _lines(rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


HEADER = _lines([[field.encode_name for field in msgspec.structs.fields(EntryAnswer)]])
"""The names of the columns, which are the JSON fields of an entry."""


def csv_rows(entries: Iterable[EntryAnswer]) -> bytes:
    """Returns one line per entry."""
    return _lines([_text(value) for value in msgspec.structs.astuple(entry)] for entry in entries)


def _text(value: Any) -> Any:
    """Returns a truth value as in JSON; any other value unchanged."""
    return str(value).lower() if isinstance(value, bool) else value
