"""The ADL desk of one contract: its book, its open orders, and who is asked in each round."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

from fundsvc.core.adl import AdlOrder, Allocation
from fundsvc.core.allocation import allocate_pro_rata, allocate_queue, capped
from fundsvc.core.book import Book, Side, SideName
from fundsvc.core.contracts import Contract
from fundsvc.core.policy import Policy
from fundsvc.core.ranking import Rows

LEADERS_MIN = 64
"""Most orders ask a few positions: look at this many first, then at four times as many until there is enough."""


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
        return bool(self.allocate(reduce, 1, self.policy))

    def allocate(self, reduce: SideName, lots: int, policy: Policy) -> list[Allocation]:
        """Who would be asked for how many lots now; changes nothing."""
        side, mark = self.book.sides[reduce], self.book.mark
        if mark is None or not side.open:
            return []
        promised = self._promised(reduce)
        if policy.allocation == "pro_rata" or policy.eligible == "all":
            rows = self._eligible(side, mark, policy)
            return self._allocate(side, mark, rows, lots, promised, policy)
        return self._allocate_leaders(side, mark, lots, promised, policy)

    def _eligible(self, side: Side, mark: int, policy: Policy) -> Rows:
        """Everybody who may be asked, in the order of rank."""
        rows = side.ranking(mark)
        return rows if policy.eligible == "all" else rows[: np.count_nonzero(side.gains(rows, mark) > 0)]

    def _allocate_leaders(self, side: Side, mark: int, lots: int, promised: Counter[str], policy: Policy) -> list[Allocation]:
        """As `_allocate`, over no more of the first gainers than it takes."""
        count = LEADERS_MIN
        while True:
            rows = side.leaders(mark, count)
            allocations = self._allocate(side, mark, rows, lots, promised, policy)
            if len(rows) < count or sum(allocation.asked for allocation in allocations) >= lots:
                return allocations
            count *= 4

    def _allocate(
        self, side: Side, mark: int, rows: Rows, lots: int, promised: Counter[str], policy: Policy
    ) -> list[Allocation]:
        """Spreads lots over rows that are in the order of rank, beginning with rank 1."""
        accounts = [side.accounts[row] for row in rows]
        held = side.lots[rows].tolist()
        available = [max(0, lots_held - promised[account]) for account, lots_held in zip(accounts, held, strict=True)]
        if policy.allocation == "pro_rata":
            asked = allocate_pro_rata(available, side.gains(rows, mark), accounts, lots)
        elif policy.allocation == "capped":
            asked = allocate_queue(capped(available, held, policy.cap_share), lots)
        else:
            asked = allocate_queue(available, lots)
        return list(_allocations(side, mark, rows, asked))

    def _promised(self, reduce: SideName) -> Counter[str]:
        """What open orders have asked of accounts on a side and not got yet."""
        promised: Counter[str] = Counter()
        for order in self.orders.values():
            if order.reduce == reduce:
                for allocation in order.allocations.values():
                    promised[allocation.account] += allocation.asked - allocation.executed
        return promised


def opposite(side: Literal["sell", "buy"]) -> SideName:
    """The side to reduce when a fill closed the other: `sell` closed a long."""
    return "short" if side == "sell" else "long"


def _allocations(side: Side, mark: int, rows: Iterable[int], asked: Sequence[int]) -> Iterator[Allocation]:
    ranked = side.ranked(mark)
    for rank, (row, lots) in enumerate(zip(rows, asked, strict=True), 1):
        if lots:
            yield Allocation(side.standing(int(row), mark), rank, ranked, lots)
