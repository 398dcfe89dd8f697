"""The producer of the exchange: sends letters in order, and resends from the ledger's cursor after a lost connection."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from fundsvc.core.fund.settlement import FundState
from fundsvc.store.database import Pool, StoreFault
from fundsvc.store.reader import Reader
from fundsvc.streams.client import StreamClient, StreamFault
from fundsvc.streams.producer import Producer
from fundsvc.streams.source import Source, id_order
from tests.crash.books import Books
from tests.crash.letters import EVENTS_PER_LETTER_MAX, Letter
from tests.crash.world import PARTITIONS, World

SETTLED_SECONDS_MAX = 120.0
"""The time to settle all letters after the last disturbance."""


Answer = TypeVar("Answer")


class Sender:
    """Sends letters, without pauses after `hurry` is set. Resends after a lost connection or when `World.resend` is set."""

    def __init__(
        self,
        pool: Pool,
        client: StreamClient,
        letters: Sequence[Letter],
        events_per_second: float,
        chance: random.Random,
        world: World,
    ) -> None:
        self.hurry = asyncio.Event()
        self.resumptions = 0
        self.sent = 0
        self._reader = Reader(pool)
        self._client = client
        self._producer = Producer(client, PARTITIONS)
        self._letters = letters
        self._seconds_per_event = 1 / events_per_second
        self._chance = chance
        self._world = world
        self._timeline = world.timeline

    async def send_all(self, calm: asyncio.Event, funds: Mapping[str, FundState]) -> None:
        """Sends all letters; after `calm` is set, waits until they are settled."""
        while self.sent < len(self._letters):
            await self._send_next()
        self._timeline.note("all letters sent")
        while not calm.is_set():
            await self._check_connection()
        began = time.monotonic()
        while not await self._settled(funds):
            await self._check_connection()
            if time.monotonic() - began > SETTLED_SECONDS_MAX:
                raise AssertionError(f"not settled {SETTLED_SECONDS_MAX} s after the end: {await self._unsettled(funds)}")

    async def aclose(self) -> None:
        """Closes the connections that the sender opened."""

    async def _send_next(self) -> None:
        letter = self._letters[self.sent]
        self.sent += 1
        try:
            await self._in_turn(partial(self.append, letter))
        except StreamFault as fault:
            await self._resume(fault)
        if self.hurry.is_set():
            await asyncio.sleep(0)
        else:
            await asyncio.sleep(min(len(letter.elements), EVENTS_PER_LETTER_MAX) * self._seconds_per_event)

    async def _check_connection(self) -> None:
        """Checks the idle connection too: the stream may lose the last messages."""
        try:
            await self._in_turn(self._probe)
        except StreamFault as fault:
            await self._resume(fault)
        await asyncio.sleep(0.1)

    async def _probe(self) -> None:
        """Sends an empty message; raises StreamFault if the connection was lost."""
        await self._producer.append_bodies(0, "json", [b"[]"])

    async def _in_turn(self, send: Callable[[], Awaitable[Answer]]) -> Answer:
        """Sends; raises StreamFault if earlier messages were lost, which must be resent first."""
        async with self._world.sending:
            if self._world.resend.is_set():
                raise StreamFault("earlier messages are lost")
            return await send()

    async def _resume(self, cause: object) -> None:
        """Resends the letters that were sent and are not settled, in order per contract."""
        self._timeline.note(f"the sender resumes after {self.sent} letters: {cause}"[:120])
        while True:
            try:
                self._world.resend.clear()
                resent = await self._letters_to_resend()
                for letter in resent:
                    await self._in_turn(partial(self.append, letter))
            except (StreamFault, StoreFault):
                await asyncio.sleep(0.1)
            else:
                break
        self.resumptions += 1
        self._timeline.note(f"the sender resumed: {len(resent)} letters resent from the cursor")

    async def _letters_to_resend(self) -> list[Letter]:
        """Returns the letters that must be resent."""
        cursor = await self._request_cursor()
        return [rest for letter in self._letters[: self.sent] if (rest := letter.to_resend(cursor, self._chance))]

    async def _request_cursor(self) -> Mapping[str, int]:
        """Returns the last settled sequence of each contract."""
        return await self._cursor()

    async def append(self, letter: Letter) -> None:
        """Sends a letter; raises StreamFault if it may be lost."""
        await self._producer.append_bodies(letter.partition, letter.field, [letter.body()])

    async def _cursor(self) -> dict[str, int]:
        return {fund.symbol: fund.seq for fund in await self._reader.funds()}

    async def _settled(self, funds: Mapping[str, FundState]) -> bool:
        """Whether all valid events are settled, and all streams are read to their end."""
        try:
            cursor, read = await self._cursor(), await self._read_to_the_end()
        except (StreamFault, StoreFault):
            return False
        return read and cursor == {symbol: fund.seq for symbol, fund in funds.items()}

    async def _unsettled(self, funds: Mapping[str, FundState]) -> str:
        """Describes the unsettled contracts, the partitions and the last rejected events."""
        cursor = await self._cursor()
        behind = {symbol: (cursor.get(symbol), fund.seq) for symbol, fund in funds.items() if cursor.get(symbol) != fund.seq}
        partitions = await self._world.fetch("SELECT partition, owner, last_id, halted FROM partitions ORDER BY partition")
        suspended = await self._world.fetch("SELECT symbol FROM contracts WHERE suspended")
        rejected = await self._world.fetch("SELECT * FROM rejected ORDER BY rejected_at DESC LIMIT 20")
        rows = "\n".join(map(str, (*partitions, *suspended, *rejected)))
        return f"cursor and expected {behind}, read to the end {await self._read_to_the_end()}\n{rows}"

    async def _read_to_the_end(self) -> bool:
        offsets = {row.partition: row.last_id for row in await self._reader.partitions()}
        ends = {partition: (await Source(self._client, partition).state()).final_id for partition in offsets}
        return all(id_order(offsets[partition]) >= id_order(end) for partition, end in ends.items() if end)


class CarefulSender(Sender):
    """Sends each letter exactly once: after a lost connection, it searches the stream for the letter.

    So no duplicate can repair a book. The stream must not lose messages.
    """

    async def append(self, letter: Letter) -> None:
        body = letter.body()
        before = await self._retried(lambda: self._newest(letter.partition))
        while not await self._arrived(letter.partition, before, body):
            try:
                await super().append(letter)
            except StreamFault as fault:
                self._timeline.note(f"arrival unknown: {fault}"[:120])
                await asyncio.sleep(0.1)
            else:
                return

    async def _newest(self, partition: int) -> str:
        return (await Source(self._client, partition).state()).last_id

    async def _arrived(self, partition: int, after: str, body: bytes) -> bool:
        messages = await self._retried(lambda: Source(self._client, partition).read(after, 100))
        return any(message.body == body for message in messages)

    async def _retried(self, request: Callable[[], Awaitable[Answer]]) -> Answer:
        while True:
            try:
                return await request()
            except StreamFault:
                await asyncio.sleep(0.1)

    async def _resume(self, cause: object) -> None:
        """Resends nothing: every letter arrived."""


class SnapshotSender(Sender):
    """After a lost connection, sends snapshots of the books at the ledger's cursor, then the later letters.

    Streams may lose messages. All surviving messages must be settled when the sender requests the cursor: otherwise the
    snapshot would undo positions that are newer.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._books = Books(self._letters)

    async def _letters_to_resend(self) -> list[Letter]:
        await self._catch_up()
        return self._books.letters_to_resend(await self._cursor(), self.sent)

    async def _catch_up(self) -> None:
        """Waits until a new message of each stream is settled; raises StreamFault if a stream lost it.

        The end of the stream does not suffice: engines may still commit messages that they read before the stream lost them.
        """
        marks = {partition: await self._in_turn(partial(self._mark, partition)) for partition in range(PARTITIONS)}
        while not await self._read_to_the_end():  # noqa: ASYNC110 - the database sends no notification
            await asyncio.sleep(0.1)
        for row in await self._reader.partitions():
            if id_order(row.last_id) < id_order(marks[row.partition]):
                raise StreamFault(f"partition {row.partition} has lost {marks[row.partition]}")

    async def _mark(self, partition: int) -> str:
        """Appends a message without events; returns its id."""
        return (await self._producer.append_bodies(partition, "json", [b"[]"]))[0]
