"""Writes exported rows to standard output: as CSV, as NDJSON, or as Parquet with exact types."""

import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Self

import msgspec

from fundsvc.core.numbers import CURRENCY_DECIMALS_MAX

Row = dict[str, str | int | bool]

Form = Literal["csv", "ndjson"]
"""A format of lines."""

AnyForm = Literal["csv", "ndjson", "parquet"]
"""A format of lines, or Parquet."""

Write = Callable[[Row], object]

GROUP_ROWS, GROUP_CHARACTERS = 10_000, 16_000_000
"""A row group of Parquet ends at either: some 25 MB of rows in memory, more only for the bodies of ADL records."""

# The columns of Parquet that are not text.
_DECIMALS = "change", "balance", "uncovered", "repaid", "outstanding", "price", "bankruptcyPrice", "multiplier"
_MOMENTS = "ts", "time", "recordedAt"
_INTEGERS = "entry", "seq", "generation", "lots", "record", "adl", "round", "settleDecimals", "priceDecimals", "closes"
_FLAGS = "isInverse", "forced"


@contextmanager
def row_writer(form: AnyForm, columns: Sequence[str]) -> Iterator[Write]:
    """Provides what writes a row to standard output. In CSV a header with the columns comes first.

    Raises ValueError if the format is parquet and pyarrow is not installed, or standard output is a terminal.
    """
    match form:
        case "csv":
            writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
            writer.writeheader()
            yield writer.writerow
        case "ndjson":
            yield lambda row: sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
        case "parquet":
            with _parquet_writer(columns) as write:
                yield write


@contextmanager
def _parquet_writer(columns: Sequence[str]) -> Iterator[Write]:
    if sys.stdout.isatty():
        raise ValueError("Parquet is not text: redirect standard output to a file")
    try:
        import pyarrow  # noqa: PLC0415 - optional, and slow to import
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError:
        raise ValueError("--format parquet needs the package pyarrow: pip install pyarrow, or 'fundsvc[parquet]'") from None
    schema = _schema(pyarrow, columns)
    output = _Output()
    with parquet.ParquetWriter(output, schema, compression="zstd") as writer, output:
        groups = _Groups(lambda rows: writer.write_table(_table(pyarrow, schema, rows)))
        yield groups.add
        groups.end()


class _Output:
    """Standard output, for a writer of Parquet.

    It discards what follows a failure. Otherwise the writer's footer would make a truncated file look complete.
    """

    closed = False

    def __init__(self) -> None:
        self._failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._failed = kind is not None

    def write(self, piece: bytes) -> int:
        """Writes a piece of the file."""
        return len(piece) if self._failed else sys.stdout.buffer.write(piece)

    def flush(self) -> None:
        """Writes what is buffered."""
        sys.stdout.buffer.flush()


class _Groups:
    """Collects rows into row groups, and passes each to `write`."""

    def __init__(self, write: Callable[[Sequence[Row]], None]) -> None:
        self._write = write
        self._rows: list[Row] = []
        self._characters = 0

    def add(self, row: Row) -> None:
        """Adds a row; writes the group if it is large enough."""
        self._rows.append(row)
        self._characters += sum(len(value) for value in row.values() if isinstance(value, str))
        if len(self._rows) >= GROUP_ROWS or self._characters >= GROUP_CHARACTERS:
            self.end()

    def end(self) -> None:
        """Writes the last group."""
        if self._rows:
            self._write(self._rows)
            self._rows, self._characters = [], 0


def _schema(pyarrow: Any, columns: Sequence[str]) -> Any:
    """Returns the types of the columns. The decimals hold every amount and price: 64 bits with up to 18 decimals."""
    types = {
        **dict.fromkeys(_DECIMALS, pyarrow.decimal128(38, CURRENCY_DECIMALS_MAX)),
        **dict.fromkeys(_MOMENTS, pyarrow.timestamp("ms", "UTC")),
        **dict.fromkeys(_INTEGERS, pyarrow.int64()),
        **dict.fromkeys(_FLAGS, pyarrow.bool_()),
    }
    return pyarrow.schema([(name, types.get(name, pyarrow.string())) for name in columns])


def _table(pyarrow: Any, schema: Any, rows: Sequence[Row]) -> Any:
    """Returns rows as a table. A cell is null if its row lacks the column; a value that its type cannot hold is an error."""
    return pyarrow.table(
        [pyarrow.array([row.get(field.name) for row in rows]).cast(field.type) for field in schema], schema=schema
    )
