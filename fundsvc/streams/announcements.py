"""A partition's ADL rounds as the service announces them, read as a matching engine reads them."""

from typing import Literal, NamedTuple

import msgspec

from fundsvc.core.adl.valuation import SideName
from fundsvc.streams.announcer import announcement_key
from fundsvc.streams.client import Client
from fundsvc.streams.source import Source

ROUNDS_PER_READ_MAX = 100
"""More than begin between two reads; what is left comes with the next one."""


class RequestedLots(msgspec.Struct, frozen=True):
    """So many lots of an account's position."""

    account: str
    lots: int


class Announcement(msgspec.Struct, frozen=True):
    """A round of an ADL order: reduce these positions of one side by so many lots, at the price.

    It may come more than once. `adl` and `round` tell which it is; `lots` are then what is still asked.
    """

    symbol: str
    adl: int
    round: int
    reduce: SideName
    price: str
    allocations: tuple[RequestedLots, ...]
    type: Literal["adlOrder"] = "adlOrder"


class Announced(NamedTuple):
    """An announcement and its id in the stream."""

    stream_id: str
    announcement: Announcement


class Announcements:
    """Reads one partition's announcements."""

    def __init__(self, client: Client, partition: int) -> None:
        self._source = Source(client, partition, announcement_key(partition))

    async def newest(self) -> str:
        """The id of the last announcement so far; raises StreamFault."""
        return (await self._source.state()).last_id

    async def read(self, after: str) -> list[Announced]:
        """What was announced after an id, without waiting; raises StreamFault."""
        messages = await self._source.read(after, ROUNDS_PER_READ_MAX)
        return [Announced(message.stream_id, msgspec.json.decode(message.body, type=Announcement)) for message in messages]
