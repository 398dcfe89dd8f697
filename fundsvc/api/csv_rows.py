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
    return _lines(map(msgspec.structs.astuple, entries))
