"""/adl/position, private: the positions of an account when their lights change, and each ADL reduction of one of them."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import ClassVar

import msgspec

from fundsvc.api.adl_answers.positions import PositionAnswer, ReductionAnswer, position_answers, reduction_answer
from fundsvc.api.http.access import TRADERS, Roles
from fundsvc.api.websocket.frames import Frames, push
from fundsvc.api.websocket.subscriber import Subscriber
from fundsvc.api.websocket.topics import After, CommandError, Pushes, Turns, retry_faults
from fundsvc.core.events import TIMESTAMP_MAX
from fundsvc.core.policy import Policy
from fundsvc.metrics import Metrics
from fundsvc.readmodel.adl_books import AdlBooks, NotFollowed
from fundsvc.readmodel.cell_tails import AnyTail
from fundsvc.readmodel.ledger_tail import Change
from fundsvc.store.adl import AdlReader, Reduction
from fundsvc.store.tail_queries import OrderKey

PositionKey = tuple[str, str]
"""Symbol and side."""

Seen = dict[tuple[str, int, int], int]
"""Executed lots that a subscriber has received, by contract, order and round."""


class Positions:
    """Publishes positions of subscribed accounts. Lights follow the books in memory; reductions arrive at least once."""

    path = "/adl/position"
    suffix = ""
    roles: Roles = TRADERS
    pushes: ClassVar[Pushes] = {"position.lights": PositionAnswer, "position.deleveraged": ReductionAnswer}

    def __init__(
        self,
        tail: AnyTail,
        ledger: AdlReader,
        books: AdlBooks,
        metrics: Metrics,
        seconds: float,
        policy_of: Callable[[str], Policy],
    ) -> None:
        self._tail = tail
        self._ledger = ledger
        self._books = books
        self._metrics = metrics
        self._seconds = seconds
        self._policy_of = policy_of
        self._subscribers: dict[str, dict[Subscriber, Seen]] = defaultdict(dict)
        self._shown: dict[str, dict[PositionKey, PositionAnswer]] = {}
        self._pending: set[OrderKey] = set()
        self._turns = Turns(self._send_reductions)

    async def run(self) -> None:
        """Sends reductions until cancelled. Retries after faults."""
        await self._turns.run()

    async def run_lights(self) -> None:
        """Sends changed lights at the interval at which the books are refreshed, until cancelled."""
        while True:
            await asyncio.sleep(self._seconds)
            for account, subscribers in list(self._subscribers.items()):
                async with self._turns.lock:
                    for frame in await self._changed_lights(account):
                        self._send(subscribers, frame)

    def check(self, part: str, after: After | None) -> None:  # noqa: ARG002 - the topic has one part
        """Raises CommandError if `after` is not a time."""
        if after is None:
            return
        if after.generation is not None:
            raise CommandError(400, f"generation is {after.generation}: {self.path} has none; omit it")
        if after.number > TIMESTAMP_MAX:
            raise CommandError(400, f"after is {after}: on {self.path} it is a time in milliseconds, at most {TIMESTAMP_MAX}")

    async def subscribe(self, subscriber: Subscriber, part: str, after: After | None) -> None:  # noqa: ARG002 - one part
        """Sends the reductions that changed since the time `after` (ms), all positions, and then each change.

        Without `after`, a client receives every reduction that is settled after it received its positions.
        """
        account = subscriber.account
        async with self._turns.lock:
            if not self._subscribers[account]:
                self._shown[account] = {}
                await self._changed_lights(account)
            seen = self._subscribers[account][subscriber] = {}
            await self._send_missed(subscriber, seen, None if after is None else after.number)
            for answer in self._shown[account].values():
                subscriber.push(self._lights(answer))

    def unsubscribe(self, subscriber: Subscriber, part: str) -> None:  # noqa: ARG002 - the topic has one part
        """Sends no further changes."""
        subscribers = self._subscribers[subscriber.account]
        subscribers.pop(subscriber, None)
        if not subscribers:
            del self._subscribers[subscriber.account]
            self._shown.pop(subscriber.account, None)

    def publish(self, change: Change) -> None:
        """Queues changed orders. The database selects those that reduced a subscribed account."""
        if self._subscribers and change.orders:
            self._pending.update((order.symbol, order.adl) for order in change.orders)
            self._turns.request()

    async def _send_missed(self, subscriber: Subscriber, seen: Seen, after: int | None) -> None:
        """Sends reductions that the client may have missed. Without `after`, only records the present state of open orders."""
        since = datetime.now(UTC) if after is None else datetime.fromtimestamp(after / 1000, UTC)
        for reduction in await retry_faults(lambda: self._ledger.reductions_since(subscriber.account, since)):
            frame = self._unseen(reduction, seen)
            if frame and after is not None and (reduction.updated_at >= since or reduction.row.ts >= after):
                subscriber.push(frame)

    async def _send_reductions(self) -> None:
        orders, self._pending = self._pending, set()
        for reduction in await retry_faults(lambda: self._ledger.reductions(orders, list(self._subscribers))):
            for subscriber, seen in self._subscribers.get(reduction.account, {}).items():
                if frame := self._unseen(reduction, seen):
                    self._send((subscriber,), frame)

    def _unseen(self, reduction: Reduction, seen: Seen) -> Frames | None:
        """Returns the frame of a reduction, None if the subscriber has received this state. Records it as received."""
        row = reduction.row
        key = row.symbol, row.adl, row.round
        if seen.get(key) == row.executed:
            return None
        seen[key] = row.executed
        answer = reduction_answer(row, self._tail.contracts[row.symbol])
        return push(self.path, "position.deleveraged", answer, private=True)

    async def _changed_lights(self, account: str) -> list[Frames]:
        """Returns frames of the positions whose lights differ from the last ones sent; none while the books are loaded."""
        try:
            answers = await position_answers(self._books, account, self._policy_of)
        except NotFollowed:
            return []
        shown = self._shown.get(account)
        return [] if shown is None else list(self._show(shown, answers))  # None after the last subscriber has left

    def _show(self, shown: dict[PositionKey, PositionAnswer], answers: Iterable[PositionAnswer]) -> Iterator[Frames]:
        """Records the present positions of an account. Yields the frames of those that differ."""
        present = {(answer.symbol, answer.side): answer for answer in answers}
        for key in shown.keys() - present.keys():
            yield self._lights(_closed(shown.pop(key)))
        for key, answer in present.items():
            if key not in shown or shown[key].lights != answer.lights:
                yield self._lights(answer)
            shown[key] = answer

    def _lights(self, answer: PositionAnswer) -> Frames:
        return push(self.path, "position.lights", answer, private=True)

    def _send(self, subscribers: Iterable[Subscriber], frame: Frames) -> None:
        for subscriber in subscribers:
            subscriber.push(frame)
            self._metrics.websocket_frames.inc()


def _closed(last: PositionAnswer) -> PositionAnswer:
    """Returns a closed position: without lots and rank."""
    return msgspec.structs.replace(last, lots=0, rank=None, ranked=None, percentile=None, lights=None, not_eligible="closed")
