"""/insuranceFund/entry: the ledger entries of a contract, live, after the missed ones that the subscription requests."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import ClassVar

from aiohttp import WSCloseCode

from fundsvc.api.answers import EntryAnswer, entry_answer
from fundsvc.api.http.access import PUBLIC, Roles
from fundsvc.api.websocket.frames import Frames, concatenate, push
from fundsvc.api.websocket.subscriber import Subscriber
from fundsvc.api.websocket.topics import After, CommandError, Pushes, listed_key
from fundsvc.core.generations import generation_of, named_generation
from fundsvc.metrics import Metrics
from fundsvc.readmodel.cell_tails import AnyTail
from fundsvc.readmodel.ledger_tail import RETRY_SECONDS, Change
from fundsvc.store.database import StoreFault
from fundsvc.store.reader import EntryRow, Reader

CATCH_UP_ENTRIES = 100
"""Missed entries that are sent before the next back-pressure check: some 60 kB."""

AHEAD_RETRIES_MAX = 25
"""How many times, RETRY_SECONDS apart, this process waits for an entry that a client has and the tail does not have yet."""


class Entries:
    """Publishes entries, each once and in order. Missed entries come first, page by page, as fast as the client reads them."""

    path = "/insuranceFund/entry"
    suffix = ":{symbol,...}"
    roles: Roles = PUBLIC
    pushes: ClassVar[Pushes] = {"entry": EntryAnswer}

    def __init__(self, tail: AnyTail, reader: Reader, metrics: Metrics) -> None:
        self._tail = tail
        self._reader = reader
        self._metrics = metrics
        self._subscribers: defaultdict[str, set[Subscriber]] = defaultdict(set)
        self._live: defaultdict[str, set[Subscriber]] = defaultdict(set)
        self._keys: dict[str, str] = {}  # the ledger key of each part with subscribers

    def check(self, part: str, after: After | None) -> None:
        """Raises CommandError if the contract is not listed, or `generation` is not the one that the part names.

        `after` may be ahead: another process may have sent that entry.
        """
        listed_key(self._tail, part)
        named = named_generation(part)
        if named and after and after.generation not in (None, named.number):
            raise CommandError(400, f"generation is {after.generation}, but {part} names another one: omit it")

    async def subscribe(self, subscriber: Subscriber, part: str, after: After | None) -> None:
        """Sends the entries after the last one that the client has, also those of later generations; by default future ones."""
        self._subscribers[part].add(subscriber)
        self._keys.setdefault(part, listed_key(self._tail, part))
        key = self._key_of(part, after.generation if after else None)
        sent = after.number if after else self._delivered(part, key)
        if not await self._wait_until_settled(part, key, sent):
            name, last = part if key == listed_key(self._tail, part) else generation_of(key).name, self._delivered(part, key)
            subscriber.close(WSCloseCode.POLICY_VIOLATION, f"after is {sent}: the last entry of {name} is {last}")
            return
        # The tail has published the entries up to the cursor and will publish the later ones. No entry can fall between the
        # last check and `add`, because nothing is awaited there.
        while sent < (cursor := self._delivered(part, key)) or key != listed_key(self._tail, part):
            if sent < cursor:
                sent = await self._catch_up(subscriber, part, key, sent, cursor)
            else:
                key, sent = generation_of(key).next.key, 0
        self._live[part].add(subscriber)

    def unsubscribe(self, subscriber: Subscriber, part: str) -> None:
        """Sends no further entries. The tail stops reading the entries of a contract without subscribers."""
        self._live[part].discard(subscriber)
        self._subscribers[part].discard(subscriber)
        if not self._subscribers[part]:
            self._leave(self._keys.pop(part, listed_key(self._tail, part)))

    def publish(self, change: Change) -> None:
        """Sends new entries to the subscribers of their contracts, in one write per contract.

        A subscription to a symbol continues with the first entry of a new generation.
        """
        for fund in change.funds:
            part = self._tail.names_of(fund.symbol)[0]
            if self._subscribers[part]:
                self._tail.follow(fund.symbol, 0)
                self._move(part, fund.symbol)
        for key, found in groupby(change.entries, lambda row: row.symbol):
            rows = list(found)
            for name in self._tail.names_of(key):
                self._send(name, key, rows)

    def _move(self, part: str, key: str) -> None:
        """Moves the subscriptions to a part to another generation, once it has begun.

        Entries of the one before that the tail has not delivered yet would be missing: the subscribers must request them.
        """
        before = self._keys[part]
        if before == key:
            return
        self._keys[part] = key
        if self._tail.follow(before) < self._tail.funds[before].entry:
            for subscriber in self._live[part]:
                subscriber.close(
                    WSCloseCode.TRY_AGAIN_LATER,
                    f"{part} has a new generation: reconnect, and subscribe with `after` and `generation`",
                )
        self._leave(before)

    def _leave(self, key: str) -> None:
        """Lets the tail stop reading the entries of a contract that has no subscribers."""
        if not any(self._subscribers[name] for name in self._tail.names_of(key)):
            self._tail.leave(key)

    def _send(self, name: str, key: str, rows: Sequence[EntryRow]) -> None:
        if subscribers := self._live[name]:
            frames = self._frames(name, key, rows)
            for subscriber in subscribers:
                subscriber.push(frames)
            self._metrics.websocket_frames.inc(len(rows) * len(subscribers))

    def _key_of(self, part: str, generation: int | None) -> str:
        """Returns the ledger key of a generation of a part's contract, by default of the one that the part names."""
        key = listed_key(self._tail, part)
        return key if generation is None else generation_of(key)._replace(number=generation).key

    def _delivered(self, part: str, key: str) -> int:
        """Returns the last entry that the tail has delivered, of an earlier generation the last one; 0 if it does not exist."""
        if key == listed_key(self._tail, part):
            return self._tail.follow(key)
        return self._tail.funds[key].entry if key in self._tail.funds else 0

    async def _wait_until_settled(self, part: str, key: str, entry: int) -> bool:
        """Waits until the tail has an entry that another process may have sent before. Returns False if it does not appear."""
        for _ in range(AHEAD_RETRIES_MAX):
            if key in self._tail.funds and self._delivered(part, key) >= entry:
                return True
            await asyncio.sleep(RETRY_SECONDS)
        return False

    async def _catch_up(self, subscriber: Subscriber, name: str, key: str, sent: int, cursor: int) -> int:
        """Sends the next entries after `sent`, none beyond the cursor. Returns the number of the last entry sent."""
        await subscriber.drained()
        try:
            rows = await self._reader.history(key, count=min(CATCH_UP_ENTRIES, cursor - sent), offset=sent, forward=True)
        except StoreFault:
            rows = []
        if not rows:  # The database is unreachable, or it is a replica that lags behind the one that the tail reads.
            await asyncio.sleep(RETRY_SECONDS)
            return sent
        subscriber.push(self._frames(name, key, rows))
        self._metrics.websocket_frames.inc(len(rows))
        return rows[-1].entry

    def _frames(self, name: str, key: str, rows: Iterable[EntryRow]) -> Frames:
        topic, contract = f"{self.path}:{name}", self._tail.contracts[key]
        return concatenate(push(topic, "entry", entry_answer(row, contract)) for row in rows)
