"""The target size of a fund, by one of three published rules. All amounts are exact, in atoms, and rounded up.

Value at risk: the newsvendor rule. A fund of size K costs r K a period, and each unit of a period's deficits D beyond K costs
kappa. r K + kappa E[max(0, D - K)] is smallest where P(D <= K) reaches 1 - r / kappa, so K* is the value at risk of D at that
level (the critical ratio of Arrow, Harris and Marschak, "Optimal Inventory Policy", 1951; as capital: Dhaene, Goovaerts, Kaas,
"Economic Capital Allocation Derived from Risk Measures", 2003). The ledger's history gives D by period; a period without
deficits counts as 0, and the unfinished one does not count. The quantile is an order statistic: the smallest deficit that at
least that share of the periods did not exceed. A history shorter than kappa / r periods has only one such deficit, the largest.

Cover N: the loss of the N largest positions beyond their margins when the mark moves against them ("cover 1" and "cover 2" of
CPMI-IOSCO's Principles for Financial Market Infrastructures, 2012, principle 4). The larger loss of both sides counts.

Open interest: a share of the notional of all open lots at the mark. It allows comparison between venues.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import msgspec
import numpy as np

from fundsvc.core.adl.book import Book
from fundsvc.core.adl.ranking import Columns, Integers
from fundsvc.core.adl.valuation import SideName, ValuedPosition
from fundsvc.core.contracts import Contract
from fundsvc.core.fund.fullness import TargetPolicy, exact
from fundsvc.core.numbers import format_units


class Explained(msgspec.Struct, tag_field="rule", rename="camel", frozen=True, kw_only=True):
    """The base of the explanations of a target, which contain every input. Money and prices are decimal text, times ms."""


class ValueAtRisk(Explained, tag="value_at_risk", frozen=True, kw_only=True):
    """The target is the deficit number `rank`, counted from the largest, of the `periods` from `start` to `end`.

    `deficits` of the periods had a deficit. With fewer than `periodsNeeded` periods the target is the largest deficit, at any
    level that needs so many; 0 in explanations that an earlier version stored.
    """

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
    periods_needed: int = 0


class StressedPosition(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """A position at the stressed price, without its account; `loss` is the part that its margin does not cover."""

    lots: int
    entry_price: str
    margin: str
    unrealised_pnl: str
    loss: str


class Cover(Explained, tag="cover", frozen=True, kw_only=True):
    """The target is the loss of the largest `positions` of `side` beyond their margins at `stressedPrice`.

    The stressed price is the mark after a `move`, a share of the mark, against the side.
    """

    mark_price: str
    move: float
    side: SideName
    stressed_price: str
    positions: list[StressedPosition]
    loss_of_other_side: str


class OpenInterest(Explained, tag="open_interest", frozen=True, kw_only=True):
    """The target is a `share` of `notional`, the worth of the open lots at the mark, rounded up."""

    lots: int
    mark_price: str
    notional: str
    share: float


Explanation = ValueAtRisk | Cover | OpenInterest


class Size(NamedTuple):
    """A target size in atoms with its explanation. Both are None if it cannot be computed.

    `reason` explains why, or what makes the size doubtful.
    """

    amount: int | None
    explanation: Explanation | None
    reason: str = ""


class Deficits(NamedTuple):
    """A contract's deficits, summed by period, for the `periods` from `start_ms` to `end_ms`.

    `number` counts the periods with a deficit. `largest` are the largest sums in atoms, falling; as many as the quantile needs.
    """

    start_ms: int
    end_ms: int
    periods: int
    number: int
    largest: Sequence[int]


def quantile_rank(periods: int, level: Fraction) -> int:
    """Returns the rank, counted from the largest deficit, of the value at risk of a number of periods."""
    return periods - math.ceil(level * periods) + 1


def value_at_risk(largest: Sequence[int], periods: int, level: Fraction) -> int:
    """Returns the smallest amount that at least a share `level` (above 0, below 1) of the periods' deficits do not exceed.

    `largest` are deficits above 0, falling. All other periods had no deficit.
    """
    rank = quantile_rank(periods, level)
    return largest[rank - 1] if rank <= len(largest) else 0


def size_by_deficits(contract: Contract, policy: TargetPolicy, deficits: Deficits | None) -> Size:
    """Returns the size by the newsvendor rule.

    `deficits` has as many as the quantile needs, and is None without an entry in a completed period.
    """
    if deficits is None:
        return Size(None, None, f"{contract.symbol} has no history of a completed period of {policy.period_hours} hours yet")
    needed, reason = policy.periods_needed, ""
    if deficits.periods < needed:
        reason = (
            f"the history is too short for the level {float(policy.level):.6g}: it has {deficits.periods:,} of the"
            f" {needed:,} periods, so the target is the largest deficit"
        )
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
            periods_needed=needed,
        ),
        reason,
    )


def notional(contract: Contract, lots: int, mark: int) -> Fraction:
    """Returns the worth of lots at a mark, in atoms."""
    numerator, denominator = contract.value_factor()
    if contract.is_inverse:
        return Fraction(lots * numerator, denominator * mark)
    return Fraction(lots * numerator * mark, denominator)


def size_by_open_interest(contract: Contract, policy: TargetPolicy, book: Book) -> Size:
    """Returns a share of the worth of all open lots. Each lot has a long and a short side; the long side is counted."""
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
    """Returns the price after a move against a side, in the contract's units, rounded away from the mark."""
    return max(1, math.floor(mark * (1 - move))) if side == "long" else math.ceil(mark * (1 + move))


class Stressed(NamedTuple):
    """A side of a book at a stressed price: the open lots of its rows, and the inputs of their ranks at that price.

    Both arrays change with the book.
    """

    side: SideName
    mark: int
    price: int
    lots: Integers
    columns: Columns


def stressed_sides(book: Book, mark: int, move: Fraction) -> list[Stressed]:
    """Returns both sides, each after a move against it."""
    prices: list[tuple[SideName, int]] = [(name, stressed_price(mark, name, move)) for name in book.sides]
    return [Stressed(name, mark, price, book.sides[name].sizes(), book.sides[name].columns(price)) for name, price in prices]


def largest_rows(stressed: Stressed, count: int) -> Integers:
    """Returns the rows of the largest positions of a side, by lots; of equal ones those with the least equity first.

    Runs in numpy only, so that a thread may call it while the book changes. The caller must then check the rows again.
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
    """The loss of positions of a side beyond their margins, in sum and by position."""

    stressed: Stressed
    amount: int
    positions: list[StressedPosition]


def size_by_cover(
    contract: Contract, policy: TargetPolicy, book: Book, sides: Sequence[Stressed], rows: Sequence[Integers]
) -> Size:
    """Returns the size by the loss of the largest positions, whose rows are given for each side.

    Rows that were closed meanwhile do not count.
    """
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
    for position in (side.valued(row, stressed.price) for row in open_rows):
        loss = max(0, -(position.margin + position.unrealised_pnl))
        total += loss
        positions.append(_stressed_position(contract, position, loss))
    return _Loss(stressed, total, positions)


def _stressed_position(contract: Contract, position: ValuedPosition, loss: int) -> StressedPosition:
    money = contract.settle_decimals
    return StressedPosition(
        lots=position.lots,
        entry_price=format_units(position.entry_price, contract.price_decimals),
        margin=format_units(position.margin, money),
        unrealised_pnl=format_units(position.unrealised_pnl, money),
        loss=format_units(loss, money),
    )


def without_mark(contract: Contract) -> Size:
    """Returns the size for a rule that needs a mark, if there is none yet."""
    return Size(None, None, f"{contract.symbol} has no mark price yet")
