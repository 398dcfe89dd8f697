"""Answers for matching engines: ADL orders and rounds with their accounts."""

import asyncio
from collections.abc import Mapping

import msgspec

from fundsvc.api.adl_answers.orders import OrderAnswer, order_answers
from fundsvc.api.visibility import EXECUTOR
from fundsvc.core.contracts import Contract
from fundsvc.store.adl import AdlReader, OrderRow
from fundsvc.streams.announcer import announcement_of
from fundsvc.wire.rounds import Announcement


class InstructedOrderAnswer(OrderAnswer, frozen=True, kw_only=True):
    """An ADL order with the accounts of the allocations that it shows.

    `instruction` is its round as announced, with all lots that are still requested; null unless the order is open.
    """

    instruction: Announcement | None


async def instructed_order_answer(
    ledger: AdlReader, order: OrderRow, contract: Contract, partition: int
) -> InstructedOrderAnswer:
    """Returns the answer for an order with its accounts; raises StoreFault."""
    (answer,) = await order_answers(ledger, [order], contract, EXECUTOR)
    rounds = await open_rounds(ledger, partition, contract) if order.state == "open" else {}
    return InstructedOrderAnswer(**msgspec.structs.asdict(answer), instruction=rounds.get(order.adl))


async def open_rounds(ledger: AdlReader, partition: int, contract: Contract) -> Mapping[int, Announcement]:
    """Returns the current rounds of a contract's open orders, by order; raises StoreFault."""
    found = await ledger.open_orders(partition, contract.symbol)
    orders = await asyncio.to_thread(found.decoded)
    return {order.adl: announcement_of(order, contract.price_decimals) for order in orders}
