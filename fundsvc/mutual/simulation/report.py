"""The outcome of a simulation as one HTML file, which loads nothing: the chart library is part of it."""

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files
from string import Template

import msgspec

from fundsvc.mutual.core.terms import PPM, Terms
from fundsvc.mutual.simulation.simulate import Cohort, Farmed, Outcome

COHORT_COLUMNS = ("issued in", "policies", "still live", "paid of the face")
FARM_COLUMNS = ("pairs from day, a day's loss", "lost", "premiums", "paid back")


def html_report(outcome: Outcome) -> str:
    """Returns a complete HTML page of about 5 MB."""
    template = Template((files(__package__) / "report.html").read_text())
    return template.substitute(
        market=escape(described(outcome)),
        warning=f'<p class="warning">{escape(outcome.warning)}</p>' if outcome.warning else "",
        cohorts=_table(COHORT_COLUMNS, map(cohort_row, outcome.cohorts)),
        expected=escape(expectation(outcome)),
        bound=share_of_loss(outcome.rules.face * outcome.rules.cap_rate / PPM / outcome.rules.threshold),
        farms=_table(FARM_COLUMNS, (farm_row(farm, outcome) for farm in outcome.farms)),
        terms=_table(("key", "value"), _term_rows(outcome.terms)),
        series=_series(outcome),
        plotly=(files("plotly") / "package_data" / "plotly.min.js").read_text(),
    )


def described(outcome: Outcome) -> str:
    """Returns the market in a sentence."""
    market = outcome.market
    return (
        f"{market.accounts:,} accounts, {market.days:,} days, insured profits {market.ratio:g} times the losses,"
        f" seed {market.seed}: {outcome.amount(outcome.losses)} of qualifying losses,"
        f" {outcome.amount(outcome.premiums)} of premiums in the pool."
    )


def expectation(outcome: Outcome) -> str:
    """Returns what premiums and losses let a policy expect, in a sentence."""
    if outcome.expected is None:
        return "No loss qualified."
    return (
        f"Premiums were {outcome.expected:.1%} of the losses: so much of its face a policy is paid in the long run,"
        f" at most its cap of {outcome.rules.cap_rate / PPM:.1%}."
    )


def cohort_row(cohort: Cohort) -> Sequence[str]:
    """Returns the cells of a cohort, see COHORT_COLUMNS. Days count from 1."""
    ratio = "" if cohort.ratio is None else f"{cohort.ratio:.1%}"
    return (f"days {cohort.first_day + 1} to {cohort.end_day}", f"{cohort.policies:,}", f"{cohort.open:,}", ratio)


def farm_row(farm: Farmed, outcome: Outcome) -> Sequence[str]:
    """Returns the cells of pairs that farmed, see FARM_COLUMNS."""
    loss = "one threshold" if farm.size == "threshold" else "like the market's"
    amounts = (outcome.amount(farm.lost), f"{share_of_loss(farm.cost)} L", f"{share_of_loss(farm.back)} L")
    return (f"{farm.first_day + 1}, {loss}", *amounts)


def share_of_loss(share: float) -> str:
    """Returns a share of the losses L with three decimals."""
    return f"{share:.3f}"


def _series(outcome: Outcome) -> str:
    """Returns the lines of the charts, by day, as JSON that may stand in a script element."""
    days = outcome.days
    scale = 10**outcome.rules.decimals
    lines = {
        "day": [day.day + 1 for day in days],
        "balance": [day.balance / scale for day in days],
        "waiting": [day.waiting for day in days],
        "active": [day.active for day in days],
        "frozen": [day.frozen for day in days],
        "ratio": [day.ratio for day in days],
        "paid": [None if cohort.open else cohort.ratio for cohort in outcome.by_day],
    }
    return msgspec.json.encode(lines).decode().replace("</", "<\\/")


def _term_rows(terms: Terms) -> Iterator[Sequence[str]]:
    """Yields the terms as in the configuration."""
    for name, value in msgspec.to_builtins(terms).items():
        yield name, msgspec.json.encode(value).decode()


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
