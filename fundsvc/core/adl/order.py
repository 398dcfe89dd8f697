"""ADL orders: the lots of opposing positions that a shortfall with an uncovered amount requires, requested in rounds.

For a shortfall with deficit D on Q lots, of which u is uncovered:

    lots needed = ceil(u x Q / D)              price = the fill's bankruptcy price
    recovered after k lots = min(u, floor(D x k / Q))
    all lots executed: refund = floor(D x lots / Q) - u, the part of the last lot that the fund had already paid

So an order never requests a whole lot more than it needs.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from fundsvc.core.adl.valuation import SideName
from fundsvc.core.events import AdlFill, Reason, Rejection, Side
from fundsvc.core.fund.chain import Entry

State = Literal["open", "done", "uncovered", "returned"]
"""An order for a shortfall ends `done` or `uncovered`. One for held or taken over lots ends `done` with all lots executed, else
`returned`."""

Origin = Literal["shortfall", "takeover", "inventory"]
"""The reason for an order: an amount that the fund cannot pay, lots that it does not accept, or lots that it cannot keep."""


POSITIONS_PER_RECORD_MAX = 1000
"""A round with more positions is sealed in several records, which bounds the time to write or read one record."""


class RoundTerms(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The allocations of a round and the numbers that explain them. The lists contain one position per index, by rank.

    `mark` is the mark price (0 without one), `ranked` the number of positions of the side with a rank, `is_stale` whether the
    book was stale. `positions` and `lots_requested` are totals of the whole round, also in a part of it. `lots`, `entry_prices`
    and `margins` describe the positions at the begin of the round; `requested` contains the requested lots.
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
        """Returns the round divided into parts that fit one record each. An empty round has one part."""
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
"""The terms of a round without candidates."""


class Reduced(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The position that an execution reduced, as of the begin of the round, and the lots that the round requested."""

    mark: int
    ranked: int
    rank: int
    lots: int
    entry_price: int
    margin: int
    requested: int


class OrderState(NamedTuple):
    """The stored state of an order; see `AdlOrder` for the fields."""

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
    origin: Origin = "shortfall"
    unwound: int = 0


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
    """Returns the part of an order's deficit that `lots` recover, in atoms: floor(D x lots / Q)."""
    return order.deficit * lots // order.deficit_lots


def refund_of(order: Deficit) -> int:
    """Returns the amount that an order refunds when all its lots are executed, in atoms."""
    return amount_of(order, order.lots) - order.uncovered


NO_ACCOUNTS: frozenset[str] = frozenset()


class RoundRequest(NamedTuple):
    """The requirements of a round: the lots of a side at a price, except those of the liquidated account and its owner.

    `failures` contains, by account, the number of rounds in which it executed less than requested. Accounts in `exhausted` are
    not requested again.
    """

    reduce: SideName
    lots: int
    price: int
    account: str
    failures: Mapping[str, int] = {}
    exhausted: frozenset[str] = NO_ACCOUNTS


class RoundProgress:
    """The requested and executed lots of the current round, by account.

    The columns are arrays: many orders may be open, each with many accounts.
    """

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
        """Returns the index of an account in the round, None if the round does not request its lots."""
        if self._indices is None:
            self._indices = {name: index for index, name in enumerate(self.accounts)}
        return self._indices.get(account)

    def rest(self, index: int) -> int:
        """Returns the lots that are requested and not executed at an index."""
        return self._lots[index] - self._executed.get(index, 0)

    def rests(self) -> Iterator[tuple[str, int]]:
        """Yields every account of the round with its lots that are requested and not executed, including 0."""
        if not self._executed:
            return zip(self.accounts, self._lots, strict=True)
        return ((account, self.rest(index)) for index, account in enumerate(self.accounts))

    def execute(self, account: str, lots: int) -> None:
        """Adds lots that the matching engine executed; ignores an account that is not in the round."""
        index = self.index(account)
        if index is not None:
            self._executed[index] = self._executed.get(index, 0) + lots

    def extend(self, part: RoundTerms) -> None:
        """Appends a further part of the same round."""
        self.accounts.extend(part.accounts)
        more = part.ranks, part.lots, part.entry_prices, part.margins, part.requested
        for column, numbers in zip(self._columns, more, strict=True):
            column.extend(numbers)
        self._indices = None

    def reduced(self, index: int) -> Reduced:
        """Returns the position at an index, as of the begin of the round."""
        return Reduced(self._mark, self._ranked, *(column[index] for column in self._columns))


NO_ROUND = RoundProgress()
"""The progress between two rounds."""


class AdlOrder(msgspec.Struct, kw_only=True):
    """An order to reduce opposing positions at the bankruptcy price. Amounts are atoms.

    `adl` numbers the orders of a contract from 1. `cause` is the ledger entry of the shortfall, with `deficit` on
    `deficit_lots`. `account` is the liquidated account. `lots` is the number of required lots, `executed` of executed ones.
    `seq` is the sequence of the last event that changed the order, `policy_version` the version of its policies. `round` is the
    number of the current round, `round_ms` the stream's time of its begin (ms), `acknowledged` whether the matching engine
    acknowledged it. An order of another `origin` than a shortfall recovers no amount; its `cause` is a takeover entry, of an
    inventory order that of its tranche, 0 if the fund accepted no lots. `unwound` are lots that left the order because the
    market took them. By account, `failures` and `times_requested` count completed rounds of this order.
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
    origin: Origin = "shortfall"
    executed: int = 0
    unwound: int = 0
    state: State = "open"
    round: int = 0
    round_ms: int = 0
    acknowledged: bool = False
    progress: RoundProgress = NO_ROUND
    failures: dict[str, int] = msgspec.field(default_factory=dict)
    times_requested: dict[str, int] = msgspec.field(default_factory=dict)

    @property
    def recovered(self) -> int:
        """The recovered amount: min(u, floor(D x k / Q))."""
        return min(self.uncovered, amount_of(self, self.executed))

    @property
    def refund(self) -> int:
        """floor(D x lots / Q) - u, due when all lots are executed; at least 0 and less than the deficit of one lot."""
        return refund_of(self)

    @property
    def rest(self) -> int:
        """The amount that is not recovered yet: u - recovered."""
        return self.uncovered - self.recovered

    @property
    def needed(self) -> int:
        """The lots that the order still needs."""
        return self.lots - self.executed - self.unwound

    def state_row(self) -> OrderState:
        """Returns the current state of the order, to be stored."""
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
            self.origin,
            self.unwound,
        )

    def next_request(self, rounds_max: int) -> RoundRequest:
        """Returns the requirements of the next round. An account is requested in at most `rounds_max` rounds of an order."""
        exhausted = NO_ACCOUNTS
        if self.times_requested:
            exhausted = frozenset(account for account, times in self.times_requested.items() if times >= rounds_max)
        return RoundRequest(self.reduce, self.needed, self.price, self.account, self.failures, exhausted)

    def begin_round(self, terms: RoundTerms, now_ms: int) -> None:
        """Begins a round with these terms; `now_ms` is the stream's time."""
        self.round += 1
        self.round_ms = now_ms
        self.acknowledged = False
        self.progress = RoundProgress(terms)

    def end_round(self) -> None:
        """Ends the current round. Counts it for each requested account, as a failure if it executed less than requested."""
        for account, rest in self.progress.rests():
            self.times_requested[account] = self.times_requested.get(account, 0) + 1
            if rest:
                self.failures[account] = self.failures.get(account, 0) + 1
        self.progress = NO_ROUND

    def execute(self, fill: AdlFill) -> Reduced:
        """Adds an execution; returns the position that it reduces.

        Raises Rejection if the round does not request lots of the account, or fewer than the event contains, or if the order
        needs fewer.
        """
        index = self.progress.index(fill.account)
        if index is None:
            raise Rejection(
                Reason.ADL_NOT_ASKED,
                f"round {self.round} of ADL order {self.adl} of {self.symbol} requests no lots of account {fill.account!r}",
            )
        rest = min(self.progress.rest(index), self.needed)
        if fill.lots > rest:
            raise Rejection(
                Reason.ADL_TOO_MANY_LOTS,
                f"round {self.round} of ADL order {self.adl} of {self.symbol} requests {rest} more lots of"
                f" account {fill.account!r}, not {fill.lots}",
            )
        self.progress.execute(fill.account, fill.lots)
        self.executed += fill.lots
        self.acknowledged = True
        self._end_if_complete()
        return self.progress.reduced(index)

    def unwind(self, lots: int) -> None:
        """Removes lots that the market took."""
        self.unwound += lots
        self._end_if_complete()

    def _end_if_complete(self) -> None:
        if not self.needed:
            self.state = "returned" if self.unwound else "done"


def opposite(side: Side) -> SideName:
    """Returns the side that ADL reduces for a fill; a `sell` closed a long, so ADL reduces shorts."""
    return "short" if side == "sell" else "long"


def order_of_lots(
    origin: Origin,
    symbol: str,
    adl: int,
    cause: int,
    side: Side,
    lots: int,
    price: int,
    ts: int,
    seq: int,
    account: str = "",
    policy_version: int = 0,
) -> AdlOrder:
    """Returns an order for lots of an origin other than a shortfall; `side` is that of fills which close them."""
    return AdlOrder(
        symbol=symbol,
        adl=adl,
        cause=cause,
        reduce=opposite(side),
        lots=lots,
        price=price,
        deficit=0,
        deficit_lots=lots,
        uncovered=0,
        ts=ts,
        seq=seq,
        account=account,
        policy_version=policy_version,
        origin=origin,
    )


def order_for(shortfall: Entry, adl: int, policy_version: int = 0) -> AdlOrder:
    """Returns the ADL order of a shortfall with an uncovered amount."""
    deficit = shortfall.uncovered - shortfall.change
    lots = -(-shortfall.uncovered * shortfall.lots // deficit)
    assert 0 <= lots * deficit - shortfall.uncovered * shortfall.lots < deficit, (
        "an order exceeds its uncovered amount by less than one lot"
    )
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
