"""Commands for reports: the entries of all contracts within a span of time, and the report of a day."""

import shutil
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from fundsvc.app import connected, prepared
from fundsvc.cli.commands import cli
from fundsvc.cli.running import DONE, Terminal, run
from fundsvc.cli.tools.daily import day_of, html_report
from fundsvc.cli.tools.writers import AnyForm, Row, row_writer
from fundsvc.config.settings import Config
from fundsvc.core.generations import generation_of, public_symbol
from fundsvc.core.numbers import INT64_MAX, format_units
from fundsvc.store.archive.files import ArchiveFiles
from fundsvc.store.database import Pool
from fundsvc.store.reader import EntryRow, FundRow, Reader

ENTRIES_PER_PAGE = 2000

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

ENTRY_COLUMNS = (
    *(
        "symbol",
        "generation",
        "entry",
        "seq",
        "kind",
        "change",
        "balance",
        "uncovered",
        "repaid",
        "settleCurrency",
        "side",
        "lots",
        "price",
    ),
    *("bankruptcyPrice", "tradeId", "orderId", "ts", "time", "closes", "forced"),
)
"""The columns of `entries`. `ts` is the engine's time in milliseconds, `time` the same in UTC. There is no account."""

FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S"]


@cli.command()
def entries(
    context: typer.Context,
    symbols: Annotated[list[str] | None, typer.Argument(help="Contracts; without one, all of them.")] = None,
    begin: Annotated[
        datetime | None, typer.Option("--from", formats=FORMATS, help="Time in UTC from which entries are written, included.")
    ] = None,
    end: Annotated[
        datetime | None, typer.Option("--to", formats=FORMATS, help="Time in UTC before which entries are written.")
    ] = None,
    form: Annotated[AnyForm, typer.Option("--format", help="Format; parquet needs pyarrow.")] = "csv",
) -> None:
    """Write the entries of contracts within a span of the engine's time, without accounts.

    `fundsvc export` writes the whole ledger of one contract, in the form that can be verified.
    """

    async def command(config: Config) -> int:
        start_ms, end_ms = _milliseconds(begin, 0), _milliseconds(end, INT64_MAX)
        if start_ms >= end_ms:
            raise ValueError(f"--from {begin} is not before --to {end}")
        async with prepared(config) as complete, connected(complete) as (pool, _):
            reader = Reader(pool, ArchiveFiles(complete.archive.location))
            funds = await _funds(pool, symbols or [])
            with row_writer(form, ENTRY_COLUMNS) as write:
                for fund in funds:
                    async for row in _rows(reader, fund, start_ms, end_ms - 1):
                        write(row)
        return DONE

    run(context, command)


@cli.command()
def report(
    context: typer.Context,
    day: Annotated[datetime | None, typer.Option(formats=FORMATS[:1], help="Day of UTC; by default yesterday.")] = None,
    output: Annotated[Path | None, typer.Option(help="HTML file; by default fundsvc-DAY.html.")] = None,
    pdf: Annotated[Path | None, typer.Option(help="Also write a PDF file; needs Chromium.")] = None,
    browser: Annotated[str, typer.Option(help="Program of Chromium; by default one of the path.")] = "",
) -> None:
    """Write the report of a day: balances, changes, shortfalls, ADL orders and the state of the audit."""

    async def command(config: Config) -> int:
        wanted = (day or datetime.now(UTC) - timedelta(days=1)).date()
        program = _browser(browser) if pdf else ""
        async with prepared(config) as complete, connected(complete) as (pool, _):
            found = await day_of(pool, wanted, ArchiveFiles(complete.archive.location))
        path = output or Path(f"fundsvc-{wanted.isoformat()}.html")
        path.write_text(html_report(found))
        if pdf:
            _print_pdf(program, path, pdf)
        Terminal().print(f"wrote {path}{f' and {pdf}' if pdf else ''}", soft_wrap=True)
        return DONE

    run(context, command)


def _milliseconds(moment: datetime | None, default: int) -> int:
    return default if moment is None else int(moment.replace(tzinfo=UTC).timestamp() * 1000)


async def _funds(pool: Pool, symbols: list[str]) -> list[FundRow]:
    """Returns the funds of contracts, of all without a name; raises LookupError for an unknown name."""
    reader = Reader(pool)
    if not symbols:
        return await reader.funds()
    found = [fund for symbol in symbols for fund in await reader.funds(symbol)]
    missing = set(symbols) - {public_symbol(fund.symbol) for fund in found} - {fund.symbol for fund in found}
    if missing:
        raise LookupError(f"no contract {min(missing)!r} is listed")
    return found


async def _rows(reader: Reader, fund: FundRow, start_ms: int, end_ms: int) -> AsyncIterator[Row]:
    last = 0
    while page := await reader.history(
        fund.symbol, count=ENTRIES_PER_PAGE, offset=last, forward=True, start_ms=start_ms, end_ms=end_ms
    ):
        for entry in page:
            yield _row(fund, entry)
        last = page[-1].entry


def _row(fund: FundRow, entry: EntryRow) -> Row:
    money, price, generation = fund.settle_decimals, fund.contract.price_decimals, generation_of(entry.symbol)
    amounts = {name: format_units(getattr(entry, name), money) for name in ("change", "balance", "uncovered", "repaid")}
    return {
        "symbol": generation.symbol,
        "generation": generation.number,
        "entry": entry.entry,
        "seq": entry.seq,
        "kind": entry.kind,
        **amounts,
        "settleCurrency": fund.settle_currency,
        "side": entry.side,
        "lots": entry.lots,
        "price": format_units(entry.price, price),
        "bankruptcyPrice": format_units(entry.bankruptcy_price, price),
        "tradeId": entry.trade_id,
        "orderId": entry.order_id,
        "ts": entry.ts,
        "time": datetime.fromtimestamp(entry.ts / 1000, UTC).isoformat(timespec="milliseconds"),
        "closes": entry.closes,
        "forced": entry.forced,
    }


def _browser(given: str) -> str:
    """Returns the program of Chromium; raises ValueError without one."""
    found = next((path for name in ((given,) if given else BROWSERS) if (path := shutil.which(name))), "")
    if not found:
        raise ValueError(f"there is no program {given or ' or '.join(BROWSERS)}: install Chromium, or omit --pdf")
    return found


def _print_pdf(program: str, page: Path, pdf: Path) -> None:
    """Prints a page to a PDF file; raises ValueError with what the browser reports if it fails."""
    with TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                program,
                "--headless",
                "--no-sandbox",  # it opens one file that this command wrote
                "--disable-gpu",
                f"--user-data-dir={profile}",
                "--no-pdf-header-footer",
                "--virtual-time-budget=10000",
                f"--print-to-pdf={pdf.absolute()}",
                page.absolute().as_uri(),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode or not pdf.exists():
        raise ValueError(f"{program} did not write {pdf}: {done.stderr.strip()[-300:]}")
