"""Commands about auto-deleveraging, for the operator: adl preview names accounts."""

import time
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
import typer
from rich.table import Column, Table

from fundsvc.api.adl_answers.orders import OrderAnswer, order_answers
from fundsvc.api.adl_answers.preview import PreviewAnswer, preview_answer, whole_preview
from fundsvc.api.http.parameters import PAGE_ENTRIES_MAX
from fundsvc.api.visibility import OPERATOR
from fundsvc.app import connected, prepared
from fundsvc.cli.running import DONE, Json, Terminal, at_primary, cli, print_json, run
from fundsvc.config.settings import Config
from fundsvc.core.adl.order import State
from fundsvc.core.events import Fill, Rejection
from fundsvc.metrics import Metrics
from fundsvc.readmodel.adl_books import Follower
from fundsvc.store.adl import Deleveragings
from fundsvc.store.database import Pool
from fundsvc.store.reader import Listed, Reader

adl = typer.Typer(help="Auto-deleveraging: its orders, and what a shortfall would do.", no_args_is_help=True)
cli.add_typer(adl, name="adl")

Waterfall = Literal["fund_then_adl", "adl_then_fund"]
Eligible = Literal["profitable", "all"]
AllocationRule = Literal["queue", "pro_rata", "capped"]


@adl.command()
def preview(
    context: typer.Context,
    symbol: str,
    side: Annotated[Literal["sell", "buy"], typer.Option(help="sell closes a long, buy a short.")],
    lots: Annotated[int, typer.Option(min=1)],
    price: Annotated[str, typer.Option(help="What the liquidation is closed at.")],
    bankruptcy_price: Annotated[str, typer.Option()],
    waterfall: Annotated[Waterfall | None, typer.Option(help="Instead of the contract's, as the next three.")] = None,
    eligible: Annotated[Eligible | None, typer.Option()] = None,
    allocation: Annotated[AllocationRule | None, typer.Option()] = None,
    cap_share: Annotated[float | None, typer.Option(min=0.000001, max=1.0)] = None,
    json: Json = False,
) -> None:
    """Show what a liquidation fill would do now, and who would be reduced by how much; nothing is touched."""
    given = {"waterfall": waterfall, "eligible": eligible, "allocation": allocation, "cap_share": cap_share}
    changes = {name: value for name, value in given.items() if value is not None}

    async def command(config: Config) -> int:
        fill = Fill(symbol, 1, side, lots, price, bankruptcy_price, time.time_ns() // 1_000_000)
        answer = await _preview(config, changes, fill)
        if json:
            print_json(answer)
        else:
            _print_preview(answer)
        return DONE

    run(context, command)


@adl.command()
def orders(
    context: typer.Context,
    symbol: str,
    state: Annotated[State | None, typer.Option(help="Only those in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=PAGE_ENTRIES_MAX)] = 10,
    json: Json = False,
) -> None:
    """List a contract's ADL orders, newest first."""

    async def command(config: Config) -> int:
        async with prepared(config) as complete, connected(complete) as (pool, _):
            contract = (await _listed(pool, symbol)).contract
            ledger = Deleveragings(pool)
            found = await ledger.orders(symbol, count=limit, state=state)
            answers = await order_answers(ledger, found, contract, OPERATOR)
        if json:
            print_json(answers)
        else:
            _print_orders(answers)
        return DONE

    run(context, command)


async def _preview(config: Config, changes: dict[str, Any], fill: Fill) -> PreviewAnswer:
    """What a fill would do under the recorded policy of its contract, changed as asked."""
    async with prepared(config) as complete, connected(at_primary(complete)) as (pool, client):
        found = await _listed(pool, fill.symbol)
        follower = Follower(complete, pool, client, Metrics())
        await follower.step(found.partition)
        recorded = (await Reader(pool).policies()).get(found.partition, complete.policy)
        policy = msgspec.structs.replace(recorded.of(fill.symbol), **changes)
        answer = partial(preview_answer, show=partial(whole_preview, allocations_max=None, accounts=True))
        try:
            return await follower.preview(found.contract, found.partition, policy, fill, answer)
        except Rejection as rejection:
            raise ValueError(rejection.detail) from None


async def _listed(pool: Pool, symbol: str) -> Listed:
    for found in await Reader(pool).contracts(symbol):
        return found
    raise LookupError(f"no contract {symbol!r} is listed")


def _print_preview(answer: PreviewAnswer) -> None:
    console = Terminal(soft_wrap=True)
    console.print(
        f"{answer.symbol}: a {answer.kind} worth {answer.worth}; the fund pays {answer.covered} and has {answer.balance} then;"
        f" uncovered {answer.uncovered}"
    )
    order = answer.order
    if order is None:
        console.print("nobody is deleveraged")
        return
    console.print(
        f"ADL needs {order.lots_needed:,} lots of {order.reduce} positions at {order.price}:"
        f" {order.lots_asked:,} are asked of {order.positions:,} positions, mark {answer.mark_price}"
    )
    account = Column("account", overflow="fold")
    table = Table("rank", "lights", account, "lots", "asked", "entry", "unrealised PnL", "return", "leverage", "score")
    for asked in order.allocations:
        numbers = (f"{number:.6g}" for number in (asked.return_on_entry, asked.leverage, asked.score) if number is not None)
        place = f"{asked.rank:,} of {asked.ranked:,}", str(asked.lights), str(asked.account)
        position = f"{asked.lots:,}", f"{asked.asked:,}", asked.entry_price, str(asked.unrealised_pnl)
        table.add_row(*place, *position, *numbers)
    console.print(table)


def _print_orders(answers: list[OrderAnswer]) -> None:
    table = Table(
        "order", "entry", "state", "reduce", "lots taken", "needed", "price", "uncovered", "recovered", "rest", "rounds"
    )
    for order in answers:
        lots = f"{order.lots_taken:,}", f"{order.lots_needed:,}", order.price
        amounts = order.uncovered, order.recovered, order.rest, str(order.round)
        table.add_row(str(order.adl), str(order.cause), order.state, order.reduce, *lots, *amounts)
    Terminal().print(table)
