"""What is answered about deleveraging. Whoever is reduced is named to nobody but the operator and that account itself."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from fundsvc.api.answers import Answer, milliseconds
from fundsvc.core.adl import AdlOrder, Reduced, RoundTerms, State
from fundsvc.core.book import Leg
from fundsvc.core.contracts import Contract
from fundsvc.core.numbers import format_units
from fundsvc.core.preview import Preview
from fundsvc.core.queue import Section
from fundsvc.core.valuation import Rank, SideName, Standing, Valuation
from fundsvc.follower import BookView, Queue
from fundsvc.store.deleveragings import AllocationRow, DeleveragedRow, Deleveragings, OrderRow, RoundRow, allocation_rows

ALLOCATIONS_MAX = 100
"""Shown of each round: with a pro-rata policy it may ask everybody. Its totals are of all."""


class Inputs(Answer, frozen=True, kw_only=True):
    """A position and all that its rank comes from. `return` is unrealisedPnl / entry value, `leverage` mark value / equity."""

    lots: int
    entry_price: str
    margin: str
    unrealised_pnl: str | None
    return_on_entry: float | None = msgspec.field(name="return")
    leverage: float | None
    score: float | None


class AllocationAnswer(Inputs, frozen=True, kw_only=True):
    """What a round asks of one position; `account` is there for the operator alone.

    `equityAtPrice` is the margin + PnL that closing the whole position at the order's price would leave.
    """

    rank: int
    ranked: int
    lights: int
    asked: int
    executed: int
    equity_at_price: str
    account: str | UnsetType = UNSET


class RoundAnswer(Answer, frozen=True):
    """A round: in all so many positions were asked for so many lots; the first of them, by rank, are shown.

    The others are at the round's own path. `isStale` says that the stream had lost its tail and no snapshot had come since.
    """

    round: int
    mark_price: str | None
    is_stale: bool
    positions: int
    asked: int
    executed: int
    allocations: list[AllocationAnswer]


class OrderAnswer(Answer, frozen=True, kw_only=True):
    """An ADL order. `cause` is the entry of the shortfall in the fund's history, with `deficit` on `deficitLots`.

    `needed` (what the fund could not pay) and `taken` (the executed lots' share of the deficit) are amounts: once done,
    0 <= taken - needed < the deficit of one lot, and the difference was refunded. `rest` is what is still open, or, of an
    uncovered order, what became outstanding.
    """

    symbol: str
    adl: int
    cause: int
    state: State
    reduce: SideName
    price: str
    deficit: str
    deficit_lots: int
    lots_needed: int
    lots_taken: int
    needed: str
    taken: str
    uncovered: str
    recovered: str
    refund: str
    rest: str
    round: int
    acknowledged: bool
    policy_version: int
    rounds: list[RoundAnswer]
    ts: int
    updated_at: int


class SectionAnswer(Answer, frozen=True):
    """The positions with the same lights: how many, their lots, the highest and lowest score, and their unrealised PnL."""

    lights: int
    positions: int
    lots: int
    highest_score: float | None
    lowest_score: float | None
    unrealised_pnl: str


class QueueAnswer(Answer, frozen=True):
    """The queue of a contract by side, five lights first, as it was after a message of the stream, the last one at `ts`.

    `markTs` is the engine's time of the mark; `isMarkStale` says that it is too old. `isStale` says that the stream lost its
    tail and no snapshot has come since.
    """

    symbol: str
    mark_price: str | None
    mark_ts: int | None
    is_mark_stale: bool
    is_stale: bool
    long: list[SectionAnswer]
    short: list[SectionAnswer]
    last_id: str
    ts: int


class PositionAnswer(Inputs, frozen=True, kw_only=True):
    """An account's position with its rank, and what is needed to recompute it; no rank without a mark or without equity.

    `positionSide` is the leg that the engine named: `LONG` or `SHORT` in hedge mode, also of the only leg, else `BOTH`.
    """

    symbol: str
    side: SideName
    position_side: Leg
    settle_currency: str
    multiplier: str
    is_inverse: bool
    mark_price: str | None
    rank: int | None
    ranked: int | None
    percentile: float | None
    lights: int | None
    last_id: str
    ts: int


class DeleveragedAnswer(Inputs, frozen=True, kw_only=True):
    """A reduction of an account's position: `executed` of the lots it held, at `price`."""

    symbol: str
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


class ReductionAnswer(DeleveragedAnswer, frozen=True, kw_only=True):
    """A reduction with its number, which counts the reductions of its account from 1."""

    number: int


class PositionsAnswer(Answer, frozen=True):
    """An account's positions, and how they were deleveraged lately, newest first."""

    account: str
    positions: list[PositionAnswer]
    deleveraged: list[DeleveragedAnswer]


class PreviewOrderAnswer(Answer, frozen=True):
    """The order that would be written, and its first round. `lotsAsked` is less than needed when too few may be asked."""

    reduce: SideName
    price: str
    lots_needed: int
    lots_asked: int
    refund: str
    positions: int
    allocations: list[AllocationAnswer]


class PreviewAnswer(Answer, frozen=True):
    """What a fill would do now. `worth` is its surplus, or its deficit below 0; the fund would pay `covered` of that."""

    symbol: str
    kind: str
    worth: str
    covered: str
    uncovered: str
    repaid: str
    balance: str
    mark_price: str | None
    order: PreviewOrderAnswer | None
    last_id: str
    ts: int


async def order_answers(ledger: Deleveragings, orders: Sequence[OrderRow], contract: Contract) -> list[OrderAnswer]:
    """Orders of a contract with their rounds."""
    found = await ledger.rounds(contract.symbol, [order.adl for order in orders], ALLOCATIONS_MAX)
    rounds = {number: list(rows) for number, rows in groupby(found, lambda row: row.adl)}
    return [_order_answer(order, rounds.get(order.adl, ()), contract) for order in orders]


def _order_answer(order: OrderRow, rounds: Sequence[RoundRow], contract: Contract) -> OrderAnswer:
    money, price = contract.settle_decimals, contract.price_decimals
    taken = order.deficit * order.executed // order.deficit_lots
    return OrderAnswer(
        symbol=order.symbol,
        adl=order.adl,
        cause=order.cause,
        state=order.state,
        reduce=order.reduce,
        price=format_units(order.price, price),
        deficit=format_units(order.deficit, money),
        deficit_lots=order.deficit_lots,
        lots_needed=order.lots,
        lots_taken=order.executed,
        needed=format_units(order.uncovered, money),
        taken=format_units(taken, money),
        uncovered=format_units(order.uncovered, money),
        recovered=format_units(order.recovered, money),
        refund=format_units(max(0, taken - order.uncovered), money),
        rest=format_units(order.uncovered - order.recovered, money),
        round=order.round,
        acknowledged=order.acknowledged,
        policy_version=order.policy_version,
        rounds=[_round_answer(row, order, contract) for row in rounds],
        ts=order.ts,
        updated_at=milliseconds(order.updated_at),
    )


def queue_answer(view: BookView, queue: Queue, *, is_mark_stale: bool) -> QueueAnswer:
    """A contract's queue."""
    contract = view.contract
    long, short = ([_section_answer(section, contract) for section in queue.get(name, ())] for name in ("long", "short"))
    return QueueAnswer(
        symbol=contract.symbol,
        mark_price=_price(view.book.mark, contract),
        mark_ts=None if view.book.mark is None else view.book.mark_ts,
        is_mark_stale=is_mark_stale,
        is_stale=view.book.stale,
        long=long,
        short=short,
        last_id=view.last_id,
        ts=view.ts,
    )


def position_answer(view: BookView, side: SideName, row: int, rank: Rank | None) -> PositionAnswer:
    """A position as it stands at the mark."""
    contract, mark = view.contract, view.book.mark
    standing = view.book.sides[side].standing(row, mark or 1)
    return PositionAnswer(
        **_inputs(standing, contract, known=mark is not None),
        symbol=contract.symbol,
        side=side,
        position_side=view.book.leg_of(side, row),
        settle_currency=contract.settle_currency,
        multiplier=str(contract.multiplier),
        is_inverse=contract.is_inverse,
        mark_price=_price(mark, contract),
        rank=rank.rank if rank else None,
        ranked=rank.ranked if rank else None,
        percentile=rank.percentile if rank else None,
        lights=rank.lights if rank else None,
        last_id=view.last_id,
        ts=view.ts,
    )


def deleveraged_answer(row: DeleveragedRow, contract: Contract) -> DeleveragedAnswer:
    """A reduction, for the account that it happened to."""
    return DeleveragedAnswer(**_reduced(row, contract))


def reduction_answer(number: int, row: DeleveragedRow, contract: Contract) -> ReductionAnswer:
    """A reduction with its number, for the account that it happened to."""
    return ReductionAnswer(number=number, **_reduced(row, contract))


def _reduced(row: DeleveragedRow, contract: Contract) -> dict[str, Any]:
    reduced = row.reduced
    standing = _standing(contract, row.side, reduced, reduced.mark)
    return dict(
        **_inputs(standing, contract),
        **_place(reduced, row.executed),
        symbol=row.symbol,
        adl=row.adl,
        cause=row.cause,
        round=row.round,
        side=row.side,
        price=format_units(row.price, contract.price_decimals),
        mark_price=format_units(reduced.mark, contract.price_decimals),
        ts=row.ts,
    )


def preview_answer(preview: Preview, view: BookView, *, allocations_max: int | None, accounts: bool) -> PreviewAnswer:
    """What a fill would do, with its first allocations or all of them; with `accounts` it says whose they are."""
    contract, entry, order = view.contract, preview.entry, preview.order
    money = contract.settle_decimals
    return PreviewAnswer(
        symbol=contract.symbol,
        kind=entry.kind,
        worth=format_units(entry.change + entry.repaid - entry.uncovered, money),
        covered=format_units(max(0, -entry.change), money),
        uncovered=format_units(entry.uncovered, money),
        repaid=format_units(entry.repaid, money),
        balance=format_units(entry.balance, money),
        mark_price=_price(view.book.mark, contract),
        order=_preview_order(order, preview.first, contract, allocations_max, accounts=accounts)
        if order and preview.first
        else None,
        last_id=view.last_id,
        ts=view.ts,
    )


def _preview_order(
    order: AdlOrder, first: RoundTerms, contract: Contract, allocations_max: int | None, *, accounts: bool
) -> PreviewOrderAnswer:
    shown = allocation_rows(first, {})[:allocations_max]
    answers = [allocation_answer(row, order.reduce, order.price, contract) for row in shown]
    if accounts:
        answers = [
            msgspec.structs.replace(answer, account=account) for answer, account in zip(answers, first.accounts, strict=False)
        ]
    return PreviewOrderAnswer(
        reduce=order.reduce,
        price=format_units(order.price, contract.price_decimals),
        lots_needed=order.lots,
        lots_asked=first.lots_asked,
        refund=format_units(order.refund, contract.settle_decimals),
        positions=first.positions,
        allocations=answers,
    )


def allocation_answer(row: AllocationRow, reduce: SideName, price: int, contract: Contract) -> AllocationAnswer:
    """What a round of an order at a price asked of a position of a side, without its account."""
    equity, unit = Valuation(contract, reduce).equity(row.lots, row.entry_price, row.margin, price)
    return AllocationAnswer(
        **_inputs(_standing(contract, reduce, row, row.mark), contract),
        **_place(row, row.executed),
        equity_at_price=format_units(equity // unit, contract.settle_decimals),
    )


def _round_answer(row: RoundRow, order: OrderRow, contract: Contract) -> RoundAnswer:
    return RoundAnswer(
        round=row.round,
        mark_price=format_units(row.mark, contract.price_decimals) if row.mark else None,
        is_stale=row.is_stale,
        positions=row.positions,
        asked=row.asked,
        executed=row.executed,
        allocations=[allocation_answer(allocation, order.reduce, order.price, contract) for allocation in row.allocations],
    )


def _section_answer(section: Section, contract: Contract) -> SectionAnswer:
    return SectionAnswer(
        lights=section.lights,
        positions=section.positions,
        lots=section.lots,
        highest_score=section.highest,
        lowest_score=section.lowest,
        unrealised_pnl=format_units(section.unrealised_pnl, contract.settle_decimals),
    )


def _standing(contract: Contract, side: SideName, row: AllocationRow | Reduced, mark: int) -> Standing:
    return Valuation(contract, side).standing("", row.lots, row.entry_price, row.margin, mark)


def _inputs(position: Standing, contract: Contract, *, known: bool = True) -> dict[str, Any]:
    """The fields of `Inputs`; what follows from the mark is left out where that is not known, or where there is no equity."""
    has_leverage = known and math.isfinite(position.leverage)
    return {
        "lots": position.lots,
        "entry_price": format_units(position.entry_price, contract.price_decimals),
        "margin": format_units(position.margin, contract.settle_decimals),
        "unrealised_pnl": format_units(position.unrealised_pnl, contract.settle_decimals) if known else None,
        "return_on_entry": position.return_on_entry if known else None,
        "leverage": position.leverage if has_leverage else None,
        "score": position.score if has_leverage else None,
    }


def _place(row: AllocationRow | Reduced, executed: int) -> dict[str, Any]:
    """What a position was asked for, from which place in the queue, and what was executed."""
    lights = Rank(row.rank, row.ranked).lights
    return {"rank": row.rank, "ranked": row.ranked, "lights": lights, "asked": row.asked, "executed": executed}


def _price(price: int | None, contract: Contract) -> str | None:
    return None if price is None else format_units(price, contract.price_decimals)
