"""Reads the announced ADL rounds of a partition, as a matching engine does."""

from typing import NamedTuple

import msgspec

from fundsvc.streams.announcer import announcement_key
from fundsvc.streams.client import StreamClient
from fundsvc.streams.source import Source
from fundsvc.wire.rounds import Announcement

ROUNDS_PER_READ_MAX = 100
"""Fewer rounds begin between two reads. The next read returns the rest."""


class Announced(NamedTuple):
    """An announcement and its id in the stream."""

    stream_id: str
    announcement: Announcement


class Announcements:
    """Reads one partition's announcements."""

    def __init__(self, client: StreamClient, partition: int) -> None:
        self._source = Source(client, partition, announcement_key(partition))

    async def newest(self) -> str:
        """Returns the id of the last announcement; raises StreamFault."""
        return (await self._source.state()).last_id

    async def read(self, after: str) -> list[Announced]:
        """Returns announcements after an id, without waiting; raises StreamFault."""
        messages = await self._source.read(after, ROUNDS_PER_READ_MAX)
        return [Announced(message.stream_id, msgspec.json.decode(message.body, type=Announcement)) for message in messages]
