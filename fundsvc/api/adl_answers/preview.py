"""Answers for previews: the effect of a fill or a takeover that is not settled."""

from collections.abc import Callable, Sequence
from itertools import groupby, islice

import msgspec
from msgspec import UNSET, UnsetType

from fundsvc.api.adl_answers.inputs import price_text
from fundsvc.api.adl_answers.orders import AllocationAnswer, allocation_answer
from fundsvc.api.answers import Answer
from fundsvc.api.visibility import OPERATOR, rough, rough_total
from fundsvc.core.adl.order import AdlOrder, RoundTerms
from fundsvc.core.adl.preview import Preview, TakeoverPreview
from fundsvc.core.adl.queue import merge_small_groups
from fundsvc.core.adl.valuation import Rank, SideName
from fundsvc.core.contracts import Contract
from fundsvc.core.generations import public_symbol
from fundsvc.core.numbers import format_units
from fundsvc.readmodel.adl_books import BookView
from fundsvc.store.adl import AllocationRow, allocation_rows


class OthersAnswer(Answer, frozen=True):
    """Rounded allocations to at least `queue.k_min` positions of other accounts with `lights` down to `toLights`."""

    lights: int
    to_lights: int
    positions: int
    lots: int
    asked: int


class PreviewOrderAnswer(Answer, frozen=True):
    """The ADL order that the event would create, and its first round. `lotsAsked` is below `lotsNeeded` if candidates are few.

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


class TakeoverPreviewAnswer(Answer, frozen=True, kw_only=True):
    """The effect of a takeover at present.

    `expectedLoss` is the loss of all its lots at the mark, 0 without a mark; `capacity` is the loss that the fund may still
    promise to bear. The fund takes over the `accepted` lots. The `order` is for the other lots. Without candidates the
    fund takes over these `forced` lots too. `equity` is that of the fund after the takeover, before any execution of the order;
    null without a mark.
    """

    symbol: str
    lots: int
    accepted: int
    expected_loss: str
    capacity: str
    forced: int
    equity: str | None
    mark_price: str | None
    order: PreviewOrderAnswer | None
    last_id: str
    ts: int


ShowOrder = Callable[[AdlOrder, RoundTerms, Contract], PreviewOrderAnswer]
"""Makes the answer for an order of a preview: `whole_preview` or `trader_preview`."""


def takeover_preview_answer(preview: TakeoverPreview, view: BookView, lots: int, show: ShowOrder) -> TakeoverPreviewAnswer:
    """Returns the answer to a preview of a takeover of `lots`."""
    contract, acceptance = view.contract, preview.acceptance
    money = contract.settle_decimals
    return TakeoverPreviewAnswer(
        symbol=public_symbol(contract.symbol),
        lots=lots,
        accepted=acceptance.lots,
        expected_loss=format_units(acceptance.loss, money),
        capacity=format_units(acceptance.capacity, money),
        forced=preview.forced,
        equity=None if view.book.mark is None else format_units(preview.equity, money),
        mark_price=price_text(view.book.mark, contract),
        order=show(preview.order, preview.first, contract) if preview.order and preview.first else None,
        last_id=view.last_id,
        ts=view.ts,
    )


def preview_answer(preview: Preview, view: BookView, show: ShowOrder) -> PreviewAnswer:
    """Returns the answer to a preview of a fill."""
    contract, entry, order = view.contract, preview.entry, preview.order
    money = contract.settle_decimals
    return PreviewAnswer(
        symbol=public_symbol(contract.symbol),
        kind=entry.kind,
        worth=format_units(entry.change + entry.repaid - entry.uncovered, money),
        covered=format_units(max(0, -entry.change), money),
        uncovered=format_units(entry.uncovered, money),
        repaid=format_units(entry.repaid, money),
        balance=format_units(entry.balance, money),
        mark_price=price_text(view.book.mark, contract),
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
    return _preview_order(order, contract, first.lots_requested, first.positions, allocations)


def trader_preview(order: AdlOrder, first: RoundTerms, contract: Contract, account: str, k_min: int) -> PreviewOrderAnswer:
    """Returns an order with the allocations to one account and sums of at least `k_min` others."""
    rows = list(allocation_rows(first, {}))
    own = [row for row in rows if row.account == account]
    others = [row for row in rows if row.account != account]
    few = len(others) < k_min
    lots_asked = None if few and first.lots_requested < rough(order.lots) else min(order.lots, rough(first.lots_requested))
    allocations = [
        allocation_answer(
            row._replace(requested=_rounded_like(row.requested, order.lots)) if few else row,
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
        OthersAnswer(lights, lights, len(lit), sum(row.lots for row in lit), sum(row.requested for row in lit))
        for lights, lit in ((lights, list(rows)) for lights, rows in by_lights)
    ]
    return [
        msgspec.structs.replace(group, lots=rough_total(group.lots), asked=rough_total(group.asked))
        for group in merge_small_groups(groups, k_min, _joined_others)
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
