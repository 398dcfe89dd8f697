"""/insuranceFund/entry: a contract's ledger entries as they come, after those that a client asks to be told first."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from itertools import groupby

from aiohttp import WSCloseCode

from fundsvc.api.answers import entry_answer
from fundsvc.api.websocket.frames import Frames, concatenate, push
from fundsvc.api.websocket.subscriber import Subscriber
from fundsvc.api.websocket.topics import check_listed
from fundsvc.metrics import Metrics
from fundsvc.readmodel.ledger_tail import RETRY_SECONDS, Change, Tail
from fundsvc.store.database import StoreFault
from fundsvc.store.reader import EntryRow, Reader

CATCH_UP_ENTRIES = 100
"""Entries told between two looks at whether the client reads them: some 60 kB."""

AHEAD_RETRIES_MAX = 25
"""How often, RETRY_SECONDS apart, an entry is looked for that a client knows and this process does not."""


class Entries:
    """Entries, each once and in order. Who asks for what was before is told that first, page by page as it reads."""

    path = "/insuranceFund/entry"
    suffix = ":{symbol,...}"
    private = False

    def __init__(self, tail: Tail, reader: Reader, metrics: Metrics) -> None:
        self._tail = tail
        self._reader = reader
        self._metrics = metrics
        self._subscribers: defaultdict[str, set[Subscriber]] = defaultdict(set)
        self._live: defaultdict[str, set[Subscriber]] = defaultdict(set)

    def check(self, part: str, after: int | None) -> None:  # noqa: ARG002 - see `join`
        """Raises CommandError if the contract is not listed. `after` may be ahead: another process may have sent that entry."""
        check_listed(self._tail, part)

    async def subscribe(self, subscriber: Subscriber, part: str, after: int | None) -> None:
        """Sends the entries after a number, by default those to come."""
        self._subscribers[part].add(subscriber)
        sent = self._tail.follow(part) if after is None else after
        if not await self._wait_until_settled(part, sent):
            last = self._tail.funds[part].entry
            subscriber.close(WSCloseCode.POLICY_VIOLATION, f"after is {sent}: the last entry of {part} is {last}")
            return
        # What was told of lies before the cursor, what will be told of after it: between this and `add` nothing is awaited.
        while sent < (cursor := self._tail.follow(part)):
            sent = await self._catch_up(subscriber, part, sent, cursor)
        self._live[part].add(subscriber)

    def unsubscribe(self, subscriber: Subscriber, part: str) -> None:
        """Ends that."""
        self._live[part].discard(subscriber)
        self._subscribers[part].discard(subscriber)
        if not self._subscribers[part]:
            self._tail.leave(part)

    def publish(self, change: Change) -> None:
        """Sends new entries to whom they concern, those of a contract in one piece."""
        for symbol, found in groupby(change.entries, lambda row: row.symbol):
            if subscribers := self._live[symbol]:
                rows = list(found)
                frames = self._frames(symbol, rows)
                for subscriber in subscribers:
                    subscriber.push(frames)
                self._metrics.websocket_frames.inc(len(rows) * len(subscribers))

    async def _wait_until_settled(self, symbol: str, entry: int) -> bool:
        """Waits for what another process has told of, and which shows here in a moment; says whether it did."""
        for _ in range(AHEAD_RETRIES_MAX):
            if self._tail.follow(symbol) >= entry:
                return True
            await asyncio.sleep(RETRY_SECONDS)
        return False

    async def _catch_up(self, subscriber: Subscriber, symbol: str, sent: int, cursor: int) -> int:
        """Sends the next entries after `told`, none beyond the cursor; returns the number of the last that was sent."""
        await subscriber.drained()
        try:
            rows = await self._reader.history(symbol, count=min(CATCH_UP_ENTRIES, cursor - sent), offset=sent, forward=True)
        except StoreFault:
            rows = []
        if not rows:  # The database is away, or it is a replica that is behind the one that the tail hears.
            await asyncio.sleep(RETRY_SECONDS)
            return sent
        subscriber.push(self._frames(symbol, rows))
        self._metrics.websocket_frames.inc(len(rows))
        return rows[-1].entry

    def _frames(self, symbol: str, rows: Iterable[EntryRow]) -> Frames:
        topic, contract = f"{self.path}:{symbol}", self._tail.contracts[symbol]
        return concatenate(push(topic, "entry", entry_answer(row, contract)) for row in rows)
