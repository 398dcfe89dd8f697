"""/insuranceFund/balance: the fund of a contract as GET /insurance-fund/{symbol} answers it, now and after each change."""

from collections import defaultdict
from collections.abc import Collection
from functools import partial
from typing import ClassVar

from fundsvc.api.answers import FundAnswer
from fundsvc.api.fund_cache import FundCache
from fundsvc.api.http.access import PUBLIC, Roles
from fundsvc.api.websocket.frames import Frames, push
from fundsvc.api.websocket.subscriber import Subscriber
from fundsvc.api.websocket.topics import After, CommandError, Pushes, listed_key, retry_faults
from fundsvc.metrics import Metrics
from fundsvc.readmodel.cell_tails import AnyTail
from fundsvc.readmodel.ledger_tail import Change

ALL = "all"
"""The part that selects all open contracts, including those listed later, and the change that closes one."""


class Balances:
    """Publishes funds. A subscriber that reads too slowly receives only the latest state of each fund."""

    path = "/insuranceFund/balance"
    suffix = ":{symbol,...} or :all"
    roles: Roles = PUBLIC
    pushes: ClassVar[Pushes] = {"balance.change": FundAnswer}

    def __init__(self, tail: AnyTail, funds: FundCache, metrics: Metrics) -> None:
        self._tail = tail
        self._funds = funds
        self._metrics = metrics
        self._subscribers: defaultdict[str, set[Subscriber]] = defaultdict(set)

    def check(self, part: str, after: After | None) -> None:
        """Raises CommandError if the contract is not listed, or if `after` is given."""
        if after is not None:
            raise CommandError(
                400, f"after is {after}: {self.path} has no history; omit `after`, or subscribe to /insuranceFund/entry"
            )
        if part != ALL:
            listed_key(self._tail, part)

    async def subscribe(self, subscriber: Subscriber, part: str, after: After | None) -> None:  # noqa: ARG002 - see `check`
        """Sends the present funds, and then each change."""
        frames = await retry_faults(partial(self._snapshot, part))
        self._subscribers[part].add(subscriber)
        for symbol, frame in frames.items():
            subscriber.push_latest(symbol, frame)

    def unsubscribe(self, subscriber: Subscriber, part: str) -> None:
        """Sends no further changes."""
        self._subscribers[part].discard(subscriber)

    def publish(self, change: Change) -> None:
        """Sends the changed funds to their subscribers."""
        for fund in change.funds:
            first, *others = self._tail.names_of(fund.symbol)
            self._send(first, fund.symbol, self._subscribers[ALL] | self._subscribers[first])
            for name in others:
                self._send(name, fund.symbol, self._subscribers[name])

    def _send(self, name: str, key: str, subscribers: Collection[Subscriber]) -> None:
        if subscribers:
            frame = self._frame(name, key)
            for subscriber in subscribers:
                subscriber.push_latest(name, frame)
            self._metrics.websocket_frames.inc(len(subscribers))

    async def _snapshot(self, part: str) -> dict[str, Frames]:
        """Returns the present funds. Raises StoreFault until marks and rates were read once; after that it never does."""
        tail = self._tail
        if part != ALL:
            return {part: self._frame(part, listed_key(tail, part))}
        return {name: self._frame(name, key) for name, key in tail.current.items() if not tail.funds[key].closed}

    def _frame(self, name: str, key: str) -> Frames:
        return push(f"{self.path}:{name}", "balance.change", self._funds.data(key))
