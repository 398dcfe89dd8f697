"""What the demo asks of the ledger beyond what its API tells: ADL orders with their accounts, and how far it has come."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from fundsvc.core.adl import State
from fundsvc.core.book import SideName
from fundsvc.core.numbers import format_units
from fundsvc.demo.market import Holding
from fundsvc.store.database import SQL, Pool, faults, lent
from fundsvc.streams.announcements import Announcement, Asked
from fundsvc.streams.source import Source

_LATEST_ORDERS = """
SELECT o.symbol, o.adl, o.reduce, o.lots, o.price, c.price_decimals, o.deficit, o.deficit_lots, o.uncovered, o.recovered,
       o.executed, o.state, o.round, a.accounts
FROM contracts c
CROSS JOIN LATERAL (SELECT * FROM adl_orders WHERE symbol = c.symbol ORDER BY adl DESC LIMIT $1) o
CROSS JOIN LATERAL (
    SELECT count(*) AS accounts FROM adl_allocations WHERE symbol = o.symbol AND adl = o.adl AND round = o.round
) a
ORDER BY o.symbol, o.adl
"""

_OPEN_ROUNDS = """
SELECT o.symbol, o.adl, o.round, o.reduce, o.price, c.price_decimals, array_agg(a.account ORDER BY a.rank) AS accounts,
       array_agg(a.asked - a.executed ORDER BY a.rank) AS lots
FROM adl_orders o JOIN contracts c USING (symbol) JOIN adl_allocations a USING (symbol, adl, round)
WHERE o.state = 'open' GROUP BY 1, 2, 3, 4, 5, 6
"""

_TAKEN_SINCE = """
SELECT a.symbol, a.account, a.entry_price, sum(a.executed)::bigint AS lots
FROM adl_allocations a JOIN adl_orders o USING (symbol, adl) JOIN entries e ON e.symbol = o.symbol AND e.entry = o.cause
WHERE a.executed > 0 AND e.seq > $1 GROUP BY 1, 2, 3
"""

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
        return [Order(*row) for row in await self._fetch(_LATEST_ORDERS, LATEST_ORDERS)]

    async def open_rounds(self) -> list[Announcement]:
        """The rounds that are not ended, as they would be announced now."""
        rows = await self._fetch(_OPEN_ROUNDS)
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
        rows = await self._fetch(_TAKEN_SINCE, seq)
        return {Holding(row["symbol"], row["account"], row["entry_price"]): row["lots"] for row in rows}

    async def lag(self, sources: Sequence[Source]) -> int:
        """How many messages the ledger is behind the streams; raises StreamFault too."""
        sent = sum([(await source.state()).added for source in sources])
        settled: int = sum(row["messages"] for row in await self._fetch(SQL["partitions"]))
        return max(0, sent - settled)

    async def _fetch(self, statement: str, *parameters: Any) -> list[Any]:
        with faults():
            async with lent(self._pool) as connection:
                rows: list[Any] = await connection.fetch(statement, *parameters)
                return rows
