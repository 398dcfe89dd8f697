"""Reads announced ADL rounds, each once: from the streams, or over HTTP alone."""

import asyncio
from collections.abc import AsyncIterator, Iterable

from fundsvc.client.api import Api
from fundsvc.client.topics import followed
from fundsvc.streams.announcements import Announcements
from fundsvc.streams.client import StreamClient, StreamFault
from fundsvc.wire.rounds import Announcement

PAUSE_SECONDS = 0.02
"""Pause between two reads of streams without new rounds: as long as a commit takes."""

RETRY_SECONDS = 0.5

REMEMBERED_MAX = 100_000
"""Rounds that are recognised when they are announced again. A storm has some ten thousand open ones."""

Key = tuple[str, int, int, int]


async def announced_rounds(stream: StreamClient, partitions: Iterable[int]) -> AsyncIterator[Announcement]:
    """Yields the announced rounds of some partitions, each once, from the oldest in the streams on; retries after faults."""
    announcements = [Announcements(stream, partition) for partition in partitions]
    after = ["0-0"] * len(announcements)
    known: dict[Key, None] = {}
    while True:
        is_idle = True
        try:
            for place, source in enumerate(announcements):
                for announced in await source.read(after[place]):
                    is_idle, after[place] = False, announced.stream_id
                    if _remember(known, announced.announcement):
                        yield announced.announcement
        except StreamFault:
            # A server that lost its streams generates smaller ids if its clock was set back.
            after = ["0-0"] * len(announcements)
            await asyncio.sleep(RETRY_SECONDS)
        if is_idle:
            await asyncio.sleep(PAUSE_SECONDS)


async def instructed_rounds(api: Api) -> AsyncIterator[Announcement]:
    """Yields the rounds of all contracts from the topic of engines, each once; needs no stream. Post the answers to the API."""
    known: dict[Key, None] = {}
    async for announced in followed(api, "/adl/instruction", Announcement, scope="private"):
        if _remember(known, announced):
            yield announced


def _remember(known: dict[Key, None], announced: Announcement) -> bool:
    """Returns whether a round is new, and remembers it."""
    key = announced.symbol, announced.generation, announced.adl, announced.round
    if key in known:
        return False
    known[key] = None
    if len(known) > REMEMBERED_MAX:
        del known[next(iter(known))]
    return True
