"""Auto-deleveraging orders: what a shortfall that the fund could not pay asks of the opposing side, round by round.

For a shortfall with deficit D on Q lots, of which u is uncovered:

    lots needed = ceil(u x Q / D)              price = the fill's bankruptcy price
    recovered after k lots = min(u, floor(D x k / Q))
    all lots executed: refund = floor(D x lots / Q) - u, of the lot that the fund had paid in part

So an order never takes a whole lot more than it needs.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import msgspec

from fundsvc.core.book import Rank, SideName, Standing
from fundsvc.core.chain import Entry
from fundsvc.core.events import AdlFill, Reason, Rejection

State = Literal["open", "done", "uncovered"]


class Allocation(msgspec.Struct):
    """What one round asks of one position, and how much of it was executed; `standing` is why it was asked that much.

    `rank` of `ranked` positions on that side, 1 first.
    """

    standing: Standing
    rank: int
    ranked: int
    asked: int
    executed: int = 0

    @property
    def account(self) -> str:
        """Whom it is asked of."""
        return self.standing.account


class AllocationState(NamedTuple):
    """An allocation as it is written, with all that explains it; `side` is that of the position."""

    symbol: str
    adl: int
    round: int
    account: str
    side: SideName
    lots: int
    entry_price: int
    margin: int
    mark_price: int
    unrealised_pnl: int
    return_on_entry: float
    leverage: float
    score: float
    rank: int
    ranked: int
    lights: int
    asked: int
    executed: int


class OrderState(NamedTuple):
    """An order as it is written; see `AdlOrder` for the meaning of the fields."""

    symbol: str
    adl: int
    cause: int
    reduce: SideName
    lots: int
    price: int
    deficit: int
    deficit_lots: int
    uncovered: int
    recovered: int
    executed: int
    state: State
    round: int
    ts: int
    seq: int
    acknowledged: bool
    round_ms: int


class AdlOrder(msgspec.Struct, kw_only=True):
    """An order to reduce opposing positions at the bankruptcy price. Amounts are atoms.

    `adl` numbers the orders of a contract from 1; `cause` is the ledger entry of the shortfall, with `deficit` on
    `deficit_lots`. `lots` is what is needed, `executed` what was taken; `seq` is the engine sequence of the
    last event that moved it, `round` the number of the round at hand and
    `allocations` are its. The engine has `acknowledged` the round, which began at `round_ms` by the stream's clock.
    """

    symbol: str
    adl: int
    cause: int
    reduce: SideName
    lots: int
    price: int
    deficit: int
    deficit_lots: int
    uncovered: int
    ts: int
    seq: int
    executed: int = 0
    state: State = "open"
    round: int = 0
    acknowledged: bool = False
    round_ms: int = 0
    allocations: dict[str, Allocation] = msgspec.field(default_factory=dict)

    @property
    def recovered(self) -> int:
        """min(u, floor(D x k / Q))."""
        return min(self.uncovered, self.deficit * self.executed // self.deficit_lots)

    @property
    def refund(self) -> int:
        """floor(D x lots / Q) - u, due once all lots are executed: at least 0 and less than the deficit of one lot."""
        return self.deficit * self.lots // self.deficit_lots - self.uncovered

    @property
    def rest(self) -> int:
        """What is still to be recovered: u - recovered."""
        return self.uncovered - self.recovered

    @property
    def needed(self) -> int:
        """Lots still to be executed."""
        return self.lots - self.executed

    def written(self) -> OrderState:
        """The order as it now stands."""
        return OrderState(*(getattr(self, name) for name in OrderState._fields))

    def allocation_written(self, allocation: Allocation) -> AllocationState:
        """One of the present round's allocations as it now stands."""
        standing = allocation.standing
        numbers = (standing.mark_price, standing.unrealised_pnl, standing.return_on_entry, standing.leverage, standing.score)
        return AllocationState(
            self.symbol,
            self.adl,
            self.round,
            standing.account,
            self.reduce,
            standing.lots,
            standing.entry_price,
            standing.margin,
            *numbers,
            allocation.rank,
            allocation.ranked,
            Rank(allocation.rank, allocation.ranked).lights,
            allocation.asked,
            allocation.executed,
        )

    def begin_round(self, allocations: Iterable[Allocation]) -> None:
        """Asks these positions; what the round before asked and did not get is not asked any more."""
        self.round += 1
        self.acknowledged = False
        self.allocations = {allocation.account: allocation for allocation in allocations}

    def execute(self, fill: AdlFill) -> Allocation:
        """Counts an execution; raises Rejection when it was not asked for, or not that much."""
        allocation = self.allocations.get(fill.account)
        if allocation is None:
            raise Rejection(
                Reason.ADL_NOT_ASKED, f"ADL order {self.adl} of {self.symbol} asks nothing of account {fill.account!r}"
            )
        rest = allocation.asked - allocation.executed
        if fill.lots > rest:
            raise Rejection(
                Reason.ADL_TOO_MANY_LOTS, f"ADL order {self.adl} of {self.symbol} asks {rest} more lots there, not {fill.lots}"
            )
        allocation.executed += fill.lots
        self.acknowledged = True
        self.executed += fill.lots
        if self.executed == self.lots:
            self.state = "done"
        return allocation


def opposite(side: Literal["sell", "buy"]) -> SideName:
    """The side to reduce when a fill closed the other: `sell` closed a long."""
    return "short" if side == "sell" else "long"


def order_for(shortfall: Entry, adl: int) -> AdlOrder:
    """The order that a shortfall with an uncovered part gives rise to."""
    deficit = shortfall.uncovered - shortfall.change
    lots = -(-shortfall.uncovered * shortfall.lots // deficit)
    assert 0 <= lots * deficit - shortfall.uncovered * shortfall.lots < deficit, "never a whole lot more than is needed"
    return AdlOrder(
        symbol=shortfall.symbol,
        adl=adl,
        cause=shortfall.entry,
        reduce=opposite(shortfall.side),
        lots=lots,
        price=shortfall.bankruptcy_price,
        deficit=deficit,
        deficit_lots=shortfall.lots,
        uncovered=shortfall.uncovered,
        ts=shortfall.ts,
        seq=shortfall.seq,
    )
