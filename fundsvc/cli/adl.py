"""Commands on ADL, for operators: their output contains accounts."""

import time
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
import typer

from fundsvc.api.adl_answers.orders import OrderAnswer, order_answers
from fundsvc.api.adl_answers.preview import (
    PreviewAnswer,
    PreviewOrderAnswer,
    TakeoverPreviewAnswer,
    preview_answer,
    takeover_preview_answer,
    whole_preview,
)
from fundsvc.api.http.parameters import PAGE_ENTRIES_MAX
from fundsvc.api.visibility import OPERATOR
from fundsvc.app import at_primary, connected, prepared
from fundsvc.cli.commands import cli
from fundsvc.cli.running import DONE, Json, Terminal, print_json, run
from fundsvc.cli.tables import left, right, show_table
from fundsvc.config.settings import Config
from fundsvc.core.adl.order import State
from fundsvc.core.events import Fill, Rejection, Takeover
from fundsvc.metrics import Metrics
from fundsvc.readmodel.adl_books import AdlBooks
from fundsvc.store.adl import AdlReader
from fundsvc.store.database import Pool
from fundsvc.store.reader import Listed, Reader

adl = typer.Typer(help="ADL: orders, and the effect of a shortfall.", no_args_is_help=True)
cli.add_typer(adl, name="adl")

Waterfall = Literal["fund_then_adl", "adl_then_fund"]
Eligible = Literal["profitable", "all"]
AllocationRule = Literal["queue", "pro_rata", "capped"]
TakeoverMode = Literal["capacity", "adl", "fund"]


@adl.command()
def preview(
    context: typer.Context,
    symbol: str,
    side: Annotated[Literal["sell", "buy"], typer.Option(help="sell closes a long, buy closes a short.")],
    lots: Annotated[int, typer.Option(min=1)],
    bankruptcy_price: Annotated[str, typer.Option(help="Bankruptcy price of the liquidated position.")],
    price: Annotated[str | None, typer.Option(help="Price of the liquidation fill; omit it for a takeover.")] = None,
    takeover: Annotated[bool, typer.Option("--takeover", help="A takeover of the lots instead of a fill.")] = False,
    waterfall: Annotated[Waterfall | None, typer.Option(help="Waterfall instead of the contract's.")] = None,
    eligible: Annotated[Eligible | None, typer.Option(help="Candidates instead of the contract's.")] = None,
    allocation: Annotated[AllocationRule | None, typer.Option(help="Allocation instead of the contract's.")] = None,
    cap_share: Annotated[float | None, typer.Option(min=0.000001, max=1.0, help="Limit of capped.")] = None,
    mode: Annotated[TakeoverMode | None, typer.Option(help="Takeover mode instead of the contract's.")] = None,
    json: Json = False,
) -> None:
    """Show the effect that a liquidation fill or a takeover would have now, and the allocations of its ADL order; changes
    nothing.
    """
    if (price is None) != takeover:
        raise typer.BadParameter("a fill needs --price; a takeover has none")
    given = {"waterfall": waterfall, "eligible": eligible, "allocation": allocation, "cap_share": cap_share}
    changes = {name: value for name, value in given.items() if value is not None}

    async def command(config: Config) -> int:
        ts = time.time_ns() // 1_000_000
        event: Fill | Takeover = (
            Takeover(symbol, 1, side, lots, bankruptcy_price, ts)
            if price is None
            else Fill(symbol, 1, side, lots, price, bankruptcy_price, ts)
        )
        answer = await _preview(config, changes, mode, event)
        if json:
            print_json(answer)
        elif isinstance(answer, TakeoverPreviewAnswer):
            _print_takeover(answer)
        else:
            _print_fill(answer)
        return DONE

    run(context, command)


@adl.command()
def orders(
    context: typer.Context,
    symbol: str,
    state: Annotated[State | None, typer.Option(help="Only orders in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=PAGE_ENTRIES_MAX)] = 10,
    json: Json = False,
) -> None:
    """List a contract's ADL orders, newest first."""

    async def command(config: Config) -> int:
        async with prepared(config) as complete, connected(complete) as (pool, _):
            contract = (await _listed(pool, symbol)).contract
            ledger = AdlReader(pool)
            found = await ledger.orders(contract.symbol, count=limit, state=state)
            answers = await order_answers(ledger, found, contract, OPERATOR)
        if json:
            print_json(answers)
        else:
            _print_orders(answers)
        return DONE

    run(context, command)


async def _preview(
    config: Config, changes: dict[str, Any], mode: TakeoverMode | None, event: Fill | Takeover
) -> PreviewAnswer | TakeoverPreviewAnswer:
    """Computes the effect of an event under the recorded policy of its contract with `changes` and a takeover mode."""
    async with prepared(config) as complete, connected(at_primary(complete)) as (pool, client):
        found, reader = await _listed(pool, event.symbol), Reader(pool)
        books = AdlBooks(complete, pool, client, Metrics())
        await books.step(found.partition)
        recorded = (await reader.policies()).get(found.partition, complete.policy).of(event.symbol)
        takeover = msgspec.structs.replace(recorded.takeover, mode=mode or recorded.takeover.mode)
        of_contract = found.contract, found.partition, msgspec.structs.replace(recorded, takeover=takeover, **changes)
        show = partial(whole_preview, allocations_max=None, accounts=True)
        try:
            if isinstance(event, Fill):
                return await books.preview(*of_contract, event, partial(preview_answer, show=show))
            rate = (await reader.rates()).get(found.contract.settle_currency)
            answer = partial(takeover_preview_answer, lots=event.lots, show=show)
            return await books.preview_takeover(*of_contract, event, rate.price if rate else None, answer)
        except Rejection as rejection:
            raise ValueError(rejection.detail) from None


async def _listed(pool: Pool, symbol: str) -> Listed:
    for found in await Reader(pool).contracts(symbol):
        return found
    raise LookupError(f"no contract {symbol!r} is listed")


def _print_takeover(answer: TakeoverPreviewAnswer) -> None:
    console = Terminal(soft_wrap=True)
    forced = f", and {answer.forced:,} more because there is no candidate" if answer.forced else ""
    console.print(
        f"{answer.symbol}: expected loss {answer.expected_loss}, capacity {answer.capacity}: the fund takes over"
        f" {answer.accepted:,} of {answer.lots:,} lots{forced}; its equity is then {answer.equity}"
    )
    _print_order(console, answer.order, answer.mark_price)


def _print_fill(answer: PreviewAnswer) -> None:
    console = Terminal(soft_wrap=True)
    console.print(
        f"{answer.symbol}: a {answer.kind} of {answer.worth}; the fund pays {answer.covered}, its balance is then"
        f" {answer.balance}; uncovered {answer.uncovered}"
    )
    _print_order(console, answer.order, answer.mark_price)


def _print_order(console: Terminal, order: PreviewOrderAnswer | None, mark_price: str | None) -> None:
    if order is None:
        console.print("no ADL order")
        return
    console.print(
        f"ADL needs {order.lots_needed:,} lots of {order.reduce} positions at {order.price}:"
        f" {order.lots_asked:,} are allocated to {order.positions:,} positions, mark {mark_price}"
    )
    numbers_of = right("lots", "allocated", "entry", "unrealised PnL", "return", "leverage", "score")
    rows = []
    for found in order.allocations:
        numbers = (f"{number:.6g}" for number in (found.return_on_entry, found.leverage, found.score) if number is not None)
        rank = f"{found.rank:,} of {found.ranked:,}", str(found.lights), str(found.account)
        position = f"{found.lots:,}", f"{found.asked:,}", found.entry_price, str(found.unrealised_pnl)
        rows.append((*rank, *position, *numbers))
    show_table(console, (*left("rank", "lights", "account"), *numbers_of), rows)


def _print_orders(answers: list[OrderAnswer]) -> None:
    numbers = right("lots taken", "needed", "price", "uncovered", "recovered", "rest", "rounds")
    rows = []
    for order in answers:
        lots = f"{order.lots_taken:,}", f"{order.lots_needed:,}", order.price
        amounts = order.uncovered, order.recovered, order.rest, str(order.round)
        rows.append((str(order.adl), order.origin, str(order.cause), order.state, order.reduce, *lots, *amounts))
    show_table(Terminal(), (*left("order", "origin", "entry", "state", "reduce"), *numbers), rows)
