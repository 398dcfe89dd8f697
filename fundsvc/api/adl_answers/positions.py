"""Answers for positions and reductions of an account."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from fundsvc.api.adl_answers.inputs import Inputs, input_fields, place_fields, price_text, valued
from fundsvc.api.answers import Answer
from fundsvc.core.adl.book import Leg
from fundsvc.core.adl.valuation import NO_LIMIT, Rank, SideName, ValuedPosition
from fundsvc.core.contracts import Contract
from fundsvc.core.generations import generation_of, public_symbol
from fundsvc.core.numbers import format_units
from fundsvc.core.policy import Policy
from fundsvc.readmodel.adl_books import AdlBooks, BookView
from fundsvc.store.adl import ReductionRow


class PositionAnswer(Inputs, frozen=True, kw_only=True):
    """An account's position with its rank and all inputs of it.

    Rank, lights and percentile are among the `ranked` positions of the side that ADL may reduce by the contract's policy. If
    ADL may not reduce this one, they are null, and `notEligible` states why.

    `positionSide` is the leg as the engine reports it: `LONG` or `SHORT` in hedge mode, else `BOTH`. `bankruptcyPrice` is the
    last price at which closing the position leaves no deficit, null if its margin covers any move.
    """

    symbol: str
    side: SideName
    position_side: Leg
    settle_currency: str
    multiplier: str
    is_inverse: bool
    mark_price: str | None
    bankruptcy_price: str | None
    rank: int | None
    ranked: int | None
    percentile: float | None
    lights: int | None
    not_eligible: str | None
    last_id: str
    ts: int


class ReductionAnswer(Inputs, frozen=True, kw_only=True):
    """A reduction of an account's position: `executed` of its `lots` at `price`."""

    symbol: str
    generation: int
    adl: int
    cause: int
    round: int
    side: SideName
    asked: int
    executed: int
    price: str
    mark_price: str
    rank: int
    ranked: int
    lights: int
    ts: int


class NumberedReductionAnswer(ReductionAnswer, frozen=True, kw_only=True):
    """A reduction with its number; the reductions of an account are numbered from 1."""

    number: int


class PositionsAnswer(Answer, frozen=True):
    """An account's positions, and its latest reductions in `deleveraged`, newest first."""

    account: str
    positions: list[PositionAnswer]
    deleveraged: list[ReductionAnswer]


async def position_answers(books: AdlBooks, account: str, policy_of: Callable[[str], Policy]) -> list[PositionAnswer]:
    """Returns an account's positions in all contracts; raises NotFollowed."""

    def read(view: BookView) -> Iterable[PositionAnswer]:
        eligible = policy_of(view.contract.symbol).eligible
        held = view.book.positions(account)
        return [position_answer(view, side, row, books.rank(view, side, account, eligible)) for side, row in held]

    return await books.read_all(read)


def position_answer(view: BookView, side: SideName, row: int, rank: Rank | None) -> PositionAnswer:
    """Returns the answer for a position valued at the mark."""
    contract, mark = view.contract, view.book.mark
    positions = view.book.sides[side]
    position = positions.valued(row, mark or 1)
    limit = positions.valuation.limit(position.lots, position.entry_price, position.margin)
    return PositionAnswer(
        **input_fields(position, contract, known=mark is not None),
        symbol=public_symbol(contract.symbol),
        side=side,
        position_side=view.book.leg_of(side, row),
        settle_currency=contract.settle_currency,
        multiplier=str(contract.multiplier),
        is_inverse=contract.is_inverse,
        mark_price=price_text(mark, contract),
        bankruptcy_price=price_text(limit if 0 < limit < NO_LIMIT else None, contract),
        rank=rank.rank if rank else None,
        ranked=rank.ranked if rank else None,
        percentile=rank.percentile if rank else None,
        lights=rank.lights if rank else None,
        not_eligible=None if rank else _why_not(position, has_mark=mark is not None),
        last_id=view.last_id,
        ts=view.ts,
    )


def _why_not(position: ValuedPosition, *, has_mark: bool) -> str:
    """Returns why ADL may not reduce a position."""
    if not has_mark:
        return "no mark price"
    return "no equity" if math.isinf(position.leverage) else "no profit"


def reduction_answer(row: ReductionRow, contract: Contract) -> ReductionAnswer:
    """Returns a reduction for its account."""
    return ReductionAnswer(**_reduced(row, contract))


def numbered_reduction_answer(number: int, row: ReductionRow, contract: Contract) -> NumberedReductionAnswer:
    """Returns a reduction with its number for its account."""
    return NumberedReductionAnswer(number=number, **_reduced(row, contract))


def _reduced(row: ReductionRow, contract: Contract) -> dict[str, Any]:
    reduced, generation = row.reduced, generation_of(row.symbol)
    position = valued(contract, row.side, reduced, reduced.mark)
    return dict(
        **input_fields(position, contract),
        **place_fields(reduced, row.executed),
        symbol=generation.symbol,
        generation=generation.number,
        adl=row.adl,
        cause=row.cause,
        round=row.round,
        side=row.side,
        price=format_units(row.price, contract.price_decimals),
        mark_price=format_units(reduced.mark, contract.price_decimals),
        ts=row.ts,
    )
