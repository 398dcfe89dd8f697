"""Parquet files contain the values of the other exports, with exact types."""

import io
import json
import os
import sys
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow
import pytest
from commands import file_of, fundsvc, program
from escalations import BEGINNING, SYMBOL, executed, shortfall
from ledgers import fill, listing, owned
from pyarrow import parquet

from fundsvc.cli.tools import writers
from fundsvc.cli.tools.export import COLUMNS, PUBLIC_COLUMNS
from fundsvc.cli.tools.writers import row_writer
from fundsvc.core.events import Fill
from fundsvc.core.numbers import INT64_MAX, format_units

VERIFY_EXPORT = Path(__file__).parents[2] / "scripts" / "verify-export"
LARGEST, FINEST = format_units(INT64_MAX, 12), "0.000000000001"
COUNT = 25


@pytest.fixture
async def ledger(config):
    """A contract with ADL records, one whose amounts have up to 18 decimals, and one whose balance takes 63 bits."""
    config.currency.decimals["FINE"] = 18
    fine = Fill("FINE", 1, "sell", 1, "1000.000000000001", "1000", 4)
    large = [Fill("LARGE", 1, "sell", 9_999, LARGEST, FINEST, 5), Fill("LARGE", 2, "sell", 1, FINEST, LARGEST, 6)]
    async with owned(config) as owner:
        await owner.settle([*BEGINNING, shortfall(1, price="39050.3"), shortfall(2)])
        account, _ = owner.requested(SYMBOL, 1)[0]
        await owner.settle([executed(3, 1, account, 5)])
        await owner.settle([listing("FINE", settleCurrency="FINE"), fine, fill("FINE", 2, 3)])
        await owner.settle([listing("LARGE"), *large, *(fill("LARGE", seq, -1, 10 * seq) for seq in range(3, COUNT))])
    return config


def cell(field, value):
    """Returns the value of a cell of NDJSON as Parquet must have it."""
    if value is None:
        return None
    if pyarrow.types.is_decimal(field.type):
        return Decimal(value)
    if pyarrow.types.is_timestamp(field.type):
        return datetime.fromtimestamp(value / 1000, UTC) if isinstance(value, int) else datetime.fromisoformat(value)
    return value


async def compared(config, *arguments):
    """Compares the Parquet file of an export with its NDJSON; returns the table."""
    lines = (await fundsvc(config, *arguments, "--format", "ndjson")).output.splitlines()
    table = parquet.read_table(io.BytesIO(await file_of(config, *arguments, "--format", "parquet")))
    expected = [{field.name: cell(field, row.get(field.name)) for field in table.schema} for row in map(json.loads, lines)]
    assert table.to_pylist() == expected
    assert set().union(*map(json.loads, lines)) <= {*table.column_names}
    return table


@pytest.mark.parametrize("symbol", [SYMBOL, "FINE", "LARGE"])
async def test_parquet_has_the_values_of_the_export_of_a_ledger(ledger, symbol):
    table = await compared(ledger, "export", symbol)
    assert table.column_names == [*COLUMNS]
    assert ("record" in table["line"].to_pylist()) == (symbol == SYMBOL)
    assert (await compared(ledger, "export", symbol, "--public")).column_names == [*PUBLIC_COLUMNS]


async def test_parquet_has_the_entries_of_all_contracts_and_spans(ledger):
    table = await compared(ledger, "entries")
    assert {*table["symbol"].to_pylist()} == {SYMBOL, "FINE", "LARGE"}
    assert table.schema.field("change").type == pyarrow.decimal128(38, 18)
    assert table.schema.field("ts").type == pyarrow.timestamp("ms", "UTC")
    assert (await compared(ledger, "entries", "LARGE", "--to", "2000-01-01")).num_rows == COUNT - 1
    assert (await compared(ledger, "entries", "--from", "2100-01-01")).num_rows == 0


async def test_verify_export_refuses_parquet(ledger):
    for arguments in (["export", SYMBOL], ["entries", "--from", "2100-01-01"]):
        given = await file_of(ledger, *arguments, "--format", "parquet")
        for environment in ({"LC_ALL": "C"}, {"LC_ALL": "C.UTF-8"}):
            done = await program(sys.executable, VERIFY_EXPORT, environment=environment, given=given)
            assert (done.code, "a Parquet file" in done.error) == (2, True), done.error


@contextmanager
def standard_output(path):
    with path.open("w") as file, redirect_stdout(file):
        yield


def rows(count, **fields):
    return [{"line": "entry", "entry": number, "change": f"0.{number}", **fields} for number in range(1, count + 1)]


@pytest.mark.parametrize(("fields", "groups"), [({}, [1000, 1000, 500]), ({"body": "0" * 50_000}, [800, 800, 800, 100])])
def test_row_groups_are_bounded_by_rows_and_by_characters(tmp_path, monkeypatch, fields, groups):
    monkeypatch.setattr(writers, "GROUP_ROWS", 1000)
    monkeypatch.setattr(writers, "GROUP_CHARACTERS", 40_000_000)
    path = tmp_path / "rows.parquet"
    with standard_output(path), row_writer("parquet", COLUMNS) as write:
        for row in rows(2500, **fields):
            write(row)
    with parquet.ParquetFile(path) as file:
        assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == groups
        assert file.read(["entry"])["entry"].to_pylist() == [*range(1, 2501)]


def test_export_that_fails_leaves_no_complete_file(tmp_path):
    def export():
        with standard_output(path), row_writer("parquet", COLUMNS) as write:
            for row in rows(writers.GROUP_ROWS + 1):
                write(row)
            raise ConnectionError

    path = tmp_path / "rows.parquet"
    with pytest.raises(ConnectionError):
        export()
    assert path.stat().st_size > 0
    with pytest.raises(pyarrow.ArrowInvalid):
        parquet.read_table(path)


@pytest.mark.parametrize(
    ("row", "error"), [({"change": "0." + "1" * 19}, pyarrow.ArrowInvalid), ({"entry": 2**63}, OverflowError)]
)
def test_value_that_its_column_cannot_hold_is_an_error(tmp_path, row, error):
    with pytest.raises(error), standard_output(tmp_path / "rows.parquet"), row_writer("parquet", COLUMNS) as write:
        write(row)


def test_parquet_without_pyarrow_names_the_package_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with (
        pytest.raises(ValueError, match="pip install pyarrow"),
        standard_output(tmp_path / "rows.parquet"),
        row_writer("parquet", COLUMNS),
    ):
        pass


def test_parquet_is_not_written_to_a_terminal():
    near, far = os.openpty()
    with (
        pytest.raises(ValueError, match="redirect standard output"),
        os.fdopen(near),
        os.fdopen(far, "w") as terminal,
        redirect_stdout(terminal),
        row_writer("parquet", COLUMNS),
    ):
        pass
