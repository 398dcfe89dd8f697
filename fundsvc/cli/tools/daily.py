"""The report of a day: balances, changes, shortfalls, orders and the audit, as one HTML file that loads nothing."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime
from fractions import Fraction
from html import escape
from importlib.resources import files
from itertools import groupby
from string import Template
from typing import NamedTuple

import msgspec

from fundsvc import __version__
from fundsvc.core.generations import public_symbol
from fundsvc.core.numbers import format_units
from fundsvc.store.archive.files import NO_FILES, ArchiveFiles
from fundsvc.store.database import Pool
from fundsvc.store.days import AuditOfContract, Days, OrderOfSpan, Shortfall
from fundsvc.store.reader import HOUR_MS, FundRow, Reader
from fundsvc.store.statistics import DAY_MS, Bucket, Statistics

SHORTFALLS = 10
"""The number of shortfalls per settlement currency."""


class FundOfDay(NamedTuple):
    """A fund over a day; amounts in atoms. `closings` are the balances at the end of each hour, `hours` its buckets."""

    symbol: str
    settle_currency: str
    decimals: int
    opening: int
    closings: Sequence[int]
    lowest: int
    outstanding: int
    hours: Sequence[Bucket]

    @property
    def closing(self) -> int:
        """The balance at the end of the day."""
        return self.closings[-1]

    def total(self, name: str) -> int:
        """Returns the sum of a column of the hours: credited, paid, uncovered or fills."""
        return sum(getattr(hour, name) for hour in self.hours)


class Day(NamedTuple):
    """What a report shows."""

    day: date
    funds: Sequence[FundOfDay]
    shortfalls: Sequence[Shortfall]
    orders: Sequence[OrderOfSpan]
    audits: Sequence[AuditOfContract]


async def day_of(pool: Pool, day: date, archived: ArchiveFiles = NO_FILES) -> Day:
    """Reads a day of UTC; raises StoreFault."""
    start = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
    days, statistics = Days(pool, archived), Statistics(pool, archived)
    rows = await Reader(pool).funds()
    funds = [await _fund_of_day(statistics, row, start) for row in rows]
    return Day(
        day,
        [fund for fund in funds if fund.hours or fund.closing or fund.outstanding],
        await days.largest_shortfalls(start, start + DAY_MS, SHORTFALLS),
        await days.orders(start, start + DAY_MS),
        await days.audits(),
    )


async def _fund_of_day(statistics: Statistics, row: FundRow, start: int) -> FundOfDay:
    end = start + DAY_MS
    buckets = await statistics.buckets(row.symbol, start, end, HOUR_MS)
    hours = [bucket for bucket in buckets if bucket.start >= start]
    opening = next((bucket.closing for bucket in reversed(buckets) if bucket.start < start), 0)
    closed = {bucket.start: bucket.closing for bucket in hours}
    closings, balance = [], opening
    for hour in range(start, end, HOUR_MS):
        balance = closed.get(hour, balance)
        closings.append(balance)
    at_end = await statistics.at(row.symbol, end - 1)
    lowest = min([opening, *(hour.lowest for hour in hours)])
    symbol, decimals = public_symbol(row.symbol), row.settle_decimals
    return FundOfDay(symbol, row.settle_currency, decimals, opening, closings, lowest, at_end.outstanding, hours)


def html_report(day: Day) -> str:
    """Returns a complete HTML page of about 5 MB: the chart library is part of it."""
    template = Template((files(__package__) / "daily.html").read_text())
    return template.substitute(
        day=day.day.isoformat(),
        warnings="".join(f'<p class="warning">{escape(text)}</p>' for text in _warnings(day)),
        currencies=_table(
            ("currency", "funds", "balance before", "balance after", "change", "credited", "paid", "uncovered", "outstanding"),
            (_currency_row(currency, list(funds)) for currency, funds in _by_currency(day.funds)),
        ),
        contracts=_table(
            (
                "contract",
                "balance before",
                "lowest",
                "balance after",
                "change",
                "credited",
                "paid",
                "uncovered",
                "outstanding",
                "fills",
            ),
            map(_fund_row, day.funds),
        ),
        shortfalls=_table(
            ("contract", "entry", "time", "closes", "lots", "price", "bankruptcy price", "paid", "uncovered"),
            map(_shortfall_row, day.shortfalls),
        ),
        orders=_table(
            ("contract", "order", "time", "origin", "reduces", "lots", "executed", "uncovered", "recovered", "state"),
            map(_order_row, day.orders),
        ),
        audits=_table(("contract", "result", "verified to its end"), map(_audit_row, day.audits)),
        created=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        version=__version__,
        series=_series(day),
        plotly=(files("plotly") / "package_data" / "plotly.min.js").read_text(),
    )


def _warnings(day: Day) -> Iterator[str]:
    """Yields what a reader must not miss."""
    dry = [fund.symbol for fund in day.funds if not fund.lowest and fund.opening]
    if dry:
        yield f"Ran dry: {', '.join(dry)}"
    owing = [fund.symbol for fund in day.funds if fund.outstanding]
    if owing:
        yield f"Losses are outstanding in {', '.join(owing)}"
    wrong = [audit.symbol for audit in day.audits if not audit.good]
    if wrong:
        yield f"The audit found differences in {', '.join(wrong)}"


def _by_currency(funds: Iterable[FundOfDay]) -> Iterator[tuple[str, Iterator[FundOfDay]]]:
    return groupby(sorted(funds, key=lambda fund: fund.settle_currency), lambda fund: fund.settle_currency)


def _currency_row(currency: str, funds: Sequence[FundOfDay]) -> Sequence[str]:
    decimals = max(fund.decimals for fund in funds)

    def total(amounts: Iterable[int]) -> int:
        """Returns the exact sum in atoms of the finest decimals; `amounts` are those of the funds in order."""
        return sum(amount * 10 ** (decimals - fund.decimals) for fund, amount in zip(funds, amounts, strict=True))

    before, after = total(fund.opening for fund in funds), total(fund.closing for fund in funds)
    moved = [total(fund.total(name) for fund in funds) for name in ("credited", "paid", "uncovered")]
    amounts = (before, after, after - before, *moved, total(fund.outstanding for fund in funds))
    return (currency, f"{len(funds):,}", *(format_units(amount, decimals) for amount in amounts))


def _fund_row(fund: FundOfDay) -> Sequence[str]:
    moved = map(fund.total, ("credited", "paid", "uncovered"))
    amounts = (fund.opening, fund.lowest, fund.closing, fund.closing - fund.opening, *moved, fund.outstanding)
    texts = [format_units(amount, fund.decimals) for amount in amounts]
    return (fund.symbol, texts[0], texts[1], f"{texts[2]} {fund.settle_currency}", *texts[3:], f"{fund.total('fills'):,}")


def _shortfall_row(found: Shortfall) -> Sequence[str]:
    prices = (format_units(price, found.price_decimals) for price in (found.price, found.bankruptcy_price))
    paid, uncovered = (format_units(amount, found.settle_decimals) for amount in (found.paid, found.uncovered))
    side = "a long" if found.side == "sell" else "a short"
    of_fill = (found.symbol, f"{found.entry}", _time(found.ts), side, f"{found.lots:,}", *prices)
    return (*of_fill, f"{paid} {found.settle_currency}", uncovered)


def _order_row(order: OrderOfSpan) -> Sequence[str]:
    uncovered, recovered = (format_units(amount, order.settle_decimals) for amount in (order.uncovered, order.recovered))
    lots = f"{order.lots:,}", f"{order.executed:,}"
    named = (order.symbol, f"{order.adl}", _time(order.ts), order.origin, f"{order.reduce}s", *lots)
    return (*named, f"{uncovered} {order.settle_currency}", recovered, order.state)


def _audit_row(audit: AuditOfContract) -> Sequence[str]:
    verified = f"{audit.verified_at.astimezone(UTC):%Y-%m-%d %H:%M}" if audit.verified_at else "never"
    return (audit.symbol, "no difference" if audit.good else "differences", verified)


def _time(ts: int) -> str:
    return f"{datetime.fromtimestamp(ts / 1000, UTC):%H:%M:%S}"


def _series(day: Day) -> str:
    """Returns the lines of the charts, one chart for each settlement currency, as JSON that may stand in a script element."""
    currencies: list[dict[str, object]] = []
    for currency, found in _by_currency(day.funds):
        funds = list(found)
        units = [10**fund.decimals for fund in funds]
        by_hour = zip(*(fund.closings for fund in funds), strict=True)
        balance = [float(sum(map(Fraction, hour, units))) for hour in by_hour]
        moved = {name: _per_hour(funds, name) for name in ("paid", "uncovered")}
        currencies.append({"currency": currency, "balance": balance, **moved})
    hours = [f"{day.day.isoformat()} {hour:02}:00" for hour in range(DAY_MS // HOUR_MS)]
    return msgspec.json.encode({"hours": hours, "currencies": currencies}).decode().replace("</", "<\\/")


def _per_hour(funds: Iterable[FundOfDay], name: str) -> list[float]:
    totals = [Fraction(0)] * (DAY_MS // HOUR_MS)
    for fund in funds:
        for hour in fund.hours:
            totals[hour.start % DAY_MS // HOUR_MS] += Fraction(getattr(hour, name), 10**fund.decimals)
    return list(map(float, totals))


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    if not body:
        return '<p class="note">None.</p>'
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
