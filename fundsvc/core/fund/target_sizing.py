"""The target size of a fund, by one of three published rules. All amounts are exact, in atoms, and rounded up.

Value at risk: the newsvendor rule. A fund of size K costs r K a period, and what the deficits D of a period exceed it by costs
kappa each; r K + kappa E[max(0, D - K)] is smallest where P(D <= K) reaches 1 - r / kappa, so K* is the value at risk of D at
that level (the critical ratio of Arrow, Harris and Marschak, "Optimal Inventory Policy", 1951; as capital: Dhaene, Goovaerts,
Kaas, "Economic Capital Allocation Derived from Risk Measures", 2003). D is taken from the ledger's own history, period by
period, those without deficits included, and the quantile is an order statistic: the smallest deficit that at least that share
of the periods did not exceed.

Cover N: what the N largest positions lose beyond their margins when the mark moves against them, as in "cover 1" and "cover 2"
of CPMI-IOSCO's Principles for Financial Market Infrastructures (2012), principle 4. Both sides are tried, the worse one counts.

Open interest: a share of the notional of all open lots at the mark, by which funds are compared between venues.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import msgspec
import numpy as np

from fundsvc.core.adl.book import Book
from fundsvc.core.adl.ranking import Columns, Integers
from fundsvc.core.adl.valuation import SideName, Standing
from fundsvc.core.contracts import Contract
from fundsvc.core.fund.fullness import TargetPolicy, exact
from fundsvc.core.numbers import format_units


class Explained(msgspec.Struct, tag_field="rule", rename="camel", frozen=True, kw_only=True):
    """Base of what explains a target: every input. Money and prices are decimal text, times milliseconds."""


class ValueAtRisk(Explained, tag="value_at_risk", frozen=True, kw_only=True):
    """The target is the `rank`th largest deficit of the `periods` between `start` and `end`; `deficits` of them had one."""

    period_hours: int
    start: int
    end: int
    periods: int
    deficits: int
    largest_deficit: str
    cost_of_capital: float
    cost_of_loss: float
    level: float
    rank: int


class StressedPosition(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """A position at the stressed price; `loss` is what its margin does not cover. Whose it is, is not told."""

    lots: int
    entry_price: str
    margin: str
    unrealised_pnl: str
    loss: str


class Cover(Explained, tag="cover", frozen=True, kw_only=True):
    """The target is what the largest `positions` of `side` lose beyond their margins at `stressedPrice`.

    That is a `move`, a share of the mark, against them.
    """

    mark_price: str
    move: float
    side: SideName
    stressed_price: str
    positions: list[StressedPosition]
    loss_of_other_side: str


class OpenInterest(Explained, tag="open_interest", frozen=True, kw_only=True):
    """The target is a `share` of `notional`, which the open lots are worth at the mark (rounded up)."""

    lots: int
    mark_price: str
    notional: str
    share: float


Explanation = ValueAtRisk | Cover | OpenInterest


class Size(NamedTuple):
    """A target size in atoms and what explains it; without one both are None, and `reason` says why."""

    amount: int | None
    explanation: Explanation | None
    reason: str = ""


class Deficits(NamedTuple):
    """A contract's deficits, summed by period: of how many `periods` from `start_ms` to `end_ms`, how many of them had any
    (`number`), and the largest of those in atoms, falling; as many as the quantile needs.
    """

    start_ms: int
    end_ms: int
    periods: int
    number: int
    largest: Sequence[int]


def quantile_rank(periods: int, level: Fraction) -> int:
    """Which of the deficits of so many periods, counted from the largest, is their value at risk."""
    return periods - math.ceil(level * periods) + 1


def value_at_risk(largest: Sequence[int], periods: int, level: Fraction) -> int:
    """The smallest amount that at least a share `level` (above 0, below 1) of the periods' deficits do not exceed.

    `largest` holds deficits above 0, falling; periods that are not among them had none.
    """
    rank = quantile_rank(periods, level)
    return largest[rank - 1] if rank <= len(largest) else 0


def size_by_deficits(contract: Contract, policy: TargetPolicy, deficits: Deficits | None) -> Size:
    """The newsvendor rule; `deficits` must hold as many as its quantile needs, and is None where there is no entry."""
    if deficits is None:
        return Size(None, None, f"{contract.symbol} has no history: nothing has been condensed yet")
    amount = value_at_risk(deficits.largest, deficits.periods, policy.level)
    return Size(
        amount,
        ValueAtRisk(
            period_hours=policy.period_hours,
            start=deficits.start_ms,
            end=deficits.end_ms,
            periods=deficits.periods,
            deficits=deficits.number,
            largest_deficit=format_units(deficits.largest[0] if deficits.largest else 0, contract.settle_decimals),
            cost_of_capital=policy.cost_of_capital,
            cost_of_loss=policy.cost_of_loss,
            level=float(policy.level),
            rank=quantile_rank(deficits.periods, policy.level),
        ),
    )


def notional(contract: Contract, lots: int, mark: int) -> Fraction:
    """What lots are worth at a mark, in atoms."""
    numerator, denominator = contract.value_factor()
    if contract.is_inverse:
        return Fraction(lots * numerator, denominator * mark)
    return Fraction(lots * numerator * mark, denominator)


def size_by_open_interest(contract: Contract, policy: TargetPolicy, book: Book) -> Size:
    """A share of what all open lots are worth; every lot has somebody long and somebody short of it, the long ones count."""
    if book.mark is None:
        return without_mark(contract)
    lots = book.sides["long"].lots
    worth = notional(contract, lots, book.mark)
    return Size(
        math.ceil(worth * exact(policy.share)),
        OpenInterest(
            lots=lots,
            mark_price=format_units(book.mark, contract.price_decimals),
            notional=format_units(math.ceil(worth), contract.settle_decimals),
            share=policy.share,
        ),
    )


def stressed_price(mark: int, side: SideName, move: Fraction) -> int:
    """The price after a move against a side, in the contract's units, away from the mark where it lies between two."""
    return max(1, math.floor(mark * (1 - move))) if side == "long" else math.ceil(mark * (1 + move))


class Stressed(NamedTuple):
    """A side at a price to which a mark may move: the open lots of its rows, and what they are ranked by there. Both change
    with the book.
    """

    side: SideName
    mark: int
    price: int
    lots: Integers
    columns: Columns


def stressed_sides(book: Book, mark: int, move: Fraction) -> list[Stressed]:
    """Both sides after a move against each."""
    prices: list[tuple[SideName, int]] = [(name, stressed_price(mark, name, move)) for name in book.sides]
    return [Stressed(name, mark, price, book.sides[name].sizes(), book.sides[name].columns(price)) for name, price in prices]


def largest_rows(stressed: Stressed, count: int) -> Integers:
    """The rows of the largest positions of a side, by lots; of equal ones those with the least equity first.

    Takes numpy's time alone, so that it may run beside who changes the book; rows must then be looked at again.
    """
    lots = stressed.lots
    threshold = 1
    if len(lots) > count:
        threshold = max(1, -int(np.partition(-lots, count - 1)[count - 1]))
    rows = np.flatnonzero(lots >= threshold)
    entry, margin, mark, direction, _ = stressed.columns.of(rows)
    order = np.lexsort((margin + (mark - entry) * direction, -lots[rows]))
    return rows[order[:count]]


class _Loss(NamedTuple):
    """What positions of a side lose beyond their margins, in all and one by one."""

    stressed: Stressed
    amount: int
    positions: list[StressedPosition]


def size_by_cover(
    contract: Contract, policy: TargetPolicy, book: Book, sides: Sequence[Stressed], rows: Sequence[Integers]
) -> Size:
    """The loss of the largest positions, whose rows are given for each side; those that were closed meanwhile do not count."""
    losses = [_loss(contract, book, stressed, chosen) for stressed, chosen in zip(sides, rows, strict=True)]
    other, worse = sorted(losses, key=lambda loss: loss.amount)
    return Size(
        worse.amount,
        Cover(
            mark_price=format_units(worse.stressed.mark, contract.price_decimals),
            move=policy.move,
            side=worse.stressed.side,
            stressed_price=format_units(worse.stressed.price, contract.price_decimals),
            positions=worse.positions,
            loss_of_other_side=format_units(other.amount, contract.settle_decimals),
        ),
    )


def _loss(contract: Contract, book: Book, stressed: Stressed, rows: Integers) -> _Loss:
    side, total, positions = book.sides[stressed.side], 0, []
    open_rows = rows[side.lots_of(rows) > 0].tolist()
    for standing in (side.standing(row, stressed.price) for row in open_rows):
        loss = max(0, -(standing.margin + standing.unrealised_pnl))
        total += loss
        positions.append(_stressed_position(contract, standing, loss))
    return _Loss(stressed, total, positions)


def _stressed_position(contract: Contract, standing: Standing, loss: int) -> StressedPosition:
    money = contract.settle_decimals
    return StressedPosition(
        lots=standing.lots,
        entry_price=format_units(standing.entry_price, contract.price_decimals),
        margin=format_units(standing.margin, money),
        unrealised_pnl=format_units(standing.unrealised_pnl, money),
        loss=format_units(loss, money),
    )


def without_mark(contract: Contract) -> Size:
    """What is told where a rule needs a mark and none has come."""
    return Size(None, None, f"no mark price of {contract.symbol} has come yet")
