"""Draws the watch: a table that fills a terminal, or a plain line where there is none."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fundsvc.demo.watch import Event, FundView, Notable, View
from fundsvc.store.reader import EntryRow, FundRow

REFRESH_SECONDS = 0.25
"""As often as the market moves."""

PLAIN_SECONDS = 1.0
"""A log does not need more lines than this."""

CHROME_LINES = 9
"""What the screen holds besides the rows of its table and the lines of its news: headings, rules, frame and footer."""

KIND_STYLES = {"surplus": "green", "flat": "dim", "shortfall": "red", "refund": "cyan"}
EVENT_STYLES = {
    Notable.PAID: "yellow",
    Notable.DRAINED: "bold red",
    Notable.ESCALATED: "bold magenta",
    Notable.REPAID: "bold green",
}


class Surroundings(NamedTuple):
    """What a picture says of the process: where it listens, where its logs are, since when it runs (monotonic seconds)."""

    address: str
    logs: Path
    started: float

    def uptime(self) -> str:
        """Hours, minutes and seconds."""
        return str(timedelta(seconds=int(time.monotonic() - self.started)))


Draw = Callable[[View], None]


@contextmanager
def drawing(surroundings: Surroundings) -> Iterator[tuple[Draw, float]]:
    """How to draw on standard output, and how often, in seconds. A terminal is left with the last picture."""
    console = Console()
    if not console.is_terminal or console.is_dumb_terminal:
        console.print(f"fundsvc demo at {surroundings.address}, logs in {surroundings.logs}", highlight=False, soft_wrap=True)
        yield (lambda view: print(_line(view, surroundings), flush=True)), PLAIN_SECONDS
        return
    pictures: list[RenderableType] = []

    def draw(view: View) -> None:
        pictures[:] = [_picture(view, surroundings, console.height)]
        live.update(pictures[0], refresh=True)

    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            yield draw, REFRESH_SECONDS
    finally:
        console.print(*pictures)


def _picture(view: View, surroundings: Surroundings, height: int) -> RenderableType:
    lines = max(1, height - CHROME_LINES - len(view.funds))
    news = Text("\n").join(_news(event) for event in view.events[-lines:]) if view.events else Text("quiet so far", "dim")
    return Group(
        _header(view, surroundings),
        _table(view.funds),
        Panel(news, title="what happened", title_align="left", border_style="dim", height=lines + 2),
        Text(f"logs: {surroundings.logs}   Ctrl-C stops; the next start goes on from here", "dim", overflow="ellipsis"),
    )


def _header(view: View, surroundings: Surroundings) -> Table:
    header = Table.grid(expand=True)
    header.add_column()
    header.add_column(justify="right")
    header.add_row(
        Text.assemble(("fundsvc demo", "bold"), "  ", (f"{surroundings.address}/api/v1/insurance-fund", "cyan")),
        f"up {surroundings.uptime()}",
    )
    entries = sum(shown.fund.entry for shown in view.funds)
    header.add_row(f"{view.fills_per_second:.0f} fills/s, {entries:,} entries in the ledger", f"stream lag {view.lag} messages")
    return header


def _table(funds: Sequence[FundView]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False, collapse_padding=True)
    for title in ("contract", "settles in", "balance", "since start", "outstanding", "state", "entries", "last fill"):
        is_number = title in {"balance", "since start", "outstanding", "entries", "last fill"}
        table.add_column(title, justify="right" if is_number else "left", no_wrap=True)
    for shown in funds:
        table.add_row(*_cells(shown))
    return table


def _cells(shown: FundView) -> list[str | Text]:
    fund = shown.fund
    uncovered = Text(_amount(fund, fund.outstanding), "bold red"), Text("uncovered", "bold red")
    outstanding, state = uncovered if fund.outstanding else (Text("-", "dim"), Text("ok", "green"))
    return [
        Text(fund.symbol, "bold"),
        fund.settle_currency,
        _amount(fund, fund.balance),
        Text(_amount(fund, shown.change, sign="+"), "green" if shown.change >= 0 else "red"),
        outstanding,
        state,
        f"{fund.entry:,}",
        _last_fill(fund, shown.last) if shown.last else "",
    ]


def _last_fill(fund: FundRow, entry: EntryRow) -> Text:
    """Its kind and what it was worth to the fund, paid or not."""
    worth = entry.change + entry.repaid - entry.uncovered
    return Text(f"{entry.kind} {_amount(fund, worth, sign='+')}", KIND_STYLES[entry.kind])


def _news(event: Event) -> Text:
    fund = event.fund
    return Text.assemble(
        (time.strftime("%H:%M:%S  ", time.localtime(event.at)), "dim"),
        (f"{fund.symbol:<10}", "bold"),
        (_sentence(event, f"{_amount(fund, event.amount)} {fund.settle_currency}"), EVENT_STYLES[event.what]),
    )


def _sentence(event: Event, amount: str) -> str:
    many = event.count > 1
    match event.what:
        case Notable.PAID:
            return f"paid {event.count} shortfalls, {amount} in all" if many else f"paid a shortfall of {amount}"
        case Notable.DRAINED:
            return "fund drained: its last unit is paid"
        case Notable.ESCALATED:
            orders = f"{event.count} ADL orders recorded" if many else "ADL order recorded"
            return f"{orders}: {amount} uncovered"
        case Notable.REPAID:
            return "surplus has repaid all that was outstanding"


def _line(view: View, surroundings: Surroundings) -> str:
    """All funds in one line."""
    entries = sum(shown.fund.entry for shown in view.funds)
    pace = (
        f"up {surroundings.uptime()}, {view.fills_per_second:.0f} fills/s, stream lag {view.lag} messages, {entries} entries:"
    )
    return " ".join([pace, *(_fund_words(shown.fund) for shown in view.funds)])


def _fund_words(fund: FundRow) -> str:
    outstanding = f" ({_amount(fund, fund.outstanding)} outstanding)" if fund.outstanding else ""
    return f"{fund.symbol} {_amount(fund, fund.balance)} {fund.settle_currency}{outstanding}"


def _amount(fund: FundRow, atoms: int, *, sign: str = "") -> str:
    """Rounded for the eye: cents of a dollar, millionths of a coin."""
    decimals = 2 if fund.settle_currency.startswith("USD") else 6
    return f"{Decimal(atoms).scaleb(-fund.settle_decimals):{sign},.{decimals}f}"
