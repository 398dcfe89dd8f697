"""What the demo asks of the ledger beyond what its API tells: ADL orders with their accounts, and how far it has come."""

from collections.abc import Sequence
from typing import NamedTuple

from fundsvc.core.adl import State
from fundsvc.core.book import SideName
from fundsvc.core.numbers import format_units
from fundsvc.demo.market import Holding
from fundsvc.store.database import Pool
from fundsvc.store.reader import fetch
from fundsvc.streams.announcements import Announcement, Asked
from fundsvc.streams.source import Source

LATEST_ORDERS = 12
"""Of each contract: more than are open at once, and than begin between two looks."""


class Order(NamedTuple):
    """An ADL order and how many accounts its present round asks; see `AdlOrder` for the other fields."""

    symbol: str
    adl: int
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
        """What a completed order gives back to the fund, in atoms."""
        return self.deficit * self.lots // self.deficit_lots - self.uncovered


class Ledger:
    """Questions over a pool; every method raises StoreFault when the database is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def latest_orders(self) -> list[Order]:
        """The last few orders of every contract, by contract and number."""
        return [Order(*row) for row in await fetch(self._pool, "latest_orders", LATEST_ORDERS)]

    async def open_rounds(self) -> list[Announcement]:
        """The rounds that are not ended, as they would be announced now."""
        rows = await fetch(self._pool, "open_rounds")
        return [
            Announcement(
                row["symbol"],
                row["adl"],
                row["round"],
                row["reduce"],
                format_units(row["price"], row["price_decimals"]),
                tuple(map(Asked, row["accounts"], row["lots"])),
            )
            for row in rows
        ]

    async def taken_since(self, seq: int) -> dict[Holding, int]:
        """Lots that were taken off positions by orders whose shortfall has a later sequence than this."""
        rows = await fetch(self._pool, "taken_since", seq)
        return {Holding(row["symbol"], row["account"], row["entry_price"]): row["lots"] for row in rows}

    async def lag(self, sources: Sequence[Source]) -> int:
        """How many messages the ledger is behind the streams; raises StreamFault too."""
        sent = sum([(await source.state()).added for source in sources])
        settled: int = sum(row["messages"] for row in await fetch(self._pool, "partitions"))
        return max(0, sent - settled)
