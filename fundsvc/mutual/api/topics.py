"""/mutual/pool: pools, now and after each change. /mutual/account, private: the account of the subscriber in all pools."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import ClassVar

import structlog

from fundsvc.api.http.access import PUBLIC, TRADERS, Roles
from fundsvc.api.websocket.frames import Frames, push
from fundsvc.api.websocket.subscriber import Subscriber
from fundsvc.api.websocket.topics import SHOWN_LENGTH_MAX, After, CommandError, Pushes, Topic, Turns, retry_faults
from fundsvc.concurrency.background import keep_running
from fundsvc.metrics import Metrics
from fundsvc.mutual.api.account_answers import AccountAnswer
from fundsvc.mutual.api.accounts import ACCOUNT, InsuredResources
from fundsvc.mutual.api.pool_answers import PoolAnswer, pool_answer
from fundsvc.mutual.api.pools import POOLS
from fundsvc.mutual.readmodel import Pools
from fundsvc.mutual.store.reader import MutualReader, PoolView

ALL = "all"
"""The part that selects all pools, including those created later."""

log = structlog.get_logger()


class PoolTopic:
    """Publishes pools. A subscriber that reads too slowly receives only the latest state of each pool."""

    path = "/mutual/pool"
    suffix = ":{pool,...} or :all"
    roles: Roles = PUBLIC
    pushes: ClassVar[Pushes] = {"pool.change": PoolAnswer}

    def __init__(self, pools: Pools, metrics: Metrics) -> None:
        self._pools = pools
        self._metrics = metrics
        self._subscribers: defaultdict[str, set[Subscriber]] = defaultdict(set)

    def check(self, part: str, after: After | None) -> None:
        """Raises CommandError if the pool does not exist, or if `after` is given."""
        if after is not None:
            raise CommandError(
                400, f"after is {after}: {self.path} has no history; omit `after`, and read GET {POOLS}/{{pool}}/cycles"
            )
        if part != ALL and part not in self._pools.views:
            raise CommandError(404, f"pool {part[:SHOWN_LENGTH_MAX]!r} does not exist: GET {POOLS} lists all")

    async def subscribe(self, subscriber: Subscriber, part: str, after: After | None) -> None:  # noqa: ARG002 - see `check`
        """Sends the present pools, and then each change."""
        self._subscribers[part].add(subscriber)
        for name in self._pools.views if part == ALL else [part]:
            subscriber.push_latest(f"{self.path}:{name}", self._frame(name))

    def unsubscribe(self, subscriber: Subscriber, part: str) -> None:
        """Sends no further changes."""
        self._subscribers[part].discard(subscriber)

    def publish(self, _before: Mapping[str, PoolView], changed: Mapping[str, PoolView]) -> None:
        """Sends the changed pools to their subscribers."""
        for name in changed:
            subscribers = self._subscribers[ALL] | self._subscribers[name]
            frame = self._frame(name)
            for subscriber in subscribers:
                subscriber.push_latest(f"{self.path}:{name}", frame)
            self._metrics.websocket_frames.inc(len(subscribers))

    def _frame(self, name: str) -> Frames:
        return push(f"{self.path}:{name}", "pool.change", pool_answer(self._pools.views[name], self._pools.as_of_ms))


class AccountTopic:
    """Publishes the account of each subscriber as GET answers it. A slow subscriber receives only the latest state."""

    path = "/mutual/account"
    suffix = ""
    roles: Roles = TRADERS
    pushes: ClassVar[Pushes] = {"account.change": AccountAnswer}

    def __init__(self, insured: InsuredResources, reader: MutualReader, metrics: Metrics) -> None:
        self._insured = insured
        self._reader = reader
        self._metrics = metrics
        self._subscribers: defaultdict[str, set[Subscriber]] = defaultdict(set)
        self._pending: dict[str, datetime | None] = {}
        self._turns = Turns(self._send_pending)

    async def run(self) -> None:
        """Sends changed accounts until cancelled. Retries after faults."""
        await self._turns.run()

    def check(self, part: str, after: After | None) -> None:  # noqa: ARG002 - the topic has one part
        """Raises CommandError if `after` is given."""
        if after is not None:
            raise CommandError(
                400, f"after is {after}: {self.path} has no history; omit `after`, and read GET {ACCOUNT}/statement"
            )

    async def subscribe(self, subscriber: Subscriber, part: str, after: After | None) -> None:  # noqa: ARG002 - one part
        """Sends the present account, and then each change."""
        async with self._turns.lock:
            # The lock delays changes from here on until the present account is sent.
            self._subscribers[subscriber.account].add(subscriber)
            await self._send(subscriber.account, [subscriber])

    def unsubscribe(self, subscriber: Subscriber, part: str) -> None:  # noqa: ARG002 - the topic has one part
        """Sends no further changes."""
        subscribers = self._subscribers[subscriber.account]
        subscribers.discard(subscriber)
        if not subscribers:
            del self._subscribers[subscriber.account]

    def publish(self, before: Mapping[str, PoolView], changed: Mapping[str, PoolView]) -> None:
        """Queues changed pools. The database selects the subscribed accounts that changed in them."""
        if not self._subscribers:
            return
        for name, view in changed.items():
            since = _commit_before(before.get(name), view)
            known = self._pending.get(name, since)
            self._pending[name] = min(since, known) if since and known else None
        self._turns.request()

    async def _send_pending(self) -> None:
        pending, self._pending = self._pending, {}
        for account in {name for pool, since in pending.items() for name in await self._changed(pool, since)}:
            await self._send(account, self._subscribers.get(account, ()))

    async def _changed(self, pool: str, since: datetime | None) -> Collection[str]:
        """Returns the subscribed accounts that changed in a pool since a commit; None means all."""
        accounts = list(self._subscribers)
        if since is None:
            return accounts
        return await retry_faults(lambda: self._reader.changed_accounts(pool, accounts, since))

    async def _send(self, account: str, subscribers: Collection[Subscriber]) -> None:
        answer = await retry_faults(lambda: self._insured.answer(account))
        frame = push(self.path, "account.change", answer, private=True)
        for subscriber in tuple(subscribers):
            subscriber.push_latest(self.path, frame)
        self._metrics.websocket_frames.inc(len(subscribers))


def _commit_before(before: PoolView | None, now: PoolView) -> datetime | None:
    """Returns the time of the last known commit of a pool; None if any account may have changed without a row of its own.

    At a cut-off all active policies accrue. A clock that was set back does not order commits.
    """
    if before is None or before.state.row.cycle != now.state.row.cycle or before.state.row.terms != now.state.row.terms:
        return None
    return before.state.updated_at if before.state.updated_at <= now.state.updated_at else None


@asynccontextmanager
async def mutual_topics(
    pools: Pools, insured: InsuredResources, reader: MutualReader, metrics: Metrics
) -> AsyncIterator[Sequence[Topic]]:
    """Opens the topics and publishes changes to their subscribers while the context is open."""
    pool_topic, account_topic = PoolTopic(pools, metrics), AccountTopic(insured, reader, metrics)
    listeners = [pool_topic.publish, account_topic.publish]
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(keep_running("topics", account_topic.run, log))
        pools.listeners.extend(listeners)
        try:
            yield pool_topic, account_topic
        finally:
            for listener in listeners:
                pools.listeners.remove(listener)
            running.cancel()
