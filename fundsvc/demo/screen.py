"""Draws the watch: a table that fills a terminal, or a plain line where there is none."""

import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.measure import Measurement
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fundsvc.core.fund.inventory import Inventory
from fundsvc.core.numbers import format_units
from fundsvc.demo.ledger import Order
from fundsvc.demo.watch import Event, FundView, Notable, View
from fundsvc.store.reader import EntryRow, FundRow

REFRESH_SECONDS = 0.25
"""Seconds between two pictures: one step of the market."""

COLUMNS = ("contract", "balance", "equity", "inventory", "outstanding", "state", "ADL lots taken", "entries", "last entry")
"""Titles of the table."""

DROPPED = ("entries", "equity", "ADL lots taken", "last entry", "outstanding")
"""Columns that a narrow terminal does not show, in the order in which the table drops them."""

UNLIMITED = 1_000
"""A width that no table reaches."""

PRICE_FORMAT = ",.5g"
"""Decimals of prices on the screen; a bankruptcy price may have twelve."""

PLAIN_SECONDS = 1.0
"""Seconds between two lines where output is no terminal."""

EVENT_LINES_MIN = 3
"""Lines of events that the tokens leave room for."""

CHROME_LINES = 9
"""Lines of the screen that are neither rows of the table nor notable events: headings, rules, frame and footer."""

KIND_STYLES = {
    "surplus": "green",
    "flat": "dim",
    "shortfall": "red",
    "refund": "cyan",
    "cover": "red",
    "takeover": "yellow",
    "deleverage": "magenta",
    "carry_out": "blue",
    "carry_in": "blue",
}
EVENT_STYLES = {
    Notable.PAID: "yellow",
    Notable.DRAINED: "bold red",
    Notable.ORDERED: "bold magenta",
    Notable.ANOTHER_ROUND: "magenta",
    Notable.DONE: "green",
    Notable.UNCOVERED: "bold red",
    Notable.RETURNED: "magenta",
    Notable.TAKEN: "yellow",
    Notable.FORCED: "bold red",
    Notable.UNWOUND: "cyan",
    Notable.REPAID: "bold green",
}


LOTS = {
    Notable.TAKEN: "took over {:,} lots that the market did not take",
    Notable.FORCED: "took over {:,} lots that ADL could not deleverage",
    Notable.UNWOUND: "unwound {:,} lots in the market",
}
"""The words for events whose amount is lots."""


class Visitor(NamedTuple):
    """A token with which to try the page: its role, the account of a trader, and the token."""

    role: str
    account: str
    token: str

    @property
    def command(self) -> str:
        """The command that mints such a token."""
        return f"fundsvc token --role {self.role}" + (f" --account {self.account}" if self.account else "")


class Surroundings(NamedTuple):
    """The process as the screen shows it: its URL, its log file, the monotonic time of its start in seconds, and tokens."""

    address: str
    logs: Path
    started: float
    visitors: Sequence[Visitor] = ()

    @property
    def page(self) -> str:
        """The address of the page."""
        return f"{self.address}/"

    def uptime(self) -> str:
        """Hours, minutes and seconds."""
        return str(timedelta(seconds=int(time.monotonic() - self.started)))


Draw = Callable[[View], None]


@contextmanager
def drawing(surroundings: Surroundings) -> Iterator[tuple[Draw, float]]:
    """Yields a function that draws on standard output, and the seconds between two calls."""
    console = Console()
    if not console.is_terminal or console.is_dumb_terminal:
        console.print(f"fundsvc demo: open {surroundings.page} (logs in {surroundings.logs})", highlight=False, soft_wrap=True)
        for visitor in surroundings.visitors:
            bearer = f"{visitor.role} {visitor.account}".rstrip()
            console.print(f"token of {bearer}: {visitor.token}", highlight=False, soft_wrap=True)
        yield (lambda view: print(_line(view, surroundings), flush=True)), PLAIN_SECONDS
        return
    pictures: list[RenderableType] = []

    def draw(view: View) -> None:
        pictures[:] = [picture(view, surroundings, console)]
        live.update(pictures[0], refresh=True)

    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            yield draw, REFRESH_SECONDS
    finally:
        console.print(*pictures)


def picture(view: View, surroundings: Surroundings, console: Console) -> RenderableType:
    """Returns the screen for a console, as high as the console."""
    room = console.height - CHROME_LINES - len(view.funds)
    tokens = Text("\n").join(_token(visitor) for visitor in surroundings.visitors)
    if room - len(console.render_lines(tokens)) < EVENT_LINES_MIN:
        tokens = Text("\n").join(_mint(visitor) for visitor in surroundings.visitors)
    lines = max(1, room - len(console.render_lines(tokens)))
    news = Text("\n").join(_news(event) for event in view.events[-lines:]) if view.events else Text("no events yet", "dim")
    news.no_wrap, news.overflow = True, "ellipsis"
    return Group(
        _header(view, surroundings),
        tokens,
        funds_table(view.funds, console),
        Panel(news, title="events", title_align="left", border_style="dim", height=lines + 2),
        Text(f"logs: {surroundings.logs}   Ctrl-C stops; the next start continues here", "dim", overflow="ellipsis"),
    )


def _token(visitor: Visitor) -> Text:
    """A token for the page's forms, which ignore the line breaks."""
    return Text.assemble((f"token of {visitor.role} {visitor.account}".rstrip(), "dim"), " ", visitor.token, overflow="fold")


def _mint(visitor: Visitor) -> Text:
    """The command for a token, where the terminal has no room for the token itself."""
    return Text.assemble(("token: ", "dim"), visitor.command, overflow="ellipsis", no_wrap=True)


def _header(view: View, surroundings: Surroundings) -> Table:
    header = Table.grid(expand=True)
    header.add_column()
    header.add_column(justify="right")
    header.add_row(
        Text.assemble(("fundsvc demo", "bold"), "  ", (surroundings.page, "cyan")),
        f"up {surroundings.uptime()}",
    )
    entries = sum(shown.fund.entry for shown in view.funds)
    header.add_row(f"{view.fills_per_second:.0f} fills/s, {entries:,} entries in the ledger", f"stream lag {view.lag} messages")
    return header


def funds_table(funds: Sequence[FundView], console: Console) -> Table:
    """Returns the table of the funds, with the columns for which the console is wide enough."""
    unlimited = console.options.update(width=UNLIMITED)
    for count in range(len(DROPPED) + 1):
        table = _table_without(DROPPED[:count], funds)
        if Measurement.get(console, unlimited, table).maximum <= console.width:
            break
    table.expand = True
    return table


def _table_without(dropped: Container[str], funds: Sequence[FundView]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    shown = [place for place, title in enumerate(COLUMNS) if title not in dropped]
    for place in shown:
        title = COLUMNS[place]
        table.add_column(title, justify="left" if title in {"contract", "state"} else "right", no_wrap=True)
    for fund in funds:
        cells = _cells(fund)
        table.add_row(*(cells[place] for place in shown))
    return table


def _cells(shown: FundView) -> list[str | Text]:
    fund = shown.fund
    return [
        Text(fund.symbol, "bold"),
        f"{_amount(fund, fund.balance)} {fund.settle_currency:<4}",
        _equity(shown) if shown.inventory else Text("-", "dim"),
        Text(_held(shown.inventory), "yellow") if shown.inventory else Text("-", "dim"),
        Text(_amount(fund, fund.outstanding), "bold red") if fund.outstanding else Text("-", "dim"),
        _state(shown),
        _taken(shown) if shown.orders else Text("-", "dim"),
        f"{fund.entry:,}",
        _last_entry(fund, shown.last) if shown.last else "",
    ]


def _equity(shown: FundView) -> Text:
    return Text(_amount(shown.fund, shown.equity), "bold red" if shown.equity < 0 else "")


def _held(inventory: Inventory) -> str:
    """The held lots by side."""
    return ", ".join(f"{holding.name} {holding.lots:,}" for holding in inventory.sides() if holding.lots)


def _state(shown: FundView) -> Text:
    if shown.fund.closed:
        return Text("settled", "dim")
    if shown.orders:
        return Text("adl", "bold magenta")
    return Text("uncovered", "bold red") if shown.fund.outstanding else Text("ok", "green")


def _taken(shown: FundView) -> Text:
    """Executed and needed lots of the open orders."""
    taken, needed = sum(order.executed for order in shown.orders), sum(order.lots for order in shown.orders)
    return Text(f"{taken:,} of {needed:,}", "magenta")


def _last_entry(fund: FundRow, entry: EntryRow) -> Text:
    """The kind of an entry and its change, including an uncovered part."""
    worth = entry.change + entry.repaid - entry.uncovered
    return Text(f"{entry.kind} {_amount(fund, worth, sign='+')}", KIND_STYLES[entry.kind])


def _news(event: Event) -> Text:
    fund = event.fund
    return Text.assemble(
        (time.strftime("%H:%M:%S  ", time.localtime(event.at)), "dim"),
        (f"{fund.symbol:<10}", "bold"),
        (_sentence(event), EVENT_STYLES[event.what]),
    )


def _sentence(event: Event) -> str:
    if event.order:
        return f"ADL order {event.order.adl}{_order_words(event.what, event.order, event.fund)}"
    if event.what in LOTS:
        return LOTS[event.what].format(event.amount)
    amount = _money(event.fund, event.amount)
    match event.what:
        case Notable.PAID if event.count > 1:
            return f"paid {event.count} shortfalls, {amount} in total"
        case Notable.PAID:
            return f"paid a shortfall of {amount}"
        case Notable.DRAINED:
            return "fund drained: its balance is 0"
        case _:
            return f"surplus has repaid the outstanding amount, {amount}"


def _order_words(what: Notable, order: Order, fund: FundRow) -> str:
    if what in {Notable.DONE, Notable.RETURNED} and order.origin != "shortfall":
        return f" {what}: {order.executed:,} of {order.lots:,} lots executed"
    match what:
        case Notable.ORDERED:
            price = Decimal(order.price).scaleb(-order.price_decimals)
            reason = _money(fund, order.uncovered) if order.origin == "shortfall" else f"the {order.origin}"
            what_for = f"{order.lots:,} {order.reduce} lots at {price:{PRICE_FORMAT}} for {reason}"
            return f": {what_for}; round {order.round} reduces {_accounts(order)}"
        case Notable.ANOTHER_ROUND:
            return f": round {order.round} reduces {_accounts(order)} by the remaining {order.lots - order.executed:,} lots"
        case Notable.DONE:
            refund = f", refund {_exact(fund, order.refund)}" if order.refund else ""
            return f" done: recovered {_money(fund, order.recovered)}{refund}"
        case _:
            left = f"{_money(fund, order.uncovered - order.recovered)} outstanding"
            if not order.accounts:
                return f" uncovered: no candidates, {left}"
            return f" uncovered after {order.round} rounds: recovered {_money(fund, order.recovered)}, {left}"


def _accounts(order: Order) -> str:
    return "1 account" if order.accounts == 1 else f"{order.accounts} accounts"


def _line(view: View, surroundings: Surroundings) -> str:
    """All funds in one line."""
    entries = sum(shown.fund.entry for shown in view.funds)
    pace = (
        f"up {surroundings.uptime()}, {view.fills_per_second:.0f} fills/s, stream lag {view.lag} messages, {entries} entries:"
    )
    return " ".join([pace, *map(_fund_words, view.funds)])


def _fund_words(shown: FundView) -> str:
    fund = shown.fund
    outstanding = f" ({_amount(fund, fund.outstanding)} outstanding)" if fund.outstanding else ""
    held = f" (holds {_held(shown.inventory)}, equity {_money(fund, shown.equity)})" if shown.inventory else ""
    adl = f" (ADL has taken {_taken(shown)} lots)" if shown.orders else ""
    return f"{fund.symbol} {_money(fund, fund.balance)}{held}{outstanding}{adl}"


def _money(fund: FundRow, atoms: int) -> str:
    return f"{_amount(fund, atoms)} {fund.settle_currency}"


def _exact(fund: FundRow, atoms: int) -> str:
    """An exact amount, for amounts that may be below a cent."""
    return f"{format_units(atoms, fund.settle_decimals)} {fund.settle_currency}"


def _amount(fund: FundRow, atoms: int, *, sign: str = "") -> str:
    """A rounded amount: two decimals for dollars, six for coins."""
    decimals = 2 if fund.settle_currency.startswith("USD") else 6
    return f"{Decimal(atoms).scaleb(-fund.settle_decimals):{sign},.{decimals}f}"
