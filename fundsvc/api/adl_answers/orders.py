"""Answers for ADL orders, their rounds and allocations."""

from collections.abc import Sequence
from itertools import groupby

import msgspec
from msgspec import UNSET, UnsetType

from fundsvc.api.adl_answers.inputs import Inputs, input_fields, place_fields, valued
from fundsvc.api.answers import Answer, milliseconds
from fundsvc.api.visibility import Visibility, rough, rough_or_none
from fundsvc.core.adl.order import Origin, State, amount_of, refund_of
from fundsvc.core.adl.valuation import SideName, Valuation
from fundsvc.core.contracts import Contract
from fundsvc.core.generations import generation_of
from fundsvc.core.numbers import format_units
from fundsvc.store.adl import AdlReader, AllocationRow, OrderRow, RoundRow

ALLOCATIONS_MAX = 100
"""The allocations of a round that an order shows. A pro-rata round may use all positions; its totals include all."""


class AllocationAnswer(Inputs, frozen=True, kw_only=True):
    """The allocation of a round to one position. Only the command line, and one order for engines and risk, show `account`.

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


class PromisedAnswer(Answer, frozen=True):
    """The ranks that order `adl` had requested when it began its own round, from the best to the worst."""

    adl: int
    from_rank: int
    to_rank: int


class RoundAnswer(Answer, frozen=True):
    """A round: the number of its positions, their allocated and executed lots, and the first allocations by rank.

    The path of the round shows all allocations. `asked` and `executed` are rounded to two significant digits, except for risk,
    because in a round of few positions they would reveal those of one. `isStale` is true if the round used a stale book.

    `promised` explains a round that does not begin at rank 1: the open rounds of other orders whose lots no other order may
    request. It is empty if there were none.
    """

    round: int
    mark_price: str | None
    is_stale: bool
    positions: int
    asked: int
    executed: int
    promised: list[PromisedAnswer]
    allocations: list[AllocationAnswer]


class OrderAnswer(Answer, frozen=True, kw_only=True):
    """An ADL order. The `cause` of `origin` "shortfall" is the shortfall's entry, which had `deficit` on `deficitLots`.

    `needed` is the amount that the fund did not pay; `taken` is the executed lots' share of the deficit. For an order that is
    done, 0 <= taken - needed < the deficit of one lot, and the fund received the difference as `refund`. `rest` is the amount
    that is still open or, for an uncovered order, became outstanding.

    The `origin` "takeover" is a takeover of which the fund did not accept all lots; `cause` is the takeover entry, 0 if the
    fund accepted none. The `origin` "inventory" is an inventory that is too heavy; the order `closes` lots of the tranche of a
    takeover entry, which is also its `cause`. `closes` is 0 for other origins. Neither order recovers an amount: all their
    amounts are 0. `lotsUnwound` left an inventory order because the market took them first. Such an order ends `done` with all
    lots executed, else `returned`: its other lots stay in the inventory, those of a takeover as a forced tranche.
    """

    symbol: str
    generation: int
    adl: int
    origin: Origin
    cause: int
    closes: int
    state: State
    reduce: SideName
    price: str
    deficit: str
    deficit_lots: int
    lots_needed: int
    lots_taken: int
    lots_unwound: int
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


async def order_answers(
    ledger: AdlReader, orders: Sequence[OrderRow], contract: Contract, visibility: Visibility
) -> list[OrderAnswer]:
    """Returns the answers for orders of a contract with their rounds."""
    found = await ledger.rounds(contract.symbol, [order.adl for order in orders], ALLOCATIONS_MAX)
    rounds = {number: list(rows) for number, rows in groupby(found, lambda row: row.adl)}
    return [_order_answer(order, rounds.get(order.adl, ()), contract, visibility) for order in orders]


def _order_answer(order: OrderRow, rounds: Sequence[RoundRow], contract: Contract, visibility: Visibility) -> OrderAnswer:
    money, price = contract.settle_decimals, contract.price_decimals
    generation = generation_of(order.symbol)
    return OrderAnswer(
        symbol=generation.symbol,
        generation=generation.number,
        adl=order.adl,
        origin=order.origin,
        cause=order.cause,
        closes=order.cause if order.origin == "inventory" else 0,
        state=order.state,
        reduce=order.reduce,
        price=format_units(order.price, price),
        deficit=format_units(order.deficit, money),
        deficit_lots=order.deficit_lots,
        lots_needed=order.lots,
        lots_taken=order.executed,
        lots_unwound=order.unwound,
        needed=format_units(order.uncovered, money),
        taken=format_units(amount_of(order, order.executed), money),
        uncovered=format_units(order.uncovered, money),
        recovered=format_units(order.recovered, money),
        refund=format_units(refund_of(order) if order.state == "done" else 0, money),
        rest=format_units(order.uncovered - order.recovered, money),
        round=order.round,
        acknowledged=order.acknowledged,
        policy_version=order.policy_version,
        rounds=[_round_answer(row, order, contract, visibility) for row in rounds],
        ts=order.ts,
        updated_at=milliseconds(order.updated_at),
    )


def _round_answer(row: RoundRow, order: OrderRow, contract: Contract, visibility: Visibility) -> RoundAnswer:
    return RoundAnswer(
        round=row.round,
        mark_price=format_units(row.mark, contract.price_decimals) if row.mark else None,
        is_stale=row.is_stale,
        positions=row.positions,
        asked=row.requested if visibility.all_accounts else rough(row.requested),
        executed=row.executed if visibility.all_accounts else rough(row.executed),
        promised=[PromisedAnswer(*one) for one in row.promised],
        allocations=[
            allocation_answer(allocation, order.reduce, order.price, contract, visibility) for allocation in row.allocations
        ],
    )


def allocation_answer(
    row: AllocationRow, reduce: SideName, price: int, contract: Contract, visibility: Visibility
) -> AllocationAnswer:
    """Returns an allocation of a round, with its account if that may be named; `reduce` and `price` are those of the order."""
    equity, unit = Valuation(contract, reduce).equity(row.lots, row.entry_price, row.margin, price)
    answer = AllocationAnswer(
        **input_fields(valued(contract, reduce, row, row.mark), contract),
        **place_fields(row, row.executed),
        equity_at_price=format_units(equity // unit, contract.settle_decimals),
        account=row.account if visibility.names else UNSET,
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
