"""/adl/instruction, for matching engines: the rounds of ADL orders with their accounts, as the ADL streams announce them."""

import asyncio
from collections.abc import Iterable, Mapping
from functools import partial
from typing import ClassVar

from fundsvc.api.adl_answers.instructions import open_rounds
from fundsvc.api.http.access import Roles
from fundsvc.api.websocket.frames import push
from fundsvc.api.websocket.subscriber import Subscriber
from fundsvc.api.websocket.topics import After, CommandError, Pushes, retry_faults
from fundsvc.metrics import Metrics
from fundsvc.readmodel.cell_tails import AnyTail
from fundsvc.readmodel.ledger_tail import RETRY_SECONDS, Change
from fundsvc.store.adl import AdlReader
from fundsvc.store.tail_queries import OrderKey
from fundsvc.wire.rounds import Announcement

Seen = dict[OrderKey, int]
"""The last round that a subscriber has received, by order."""


class Instructions:
    """Publishes rounds at least once: at first those that are open, then each that begins.

    A round carries the lots that are still requested when it is sent. So an engine that lost its connection and subscribes
    again receives what is left to do.
    """

    path = "/adl/instruction"
    suffix = ""
    roles: Roles = frozenset({"engine"})
    pushes: ClassVar[Pushes] = {"round": Announcement}

    def __init__(self, tail: AnyTail, ledger: AdlReader, metrics: Metrics) -> None:
        self._tail = tail
        self._ledger = ledger
        self._metrics = metrics
        self._subscribers: dict[Subscriber, Seen] = {}
        self._pending: set[str] = set()
        self._has_pending = asyncio.Event()
        self._sending = asyncio.Lock()

    async def run(self) -> None:
        """Sends new rounds until cancelled. Retries after faults."""
        while True:
            await self._has_pending.wait()
            self._has_pending.clear()
            async with self._sending:
                pending, self._pending = self._pending, set()
                await self._send(pending, self._subscribers)

    def check(self, part: str, after: After | None) -> None:  # noqa: ARG002 - the topic has one part
        """Raises CommandError if `after` is given."""
        if after is not None:
            raise CommandError(400, f"after is {after}: {self.path} sends all open rounds to each subscriber; omit `after`")

    async def subscribe(self, subscriber: Subscriber, part: str, after: After | None) -> None:  # noqa: ARG002 - see `check`
        """Sends the open rounds, and then each new one."""
        async with self._sending:
            self._subscribers[subscriber] = {}
            await self._send(self._tail.contracts_with_orders(), [subscriber])

    def unsubscribe(self, subscriber: Subscriber, part: str) -> None:  # noqa: ARG002 - the topic has one part
        """Sends no further rounds."""
        self._subscribers.pop(subscriber, None)

    def publish(self, change: Change) -> None:
        """Queues the contracts of rounds that a subscriber has not received; forgets orders that are over."""
        for order in change.orders:
            key = order.symbol, order.adl
            for seen in self._subscribers.values():
                if order.state != "open":
                    seen.pop(key, None)
                elif seen.get(key) != order.round:
                    self._pending.add(order.symbol)
        if self._pending:
            self._has_pending.set()

    async def _send(self, contracts: Iterable[str], subscribers: Iterable[Subscriber]) -> None:
        """Sends the open rounds of some contracts to the subscribers that have not received them."""
        for key in contracts:
            for adl, announced in (await self._rounds(key)).items():
                frames = push(self.path, "round", announced, private=True)
                for subscriber in list(subscribers):
                    seen = self._subscribers.get(subscriber, {})
                    if seen.get((key, adl)) != announced.round:
                        seen[key, adl] = announced.round
                        subscriber.push(frames)
                        self._metrics.websocket_frames.inc()

    async def _rounds(self, key: str) -> Mapping[int, Announcement]:
        """Returns the open rounds of a contract, none older than the tail knows: another replica than its own may be behind."""
        read = partial(open_rounds, self._ledger, self._tail.funds[key].partition, self._tail.contracts[key])
        while True:
            found = await retry_faults(read)
            known = self._tail.open_orders(key)
            if all(order.adl in found and found[order.adl].round >= order.round for order in known):
                return found
            await asyncio.sleep(RETRY_SECONDS)
