"""/insuranceFund/balance: a contract's fund, as GET /insurance-fund/{symbol} answers, now and whenever it changes."""

from collections import defaultdict
from functools import partial

from fundsvc.api.fund_cache import CachedFunds
from fundsvc.api.websocket.frames import Frames, push
from fundsvc.api.websocket.subscriber import Subscriber
from fundsvc.api.websocket.topics import CommandError, check_listed, retry_faults
from fundsvc.metrics import Metrics
from fundsvc.readmodel.ledger_tail import Change, Tail

ALL = "all"
"""Every contract, also those listed later."""


class Balances:
    """Funds as they change; a client that reads too slowly gets the latest of each."""

    path = "/insuranceFund/balance"
    suffix = ":{symbol,...} or :all"
    private = False

    def __init__(self, tail: Tail, funds: CachedFunds, metrics: Metrics) -> None:
        self._tail = tail
        self._funds = funds
        self._metrics = metrics
        self._subscribers: defaultdict[str, set[Subscriber]] = defaultdict(set)

    def check(self, part: str, after: int | None) -> None:
        """Raises CommandError for what is no contract, or from anywhere but now."""
        if after is not None:
            raise CommandError(400, "balances have no past: leave `after` out, or subscribe to /insuranceFund/entry")
        if part != ALL:
            check_listed(self._tail, part)

    async def subscribe(self, subscriber: Subscriber, part: str, after: int | None) -> None:  # noqa: ARG002 - see `check`
        """Sends the funds as they are, and then as they change."""
        frames = await retry_faults(partial(self._snapshot, part))
        self._subscribers[part].add(subscriber)
        for symbol, frame in frames.items():
            subscriber.push_latest(symbol, frame)

    def unsubscribe(self, subscriber: Subscriber, part: str) -> None:
        """Ends that."""
        self._subscribers[part].discard(subscriber)

    def publish(self, change: Change) -> None:
        """Sends funds that changed to whom it concerns."""
        for fund in change.funds:
            subscribers = self._subscribers[ALL] | self._subscribers[fund.symbol]
            if subscribers:
                frame = self._frame(fund.symbol)
                for subscriber in subscribers:
                    subscriber.push_latest(fund.symbol, frame)
                self._metrics.websocket_frames.inc(len(subscribers))

    async def _snapshot(self, part: str) -> dict[str, Frames]:
        """Funds as they are; raises StoreFault while what they are valued by was never read, which is over once and for all."""
        return {symbol: self._frame(symbol) for symbol in (self._tail.funds if part == ALL else [part])}

    def _frame(self, symbol: str) -> Frames:
        return push(f"{self.path}:{symbol}", "balance.change", self._funds.data(symbol))
