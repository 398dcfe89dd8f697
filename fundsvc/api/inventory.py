"""The tranches of a fund's inventory."""

from collections.abc import Callable

from msgspec import UNSET

from fundsvc.api.answers import Answer, Page
from fundsvc.api.http.application import Route, find_contract
from fundsvc.api.http.parameters import InventoryQuery
from fundsvc.core.adl.valuation import SideName
from fundsvc.core.contracts import Contract
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.numbers import format_units
from fundsvc.readmodel.cell_tails import AnyTail
from fundsvc.store.inventories import InventoryReader, TrancheRow
from fundsvc.store.reader import Reader


class TrancheAnswer(Answer, frozen=True, kw_only=True):
    """Lots that a fund took over with `entry` at the bankruptcy price `price` and still holds.

    `promised` of these lots are requested by open ADL orders. `forced` is true if the fund took them over because ADL could not
    close them. `unrealisedPnl` is their worth at the mark, rounded down; null without a mark.
    """

    entry: int
    side: SideName
    lots: int
    promised: int
    price: str
    ts: int
    forced: bool
    unrealised_pnl: str | None


class InventoryResources:
    """Routes that answer from the tranches of the ledger. `mark_of` returns the live mark of a contract."""

    def __init__(
        self, reader: Reader, inventories: InventoryReader, tail: AnyTail, mark_of: Callable[[str], int | None]
    ) -> None:
        self._reader = reader
        self._inventories = inventories
        self._tail = tail
        self._mark_of = mark_of
        self.routes = (Route("/api/v1/insurance-fund/{symbol}/inventory", InventoryQuery, self.inventory),)

    async def inventory(self, query: InventoryQuery, symbol: str) -> Page[TrancheAnswer]:
        """A page of the tranches that a fund holds."""
        as_of = self._tail.as_of_ms
        contract = (await find_contract(self._reader, symbol)).contract
        rows = await self._inventories.tranches(
            contract.symbol,
            count=query.max_count + 1,
            offset=None if query.offset is UNSET else query.offset,
            forward=query.forward,
            side=None if query.side is UNSET else query.side,
        )
        mark = self._mark_of(contract.symbol)
        shown = [tranche_answer(row, contract, mark) for row in rows[: query.max_count]]
        return Page(data_list=shown, has_more=len(rows) > len(shown), as_of=as_of)


def tranche_answer(row: TrancheRow, contract: Contract, mark: int | None) -> TrancheAnswer:
    """Returns the answer for a tranche, valued at a mark."""
    closing = "sell" if row.side == "long" else "buy"
    worth = None if mark is None else Fund(contract).worth(closing, row.lots, mark, row.price)
    return TrancheAnswer(
        entry=row.entry,
        side=row.side,
        lots=row.lots,
        promised=row.promised,
        price=format_units(row.price, contract.price_decimals),
        ts=row.ts,
        forced=row.forced,
        unrealised_pnl=None if worth is None else format_units(worth, contract.settle_decimals),
    )
