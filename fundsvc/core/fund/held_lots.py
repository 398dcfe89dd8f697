"""Recomputes the lots that a fund holds from its entries and ADL records, for the audit."""

from collections import Counter
from collections.abc import Callable, Iterable

from fundsvc.core.adl.order import AdlOrder
from fundsvc.core.adl.records import OrderBody
from fundsvc.core.fund.chain import Entry
from fundsvc.core.fund.inventory import Holding, HoldingState, Inventory, Tranche, TrancheState


class HeldReplay:
    """Follows the inventory of a fund; reports lots that its entries cannot have moved.

    `orders` are the open orders at the beginning.
    """

    def __init__(self, differ: Callable[[str], None], inventory: Inventory, orders: Iterable[AdlOrder]) -> None:
        self.inventory = inventory
        self._differ = differ
        self._reopen(orders)

    def _reopen(self, orders: Iterable[AdlOrder]) -> None:
        """Makes promised lots, and those in takeover orders, equal to what the open orders need."""
        promised: Counter[int] = Counter()
        in_orders: Counter[str] = Counter()
        for order in orders:
            if order.origin == "inventory":
                promised[order.cause] += order.needed
            elif order.origin == "takeover":
                in_orders[self.inventory.against(order.reduce).name] += order.needed
        for holding in self.inventory.sides():
            holding.in_orders = in_orders[holding.name]
            for entry, lots in promised.items():
                tranche = holding.tranches.get(entry)
                if tranche and lots != tranche.promised:
                    holding.promise(entry, lots - tranche.promised)

    def follow(self, entry: Entry) -> None:
        """Adds or closes the lots of an entry."""
        holding = self.inventory.closed_by(entry.side)
        if entry.kind == "takeover":
            self._take(holding, entry)
            return
        if entry.kind == "deleverage":
            holding.deleveraged += entry.lots
        if entry.closes and self._has(holding, entry.closes, entry.lots):
            holding.unwound += entry.lots if entry.kind != "deleverage" else 0
            holding.close(entry.closes, entry.lots)

    def follow_order(self, order: AdlOrder, needed: int) -> None:
        """Follows an order for lots that needed `needed` lots before its last record, 0 if it is new."""
        holding = self.inventory.against(order.reduce)
        now = order.needed if order.state == "open" else 0
        if order.origin == "takeover":
            holding.in_orders += now - needed
            holding.taken += 0 if needed else order.lots
        elif order.cause in holding.tranches and now != needed:
            holding.promise(order.cause, now - needed)

    def check_piece(self, entry: Entry) -> None:
        """Checks a piece of an unwind: its tranche has the price and enough free lots, and no older one has free lots."""
        holding = self.inventory.closed_by(entry.side)
        if not self._has(holding, entry.closes, entry.lots):
            return
        tranche = holding.tranches[entry.closes]
        if entry.account or entry.bankruptcy_price != tranche.price or entry.lots > tranche.free:
            self._differ(f"closes {entry.lots} lots of entry {entry.closes}, which has {tranche.free} at {tranche.price}")
        older = next(iter(one.entry for one in holding.tranches.values() if one.free), entry.closes)
        if older < entry.closes:
            self._differ(f"closes lots of entry {entry.closes}, but entry {older} is older and has lots")

    def check_tranche(self, body: OrderBody) -> None:
        """Checks that an inventory order requests free lots of a tranche, at its price."""
        tranche = self.inventory.against(body.reduce).tranches.get(body.cause)
        if tranche is None or body.account or body.price != tranche.price or not 1 <= body.lots <= tranche.free:
            self._differ(f"an inventory order requests {body.lots} lots of entry {body.cause}, which does not have them")

    def compare(self, tranches: Iterable[TrancheState], holdings: Iterable[HoldingState]) -> None:
        """Compares the stored rows of a contract's inventory with the recomputed ones."""
        ours = {(side.name, one.entry): one for side in self.inventory.sides() for one in side.tranches.values()}
        found = {(row.side, row.entry): (row.lots, row.price, row.ts, row.forced) for row in tranches}
        wanted = {key: (one.lots, one.price, one.ts, one.forced) for key, one in ours.items()}
        for key in sorted(found.keys() | wanted.keys()):
            if found.get(key) != wanted.get(key):
                self._differ(f"tranche {key} has (lots, price, ts, forced) {found.get(key)}, not {wanted.get(key)}")
        for row in holdings:
            expected = self.inventory.of(row.side).state(row.symbol)._replace(returned_ts=row.returned_ts)
            if row != expected:
                self._differ(f"the inventory is {row}, its entries and records give {expected}")

    def _take(self, holding: Holding, entry: Entry) -> None:
        holding.add(Tranche(entry=entry.entry, lots=entry.lots, price=entry.price, ts=entry.ts, forced=entry.forced))
        if not entry.forced:
            holding.taken += entry.lots

    def _has(self, holding: Holding, entry: int, lots: int) -> bool:
        """Whether a tranche has so many lots; reports it if not."""
        tranche = holding.tranches.get(entry)
        if tranche is None or not 1 <= lots <= tranche.lots:
            self._differ(f"closes {lots} lots of entry {entry}, which has {tranche.lots if tranche else 0}")
            return False
        return True
