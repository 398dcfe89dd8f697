"""Queries of the demo that the API does not offer: ADL orders with their accounts, and the lag of the ledger."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from fundsvc.core.adl.order import Origin, State, refund_of
from fundsvc.core.adl.records import reduced_of, terms_of
from fundsvc.core.adl.valuation import SideName
from fundsvc.core.fund.inventory import TrancheState
from fundsvc.demo.market import Holding
from fundsvc.store.database import Pool
from fundsvc.store.reader import fetch
from fundsvc.store.writer import orders_from
from fundsvc.streams.announcer import announcement_of
from fundsvc.streams.source import Source
from fundsvc.wire.rounds import Announcement

LATEST_ORDERS = 12
"""Orders read per contract: more than are open at once, and more than begin between two reads."""


class Order(NamedTuple):
    """An ADL order; `accounts` is the number of positions in its current round. See `AdlOrder` for the other fields."""

    symbol: str
    adl: int
    origin: Origin
    reduce: SideName
    lots: int
    price: int
    price_decimals: int
    deficit: int
    deficit_lots: int
    uncovered: int
    recovered: int
    executed: int
    state: State
    round: int
    accounts: int

    @property
    def refund(self) -> int:
        """The amount that a completed order refunds to the fund, in atoms."""
        return refund_of(self)


class Ledger:
    """Queries over a pool; every method raises StoreFault when the database is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def latest_orders(self) -> list[Order]:
        """The latest orders of every contract, by contract and number."""
        return [
            Order._make([*[*row.values()][:-2], terms_of(row["kind"], row["body"]).positions])
            for row in await fetch(self._pool, "latest_orders", LATEST_ORDERS)
        ]

    async def open_rounds(self) -> list[Announcement]:
        """The rounds of open orders, in the form in which the service announces them."""
        decimals = {row["symbol"]: row["price_decimals"] for row in await fetch(self._pool, "contracts", None)}
        orders = await fetch(self._pool, "load_orders", None, None)
        records = await fetch(self._pool, "load_records", None, None)
        return [announcement_of(order, decimals[order.symbol]) for order in orders_from(orders, records)]

    async def taken_since(self, seq: int) -> dict[Holding, int]:
        """Lots executed per position, by orders that began with a sequence above `seq`."""
        taken: Counter[Holding] = Counter()
        for row in await fetch(self._pool, "executed_since", seq):
            taken[Holding(row["symbol"], row["account"], reduced_of(row["body"]).entry_price)] += row["lots"]
        return taken

    async def carried(self) -> dict[str, int]:
        """The lots that each fund holds, with those in its open takeover orders, by contract."""
        return {row["symbol"]: row["lots"] for row in await fetch(self._pool, "carried_lots")}

    async def tranches(self) -> Sequence[TrancheState]:
        """The tranches of all funds, by contract and entry."""
        return [TrancheState(*row) for row in await fetch(self._pool, "all_tranches")]

    async def lag(self, sources: Sequence[Source]) -> int:
        """The number of messages in the streams that are not settled yet; also raises StreamFault."""
        sent = sum([(await source.state()).added for source in sources])
        settled: int = sum(row["messages"] for row in await fetch(self._pool, "partitions"))
        return max(0, sent - settled)
