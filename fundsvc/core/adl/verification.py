"""Verifies a contract's ADL from its sealed records: recomputes every order, round, execution and end.

A record that breaks a rule is reported as a difference. Later records are compared with the recomputed order.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from fundsvc.core.adl.order import AdlOrder, OrderState, RoundTerms, order_for, order_of_lots
from fundsvc.core.adl.records import AdlRecord, OrderBody, link_record, order_of, reduced_of, terms_of
from fundsvc.core.events import AdlFill, Rejection, Side
from fundsvc.core.fund.chain import GENESIS, Entry

Differ = Callable[[str], None]
"""Reports a difference, as a sentence."""

_NOT_RECOMPUTED = ("acknowledged", "round_ms")
"""Fields of an order's row that records do not determine: they control repetition and time-out of a round, no amounts."""

_WITH_LOTS = ("execution", "unwind", "end")
"""Kinds of records that have lots."""


class UnfinishedRound(msgspec.Struct, array_like=True, frozen=True):
    """A round with records still to follow: its missing positions and lots.

    `idle` is the order that must end next because its round has no positions, 0 if there is none.
    """

    positions: int = 0
    lots: int = 0
    idle: int = 0


class OrdersCheckpoint(NamedTuple):
    """The point up to which a contract's ADL records were verified.

    It contains the last record and its hash, the last order, the amount that all orders recovered (atoms), the numbers of the
    open orders, and the unfinished round.
    """

    record: int = 0
    head: bytes = GENESIS
    adl: int = 0
    recovered: int = 0
    open: Sequence[int] = ()
    unfinished_round: UnfinishedRound = UnfinishedRound()


class OpenOrders:
    """The open orders of a contract at a point of its records, rebuilt from all their records up to that point.

    `undated` contains the orders with records whose ledger entry, and therefore sequence, is not known. `unchecked` contains
    the orders whose rows were not compared since their last change.
    """

    def __init__(self, records: Iterable[AdlRecord] = ()) -> None:
        self.orders: dict[int, AdlOrder] = {}
        self.undated: set[int] = set()
        for record in records:
            self._reopen(record)
        self.unchecked = set(self.orders)

    @property
    def size(self) -> int:
        """The number of orders plus the positions of their rounds; a measure of memory."""
        return sum(1 + len(order.progress) for order in self.orders.values())

    def recheck_all(self) -> None:
        """Marks all orders as unchecked, so that their rows are compared again."""
        self.unchecked = set(self.orders)

    def _reopen(self, record: AdlRecord) -> None:
        """Applies a record of an open order that was verified before."""
        if not record.entry:
            self.undated.add(record.adl)
        if record.kind == "order":
            order = _reopened(record)
            self.orders[order.adl] = order
            return
        order = self.orders[record.adl]
        order.seq = max(order.seq, record.seq)
        match record.kind:
            case "round":
                order.end_round()
                order.begin_round(terms_of(record.kind, record.body), 0)
            case "part":
                order.progress.extend(terms_of(record.kind, record.body))
            case "unwind":
                order.unwind(record.lots)
            case "execution":
                order.execute(AdlFill(order.symbol, record.seq, order.adl, record.account, record.lots, record.ts))


class OrdersReplay:
    """Verifies a contract's ADL records from a checkpoint on.

    `opened` contains the open orders, `closed` the recomputed states of orders that closed since the checkpoint.
    """

    def __init__(self, differ: Differ, since: OrdersCheckpoint, opened: OpenOrders | None = None) -> None:
        self.opened = opened or OpenOrders()
        self.closed: dict[int, OrderState] = {}
        self.record, self.head, self.adl = since.record, since.head, since.adl
        self._recovered = since.recovered
        self._missing, self._lots_missing, self._idle = (
            since.unfinished_round.positions,
            since.unfinished_round.lots,
            since.unfinished_round.idle,
        )
        self._differ = differ

    @property
    def orders(self) -> dict[int, AdlOrder]:
        """The open orders by number."""
        return self.opened.orders

    @property
    def checkpoint(self) -> OrdersCheckpoint:
        """The point from which another OrdersReplay can continue."""
        unfinished_round = UnfinishedRound(self._missing, self._lots_missing, self._idle)
        return OrdersCheckpoint(self.record, self.head, self.adl, self._recovered, list(self.orders), unfinished_round)

    @property
    def recovered(self) -> int:
        """The amount that all orders recovered, in atoms."""
        return self._recovered

    @property
    def open_in_adl(self) -> int:
        """The amount that open orders have not recovered yet, in atoms."""
        return sum(order.rest for order in self.orders.values())

    @property
    def unfinished(self) -> str:
        """Describes a missing next record: positions of a round, or the end of an order without candidates. Empty if none."""
        if self._missing:
            return f"{self._missing} positions of a round are missing"
        return f"ADL order {self._idle} requests no positions and has not ended" if self._idle else ""

    def follow(self, record: AdlRecord, digest: bytes, cause: Entry | None) -> AdlOrder | None:
        """Verifies the next record; returns the order if the record closes it.

        `cause` is the shortfall that the record may escalate, None if there is none.
        """
        if record.record != self.record + 1:
            self._differ(f"record number is {record.record}, it should be {self.record + 1}")
        self.head = link_record(self.head, record)
        if digest != self.head:
            self._differ(f"hash is {digest.hex()}, it should be {self.head.hex()}")
        self.record, self.head = record.record, digest
        if not record.entry:
            self.opened.undated.add(record.adl)
        if (record.kind != "execution" and record.account) or (record.kind not in _WITH_LOTS and record.lots):
            self._differ(
                f"account is {record.account!r} and lots are {record.lots}, which a record of kind {record.kind} must not have"
            )
        try:
            return self._apply(record, cause)
        except (msgspec.DecodeError, Rejection, ValueError, OverflowError) as error:
            self._differ(f"the record does not follow the rules: {error}")
            return None

    def compare(self, stored: Mapping[int, OrderState], *, ended: bool) -> None:
        """Compares stored rows of orders, by number, with the orders closed since the checkpoint.

        With `ended`, at the end of the records, it also compares the open orders that changed since their last comparison.
        """
        expected = self.closed
        if ended:
            expected = expected | {adl: self.orders[adl].state_row() for adl in sorted(self.opened.unchecked)}
            self.opened.unchecked.clear()
        for adl, order in expected.items():
            if adl in stored:
                self._compare(stored[adl], order)
            else:
                self._differ(f"ADL order {adl} is missing")
        self.opened.undated.difference_update(self.closed)

    def _compare(self, stored: OrderState, expected: OrderState) -> None:
        for name, found in stored._asdict().items():
            wanted = getattr(expected, name)
            if name in _NOT_RECOMPUTED or (name == "seq" and stored.adl in self.opened.undated and found >= wanted):
                continue
            if found != wanted:
                self._differ(f"ADL order {stored.adl}: {name} is {found}, by its records it should be {wanted}")

    def _apply(self, record: AdlRecord, cause: Entry | None) -> AdlOrder | None:
        if record.kind == "order":
            self._begin(record, cause)
            return None
        order = self.orders.get(record.adl)
        if order is None:
            self._differ(f"the record belongs to ADL order {record.adl}, which is not open")
            return None
        self.opened.unchecked.add(order.adl)
        order.seq = max(order.seq, record.seq)
        match record.kind:
            case "round":
                self._begin_next_round(order, record)
            case "part":
                self._extend(order, record)
            case "execution":
                self._execute(order, record)
            case "unwind":
                self._unwind(order, record)
            case "end":
                self._end(order, record)
        return order if order.state != "open" else None

    def _begin(self, record: AdlRecord, cause: Entry | None) -> None:
        """Begins an order, and compares it with the order that its shortfall causes."""
        body = order_of(record.body)
        if body.origin != "shortfall":
            order, entry = self._order_of_lots(record, body), record.entry
        elif cause is None:
            self._differ(f"ADL order {record.adl} begins without a shortfall as its cause")
            return
        else:
            order, entry = order_for(cause, self.adl + 1, body.policy_version), cause.entry
        found = (record.adl, record.round, record.seq, record.ts, record.entry, _facts(body))
        wanted = (order.adl, 1, order.seq, order.ts, entry, _facts(order))
        if found != wanted:
            self._differ(f"the ADL order that begins is {found}, by its cause it should be {wanted}")
        self.adl = order.adl
        self.orders[order.adl] = order
        self.opened.unchecked.add(order.adl)
        self._begin_round(order, body.first)

    def _order_of_lots(self, record: AdlRecord, body: OrderBody) -> AdlOrder:
        """Returns the order for lots that a body describes. `Replay` compares these lots with the inventory."""
        if body.lots < 1:
            self._differ(f"ADL order {record.adl} requests {body.lots} lots")
        side: Side = "sell" if body.reduce == "short" else "buy"
        of_body = body.lots, body.price, record.ts, record.seq, body.account, body.policy_version
        return order_of_lots(body.origin, record.symbol, self.adl + 1, body.cause, side, *of_body)

    def _begin_next_round(self, order: AdlOrder, record: AdlRecord) -> None:
        """Begins a round after the first."""
        if record.round != order.round + 1:
            self._differ(f"round that begins is {record.round}, it should be {order.round + 1}")
        order.end_round()
        self._begin_round(order, terms_of(record.kind, record.body))

    def _begin_round(self, order: AdlOrder, terms: RoundTerms) -> None:
        order.begin_round(terms, 0)
        if terms.lots_requested > order.needed:
            self._differ(f"round requests {terms.lots_requested} lots, its order needs {order.needed}")
        self._missing = terms.positions
        self._lots_missing = terms.lots_requested
        self._idle = 0 if terms.positions else order.adl
        self._take(order, terms)

    def _extend(self, order: AdlOrder, record: AdlRecord) -> None:
        """Adds a further part to the current round."""
        terms = terms_of(record.kind, record.body)
        if not self._missing or record.round != order.round:
            self._differ(f"the part of round {record.round} has more positions than its round")
        order.progress.extend(terms)
        self._take(order, terms)

    def _take(self, order: AdlOrder, terms: RoundTerms) -> None:
        """Checks positions of a round, and subtracts them from the missing positions and lots."""
        self._missing -= len(terms.accounts)
        self._lots_missing -= sum(terms.requested)
        if self._missing < 0 or (not self._missing and self._lots_missing):
            self._differ("positions and lots do not add up to the totals of the round")
        if order.account and order.account in terms.accounts:
            self._differ("round requests lots of the liquidated account")
        if any(not 1 <= requested <= held for requested, held in zip(terms.requested, terms.lots, strict=True)):
            self._differ("round requests no lots of a position, or more than it holds")
        if any(not 1 <= rank <= terms.ranked for rank in terms.ranks):
            self._differ(f"round has a rank outside 1 to {terms.ranked}")

    def _execute(self, order: AdlOrder, record: AdlRecord) -> None:
        """Executes lots of a position, at most those that the round requests."""
        before = order.recovered
        event = AdlFill(order.symbol, record.seq, order.adl, record.account, record.lots, record.ts)
        reduced = order.execute(event)
        if (record.round, reduced_of(record.body)) != (order.round, reduced):
            self._differ(f"reduced position is {reduced_of(record.body)}, by round {order.round} it should be {reduced}")
        self._recovered += order.recovered - before
        self._close_if_over(order)

    def _unwind(self, order: AdlOrder, record: AdlRecord) -> None:
        """Removes lots that the market took from an inventory order."""
        if order.origin != "inventory" or record.body or record.round != order.round or not 1 <= record.lots <= order.needed:
            self._differ(f"the market takes {record.lots} lots of an order of origin {order.origin} that needs {order.needed}")
            return
        order.unwind(record.lots)
        self._close_if_over(order)

    def _end(self, order: AdlOrder, record: AdlRecord) -> None:
        """Ends an order with lots that were not executed, because its last round has no candidates."""
        # An inventory order may end with a round, because its tranche loses no more.
        has_round = len(order.progress) > 0 and order.origin != "inventory"
        if has_round or record.body or (record.round, record.lots) != (order.round, order.needed):
            self._differ(
                f"round {record.round} ends with {record.lots} lots, but round {order.round} requests"
                f" {len(order.progress)} positions and the order needs {order.needed} lots"
            )
        order.state = "uncovered" if order.origin == "shortfall" else "returned"
        self._idle = 0
        self._close_if_over(order)

    def _close_if_over(self, order: AdlOrder) -> None:
        if order.state != "open":
            del self.orders[order.adl]
            self.opened.unchecked.discard(order.adl)
            self.closed[order.adl] = order.state_row()


def _facts(order: AdlOrder | OrderBody) -> tuple[object, ...]:
    """Returns the fields that an order and the body of its record share, except policy and round."""
    return (
        order.cause,
        order.reduce,
        order.lots,
        order.price,
        order.deficit,
        order.deficit_lots,
        order.uncovered,
        order.account,
        order.origin,
    )


def _reopened(record: AdlRecord) -> AdlOrder:
    """Rebuilds the order that an `order` record began."""
    body = order_of(record.body)
    order = AdlOrder(
        symbol=record.symbol,
        adl=record.adl,
        cause=body.cause,
        reduce=body.reduce,
        lots=body.lots,
        price=body.price,
        deficit=body.deficit,
        deficit_lots=body.deficit_lots,
        uncovered=body.uncovered,
        ts=record.ts,
        seq=record.seq,
        account=body.account,
        policy_version=body.policy_version,
        origin=body.origin,
    )
    order.begin_round(body.first, 0)
    return order
