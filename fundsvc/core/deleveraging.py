"""The ADL desk of one contract: its book, its open orders, and who is asked in each round."""

from typing import NamedTuple

import numpy as np

from fundsvc.core.adl import AdlOrder, Allocation
from fundsvc.core.allocation import Takings, allocate_pro_rata, allocate_queue, capped
from fundsvc.core.book import Book, Side, SideName
from fundsvc.core.contracts import Contract
from fundsvc.core.directory import NONE
from fundsvc.core.policy import Policy
from fundsvc.core.ranking import Integers, Leaders

LEADERS_MIN = 1024
"""Few orders ask more positions than this. Look at so many at first, then at four times as many until there is enough."""


class Spread(NamedTuple):
    """Ranked positions, and how many lots are taken of which, by their index among these."""

    leaders: Leaders
    takings: Takings


NOBODY = Spread(Leaders(np.empty(0, np.int64), 0), [])


class Deleveraging:
    """Ranks, asks and keeps promises: lots that one open order asks of a position are not asked by another.

    `changed` says whether positions have changed since the book was last kept.
    """

    def __init__(self, contract: Contract, policy: Policy) -> None:
        self.policy = policy
        self.book = Book(contract)
        self.orders: dict[int, AdlOrder] = {}
        self.changed = False

    def begin_round(self, order: AdlOrder) -> bool:
        """Asks the positions that the policy names for what the order still needs; False when there is nobody to ask."""
        self.orders.pop(order.adl, None)
        order.begin_round(self.allocate(order.reduce, order.needed, self.policy))
        if not order.allocations:
            return False
        self.orders[order.adl] = order
        return True

    def close(self, order: AdlOrder) -> None:
        """Forgets an order that is over, and with it what it promised."""
        self.orders.pop(order.adl, None)

    def anybody(self, reduce: SideName) -> bool:
        """Whether a round on this side would find somebody to ask."""
        return bool(self.spread(reduce, 1, self.policy).takings)

    def allocate(self, reduce: SideName, lots: int, policy: Policy) -> list[Allocation]:
        """Who would be asked for how many lots now, with all that explains it; changes nothing."""
        side, mark = self.book.sides[reduce], self.book.mark
        (rows, ranked), takings = self.spread(reduce, lots, policy)
        if mark is None:
            return []
        standings = side.standings([int(rows[index]) for index, _ in takings], mark)
        return [
            Allocation(standing, index + 1, ranked, asked) for standing, (index, asked) in zip(standings, takings, strict=True)
        ]

    def spread(self, reduce: SideName, lots: int, policy: Policy) -> Spread:
        """How lots would be spread over a side now."""
        side, mark = self.book.sides[reduce], self.book.mark
        if mark is None or not side.open:
            return NOBODY
        promised = self._promised(side, reduce)
        if policy.allocation == "pro_rata" or policy.eligible == "all":
            return _spread(side, mark, _eligible(side, mark, policy), lots, promised, policy)
        count = min(lots, LEADERS_MIN)  # each gives a lot at least, so more are not asked unless promises are in the way
        while True:
            leaders = side.leaders(mark, count)
            spread = _spread(side, mark, leaders, lots, promised, policy)
            if len(leaders.rows) < count or sum(asked for _, asked in spread.takings) >= lots:
                return spread
            count *= 4

    def _promised(self, side: Side, reduce: SideName) -> Integers | None:
        """What open orders have asked of positions on a side and not got yet, by row; None when they wait for nothing there."""
        orders = [order for order in self.orders.values() if order.reduce == reduce]
        if not orders:
            return None
        promised = np.zeros(len(side.accounts), np.int64)
        for order in orders:
            for allocation in order.allocations.values():
                row = side.row_of(allocation.account)
                if row != NONE:
                    promised[row] += allocation.asked - allocation.executed
        return promised


def _eligible(side: Side, mark: int, policy: Policy) -> Leaders:
    """Everybody who may be asked, in the order of rank."""
    rows = side.ranking(mark).rows
    ranked = len(rows)
    if policy.eligible == "profitable":
        rows = rows[: np.count_nonzero(side.columns(mark).gainers())]
    return Leaders(rows, ranked)


def _spread(side: Side, mark: int, leaders: Leaders, lots: int, promised: Integers | None, policy: Policy) -> Spread:
    """Spreads lots over rows that are in the order of rank, beginning with rank 1."""
    rows = leaders.rows
    held = side.lots_of(rows)
    available = held if promised is None else np.maximum(held - promised[rows], 0)
    if policy.allocation == "pro_rata":
        profits = side.profits(rows, mark)
        return Spread(leaders, allocate_pro_rata(available, profits, lambda index: side.accounts[rows[index]], lots))
    if policy.allocation == "capped":
        return Spread(leaders, allocate_queue(capped(available.tolist(), held.tolist(), policy.cap_share), lots))
    return Spread(leaders, allocate_queue(available.tolist(), lots))
