"""The command that computes and explains a fund's target size."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from fundsvc.api.targets import TargetAnswer, changed, explained_target, target_answer
from fundsvc.app import at_primary, connected, prepared
from fundsvc.cli.commands import cli
from fundsvc.cli.running import DONE, Json, Terminal, print_json, run
from fundsvc.cli.tables import right, show_table
from fundsvc.concurrency.exclusive import Exclusive
from fundsvc.config.settings import Config
from fundsvc.core.fund.fullness import RuleName, TargetPolicy
from fundsvc.core.fund.target_sizing import Cover, OpenInterest, ValueAtRisk
from fundsvc.engine.target_sizing import TargetRequest
from fundsvc.metrics import Metrics
from fundsvc.readmodel.adl_books import AdlBooks
from fundsvc.store.reader import Reader
from fundsvc.store.target_sizes import Targets


@cli.command()
def target(
    context: typer.Context,
    symbol: str,
    rule: Annotated[RuleName | None, typer.Option(help="Rule instead of the contract's.")] = None,
    period_hours: Annotated[
        int | None, typer.Option(help="value_at_risk: length of a period, instead of the contract's.")
    ] = None,
    history_days: Annotated[int | None, typer.Option(help="value_at_risk: length of the history.")] = None,
    cost_of_capital: Annotated[float | None, typer.Option(help="value_at_risk: of a unit of balance for a period.")] = None,
    cost_of_loss: Annotated[float | None, typer.Option(help="value_at_risk: of a unit that the fund cannot pay.")] = None,
    positions: Annotated[int | None, typer.Option(help="cover: number of largest positions of a side.")] = None,
    move: Annotated[float | None, typer.Option(help="cover: move of the mark against them, as a share of it.")] = None,
    share: Annotated[float | None, typer.Option(help="open_interest: share of its value at the mark.")] = None,
    json: Json = False,
) -> None:
    """Compute the target size of a contract's fund from the current ledger and book, and explain it.

    Options replace parameters of the contract's policy. The command stores nothing.
    """
    costs = {"cost_of_capital": cost_of_capital, "cost_of_loss": cost_of_loss}
    others = {"rule": rule, "period_hours": period_hours, "history_days": history_days, **costs}
    others |= {"positions": positions, "move": move, "share": share}

    async def command(config: Config) -> int:
        given = {name: value for name, value in others.items() if value is not None}
        answer = await _find(config, symbol, changed(config.target.of(symbol), given))
        if json:
            print_json(answer)
        else:
            _print(answer)
        return DONE

    run(context, command)


async def _find(config: Config, symbol: str, policy: TargetPolicy) -> TargetAnswer:
    async with prepared(config) as complete, connected(at_primary(complete)) as (pool, client):
        for fund in await Reader(pool).funds(symbol):
            books = AdlBooks(complete, pool, client, Metrics())
            await books.step(fund.partition)
            view = books.view(fund.contract, fund.partition)
            request = TargetRequest(fund.contract, view.book, policy, Exclusive())
            return target_answer(fund, await explained_target(Targets(pool), request))
    raise LookupError(f"no contract {symbol!r} is listed")


def _print(answer: TargetAnswer) -> None:
    console = Terminal(soft_wrap=True)
    currency = answer.settle_currency
    if answer.target is None:
        console.print(f"{answer.symbol} has no target under the rule {answer.rule}: {answer.reason}")
        return
    console.print(f"{answer.symbol} has the target {answer.target} {currency} under the rule {answer.rule}")
    if answer.reason:
        console.print(answer.reason, style="yellow")
    match answer.explanation:
        case ValueAtRisk() as explained:
            _print_value_at_risk(console, explained, currency)
        case Cover() as explained:
            _print_cover(console, explained, currency)
        case OpenInterest() as explained:
            console.print(
                f"{explained.share:.6g} of {explained.notional} {currency}, the value of {explained.lots:,} open lots"
                f" at the mark {explained.mark_price}"
            )
    _print_fullness(console, answer)


def _print_value_at_risk(console: Terminal, explained: ValueAtRisk, currency: str) -> None:
    start, end = (f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M}" for ms in (explained.start, explained.end))
    console.print(
        f"{explained.periods:,} periods of {explained.period_hours} h from {start} to {end} UTC, {explained.deficits:,} of them"
        f" with deficits, the largest {explained.largest_deficit} {currency}\n"
        f"level 1 - {explained.cost_of_capital:.6g} / {explained.cost_of_loss:.6g} = {explained.level:.6g}:"
        f" number {explained.rank:,} of the periods' deficits, counted from the largest"
    )


def _print_cover(console: Terminal, explained: Cover, currency: str) -> None:
    console.print(
        f"the largest {explained.side} positions, if the mark {explained.mark_price} moves by {explained.move:.6g} to"
        f" {explained.stressed_price}; the other side would lose {explained.loss_of_other_side} {currency}"
    )
    rows = [(f"{held.lots:,}", held.entry_price, held.margin, held.unrealised_pnl, held.loss) for held in explained.positions]
    show_table(console, right("lots", "entry", "margin", "PnL at that mark", "loss beyond margin"), rows)


def _print_fullness(console: Terminal, answer: TargetAnswer) -> None:
    full = "no fullness, because the target is 0" if answer.fullness is None else f"fullness {answer.fullness:.6g}"
    console.print(f"balance {answer.balance} {answer.settle_currency}: {full}")
    if answer.leverage_cap is None:
        console.print("no recommended leverage: the listing has no maxLeverage")
        return
    console.print(
        f"recommended leverage {answer.leverage_cap:.6g}: from {answer.leverage_min:.6g} at a fullness of"
        f" {answer.fullness_low:.6g} to the contract's {answer.leverage_max:.6g} at {answer.fullness_high:.6g}"
    )
