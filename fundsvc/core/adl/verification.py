"""Recomputing a contract's ADL from its sealed records: every order, round, execution and end by the rules.

A record that breaks a rule is noted as a difference; what follows it is checked against the order as the rules have it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from fundsvc.core.adl.order import AdlOrder, OrderState, RoundTerms, order_for
from fundsvc.core.adl.records import AdlRecord, OrderBody, link_record, order_of, reduced_of, terms_of
from fundsvc.core.events import AdlFill, Rejection
from fundsvc.core.fund.chain import GENESIS, Entry

Differ = Callable[[str], None]
"""Notes a difference, as a sentence."""

_NOT_RECOMPUTED = ("acknowledged", "round_ms")
"""Of an order's row: they decide when its round is announced again or ends, and move nothing."""


class UnfinishedRound(msgspec.Struct, array_like=True, frozen=True):
    """A round whose records are not all followed: the positions and lots that are missing, and the order that must end next as
    its round asks nobody, 0 if none must.
    """

    positions: int = 0
    lots: int = 0
    idle: int = 0


class OrdersCheckpoint(NamedTuple):
    """How far a contract's ADL records were followed: the last record and its hash, the last order, what all orders recovered
    (atoms), the numbers of the open ones, and what was unfinished_round.
    """

    record: int = 0
    head: bytes = GENESIS
    adl: int = 0
    recovered: int = 0
    open: Sequence[int] = ()
    unfinished_round: UnfinishedRound = UnfinishedRound()


class OpenOrders:
    """The orders of a contract that are open at a place of its records, made from all their records up to there.

    `undated` are those with records that do not say what entry they follow: of those, sequences are not known either.
    `unchecked` are those whose rows were not compared since they last moved.
    """

    def __init__(self, records: Iterable[AdlRecord] = ()) -> None:
        self.orders: dict[int, AdlOrder] = {}
        self.undated: set[int] = set()
        for record in records:
            self._reopen(record)
        self.unchecked = set(self.orders)

    @property
    def size(self) -> int:
        """How many orders these are, and positions that their rounds ask: what they take of memory."""
        return sum(1 + len(order.progress) for order in self.orders.values())

    def recheck_all(self) -> None:
        """Has the rows of all orders compared again."""
        self.unchecked = set(self.orders)

    def _reopen(self, record: AdlRecord) -> None:
        """Takes up a record that was followed before, of an order that is open."""
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
            case "execution":
                order.execute(AdlFill(order.symbol, record.seq, order.adl, record.account, record.lots, record.ts))


class OrdersReplay:
    """Follows a contract's ADL records from a checkpoint, and takes the orders that are open there along.

    `opened` are the open orders, and `closed` those that were closed since, as the rules have them.
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
        """Where another may go on."""
        unfinished_round = UnfinishedRound(self._missing, self._lots_missing, self._idle)
        return OrdersCheckpoint(self.record, self.head, self.adl, self._recovered, list(self.orders), unfinished_round)

    @property
    def recovered(self) -> int:
        """What all orders recovered."""
        return self._recovered

    @property
    def open_in_adl(self) -> int:
        """What open orders are still to recover."""
        return sum(order.rest for order in self.orders.values())

    @property
    def unfinished(self) -> str:
        """What must follow before anything else: further positions of a round, or the end of an order that asks nobody."""
        if self._missing:
            return f"{self._missing} positions of a round are missing"
        return f"ADL order {self._idle} asks nobody and has not ended" if self._idle else ""

    def follow(self, record: AdlRecord, digest: bytes, cause: Entry | None) -> AdlOrder | None:
        """Checks a record against what came before it; returns the order if it is closed by it.

        `cause` is the shortfall that the record before may escalate.
        """
        if record.record != self.record + 1:
            self._differ(f"record number is {record.record}, it should be {self.record + 1}")
        self.head = link_record(self.head, record)
        if digest != self.head:
            self._differ(f"hash is {digest.hex()}, it should be {self.head.hex()}")
        self.record, self.head = record.record, digest
        if not record.entry:
            self.opened.undated.add(record.adl)
        if (record.kind != "execution" and record.account) or (record.kind not in ("execution", "end") and record.lots):
            self._differ("names an account or lots, which its kind has not")
        try:
            return self._apply(record, cause)
        except (msgspec.DecodeError, Rejection, ValueError, OverflowError) as error:
            self._differ(f"is no record of the rules: {error}")
            return None

    def compare(self, stored: Mapping[int, OrderState], *, ended: bool) -> None:
        """Compares rows of orders, by number, with the orders closed since, and at the end of the records with open ones that
        have moved since that was done last.
        """
        expected = self.closed
        if ended:
            expected = expected | {adl: self.orders[adl].written() for adl in sorted(self.opened.unchecked)}
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
            self._differ(f"is of ADL order {record.adl}, which is not open")
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
            case "end":
                self._end(order, record)
        return order if order.state != "open" else None

    def _begin(self, record: AdlRecord, cause: Entry | None) -> None:
        """An order begins: it is the one that its cause gives rise to."""
        body = order_of(record.body)
        if cause is None:
            self._differ(f"begins ADL order {record.adl}, which has no shortfall as its cause")
            return
        order = order_for(cause, self.adl + 1, body.policy_version)
        found = (record.adl, record.round, record.seq, record.ts, record.entry, _facts(body))
        wanted = (order.adl, 1, cause.seq, cause.ts, cause.entry, _facts(order))
        if found != wanted:
            self._differ(f"begins an ADL order {found}, by its cause it should be {wanted}")
        self.adl = order.adl
        self.orders[order.adl] = order
        self.opened.unchecked.add(order.adl)
        self._begin_round(order, body.first)

    def _begin_next_round(self, order: AdlOrder, record: AdlRecord) -> None:
        """A later round begins."""
        if record.round != order.round + 1:
            self._differ(f"begins round {record.round}, it should be {order.round + 1}")
        order.end_round()
        self._begin_round(order, terms_of(record.kind, record.body))

    def _begin_round(self, order: AdlOrder, terms: RoundTerms) -> None:
        order.begin_round(terms, 0)
        if terms.lots_requested > order.needed:
            self._differ(f"asks {terms.lots_requested} lots, its order needs {order.needed}")
        self._missing = terms.positions
        self._lots_missing = terms.lots_requested
        self._idle = 0 if terms.positions else order.adl
        self._take(order, terms)

    def _extend(self, order: AdlOrder, record: AdlRecord) -> None:
        """A round goes on with further positions."""
        terms = terms_of(record.kind, record.body)
        if not self._missing or record.round != order.round:
            self._differ("has positions beyond those of its round")
        order.progress.extend(terms)
        self._take(order, terms)

    def _take(self, order: AdlOrder, terms: RoundTerms) -> None:
        """Checks positions of a round, and counts them off those that it must have."""
        self._missing -= len(terms.accounts)
        self._lots_missing -= sum(terms.requested)
        if self._missing < 0 or (not self._missing and self._lots_missing):
            self._differ("does not ask as many positions and lots as its round says")
        if order.account and order.account in terms.accounts:
            self._differ("asks the account that was liquidated")
        if any(not 1 <= requested <= held for requested, held in zip(terms.requested, terms.lots, strict=True)):
            self._differ("asks a position for no lots, or for more than it holds")
        if any(not 1 <= rank <= terms.ranked for rank in terms.ranks):
            self._differ(f"has ranks beyond the {terms.ranked} that there are")

    def _execute(self, order: AdlOrder, record: AdlRecord) -> None:
        """Lots of a position are executed, within what the round asks."""
        before = order.recovered
        event = AdlFill(order.symbol, record.seq, order.adl, record.account, record.lots, record.ts)
        reduced = order.execute(event)
        if (record.round, reduced_of(record.body)) != (order.round, reduced):
            self._differ(f"reduces another position than round {order.round} asks: {reduced_of(record.body)}, not {reduced}")
        self._recovered += order.recovered - before
        self._close_if_over(order)

    def _end(self, order: AdlOrder, record: AdlRecord) -> None:
        """An order ends without having recovered all, as its last round found nobody to ask."""
        if len(order.progress) or record.body or (record.round, record.lots) != (order.round, order.needed):
            self._differ(
                f"round {record.round} ends with {record.lots} lots, but round {order.round} requests"
                f" {len(order.progress)} positions and the order needs {order.needed} lots"
            )
        order.state = "uncovered"
        self._idle = 0
        self._close_if_over(order)

    def _close_if_over(self, order: AdlOrder) -> None:
        if order.state != "open":
            del self.orders[order.adl]
            self.opened.unchecked.discard(order.adl)
            self.closed[order.adl] = order.written()


def _facts(order: AdlOrder | OrderBody) -> tuple[object, ...]:
    """The fields that an order and the body of its record have in common, apart from policy and round."""
    return (
        order.cause,
        order.reduce,
        order.lots,
        order.price,
        order.deficit,
        order.deficit_lots,
        order.uncovered,
        order.account,
    )


def _reopened(record: AdlRecord) -> AdlOrder:
    """The order that a record began."""
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
    )
    order.begin_round(body.first, 0)
    return order
