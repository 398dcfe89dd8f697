"""The matching engine's side of ADL: reads announced rounds, executes them, and ends those that it cannot complete."""

import asyncio
import random
import time
from collections.abc import Iterable, Iterator

from burst import Burst
from ground import STREAM, append, bodies

from fundsvc.core.events import AdlEnd, AdlFill, Event
from fundsvc.streams.announcements import Announcements
from fundsvc.streams.client import StreamClient
from fundsvc.wire.rounds import Announcement

PARTLY_SHARE = 0.1
"""Share of rounds whose last allocation is not executed, so that another round must follow."""

LOOK_SECONDS = 0.01
"""Pause between two reads of an empty stream."""

EVENTS_PER_MESSAGE = 100


class Exchange:
    """Answers every round once. `seen` contains the rounds that it read; `last_ms` is the time of the newest announcement."""

    def __init__(self, client: StreamClient, burst: Burst, *, seed: int = 1) -> None:
        self.seen: set[tuple[str, int, int]] = set()
        self.last_ms = 0
        self._announcements = Announcements(client, 0)
        self._client = client
        self._burst = burst
        self._random = random.Random(seed)  # noqa: S311 - a market, not a secret

    async def run(self) -> None:
        """Answers until cancelled."""
        after = "0-0"
        while True:
            announced = await self._announcements.read(after)
            if not announced:
                await asyncio.sleep(LOOK_SECONDS)
                continue
            after = announced[-1].stream_id
            self.last_ms = int(after.partition("-")[0])
            answers = list(self._answers(each.announcement for each in announced))
            if answers:
                await append(self._client, STREAM, bodies(answers, EVENTS_PER_MESSAGE, "json"), "json")

    def _answers(self, announcements: Iterable[Announcement]) -> Iterator[Event]:
        for announcement in announcements:
            key = announcement.symbol, announcement.adl, announcement.round
            if key not in self.seen:
                self.seen.add(key)
                yield from self._answer(announcement)

    def _answer(self, announcement: Announcement) -> Iterator[Event]:
        symbol, adl, allocations = announcement.symbol, announcement.adl, announcement.allocations
        now = time.time_ns() // 1_000_000
        partly = self._random.random() < PARTLY_SHARE
        for each in allocations[: len(allocations) - partly]:
            yield AdlFill(symbol, self._burst.next_sequence(symbol), adl, each.account, each.lots, now)
        if partly:
            yield AdlEnd(symbol, self._burst.next_sequence(symbol), adl, now)
