"""The ADL orders of one contract: how fills, executions, ends of rounds and time-outs begin, move and end them."""

from fundsvc.core.adl.desk import AdlDesk
from fundsvc.core.adl.order import EMPTY_ROUND, AdlOrder, RoundRequest, RoundTerms, opposite, order_for
from fundsvc.core.adl.records import reduced_body, round_bodies
from fundsvc.core.batch import Draft, Round
from fundsvc.core.events import AdlAck, AdlEnd, AdlFill, AdlTimeout, Fill, Reason, Rejection
from fundsvc.core.fund.chain import Entry
from fundsvc.core.fund.settlement import Fund, WaitsForAdl
from fundsvc.core.numbers import INT64_MAX
from fundsvc.core.policy import Policy
from fundsvc.core.shared import Shared
from fundsvc.core.takeover import Cause, Takeovers


class Escalation:
    """The ADL desk and the orders of a contract, and the takeovers of its fund.

    `begun_desk` is the ADL desk, None before its first use. Methods that take an event raise Rejection, having changed
    nothing, if it cannot be applied.
    """

    __slots__ = ("_shared", "_takeovers", "begun_desk", "fund")

    def __init__(self, fund: Fund, shared: Shared) -> None:
        self.fund = fund
        self.begun_desk: AdlDesk | None = None
        self._shared = shared
        self._takeovers = Takeovers(self, fund.inventory) if fund.inventory else None

    @property
    def desk(self) -> AdlDesk:
        """The ADL desk, created with an empty book at first use."""
        if self.begun_desk is None:
            self.begun_desk = AdlDesk(self.fund.contract, self.fund.policy, self._policy_under)
        return self.begun_desk

    @property
    def batch(self) -> Draft:
        """The draft of the next commit."""
        return self._shared.batch

    @property
    def takeovers(self) -> Takeovers:
        """The takeovers, created with an empty inventory at first use."""
        if self._takeovers is None:
            self._takeovers = Takeovers(self, self.fund.begin_inventory(self.desk.book.mark))
        return self._takeovers

    @property
    def orders(self) -> dict[int, AdlOrder]:
        """The open ADL orders by number."""
        return self.begun_desk.orders if self.begun_desk else {}

    def relieve(self, cause: Cause) -> None:
        """Relieves an inventory that is too heavy, at the end of an applied event."""
        if self._takeovers is not None:
            self._takeovers.relieve(cause)

    def write_fill(self, fill: Fill, closes: int = 0, prices: tuple[int, int] | None = None) -> Entry:
        """Settles a fill, and records its entry; see `Fund.settle`."""
        fund = self.fund
        adl_comes_first = fund.policy.waterfall == "adl_then_fund"
        settled = fund.settle(fill, waits_for_adl(fund, self.desk, fill) if adl_comes_first else None, closes, prices)
        self._shared.batch.record(fund, settled)
        return settled[0]

    def settle_piece(self, fill: Fill, closes: int, prices: tuple[int, int]) -> None:
        """Settles a fill that closes lots of the tranche of a takeover entry; escalates what the fund cannot pay."""
        entry = self.write_fill(fill, closes, prices)
        if entry.uncovered:
            self.escalate(entry)

    def settle_last(self, fill: Fill, closes: int, prices: tuple[int, int]) -> None:
        """Settles a fill that closes lots of a tranche at the settlement; what the fund cannot pay becomes outstanding.

        After the settlement no position is left to reduce, so the fund always pays first and nothing escalates.
        """
        entry, digest = self.fund.settle(fill, None, closes, prices)
        self._shared.batch.record(self.fund, (entry, digest))
        self.fund.outstanding += entry.uncovered

    def end_orders(self, cause: Cause) -> None:
        """Ends the open orders, except those for a tranche, which the settlement of their lots ends.

        Each ends like an order whose next round finds no position: with a round that requests nothing.
        """
        for order in [order for order in self.orders.values() if order.origin != "inventory"]:
            self._pass(order, cause.seq)
            self.desk.end_round(order)
            order.begin_round(EMPTY_ROUND, self._shared.now_ms)
            self._seal_round(order, EMPTY_ROUND, cause)
            if order.origin == "shortfall":
                self._end_uncovered(order, cause)
            else:
                self._return(order, cause, without_candidates=False)

    def forget_positions(self) -> None:
        """Empties the book of a closed contract, except for its marks, by which it recognises repetitions."""
        before, self.begun_desk = self.desk.book, None
        book = self.desk.book
        book.mark, book.mark_ts, book.mark_seq = before.mark, before.mark_ts, before.mark_seq
        book.mark_ts_max, book.known_ms = before.mark_ts_max, before.known_ms
        self.desk.changed = True

    def execute(self, event: AdlFill) -> None:
        """Adds an execution to its order and reduces the position; a completed order may refund."""
        fund, batch = self.fund, self._shared.batch
        order, desk = self._open_order(event.adl), self.desk
        if order.refund > INT64_MAX - fund.balance:
            raise Rejection(Reason.OUT_OF_RANGE, "the order's refund does not fit the fund's 64-bit balance")
        before = order.rest
        reduced = order.execute(event)
        fund.open_in_adl -= before - order.rest
        desk.reduce(order, event.account, event.lots)
        self._pass(order, event.seq)
        batch.seal(fund.record("execution", order, event.seq, event.ts, event.account, event.lots, reduced_body(reduced)))
        if order.origin != "shortfall":
            self.takeovers.deleverage(order, event)
        if order.state != "open":
            self.close_order(order)
            if order.refund:
                batch.record(fund, fund.refund(order, event))
        batch.note(order)

    def end_round(self, event: AdlEnd) -> bool:
        """Ends a round and begins the next, or ends the order; returns whether the order was open."""
        order = self._order(event.adl)
        if order is None:
            return False
        self._pass(order, event.seq)
        self._end_round(order, Cause(event.seq, event.ts))
        return True

    def time_out(self, event: AdlTimeout) -> None:
        """Ends a round that the engine did not answer. Changes nothing if the round is over."""
        order = self._order(event.adl)
        if order is not None and order.round == event.round:
            self.note_change()
            self._end_round(order, Cause(0, event.ts))

    def acknowledge(self, event: AdlAck) -> None:
        """Records that the engine has received a round. Changes nothing if that is known or the round is over."""
        order = self._order(event.adl)
        if order is not None and order.round == event.round and not order.acknowledged:
            order.acknowledged = True
            self.note_change()
            self._shared.batch.note(order)

    def reopen(self, order: AdlOrder, *, promises: bool) -> Round:
        """Continues an open order of the ledger; returns the lots that its round still requests.

        Without `promises`, `promise_orders` promises these lots to it later.
        """
        self.fund.open_in_adl += order.rest
        self.desk.reopen(order, promises=promises)
        if order.origin != "shortfall":
            self.takeovers.reopen(order)
        rests = [(account, rest) for account, rest in order.progress.rests() if rest]
        return Round(order.state_row(), [account for account, _ in rests], [rest for _, rest in rests])

    def promise_orders(self) -> None:
        """Promises the open orders the lots that their rounds still request."""
        for order in self.orders.values():
            self.desk.promise(order)

    def escalate(self, shortfall: Entry) -> None:
        """Creates the ADL order of a shortfall and begins its first round.

        An amount below the contract's minimum becomes outstanding at once.
        """
        fund = self.fund
        if shortfall.uncovered < fund.escalate_min(shortfall.bankruptcy_price):
            fund.outstanding += shortfall.uncovered
            return
        fund.open_in_adl += shortfall.uncovered
        order = order_for(shortfall, fund.adl + 1, fund.policy_version)
        self.begin_order(order, Cause(shortfall.seq, shortfall.ts))

    def begin_order(self, order: AdlOrder, cause: Cause) -> None:
        """Begins the first round of a new order."""
        self.fund.adl = order.adl
        self._shared.batch.open(order)
        self.note_change()
        self._begin_round(order, cause)

    def close_order(self, order: AdlOrder) -> None:
        """Removes an order that has ended from the open orders."""
        if order.unwound:
            self.desk.withdraw(order)  # Its round may request more lots than it needed.
        self.desk.close(order)

    def _end_round(self, order: AdlOrder, cause: Cause) -> None:
        """Ends a round and begins the next, unless the order is no longer needed."""
        self.desk.end_round(order)
        if order.origin == "inventory" and not self.takeovers.is_needed(order):
            self._return(order, cause, without_candidates=False)
        else:
            self._begin_round(order, cause)

    def _begin_round(self, order: AdlOrder, cause: Cause) -> None:
        """Begins a round of an order; ends the order if no position can be reduced."""
        terms = self.desk.begin_round(order, self._shared.now_ms)
        self._seal_round(order, terms, cause)
        if terms.accounts:
            batch = self._shared.batch
            batch.rounds.append(Round(batch.note(order), terms.accounts, terms.requested))
        elif order.origin == "shortfall":
            self._end_uncovered(order, cause)
        else:
            self._return(order, cause, without_candidates=True)

    def _seal_round(self, order: AdlOrder, terms: RoundTerms, cause: Cause) -> None:
        for kind, body, first_rank in round_bodies(order, terms):
            self._shared.batch.seal(self.fund.record(kind, order, cause.seq, cause.ts, body=body, first_rank=first_rank))

    def _return(self, order: AdlOrder, cause: Cause, *, without_candidates: bool) -> None:
        """Ends a takeover or inventory order; the fund holds the lots that were not executed."""
        order.state = "returned"
        self.desk.close(order)
        self._shared.batch.note(order)
        self._shared.batch.seal(self.fund.record("end", order, cause.seq, cause.ts, lots=order.needed))
        self.takeovers.take_back(order, cause, without_candidates=without_candidates)

    def _end_uncovered(self, order: AdlOrder, cause: Cause) -> None:
        """Makes the rest of an order outstanding; the fund pays of it what it can."""
        fund, batch = self.fund, self._shared.batch
        order.state = "uncovered"
        fund.open_in_adl -= order.rest
        fund.outstanding += order.rest
        self.desk.close(order)
        batch.note(order)
        batch.seal(fund.record("end", order, cause.seq, cause.ts, lots=order.needed))
        covered = fund.cover(order, cause.seq, cause.ts)
        if covered:
            batch.record(fund, covered)

    def _pass(self, order: AdlOrder, seq: int) -> None:
        """Records the sequence of an event without an entry, and the order that it moved, for the audit."""
        self.fund.seq = max(self.fund.seq, seq)
        order.seq = max(order.seq, seq)
        self.note_change()

    def note_change(self) -> None:
        """Adds the fund to those whose state the next commit writes."""
        self._shared.batch.changed[self.fund.contract.symbol] = self.fund

    def _order(self, number: int) -> AdlOrder | None:
        """An ADL order; None if it is closed. Raises Rejection if the contract never had it."""
        if number > self.fund.adl:
            raise Rejection(Reason.ADL_ORDER_UNKNOWN, f"{self.fund.contract.symbol} has no ADL order {number}")
        return self.orders.get(number)

    def _open_order(self, number: int) -> AdlOrder:
        order = self._order(number)
        if order is None:
            raise Rejection(Reason.ADL_ORDER_CLOSED, f"ADL order {number} of {self.fund.contract.symbol} is no longer open")
        return order

    def _policy_under(self, version: int) -> Policy:
        """The policy of a version; orders from before versions were recorded use the current one."""
        policies = self._shared.policies.get(version)
        return policies.of(self.fund.contract.symbol) if policies else self.fund.policy


def waits_for_adl(fund: Fund, desk: AdlDesk, fill: Fill) -> WaitsForAdl:
    """The rule of `adl_then_fund`: the fund pays nothing yet if the deficit escalates and a position can be reduced."""

    def waits(deficit: int, bankruptcy_price: int) -> bool:
        request = RoundRequest(opposite(fill.side), 1, bankruptcy_price, fill.account)
        return deficit >= fund.escalate_min(bankruptcy_price) and desk.has_candidates(request)

    return waits
