"""The positions that a fund holds: per side, tranches of lots that it took over, oldest first, valued at the mark.

The worth of each tranche is rounded down by itself. So the worth of a side is not a function of its sums, but the sums bound it
to one atom per tranche. Most decisions need only the bound. The exact worth is computed once for a mark, and adjusted when lots
change.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from heapq import heapify, heappop, heappush
from typing import Literal, NamedTuple

import msgspec

from fundsvc.core.adl.valuation import SideName
from fundsvc.core.contracts import Contract
from fundsvc.core.events import Side

FIXED_BITS = 128
"""Fractional bits of lots / price in the sums of an inverse contract. Fewer bits only widen the bound."""

HEAP_SPARE = 64
"""Entries of closed tranches that the heap of a small side may keep."""

Outcome = Literal["accepted", "accepted_in_part", "deleveraged", "forced", "unwound", "relieved"]
"""What happens to lots of takeovers: the fund accepts a takeover as a whole or in part; ADL deleverages the rest, or the fund
must take it, too; the market unwinds held lots, or ADL relieves the fund of them."""

Worth = Callable[[Side, int, int, int], int]
"""The worth of a fill: side, lots, price and bankruptcy price; see `Fund.worth`."""


class TrancheState(NamedTuple):
    """The stored state of a tranche; see `Tranche`. A tranche without lots is closed."""

    symbol: str
    side: SideName
    entry: int
    lots: int
    price: int
    ts: int
    forced: bool


class HoldingState(NamedTuple):
    """The stored state of one side of a contract's inventory. The first five numbers after `side` are lots.

    taken over = unwound + deleveraged + held + open in takeover orders. `returned_ts` is the engine's time (ms) at which the
    last takeover or inventory order of the side ended without candidates; None if none did.
    """

    symbol: str
    side: SideName
    taken: int
    unwound: int
    deleveraged: int
    held: int
    in_orders: int
    returned_ts: int | None


class Tranche(msgspec.Struct, kw_only=True):
    """Lots that one takeover entry added: `lots` are left, of which `promised` are promised to open inventory orders.

    `price` is the bankruptcy price in the contract's units, `ts` the time of the takeover (ms). `forced` is whether no position
    was left for ADL. `is_ranked` is whether the heap of its side contains it.
    """

    entry: int
    lots: int
    price: int
    ts: int
    forced: bool
    promised: int = 0
    is_ranked: bool = False

    @property
    def free(self) -> int:
        """The lots that no order is promised."""
        return self.lots - self.promised


class Piece(NamedTuple):
    """Lots that an unwind takes of a tranche: `free` ones, and `promised` ones, which leave their orders."""

    tranche: Tranche
    free: int
    promised: int

    @property
    def lots(self) -> int:
        """All lots of the piece."""
        return self.free + self.promised


class Holding:
    """One side of an inventory. `taken`, `unwound` and `deleveraged` are lots since the contract's first takeover.

    `side` is the side of fills that close it, and `heap` ranks its tranches by price. `in_orders` are the lots of open takeover
    orders, which the fund does not hold.
    """

    def __init__(self, contract: Contract, name: SideName, worth: Worth) -> None:
        self.name = name
        self.side: Side = "sell" if name == "long" else "buy"
        self.mark: int | None = None
        self.tranches: OrderedDict[int, Tranche] = OrderedDict()
        self.lots = self.taken = self.unwound = self.deleveraged = self.in_orders = 0
        self.returned_ts: int | None = None
        self._worth = worth
        self._is_inverse = contract.is_inverse
        self._direction = 1 if name == "long" else -1
        self._numerator, self._denominator = contract.value_factor()
        self._weight = 0
        self._exact: int | None = 0
        self._promised: dict[int, Tranche] = {}
        self.heap: list[tuple[int, int]] = []

    def reprice(self, mark: int) -> None:
        """Sets the mark."""
        self.mark = mark
        self._exact = None if self.lots else 0

    def add(self, tranche: Tranche) -> None:
        """Adds a tranche, newer than all others."""
        self.tranches[tranche.entry] = tranche
        self._move(tranche, 0, tranche.lots)
        self._rank(tranche)

    def restore(self, tranches: Iterable[Tranche]) -> None:
        """Adds all tranches of an empty side, oldest first."""
        self.tranches.update((tranche.entry, tranche) for tranche in tranches)
        for tranche in self.tranches.values():
            self._move(tranche, 0, tranche.lots)
        self._rebuild_heap()

    def close(self, entry: int, lots: int) -> Tranche:
        """Subtracts lots from a tranche, which is removed with its last lot."""
        tranche = self.tranches[entry]
        before, tranche.lots = tranche.lots, tranche.lots - lots
        self._move(tranche, before, tranche.lots)
        if not tranche.lots:
            del self.tranches[entry]
        return tranche

    def promise(self, entry: int, lots: int) -> None:
        """Promises lots of a tranche to an order; negative lots withdraw a promise."""
        tranche = self.tranches[entry]
        tranche.promised += lots
        if tranche.promised:
            self._promised[entry] = tranche
        else:
            del self._promised[entry]
        if tranche.free and not tranche.is_ranked:
            self._rank(tranche)

    def pieces(self, lots: int) -> list[Piece]:
        """Returns what an unwind of `lots` takes, oldest tranche first: free lots of all tranches, then promised ones."""
        oldest = next(iter(self.tranches.values()), None)
        if oldest is not None and 0 < lots <= oldest.free:
            return [Piece(oldest, lots, 0)]
        taken: dict[int, Piece] = {}
        for tranche in self.tranches.values():
            if not lots:
                break
            if tranche.free:
                taken[tranche.entry] = Piece(tranche, min(lots, tranche.free), 0)
                lots -= taken[tranche.entry].free
        for entry in sorted(self._promised) if lots else ():
            tranche = self._promised[entry]
            promised = min(lots, tranche.promised)
            taken[entry] = Piece(tranche, taken[entry].free if entry in taken else 0, promised)
            lots -= promised
            if not lots:
                break
        return [taken[entry] for entry in sorted(taken)]

    @property
    def unrealised(self) -> int:
        """The worth of all lots at the mark in atoms; 0 without a mark."""
        if self._exact is None:
            self._exact = sum(self._worth_of(tranche, tranche.lots) for tranche in self.tranches.values())
        return self._exact if self.mark is not None else 0

    @property
    def unrealised_about(self) -> int:
        """`unrealised` to within one atom per tranche, computed from sums."""
        return self._least + max(0, len(self.tranches) - 1) if self._exact is None else self.unrealised

    @property
    def oldest_ts(self) -> int | None:
        """The time of the oldest tranche (ms); None without one."""
        return next((tranche.ts for tranche in self.tranches.values()), None)

    @property
    def free_worth(self) -> int:
        """The worth of the lots that no order is promised, in atoms."""
        return self.unrealised - self._promised_worth

    @property
    def free_worth_min(self) -> int:
        """A lower bound of `free_worth`, computed from sums."""
        return self._least - self._promised_worth

    @property
    def _promised_worth(self) -> int:
        """The part of the worth that the promised lots have: few tranches have any."""
        if not self._promised:
            return 0
        return sum(
            self._worth_of(tranche, tranche.lots) - self._worth_of(tranche, tranche.free) for tranche in self._promised.values()
        )

    @property
    def _least(self) -> int:
        """A lower bound of the worth of all lots: the sum rounded down, less one atom for each further tranche."""
        if self._exact is not None or self.mark is None:
            return self.unrealised
        tranches, divisor = len(self.tranches), self._denominator
        if self._is_inverse:
            # The weight of each tranche was rounded down by less than 1.
            weight = self._weight if self._direction > 0 else self._weight + tranches
            move, divisor = weight * self.mark - (self.lots << FIXED_BITS), divisor * self.mark << FIXED_BITS
        else:
            move = self.mark * self.lots - self._weight
        return self._direction * move * self._numerator // divisor - tranches + 1

    def worst(self) -> Tranche | None:
        """Returns the tranche with free lots and the largest loss per lot at the mark, the oldest of equals; None without."""
        while self.heap:
            tranche = self.tranches.get(self.heap[0][1])
            if tranche is not None and tranche.free:
                return tranche if self.loses(tranche.price) else None
            heappop(self.heap)
            if tranche is not None:
                tranche.is_ranked = False
        return None

    def loses(self, price: int) -> bool:
        """Whether lots taken over at a price lose at the mark."""
        return self.mark is not None and (price > self.mark if self.name == "long" else price < self.mark)

    def loss_per_lot(self, tranche: Tranche) -> Fraction:
        """Returns the loss of a lot at the mark, up to a factor that both sides of a contract share."""
        return Fraction(abs((self.mark or 0) - tranche.price), tranche.price if self._is_inverse else 1)

    def lots_to_gain(self, tranche: Tranche, atoms: int) -> int:
        """Returns the fewest free lots of a losing tranche without which its worth rises by `atoms`, or else all of them."""
        mark = self.mark or 0
        target = self._worth_of(tranche, tranche.free) + atoms
        if target > 0:
            return tranche.free
        loss = abs(mark - tranche.price) * self._numerator
        divisor = self._denominator * mark * tranche.price if self._is_inverse else self._denominator
        return tranche.free - -target * divisor // loss

    def state(self, symbol: str) -> HoldingState:
        """Returns the state to store."""
        return HoldingState(
            symbol, self.name, self.taken, self.unwound, self.deleveraged, self.lots, self.in_orders, self.returned_ts
        )

    def _worth_of(self, tranche: Tranche, lots: int) -> int:
        return 0 if self.mark is None or not lots else self._worth(self.side, lots, self.mark, tranche.price)

    def _move(self, tranche: Tranche, before: int, after: int) -> None:
        """Adjusts the sums to the lots of a tranche."""
        self.lots += after - before
        if not self.lots:
            self._exact = 0
        if self._is_inverse:
            self._weight += (after << FIXED_BITS) // tranche.price - (before << FIXED_BITS) // tranche.price
        else:
            self._weight += (after - before) * tranche.price
        if self._exact is not None and self.lots:
            self._exact += self._worth_of(tranche, after) - self._worth_of(tranche, before)

    def _rank(self, tranche: Tranche) -> None:
        tranche.is_ranked = True
        heappush(self.heap, self._key(tranche))
        if len(self.heap) > 2 * len(self.tranches) + HEAP_SPARE:
            self._rebuild_heap()

    def _rebuild_heap(self) -> None:
        for tranche in self.tranches.values():
            tranche.is_ranked = tranche.free > 0
        self.heap = [self._key(tranche) for tranche in self.tranches.values() if tranche.is_ranked]
        heapify(self.heap)

    def _key(self, tranche: Tranche) -> tuple[int, int]:
        return -tranche.price if self.name == "long" else tranche.price, tranche.entry


class Inventory:
    """The positions that the fund of one contract holds. Long and short are never netted."""

    def __init__(
        self,
        contract: Contract,
        worth: Worth,
        tranches: Iterable[TrancheState] = (),
        holdings: Iterable[HoldingState] = (),
    ) -> None:
        self._symbol = contract.symbol
        self.mark: int | None = None
        self.long, self.short = Holding(contract, "long", worth), Holding(contract, "short", worth)
        self._changed: dict[int, TrancheState] = {}
        self._restore(tranches, holdings)

    def _restore(self, tranches: Iterable[TrancheState], holdings: Iterable[HoldingState]) -> None:
        kept: dict[SideName, list[Tranche]] = {"long": [], "short": []}
        for row in sorted(tranches, key=lambda row: row.entry):
            kept[row.side].append(Tranche(entry=row.entry, lots=row.lots, price=row.price, ts=row.ts, forced=row.forced))
        for holding in self.sides():
            holding.restore(kept[holding.name])
        for state in holdings:
            holding = self.of(state.side)
            holding.taken, holding.unwound, holding.deleveraged = state.taken, state.unwound, state.deleveraged
            holding.returned_ts = state.returned_ts

    def sides(self) -> tuple[Holding, Holding]:
        """Both sides."""
        return self.long, self.short

    def of(self, name: SideName) -> Holding:
        """One side."""
        return self.long if name == "long" else self.short

    def closed_by(self, side: Side) -> Holding:
        """The side that fills of a side close."""
        return self.long if side == "sell" else self.short

    def against(self, reduce: SideName) -> Holding:
        """The side that is relieved when positions of the other side are reduced."""
        return self.short if reduce == "long" else self.long

    @property
    def lots(self) -> int:
        """The held lots of both sides."""
        return self.long.lots + self.short.lots

    @property
    def unrealised(self) -> int:
        """The worth of all lots at the mark in atoms; 0 without a mark."""
        return self.long.unrealised + self.short.unrealised

    @property
    def unrealised_about(self) -> int:
        """`unrealised` to within one atom per tranche, which takes the same time for any number of tranches."""
        return self.long.unrealised_about + self.short.unrealised_about

    @property
    def losses(self) -> int:
        """The sum of the sides that lose at the mark, in atoms; 0 or less."""
        return min(0, self.long.unrealised) + min(0, self.short.unrealised)

    @property
    def free_worth(self) -> int:
        """The worth of the lots that no order is promised, in atoms."""
        return self.long.free_worth + self.short.free_worth

    @property
    def free_worth_min(self) -> int:
        """A lower bound of `free_worth`, which takes the same time for any number of tranches."""
        return self.long.free_worth_min + self.short.free_worth_min

    def reprice(self, mark: int) -> None:
        """Sets the mark."""
        self.mark = mark
        self.long.reprice(mark)
        self.short.reprice(mark)

    def take(self, side: Side, tranche: Tranche) -> None:
        """Adds the tranche of a takeover entry."""
        holding = self.closed_by(side)
        holding.add(tranche)
        self._note(holding, tranche)

    def close(self, side: Side, entry: int, lots: int) -> None:
        """Subtracts lots from a tranche."""
        holding = self.closed_by(side)
        self._note(holding, holding.close(entry, lots))

    def take_changed(self) -> Iterator[TrancheState]:
        """Yields the tranches that changed since the last call."""
        changed, self._changed = self._changed, {}
        yield from changed.values()

    def states(self) -> list[HoldingState]:
        """Returns the states of both sides to store."""
        return [holding.state(self._symbol) for holding in self.sides()]

    def _note(self, holding: Holding, tranche: Tranche) -> None:
        self._changed[tranche.entry] = TrancheState(
            self._symbol, holding.name, tranche.entry, tranche.lots, tranche.price, tranche.ts, tranche.forced
        )
