"""/adl/order: the ADL orders of a contract: at first the open ones, then each that begins, advances or ends."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from typing import ClassVar

from fundsvc.api.adl_answers.orders import OrderAnswer, order_answers
from fundsvc.api.http.access import PUBLIC, Roles
from fundsvc.api.visibility import PUBLIC as EVERYBODY
from fundsvc.api.websocket.frames import Frames, concatenate, push
from fundsvc.api.websocket.subscriber import Subscriber
from fundsvc.api.websocket.topics import After, CommandError, Pushes, Turns, listed_key, retry_faults
from fundsvc.metrics import Metrics
from fundsvc.readmodel.cell_tails import AnyTail
from fundsvc.readmodel.ledger_tail import Change
from fundsvc.store.adl import AdlReader, OrderRow
from fundsvc.store.tail_queries import OrderKey


class Orders:
    """Publishes orders with their rounds, read from the database after each change. Delivery is at least once."""

    path = "/adl/order"
    suffix = ":{symbol,...}"
    roles: Roles = PUBLIC
    pushes: ClassVar[Pushes] = {"order.change": OrderAnswer}

    def __init__(self, tail: AnyTail, ledger: AdlReader, metrics: Metrics) -> None:
        self._tail = tail
        self._ledger = ledger
        self._metrics = metrics
        self._subscribers: defaultdict[str, set[Subscriber]] = defaultdict(set)
        self._pending: dict[OrderKey, OrderRow] = {}
        self._turns = Turns(self._send_pending)

    async def run(self) -> None:
        """Sends changed orders until cancelled. Retries after faults."""
        await self._turns.run()

    def check(self, part: str, after: After | None) -> None:
        """Raises CommandError if the contract is not listed, or if `after` is given."""
        listed_key(self._tail, part)
        if after is not None:
            raise CommandError(
                400, f"after is {after}: {self.path} has no history; omit `after`, and read GET /api/v1/adl/{part}/orders"
            )

    async def subscribe(self, subscriber: Subscriber, part: str, after: After | None) -> None:  # noqa: ARG002 - see `check`
        """Sends the open orders, and then those that change."""
        async with self._turns.lock:
            # The lock delays changes from here on until the open orders are sent.
            self._subscribers[part].add(subscriber)
            key = listed_key(self._tail, part)
            subscriber.push(await self._frames(part, key, self._tail.open_orders(key)))

    def unsubscribe(self, subscriber: Subscriber, part: str) -> None:
        """Sends no further orders."""
        self._subscribers[part].discard(subscriber)

    def publish(self, change: Change) -> None:
        """Queues changed orders of contracts with subscribers."""
        for order in change.orders:
            if any(self._subscribers[name] for name in self._tail.names_of(order.symbol)):
                self._pending[order.symbol, order.adl] = order
        if self._pending:
            self._turns.request()

    async def _send_pending(self) -> None:
        pending, self._pending = self._pending, {}
        for key, orders in groupby(pending.values(), lambda order: order.symbol):
            rows = list(orders)
            for name in self._tail.names_of(key):
                if self._subscribers[name]:
                    await self._send(name, key, rows)

    async def _send(self, name: str, key: str, rows: Sequence[OrderRow]) -> None:
        frames = await self._frames(name, key, rows)
        for subscriber in self._subscribers[name]:
            subscriber.push(frames)
        self._metrics.websocket_frames.inc(len(rows) * len(self._subscribers[name]))

    async def _frames(self, name: str, key: str, rows: Sequence[OrderRow]) -> Frames:
        """Reads the rounds of the orders and encodes them. Retries after faults."""
        topic, contract = f"{self.path}:{name}", self._tail.contracts[key]
        answers = await retry_faults(lambda: order_answers(self._ledger, rows, contract, EVERYBODY)) if rows else []
        return concatenate(push(topic, "order.change", answer) for answer in answers)
