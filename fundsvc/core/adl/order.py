"""Auto-deleveraging orders: what a shortfall that the fund could not pay asks of the opposing side, round by round.

For a shortfall with deficit D on Q lots, of which u is uncovered:

    lots needed = ceil(u x Q / D)              price = the fill's bankruptcy price
    recovered after k lots = min(u, floor(D x k / Q))
    all lots executed: refund = floor(D x lots / Q) - u, of the lot that the fund had paid in part

So an order never takes a whole lot more than it needs.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from fundsvc.core.adl.valuation import SideName
from fundsvc.core.events import AdlFill, Reason, Rejection
from fundsvc.core.fund.chain import Entry

State = Literal["open", "done", "uncovered"]


POSITIONS_PER_RECORD_MAX = 1000
"""A round that asks more positions is sealed in several records, so that none is long to write or to read."""


class RoundTerms(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a round asks, and every number that explains it: a position per index of the lists, in the order of rank.

    `mark` is the mark price (0 without one), `ranked` the number of positions of the side that had a rank, `is_stale` whether
    the book was stale; `positions` and `lots_requested` are those of the whole round. `lots`, `entry_prices` and `margins` are
    the positions as they were; `requested` are lots.
    """

    mark: int
    is_stale: bool
    ranked: int
    positions: int
    lots_requested: int
    accounts: list[str]
    ranks: list[int]
    lots: list[int]
    entry_prices: list[int]
    margins: list[int]
    requested: list[int]

    def parts(self) -> "Sequence[RoundTerms]":
        """The round in parts that each fit a record; an empty round is one part."""
        if self.positions <= POSITIONS_PER_RECORD_MAX:
            return (self,)
        firsts = range(0, self.positions, POSITIONS_PER_RECORD_MAX)
        return [self._part(slice(first, first + POSITIONS_PER_RECORD_MAX)) for first in firsts]

    def _part(self, part: slice) -> "RoundTerms":
        return RoundTerms(
            self.mark,
            self.is_stale,
            self.ranked,
            self.positions,
            self.lots_requested,
            self.accounts[part],
            self.ranks[part],
            self.lots[part],
            self.entry_prices[part],
            self.margins[part],
            self.requested[part],
        )


EMPTY_ROUND = RoundTerms(0, False, 0, 0, 0, [], [], [], [], [], [])
"""A round that found nobody to ask."""


class Reduced(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The position that an execution reduced, as it was when its round began, and the lots that the round requested."""

    mark: int
    ranked: int
    rank: int
    lots: int
    entry_price: int
    margin: int
    requested: int


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
    account: str
    acknowledged: bool
    round_ms: int
    policy_version: int


class Deficit(Protocol):
    """The fields of an order that determine its amounts; see `AdlOrder`."""

    @property
    def deficit(self) -> int:
        """The deficit of the shortfall, in atoms."""

    @property
    def deficit_lots(self) -> int:
        """The lots of the shortfall's fill."""

    @property
    def lots(self) -> int:
        """The lots that the order needs."""

    @property
    def uncovered(self) -> int:
        """The part of the deficit that the fund did not pay, in atoms."""


def amount_of(order: Deficit, lots: int) -> int:
    """The share of an order's deficit that lots recover, in atoms: floor(D x lots / Q)."""
    return order.deficit * lots // order.deficit_lots


def refund_of(order: Deficit) -> int:
    """The amount that an order refunds once all of its lots are executed, in atoms."""
    return amount_of(order, order.lots) - order.uncovered


NO_ACCOUNTS: frozenset[str] = frozenset()


class RoundRequest(NamedTuple):
    """What is to be asked: so many lots of a side at a price, not of the liquidated account or others of its owner.

    `failures` counts, by account, the rounds in which it executed less than asked; `exhausted` are not asked any more.
    """

    reduce: SideName
    lots: int
    price: int
    account: str
    failures: Mapping[str, int] = {}
    exhausted: frozenset[str] = NO_ACCOUNTS


class RoundProgress:
    """What the present round asks of each account and has got. Compact: many orders may be open, each asking many accounts."""

    __slots__ = ("_columns", "_executed", "_indices", "_lots", "_mark", "_ranked", "accounts")

    def __init__(self, terms: RoundTerms = EMPTY_ROUND) -> None:
        self.accounts = terms.accounts
        self._executed: dict[int, int] = {}
        self._mark, self._ranked = terms.mark, terms.ranked
        self._lots = array("q", terms.requested)
        self._columns = (
            array("q", terms.ranks),
            array("q", terms.lots),
            array("q", terms.entry_prices),
            array("q", terms.margins),
            self._lots,
        )
        self._indices: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self.accounts)

    def index(self, account: str) -> int | None:
        """Where an account stands in the round, None where it is not asked."""
        if self._indices is None:
            self._indices = {name: index for index, name in enumerate(self.accounts)}
        return self._indices.get(account)

    def rest(self, index: int) -> int:
        """Lots that are still asked at a index."""
        return self._lots[index] - self._executed.get(index, 0)

    def rests(self) -> Iterator[tuple[str, int]]:
        """Every account with the lots that are still asked of it, also 0."""
        if not self._executed:
            return zip(self.accounts, self._lots, strict=True)
        return ((account, self.rest(index)) for index, account in enumerate(self.accounts))

    def execute(self, account: str, lots: int) -> None:
        """Counts the lots that the engine executed for a named account."""
        index = self.index(account)
        if index is not None:
            self._executed[index] = self._executed.get(index, 0) + lots

    def extend(self, part: RoundTerms) -> None:
        """Adds further positions of the same round."""
        self.accounts.extend(part.accounts)
        more = part.ranks, part.lots, part.entry_prices, part.margins, part.requested
        for column, numbers in zip(self._columns, more, strict=True):
            column.extend(numbers)
        self._indices = None

    def reduced(self, index: int) -> Reduced:
        """The position at a index, as it was when the round began."""
        return Reduced(self._mark, self._ranked, *(column[index] for column in self._columns))


NO_ROUND = RoundProgress()
"""Between two rounds."""


class AdlOrder(msgspec.Struct, kw_only=True):
    """An order to reduce opposing positions at the bankruptcy price. Amounts are atoms.

    `adl` numbers the orders of a contract from 1; `cause` is the ledger entry of the shortfall, with `deficit` on
    `deficit_lots`; `account` is the liquidated one. `lots` is what is needed, `executed` what was taken; `seq` is the engine
    sequence of the last event that moved it, `policy_version` the version of the policies it runs under. `round` is the number
    of the present round, `round_ms` when it began by the stream (ms), `acknowledged` whether the engine is known to have it,
    and `asked` what it asks. `failures` and `times_requested` count, by account, rounds of this order that are over.
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
    account: str
    policy_version: int = 0
    executed: int = 0
    state: State = "open"
    round: int = 0
    round_ms: int = 0
    acknowledged: bool = False
    progress: RoundProgress = NO_ROUND
    failures: dict[str, int] = msgspec.field(default_factory=dict)
    times_requested: dict[str, int] = msgspec.field(default_factory=dict)

    @property
    def recovered(self) -> int:
        """min(u, floor(D x k / Q))."""
        return min(self.uncovered, amount_of(self, self.executed))

    @property
    def refund(self) -> int:
        """floor(D x lots / Q) - u, due once all lots are executed: at least 0 and less than the deficit of one lot."""
        return refund_of(self)

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
        return OrderState(
            self.symbol,
            self.adl,
            self.cause,
            self.reduce,
            self.lots,
            self.price,
            self.deficit,
            self.deficit_lots,
            self.uncovered,
            self.recovered,
            self.executed,
            self.state,
            self.round,
            self.ts,
            self.seq,
            self.account,
            self.acknowledged,
            self.round_ms,
            self.policy_version,
        )

    def next_request(self, rounds_max: int) -> RoundRequest:
        """Lots that another round would order. The order names an account in at most `rounds_max` rounds of an order."""
        exhausted = NO_ACCOUNTS
        if self.times_requested:
            exhausted = frozenset(account for account, times in self.times_requested.items() if times >= rounds_max)
        return RoundRequest(self.reduce, self.needed, self.price, self.account, self.failures, exhausted)

    def begin_round(self, terms: RoundTerms, now_ms: int) -> None:
        """Asks what the terms say; `now_ms` is the time by the stream."""
        self.round += 1
        self.round_ms = now_ms
        self.acknowledged = False
        self.progress = RoundProgress(terms)

    def end_round(self) -> None:
        """Counts the present round for every account that it asked, and as a failure where one executed less."""
        for account, rest in self.progress.rests():
            self.times_requested[account] = self.times_requested.get(account, 0) + 1
            if rest:
                self.failures[account] = self.failures.get(account, 0) + 1
        self.progress = NO_ROUND

    def execute(self, fill: AdlFill) -> Reduced:
        """Counts an execution; returns the position that it reduces.

        Raises Rejection when the round did not ask for it, or not for that much.
        """
        index = self.progress.index(fill.account)
        if index is None:
            raise Rejection(
                Reason.ADL_NOT_ASKED, f"ADL order {self.adl} of {self.symbol} asks nothing of account {fill.account!r}"
            )
        rest = self.progress.rest(index)
        if fill.lots > rest:
            raise Rejection(
                Reason.ADL_TOO_MANY_LOTS, f"ADL order {self.adl} of {self.symbol} asks {rest} more lots there, not {fill.lots}"
            )
        self.progress.execute(fill.account, fill.lots)
        self.executed += fill.lots
        self.acknowledged = True
        if self.executed == self.lots:
            self.state = "done"
        return self.progress.reduced(index)


def opposite(side: Literal["sell", "buy"]) -> SideName:
    """The side to reduce when a fill closed the other: `sell` closed a long."""
    return "short" if side == "sell" else "long"


def order_for(shortfall: Entry, adl: int, policy_version: int = 0) -> AdlOrder:
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
        account=shortfall.account,
        policy_version=policy_version,
    )
