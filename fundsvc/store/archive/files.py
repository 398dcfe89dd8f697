"""Files of archived entries: Parquet in a directory or an object store.

A file has the rows of the table `entries`, with amounts in atoms and prices in the contract's units, so nothing is rounded. Its
row groups have ROWS_PER_GROUP rows: a page of a history reads one or two of them.

All work runs in threads of its own. So a store that does not respond delays only reads of archived entries.
"""

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import quote

from fundsvc.core.fund.chain import Entry, Kind
from fundsvc.core.numbers import INT64_MAX
from fundsvc.store.database import StoreFault

ROWS_PER_GROUP = 10_000
"""Rows of a row group: reading one takes about ten milliseconds."""

CACHED_GROUPS, CACHED_FOOTERS = 16, 64
"""Row groups and footers in memory: about 30 MB. Clients page through a history, so most pages are in the group before."""

THREADS = 4
"""Reads at a time. Further ones wait, and fail after SECONDS_MAX if the store does not respond."""

SECONDS_MAX = 8.0
"""How long a read may take. HTTP clients give up after that."""

KINDS = b"kinds"
"""The key in a footer of the kinds of each row group, so that a search for a rare kind reads few of them."""

PIECE_BYTES = 1_000_000
"""The size of a read while a file is hashed."""

Row = dict[str, Any]
"""An entry by column of the table `entries`."""

Result = TypeVar("Result")

_TEXTS = "symbol", "kind", "side", "trade_id", "order_id", "account"
_COLUMNS = (*Entry.__struct_fields__, "recorded_at", "hash")


class ArchiveUnreachable(StoreFault):
    """A file of archived entries cannot be read or written. `public_text` is safe to publish; the message has all details."""

    public_text = "these entries are archived, and the archive is unreachable: retry later, or request a shorter time"


class FileRange(NamedTuple):
    """Entries of a file: the file has entries from `file_first` on, and `first` to `last` are wanted."""

    path: str
    file_first: int
    first: int
    last: int


class Wanted(NamedTuple):
    """Which entries to select: by kind, None for all, and by the engine's time in ms, both ends included."""

    kind: Kind | None = None
    start_ms: int = 0
    end_ms: int = INT64_MAX

    @property
    def is_all(self) -> bool:
        """Whether every entry is wanted."""
        return self == ALL


ALL = Wanted()


class FileFacts(NamedTuple):
    """The size of a file in bytes, and its SHA-256."""

    size: int
    digest: bytes


class ArchiveFiles:
    """The files in a location: a directory, or a URL of pyarrow's file systems, such as s3://BUCKET/PREFIX."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._threads = ThreadPoolExecutor(THREADS, "archive")
        self._kinds = lru_cache(CACHED_FOOTERS)(self._read_kinds)
        self._footer = lru_cache(CACHED_FOOTERS)(self._read_footer)
        self._group = lru_cache(CACHED_GROUPS)(self._read_group)

    async def select(
        self, ranges: Sequence[FileRange], count: int, wanted: Wanted = ALL, *, descending: bool = False
    ) -> list[Row]:
        """Returns the first `count` wanted entries of ascending ranges, or the last ones descending.

        Raises ArchiveUnreachable.
        """
        return await self.run(lambda: self._select(ranges, count, wanted, descending=descending))

    async def columns(self, ranges: Sequence[FileRange], names: Sequence[str]) -> dict[str, list[Any]]:
        """Returns some columns of all entries of ranges; times as integers of microseconds. Raises ArchiveUnreachable."""
        return await self.run(lambda: self._columns(ranges, names))

    async def facts(self, path: str) -> FileFacts:
        """Reads a whole file and returns its size and digest; raises ArchiveUnreachable."""
        return await self.run(lambda: self._facts(path), None)

    async def run(self, work: Callable[[], Result], seconds_max: float | None = SECONDS_MAX) -> Result:
        """Runs work with files in a thread; raises ArchiveUnreachable if it fails or takes too long."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds_max):
                return await loop.run_in_executor(self._threads, self._guarded, work)
        except TimeoutError:
            raise ArchiveUnreachable(f"the archive {self._shown} did not respond within {seconds_max} seconds") from None

    def writer(self, name: str) -> "FileWriter":
        """Opens a new file, and replaces one with the same path. Call this, and the writer, within `run`."""
        system, base = self._opened()
        system.create_dir(base, recursive=True)
        return FileWriter(system, f"{base}/{name}")

    def _guarded(self, work: Callable[[], Result]) -> Result:
        if not self._location:
            raise ArchiveUnreachable(
                "entries are archived, but archive.location is not set: set it to the place of their files"
            )
        pyarrow = load_library()
        try:
            return work()
        except (OSError, pyarrow.ArrowException) as error:
            raise ArchiveUnreachable(f"the archive {self._shown} cannot be used: {error}") from error

    @property
    def _shown(self) -> str:
        """The location without a password."""
        scheme, separator, rest = self._location.rpartition("://")
        return f"{scheme}{separator}{rest.rpartition('@')[2].partition('?')[0]}"

    def _opened(self) -> tuple[Any, str]:
        from pyarrow import fs  # noqa: PLC0415

        if "://" in self._location:
            return fs.FileSystem.from_uri(self._location)  # type: ignore[no-any-return]
        return fs.LocalFileSystem(), str(Path(self._location).absolute())

    def _open(self, path: str) -> Any:
        system, base = self._opened()
        return system.open_input_file(f"{base}/{path}")

    def _facts(self, path: str) -> FileFacts:
        digest, size = sha256(), 0
        with self._open(path) as file:
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
                size += len(piece)
        return FileFacts(size, digest.digest())

    def _read_footer(self, path: str) -> Any:
        from pyarrow import parquet  # noqa: PLC0415

        with self._open(path) as file:
            return parquet.read_metadata(file)

    def _read_kinds(self, path: str) -> list[set[str]]:
        """Returns the kinds of the entries of each row group."""
        return [set(kinds.split(",")) for kinds in self._footer(path).metadata[KINDS].decode().split(";")]

    def _read_group(self, path: str, group: int) -> Any:
        from pyarrow import parquet  # noqa: PLC0415

        with self._open(path) as file:
            return parquet.ParquetFile(file, metadata=self._footer(path)).read_row_group(group)

    def _tables(self, one: FileRange, wanted: Wanted = ALL, *, descending: bool = False) -> Iterator[Any]:
        """Yields the entries of a range as tables of up to ROWS_PER_GROUP rows, without groups that have no wanted kind."""
        first, last = one.first - one.file_first, one.last - one.file_first
        groups = range(first // ROWS_PER_GROUP, last // ROWS_PER_GROUP + 1)
        for group in reversed(groups) if descending else groups:
            if wanted.kind is not None and wanted.kind not in self._kinds(one.path)[group]:
                continue
            begin = max(0, first - group * ROWS_PER_GROUP)
            end = min(ROWS_PER_GROUP, last - group * ROWS_PER_GROUP + 1)
            yield self._group(one.path, group).slice(begin, end - begin)

    def _select(self, ranges: Sequence[FileRange], count: int, wanted: Wanted, *, descending: bool) -> list[Row]:
        rows: list[Row] = []
        for one in reversed(ranges) if descending else ranges:
            for table in self._tables(one, wanted, descending=descending):
                found = table if wanted.is_all else _filtered(table, wanted)
                rest = min(count - len(rows), found.num_rows)
                part = _rows(found.slice(found.num_rows - rest) if descending else found.slice(0, rest))
                rows += reversed(part) if descending else part
                if len(rows) == count:
                    return rows
        return rows

    def _columns(self, ranges: Sequence[FileRange], names: Sequence[str]) -> dict[str, list[Any]]:
        import pyarrow  # noqa: PLC0415

        found: dict[str, list[Any]] = {name: [] for name in names}
        for one in ranges:
            for table in self._tables(one):
                for name in names:
                    column = table.column(name)
                    found[name] += (column.cast(pyarrow.int64()) if name == "recorded_at" else column).to_pylist()
        return found


def load_library() -> Any:
    """Imports pyarrow, which is optional, and returns it; raises ArchiveUnreachable without it.

    The first import takes a third of a second, and holds the interpreter's lock for tens of milliseconds at a time. So call it
    before the event loop has to respond.
    """
    try:
        import pyarrow  # noqa: PLC0415
        import pyarrow.compute  # noqa: PLC0415
        import pyarrow.fs  # noqa: PLC0415
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError:
        raise ArchiveUnreachable("archives need the package pyarrow: pip install 'fundsvc[parquet]'") from None
    return pyarrow


NO_FILES = ArchiveFiles("")
"""The files without `archive.location`: reads of archived entries fail."""


class FileWriter:
    """Writes a file. Only after `end` it has all entries, and a local one is on the disk."""

    def __init__(self, system: Any, path: str) -> None:
        import pyarrow  # noqa: PLC0415
        from pyarrow import fs, parquet  # noqa: PLC0415

        self._pyarrow = pyarrow
        self._local = Path(path) if isinstance(system, fs.LocalFileSystem) else None
        self._schema = _schema(pyarrow)
        self._sink = system.open_output_stream(path)
        self._writer = parquet.ParquetWriter(self._sink, self._schema, compression="zstd")
        self._rows: list[Any] = []
        self._kinds: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.close()
        self._sink.close()

    def add(self, rows: Sequence[Any]) -> None:
        """Adds the next entries: rows with all columns."""
        self._rows += rows
        while len(self._rows) >= ROWS_PER_GROUP:
            self._write(self._rows[:ROWS_PER_GROUP])
            del self._rows[:ROWS_PER_GROUP]

    def end(self) -> None:
        """Writes the rest and the footer, and waits until a local file is on the disk."""
        if self._rows:
            self._write(self._rows)
        self._writer.add_key_value_metadata({KINDS: ";".join(self._kinds)})
        self.__exit__(None, None, None)
        if self._local:
            for path in (self._local, self._local.parent):
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)

    def _write(self, rows: Sequence[Any]) -> None:
        self._kinds.append(",".join(sorted({row["kind"] for row in rows})))
        arrays = [self._pyarrow.array([row[field.name] for row in rows], field.type) for field in self._schema]
        self._writer.write_table(self._pyarrow.table(arrays, schema=self._schema))


def file_name(symbol: str, first: int, last: int) -> str:
    """Returns the name of the file of a range. A symbol may contain any printable character."""
    return f"{quote(symbol, safe='')}-{first:012}-{last:012}.parquet"


def _schema(pyarrow: Any) -> Any:
    kinds = {
        **dict.fromkeys(_TEXTS, pyarrow.string()),
        "seal": pyarrow.binary(),
        "hash": pyarrow.binary(32),
        "forced": pyarrow.bool_(),
        "recorded_at": pyarrow.timestamp("us", "UTC"),
    }
    return pyarrow.schema([(name, kinds.get(name, pyarrow.int64())) for name in _COLUMNS])


def _rows(table: Any) -> list[Row]:
    columns = [column.to_pylist() for column in table.columns]
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def _filtered(table: Any, wanted: Wanted) -> Any:
    from pyarrow import compute  # noqa: PLC0415

    ts = table.column("ts")
    is_wanted = compute.and_(compute.greater_equal(ts, wanted.start_ms), compute.less_equal(ts, wanted.end_ms))
    if wanted.kind is not None:
        is_wanted = compute.and_(is_wanted, compute.equal(table.column("kind"), wanted.kind))
    return table.filter(is_wanted)
