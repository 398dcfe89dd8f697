"""The command that simulates a pool of the mutual."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Column

from fundsvc.cli.mutual import mutual
from fundsvc.cli.running import DONE, Bars, Json, Terminal, print_json, run
from fundsvc.cli.tables import left, right, show_table
from fundsvc.config.settings import Config
from fundsvc.mutual.core.terms import XT_SHAPE, Terms
from fundsvc.mutual.simulation.market import Market
from fundsvc.mutual.simulation.report import (
    COHORT_COLUMNS,
    FARM_COLUMNS,
    cohort_row,
    described,
    expectation,
    farm_row,
    html_report,
)
from fundsvc.mutual.simulation.simulate import Outcome, simulate


@mutual.command("simulate")
def simulate_pool(
    context: typer.Context,
    accounts: Annotated[int, typer.Option(min=1, help="Insured accounts.")] = 200,
    days: Annotated[int, typer.Option(min=1, help="Days.")] = 365,
    ratio: Annotated[float, typer.Option(min=0, max=100, help="Insured profits, relative to insured losses.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the market: the same seed gives the same outcome.")] = 1,
    pool: Annotated[
        str | None, typer.Option(help="Pool of the configuration with the terms; else the preset xt_shape.")
    ] = None,
    term: Annotated[
        list[str] | None, typer.Option(help="A term as in the configuration, such as 'cap = 1000000'; may be repeated.")
    ] = None,
    report: Annotated[Path, typer.Option(help="HTML file to write.", dir_okay=False)] = Path("mutual-simulation.html"),
    json: Json = False,
) -> None:
    """Simulate a pool over a market of insured accounts: what policies are paid, and what farming gets back.

    Writes payout ratio, pool and live policies over time as an HTML report. Needs no server.
    """

    async def command(config: Config) -> int:
        market = Market(accounts=accounts, days=days, ratio=ratio, seed=seed)
        terms = changed(_terms_of(config, pool), term or ())
        with Bars() as bars:
            task = bars.add_task("days", total=days)
            outcome = simulate(market, terms, lambda: bars.advance(task))
        report.write_text(html_report(outcome))
        if json:
            print_json(_summary(outcome))
        else:
            _print_outcome(outcome, report)
        return DONE

    run(context, command)


def _terms_of(config: Config, pool: str | None) -> Terms:
    if pool is None:
        return XT_SHAPE
    if pool not in config.mutual.pools:
        raise LookupError(f"no pool {pool!r} is configured; mutual.pools has: {', '.join(config.mutual.pools) or 'none'}")
    return config.mutual.pools[pool]


def changed(terms: Terms, changes: Sequence[str]) -> Terms:
    """Returns terms with changes, each a line of TOML; raises ValueError if one is wrong."""
    given: dict[str, Any] = msgspec.to_builtins(terms)
    for line in changes:
        try:
            given |= tomllib.loads(line)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"--term {line!r} is not TOML such as 'cap = 1000000': {error}") from None
    try:
        return msgspec.convert(given, Terms, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"--term: {error}") from None


def _summary(outcome: Outcome) -> dict[str, Any]:
    """Returns the outcome without its days; amounts are in atoms."""
    return {
        "market": outcome.market,
        "decimals": outcome.rules.decimals,
        "losses": outcome.losses,
        "premiums": outcome.premiums,
        "expected": outcome.expected,
        "cohorts": [msgspec.structs.asdict(cohort) | {"ratio": cohort.ratio} for cohort in outcome.cohorts],
        "farms": [msgspec.structs.asdict(farm) | {"cost": farm.cost, "back": farm.back} for farm in outcome.farms],
        "warning": outcome.warning,
    }


def _print_outcome(outcome: Outcome, report: Path) -> None:
    console = Terminal(soft_wrap=True)
    if outcome.warning:
        console.print(outcome.warning, style="red")
    console.print(described(outcome))
    show_table(console, _columns(COHORT_COLUMNS), [cohort_row(cohort) for cohort in outcome.cohorts])
    console.print(expectation(outcome))
    if outcome.farms:
        show_table(console, _columns(FARM_COLUMNS), [farm_row(farm, outcome) for farm in outcome.farms])
    console.print(f"wrote {report}")


def _columns(names: Sequence[str]) -> list[Column]:
    first, *others = names
    return [*left(first), *right(*others)]
