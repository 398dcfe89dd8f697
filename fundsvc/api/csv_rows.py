"""Entries as lines of CSV."""

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
"""The columns: the fields of an entry as JSON has them."""


def csv_rows(entries: Iterable[EntryAnswer]) -> bytes:
    """A line for each entry."""
    return _lines(map(msgspec.structs.astuple, entries))
