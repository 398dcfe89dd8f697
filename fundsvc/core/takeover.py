"""Takeovers of one contract: the fund takes over lots, unwinds them, and has ADL orders relieve an inventory that is too heavy.

    takeover    the accepted lots become a tranche; a takeover order requests positions for the rest, and what it cannot
                deleverage becomes a forced tranche
    unwind      closes lots in the market, oldest tranche first; each piece is settled like a fill
    settlement  closes all lots of both sides at the settlement price, those of open takeover orders included
    relief      at the end of an applied mark or numbered event: if balance + worth of the lots that no order is promised is
                below the lower line, inventory orders request positions for the worst tranches until it reaches the upper line

Equity in the rules of relief excludes promised lots, because an order closes them at their own price, without a loss.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from fundsvc.core.adl.desk import AdlDesk
from fundsvc.core.adl.order import AdlOrder, Origin, RoundRequest, opposite, order_of_lots
from fundsvc.core.batch import Draft, RateState
from fundsvc.core.events import SETTLEMENT, AdlFill, Fill, Reason, Rejection, Settle, Takeover, Unwind
from fundsvc.core.fund.acceptance import accept
from fundsvc.core.fund.inventory import Holding, Inventory, Piece, Tranche
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.numbers import INT64_MAX


class Cause(NamedTuple):
    """The event that moves an order: its sequence, 0 if it has none, and the engine's time in milliseconds."""

    seq: int
    ts: int


class Exposure(NamedTuple):
    """What an inventory means for its fund now.

    `unrealised` is its worth at the mark in atoms, to within one atom per tranche, and `equity` the balance plus that; both are
    None without a mark. `oldest_ts` is the time of its oldest tranche (ms). `is_unrelieved` is whether it is too heavy, and no
    position can be requested to relieve it.
    """

    equity: int | None
    unrealised: int | None
    oldest_ts: int
    is_unrelieved: bool


class Orders(Protocol):
    """What the takeovers of a contract need of its ADL orders."""

    @property
    def fund(self) -> Fund:
        """The fund."""

    @property
    def desk(self) -> AdlDesk:
        """The ADL desk."""

    @property
    def batch(self) -> Draft:
        """The draft of the next commit."""

    @property
    def orders(self) -> dict[int, AdlOrder]:
        """The open ADL orders by number."""

    def end_orders(self, cause: Cause) -> None:
        """Ends the open orders, except those for a tranche."""

    def settle_last(self, fill: Fill, closes: int, prices: tuple[int, int]) -> None:
        """Settles a fill at these prices that closes lots of a tranche at the settlement."""

    def begin_order(self, order: AdlOrder, cause: Cause) -> None:
        """Begins the first round of a new order."""

    def close_order(self, order: AdlOrder) -> None:
        """Removes an order that has ended from the open orders."""

    def settle_piece(self, fill: Fill, closes: int, prices: tuple[int, int]) -> None:
        """Settles a fill at these prices that closes lots of the tranche of a takeover entry."""


class Takeovers:
    """The inventory of a contract's fund, and the open orders that relieve it."""

    __slots__ = ("_escalation", "_orders", "inventory")

    def __init__(self, orders: Orders, inventory: Inventory) -> None:
        self.inventory = inventory
        self._escalation = orders
        self._orders: dict[int, AdlOrder] = {}

    def take_over(self, takeover: Takeover, price: int, rates: Mapping[str, RateState]) -> None:
        """Accepts lots of a takeover at a bankruptcy price as a tranche, and begins an order for the rest."""
        escalation, fund = self._escalation, self._escalation.fund
        holding = self.inventory.closed_by(takeover.side)
        check_room(holding, takeover)
        rate = rates.get(fund.contract.settle_currency)
        lots = accept(fund, takeover, price, self.inventory.mark, rate.price if rate else None).lots
        holding.taken += takeover.lots
        escalation.batch.note_outcome(fund.contract.symbol, "accepted" if lots == takeover.lots else "accepted_in_part", lots)
        if lots:
            escalation.batch.record(fund, fund.take_over(takeover, lots, price))
        if lots < takeover.lots:
            rest = takeover.lots - lots
            holding.in_orders += rest
            cause, account = fund.entry if lots else 0, takeover.account
            self._begin("takeover", holding, cause, rest, price, Cause(takeover.seq, takeover.ts), account)

    def unwind(self, unwind: Unwind, price: int) -> None:
        """Closes held lots at a price, and settles those of each tranche like a fill."""
        fund = self._escalation.fund
        holding = self.inventory.closed_by(unwind.side)
        pieces = holding.pieces(unwind.lots)
        if len(pieces) > 1 or pieces[0].promised:
            # The settlement of one piece checks its own amounts before it changes anything.
            worths = [fund.worth(unwind.side, piece.lots, price, piece.tranche.price) for piece in pieces]
            gains = sum([worth for worth in worths if worth > 0])
            fund.check_fits(gains, gains - sum(worths))
        for piece in pieces:
            if piece.promised:
                self._leave_orders(holding, piece, Cause(unwind.seq, unwind.ts))
        for piece in pieces:
            self._escalation.settle_piece(_fill(unwind, piece), piece.tranche.entry, (price, piece.tranche.price))
        holding.unwound += unwind.lots
        self._escalation.batch.note_outcome(fund.contract.symbol, "unwound", unwind.lots)

    def settle(self, settle: Settle, price: int) -> None:
        """Ends the open orders, and closes all lots of both sides at a price, oldest tranche first."""
        self._check_settles(price)
        cause = Cause(settle.seq, settle.ts)
        self._escalation.end_orders(cause)
        sides = [holding for holding in self.inventory.sides() if holding.lots]
        pieces = [(holding, piece) for holding in sides for piece in holding.pieces(holding.lots)]
        for holding, piece in sorted(pieces, key=lambda one: one[1].tranche.entry):
            if piece.promised:
                self._leave_orders(holding, piece, cause)
            holding.unwound += piece.lots
            self._escalation.batch.note_outcome(self._escalation.fund.contract.symbol, "unwound", piece.lots)
            unwind = Unwind(settle.symbol, settle.seq, holding.side, piece.lots, settle.price, settle.ts, order_id=SETTLEMENT)
            self._escalation.settle_last(_fill(unwind, piece), piece.tranche.entry, (price, piece.tranche.price))

    def _check_settles(self, price: int) -> None:
        """Raises Rejection if the amounts of a settlement might not fit the fund."""
        fund, inventory = self._escalation.fund, self.inventory
        worths = [
            fund.worth(holding.side, tranche.lots, price, tranche.price)
            for holding in inventory.sides()
            for tranche in holding.tranches.values()
        ]
        worths += [
            fund.worth(inventory.against(order.reduce).side, order.needed, price, order.price)
            for order in self._escalation.orders.values()
            if order.origin == "takeover"
        ]
        fund.check_fits(sum(worth for worth in worths if worth > 0), -sum(worth for worth in worths if worth < 0))

    def _leave_orders(self, holding: Holding, piece: Piece, cause: Cause) -> None:
        """Removes promised lots that the market took from their orders, the newest first."""
        escalation, entry, rest = self._escalation, piece.tranche.entry, piece.promised
        for order in sorted(self._orders.values(), key=lambda order: -order.adl):
            lots = min(rest, order.needed) if order.cause == entry else 0
            if not lots:
                continue
            rest -= lots
            holding.promise(entry, -lots)
            order.unwind(lots)
            order.seq = max(order.seq, cause.seq)
            escalation.batch.seal(escalation.fund.record("unwind", order, cause.seq, cause.ts, lots=lots))
            if order.state != "open":
                self.forget(order)
                escalation.close_order(order)
            escalation.batch.note(order)

    def deleverage(self, order: AdlOrder, execution: AdlFill) -> None:
        """Records an execution of a takeover or inventory order."""
        holding, lots = self.inventory.against(order.reduce), execution.lots
        self._release(holding, order, lots)
        holding.deleveraged += lots
        fund, batch = self._escalation.fund, self._escalation.batch
        batch.note_outcome(order.symbol, "relieved" if order.origin == "inventory" else "deleveraged", lots)
        batch.record(fund, fund.deleverage(order, execution))
        if order.state != "open":
            self.forget(order)

    def take_back(self, order: AdlOrder, cause: Cause, *, without_candidates: bool) -> None:
        """Returns the lots that an order did not execute: those of a takeover order become a forced tranche.

        `without_candidates` means that the order ended because no position could be requested.
        """
        fund, holding, lots = self._escalation.fund, self.inventory.against(order.reduce), order.needed
        self._release(holding, order, lots)
        self.forget(order)
        if without_candidates:
            holding.returned_ts = cause.ts if holding.returned_ts is None else max(holding.returned_ts, cause.ts)
        if order.origin == "takeover":
            self._escalation.batch.note_outcome(order.symbol, "forced", lots)
            self._escalation.batch.record(fund, fund.take_rest(order, cause.seq, cause.ts))

    def reopen(self, order: AdlOrder) -> None:
        """Continues an open order of the ledger."""
        self._release(self.inventory.against(order.reduce), order, -order.needed)
        if order.origin == "inventory":
            self._orders[order.adl] = order

    def forget(self, order: AdlOrder) -> None:
        """Removes an order that has ended."""
        self._orders.pop(order.adl, None)

    def is_needed(self, order: AdlOrder) -> bool:
        """Whether an order may begin a further round: an inventory order only while its tranche loses."""
        return order.origin != "inventory" or self.inventory.against(order.reduce).loses(order.price)

    def relieve(self, cause: Cause) -> None:
        """Begins inventory orders if the inventory is too heavy for the fund."""
        fund, inventory = self._escalation.fund, self.inventory
        if inventory.mark is None or not inventory.lots:
            return
        if fund.guard and fund.guard.watches_equity:
            fund.observe(cause.ts)
            self._escalation.batch.changed[fund.contract.symbol] = fund
        lower, upper = fund.relief_lines(cause.ts)
        if fund.balance + inventory.free_worth_min >= lower:
            return
        sides = [holding for holding in inventory.sides() if self._may_relieve(holding, cause.ts)]
        if sides and fund.balance + inventory.free_worth < lower:
            self._relieve(sides, upper, cause)

    def exposure(self, ts: int) -> Exposure | None:
        """Returns what the inventory means for the fund at a time (ms); None if the fund holds nothing."""
        inventory = self.inventory
        times = [holding.oldest_ts for holding in inventory.sides() if holding.oldest_ts is not None]
        if not times:
            return None
        if inventory.mark is None:
            return Exposure(None, None, min(times), is_unrelieved=False)
        unrealised = inventory.unrealised_about
        return Exposure(self._escalation.fund.balance + unrealised, unrealised, min(times), self._is_unrelieved(ts))

    def _is_unrelieved(self, ts: int) -> bool:
        """Whether the equity is below the lower line, although more orders may be open: no position can be requested."""
        fund, inventory = self._escalation.fund, self.inventory
        if len(self._orders) >= max(1, fund.policy.takeover.orders_max):
            return False
        lower, _ = fund.relief_lines(ts)
        return fund.balance + inventory.free_worth_min < lower and fund.balance + inventory.free_worth < lower

    def _relieve(self, sides: list[Holding], upper: int, cause: Cause) -> None:
        """Begins orders for the worst tranches until the equity reaches `upper`; passes over a side without candidates."""
        fund, inventory = self._escalation.fund, self.inventory
        orders_max = fund.policy.takeover.orders_max
        while len(self._orders) < orders_max and (missing := upper - fund.balance - inventory.free_worth) > 0:
            worst = _worst(sides)
            if worst is None:
                return
            holding, tranche = worst
            if not self._escalation.desk.has_candidates(RoundRequest(opposite(holding.side), 1, tranche.price, "")):
                sides.remove(holding)
                continue
            lots = holding.lots_to_gain(tranche, missing)
            holding.promise(tranche.entry, lots)
            self._begin("inventory", holding, tranche.entry, lots, tranche.price, cause)

    def _may_relieve(self, holding: Holding, ts: int) -> bool:
        """Whether a side has had no order without candidates in the last `retry_seconds`."""
        retry_ms = int(self._escalation.fund.policy.takeover.retry_seconds * 1000)
        return holding.returned_ts is None or ts >= holding.returned_ts + retry_ms

    def _begin(
        self, origin: Origin, holding: Holding, entry: int, lots: int, price: int, cause: Cause, account: str = ""
    ) -> None:
        fund = self._escalation.fund
        order = order_of_lots(
            origin,
            fund.contract.symbol,
            fund.adl + 1,
            entry,
            holding.side,
            lots,
            price,
            cause.ts,
            cause.seq,
            account,
            fund.policy_version,
        )
        if origin == "inventory":
            self._orders[order.adl] = order
        self._escalation.begin_order(order, cause)

    def _release(self, holding: Holding, order: AdlOrder, lots: int) -> None:
        """Subtracts lots that an order no longer needs from those that it is promised, or that the side has in orders."""
        if order.origin == "takeover":
            holding.in_orders -= lots
        else:
            holding.promise(order.cause, -lots)


def check_room(holding: Holding, takeover: Takeover) -> None:
    """Raises Rejection if the lots of a side, those of open takeover orders included, would not fit 63 bits."""
    held = holding.lots + holding.in_orders
    if held + takeover.lots > INT64_MAX:
        raise Rejection(
            Reason.OUT_OF_RANGE, f"the fund has {held} lots of this side: {takeover.lots} more would exceed {INT64_MAX}"
        )


def check_held(inventory: Inventory | None, unwind: Unwind) -> None:
    """Raises Rejection if an unwind closes more lots than a side holds."""
    held = inventory.closed_by(unwind.side).lots if inventory else 0
    if unwind.lots > held:
        raise Rejection(
            Reason.INVENTORY_SHORT,
            f"the fund of {unwind.symbol} holds {held} lots that a {unwind.side} closes, not {unwind.lots}",
        )


def _fill(unwind: Unwind, piece: Piece) -> Fill:
    """Returns the fill that closes a piece. Its prices are known as integers, so it has no text of the tranche's price."""
    ids = unwind.trade_id, unwind.order_id
    return Fill(unwind.symbol, unwind.seq, unwind.side, piece.lots, unwind.price, "", unwind.ts, *ids)


def _worst(sides: list[Holding]) -> tuple[Holding, Tranche] | None:
    """Returns the tranche with the largest loss per lot, the oldest of equals, and its side; None without a loss."""
    found = [(holding, tranche) for holding in sides if (tranche := holding.worst()) is not None]
    return max(found, key=lambda one: (one[0].loss_per_lot(one[1]), -one[1].entry), default=None)
