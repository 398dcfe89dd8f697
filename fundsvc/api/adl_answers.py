"""Answers about ADL. Only the command line shows accounts; `visibility` decides which numbers are exact."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, islice
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from fundsvc.api.answers import Answer, milliseconds
from fundsvc.api.visibility import OPERATOR, Visibility, rough, rough_or_none, rough_total
from fundsvc.core.adl.book import Leg
from fundsvc.core.adl.order import AdlOrder, Reduced, RoundTerms, State
from fundsvc.core.adl.preview import Preview
from fundsvc.core.adl.queue import Section, joined_sections, pooled
from fundsvc.core.adl.valuation import Rank, SideName, Standing, Valuation
from fundsvc.core.contracts import Contract
from fundsvc.core.numbers import format_units
from fundsvc.readmodel.adl_books import BookView, Follower, Queue
from fundsvc.store.adl import AllocationRow, DeleveragedRow, Deleveragings, OrderRow, RoundRow, allocation_rows

ALLOCATIONS_MAX = 100
"""The allocations of a round that an order shows. A pro-rata round may use all positions; its totals include all."""


class Inputs(Answer, frozen=True, kw_only=True):
    """A position and the inputs of its rank. `return` is unrealisedPnl / entry value, `leverage` is mark value / equity."""

    lots: int
    entry_price: str
    margin: str
    unrealised_pnl: str | None
    return_on_entry: float | None = msgspec.field(name="return")
    leverage: float | None
    score: float | None


class AllocationAnswer(Inputs, frozen=True, kw_only=True):
    """The allocation of a round to one position. Only the command line shows `account`.

    Numbers of other accounts' positions are rounded to two significant digits, except rank, ranked and lights. Numbers of the
    caller's account are exact; for risk all are. `asked` are the allocated lots. `equityAtPrice` is margin + PnL after closing
    the whole position at the order's price.
    """

    rank: int
    ranked: int
    lights: int
    asked: int
    executed: int
    equity_at_price: str
    account: str | UnsetType = UNSET


class RoundAnswer(Answer, frozen=True):
    """A round: the number of its positions, their allocated and executed lots, and the first allocations by rank.

    The path of the round shows all allocations. `asked` and `executed` are rounded to two significant digits, except for risk,
    because in a round of few positions they would reveal those of one. `isStale` is true if the round used a stale book.
    """

    round: int
    mark_price: str | None
    is_stale: bool
    positions: int
    asked: int
    executed: int
    allocations: list[AllocationAnswer]


class OrderAnswer(Answer, frozen=True, kw_only=True):
    """An ADL order. `cause` is the entry of its shortfall, which had `deficit` on `deficitLots`.

    `needed` is the amount that the fund did not pay; `taken` is the executed lots' share of the deficit. For an order that is
    done, 0 <= taken - needed < the deficit of one lot, and the fund received the difference as `refund`. `rest` is the amount
    that is still open or, for an uncovered order, became outstanding.
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
    """The positions with `lights` down to `toLights`: number, lots, highest and lowest score, and unrealised PnL."""

    lights: int
    to_lights: int
    positions: int
    lots: int
    highest_score: float | None
    lowest_score: float | None
    unrealised_pnl: str


class QueueAnswer(Answer, frozen=True):
    """The queue of a contract by side, five lights first, after message `lastId`, the last settled message at `ts`.

    Each section has at least `queue.k_min` positions. Smaller sections are joined with the next. A side with fewer positions
    has no section. Lots are rounded up to tens and to two significant digits, scores and PnL to two significant digits. The
    difference of two sections or two answers therefore does not reveal one position. Risk receives each of the five lights
    exactly.

    `markTs` is the engine's time of the mark; `isMarkStale` is true if it is too old. `isStale` is true if the book is stale.
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
    """An account's position with its rank and all inputs of it. A position without mark or equity has no rank.

    `positionSide` is the leg as the engine reports it: `LONG` or `SHORT` in hedge mode, else `BOTH`.
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


class ReductionAnswer(Inputs, frozen=True, kw_only=True):
    """A reduction of an account's position: `executed` of its `lots` at `price`."""

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


class NumberedReductionAnswer(ReductionAnswer, frozen=True, kw_only=True):
    """A reduction with its number; the reductions of an account are numbered from 1."""

    number: int


class PositionsAnswer(Answer, frozen=True):
    """An account's positions, and its latest reductions in `deleveraged`, newest first."""

    account: str
    positions: list[PositionAnswer]
    deleveraged: list[ReductionAnswer]


class OthersAnswer(Answer, frozen=True):
    """Rounded allocations to at least `queue.k_min` positions of other accounts with `lights` down to `toLights`."""

    lights: int
    to_lights: int
    positions: int
    lots: int
    asked: int


class PreviewOrderAnswer(Answer, frozen=True):
    """The ADL order that the fill would create, and its first round. `lotsAsked` is below `lotsNeeded` if candidates are few.

    A trader sees the allocations to its own positions, and sums of the `others`. The service then computes the round for the
    needed lots rounded to two significant digits. With fewer than `queue.k_min` others in the round, `lotsAsked` is null if it
    would reveal their lots, and the lots allocated to the trader are rounded to the same digit as the needed lots.
    """

    reduce: SideName
    price: str
    lots_needed: int
    lots_asked: int | None
    refund: str
    positions: int
    allocations: list[AllocationAnswer]
    others: list[OthersAnswer] | UnsetType = UNSET


class PreviewAnswer(Answer, frozen=True):
    """The effect of a fill at present. `worth` is its surplus, or its deficit as a negative amount. The fund pays `covered`."""

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


async def order_answers(
    ledger: Deleveragings, orders: Sequence[OrderRow], contract: Contract, visibility: Visibility
) -> list[OrderAnswer]:
    """Returns the answers for orders of a contract with their rounds."""
    found = await ledger.rounds(contract.symbol, [order.adl for order in orders], ALLOCATIONS_MAX)
    rounds = {number: list(rows) for number, rows in groupby(found, lambda row: row.adl)}
    return [_order_answer(order, rounds.get(order.adl, ()), contract, visibility) for order in orders]


def _order_answer(order: OrderRow, rounds: Sequence[RoundRow], contract: Contract, visibility: Visibility) -> OrderAnswer:
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
        rounds=[_round_answer(row, order, contract, visibility) for row in rounds],
        ts=order.ts,
        updated_at=milliseconds(order.updated_at),
    )


def queue_answer(view: BookView, queue: Queue, visibility: Visibility, k_min: int, *, is_mark_stale: bool) -> QueueAnswer:
    """Returns a contract's queue: exact with visibility of all accounts, else in sections of at least `k_min` positions."""
    contract = view.contract
    long, short = (_sections(queue.get(name, []), contract, visibility, k_min) for name in ("long", "short"))
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


async def position_answers(follower: Follower, account: str) -> list[PositionAnswer]:
    """Returns an account's positions in all contracts; raises NotFollowed."""

    def read(view: BookView) -> Iterable[PositionAnswer]:
        return [
            position_answer(view, side, row, follower.rank(view, side, account)) for side, row in view.book.positions(account)
        ]

    return await follower.read_all(read)


def position_answer(view: BookView, side: SideName, row: int, rank: Rank | None) -> PositionAnswer:
    """Returns the answer for a position valued at the mark."""
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


def reduction_answer(row: DeleveragedRow, contract: Contract) -> ReductionAnswer:
    """Returns a reduction for its account."""
    return ReductionAnswer(**_reduced(row, contract))


def numbered_reduction_answer(number: int, row: DeleveragedRow, contract: Contract) -> NumberedReductionAnswer:
    """Returns a reduction with its number for its account."""
    return NumberedReductionAnswer(number=number, **_reduced(row, contract))


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


def preview_answer(
    preview: Preview, view: BookView, show: Callable[[AdlOrder, RoundTerms, Contract], PreviewOrderAnswer]
) -> PreviewAnswer:
    """Returns the answer to a preview; `show` makes the answer for its order: `whole_preview` or `trader_preview`."""
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
        order=show(order, preview.first, contract) if order and preview.first else None,
        last_id=view.last_id,
        ts=view.ts,
    )


def whole_preview(
    order: AdlOrder, first: RoundTerms, contract: Contract, allocations_max: int | None, *, accounts: bool
) -> PreviewOrderAnswer:
    """Returns an order with exact allocations, at most `allocations_max` of them, and their accounts with `accounts`."""
    shown = islice(allocation_rows(first, {}), allocations_max)
    allocations = [
        msgspec.structs.replace(
            allocation_answer(row, order.reduce, order.price, contract, OPERATOR), account=row.account if accounts else UNSET
        )
        for row in shown
    ]
    return _preview_order(order, contract, first.lots_asked, first.positions, allocations)


def trader_preview(order: AdlOrder, first: RoundTerms, contract: Contract, account: str, k_min: int) -> PreviewOrderAnswer:
    """Returns an order with the allocations to one account and sums of at least `k_min` others."""
    rows = list(allocation_rows(first, {}))
    own = [row for row in rows if row.account == account]
    others = [row for row in rows if row.account != account]
    few = len(others) < k_min
    lots_asked = None if few and first.lots_asked < rough(order.lots) else min(order.lots, rough(first.lots_asked))
    allocations = [
        allocation_answer(
            row._replace(asked=_rounded_like(row.asked, order.lots)) if few else row,
            order.reduce,
            order.price,
            contract,
            OPERATOR,
        )
        for row in own
    ]
    return _preview_order(order, contract, lots_asked, rough(first.positions), allocations, _by_lights(others, k_min))


def _rounded_like(lots: int, whole: int) -> int:
    """Rounds lots to the second digit of a larger number."""
    step = 10 ** max(0, len(str(whole)) - 2)
    return int((lots + step // 2) // step * step)


def _by_lights(rows: Sequence[AllocationRow], k_min: int) -> list[OthersAnswer]:
    """Returns sums of positions, which are in the order of rank, by lights in groups of at least `k_min`."""
    by_lights = groupby(rows, lambda row: Rank(row.rank, row.ranked).lights)
    groups = [
        OthersAnswer(lights, lights, len(lit), sum(row.lots for row in lit), sum(row.asked for row in lit))
        for lights, lit in ((lights, list(rows)) for lights, rows in by_lights)
    ]
    return [
        msgspec.structs.replace(group, lots=rough_total(group.lots), asked=rough_total(group.asked))
        for group in pooled(groups, k_min, _joined_others)
    ]


def _joined_others(upper: OthersAnswer, lower: OthersAnswer) -> OthersAnswer:
    return OthersAnswer(
        upper.lights,
        lower.to_lights,
        upper.positions + lower.positions,
        upper.lots + lower.lots,
        upper.asked + lower.asked,
    )


def _preview_order(
    order: AdlOrder,
    contract: Contract,
    lots_asked: int | None,
    positions: int,
    allocations: list[AllocationAnswer],
    others: list[OthersAnswer] | UnsetType = UNSET,
) -> PreviewOrderAnswer:
    return PreviewOrderAnswer(
        reduce=order.reduce,
        price=format_units(order.price, contract.price_decimals),
        lots_needed=order.lots,
        lots_asked=lots_asked,
        refund=format_units(order.refund, contract.settle_decimals),
        positions=positions,
        allocations=allocations,
        others=others,
    )


def allocation_answer(
    row: AllocationRow, reduce: SideName, price: int, contract: Contract, visibility: Visibility
) -> AllocationAnswer:
    """Returns an allocation of a round, without its account; `reduce` and `price` are those of the order."""
    equity, unit = Valuation(contract, reduce).equity(row.lots, row.entry_price, row.margin, price)
    answer = AllocationAnswer(
        **_inputs(_standing(contract, reduce, row, row.mark), contract),
        **_place(row, row.executed),
        equity_at_price=format_units(equity // unit, contract.settle_decimals),
    )
    return answer if visibility.is_exact(row.account) else _rough_allocation(answer)


def _rough_allocation(answer: AllocationAnswer) -> AllocationAnswer:
    return msgspec.structs.replace(
        answer,
        lots=rough(answer.lots),
        entry_price=rough(answer.entry_price),
        margin=rough(answer.margin),
        unrealised_pnl=rough_or_none(answer.unrealised_pnl),
        return_on_entry=rough_or_none(answer.return_on_entry),
        leverage=rough_or_none(answer.leverage),
        score=rough_or_none(answer.score),
        asked=rough(answer.asked),
        executed=rough(answer.executed),
        equity_at_price=rough(answer.equity_at_price),
    )


def _round_answer(row: RoundRow, order: OrderRow, contract: Contract, visibility: Visibility) -> RoundAnswer:
    return RoundAnswer(
        round=row.round,
        mark_price=format_units(row.mark, contract.price_decimals) if row.mark else None,
        is_stale=row.is_stale,
        positions=row.positions,
        asked=row.asked if visibility.all_accounts else rough(row.asked),
        executed=row.executed if visibility.all_accounts else rough(row.executed),
        allocations=[
            allocation_answer(allocation, order.reduce, order.price, contract, visibility) for allocation in row.allocations
        ],
    )


def _sections(found: list[Section], contract: Contract, visibility: Visibility, k_min: int) -> list[SectionAnswer]:
    if visibility.all_accounts:
        return [_section_answer(section, contract) for section in found]
    return [_rough_section(_section_answer(section, contract)) for section in pooled(found, k_min, joined_sections)]


def _rough_section(section: SectionAnswer) -> SectionAnswer:
    return msgspec.structs.replace(
        section,
        lots=rough_total(section.lots),
        highest_score=rough_or_none(section.highest_score),
        lowest_score=rough_or_none(section.lowest_score),
        unrealised_pnl=rough(section.unrealised_pnl),
    )


def _section_answer(section: Section, contract: Contract) -> SectionAnswer:
    return SectionAnswer(
        lights=section.lights,
        to_lights=section.to_lights,
        positions=section.positions,
        lots=section.lots,
        highest_score=section.highest,
        lowest_score=section.lowest,
        unrealised_pnl=format_units(section.unrealised_pnl, contract.settle_decimals),
    )


def _standing(contract: Contract, side: SideName, row: AllocationRow | Reduced, mark: int) -> Standing:
    return Valuation(contract, side).standing("", row.lots, row.entry_price, row.margin, mark)


def _inputs(position: Standing, contract: Contract, *, known: bool = True) -> dict[str, Any]:
    """Returns the fields of `Inputs`. Fields that need the mark are None if it is not `known`, ranks also without equity."""
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
    """Returns the place of a position in the queue, and its allocated and executed lots."""
    lights = Rank(row.rank, row.ranked).lights
    return {"rank": row.rank, "ranked": row.ranked, "lights": lights, "asked": row.asked, "executed": executed}


def _price(price: int | None, contract: Contract) -> str | None:
    return None if price is None else format_units(price, contract.price_decimals)
