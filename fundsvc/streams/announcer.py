"""Announces ADL rounds to the matching engine, on a separate stream of the partition."""

from collections.abc import Sequence

from fundsvc.core.adl.order import AdlOrder
from fundsvc.core.generations import generation_of
from fundsvc.core.numbers import format_units
from fundsvc.streams.client import StreamClient, faults, server_time_ms
from fundsvc.streams.producer import APPEND
from fundsvc.wire.rounds import Announcement, RequestedLots


def announcement_key(partition: int) -> str:
    """Returns the key of the stream of a partition's ADL rounds."""
    return f"fundsvc:{{{partition}}}:adl"


class Announcer:
    """Appends each round at least once to the partition's ADL stream. Its order and round number identify it."""

    def __init__(self, client: StreamClient, partition: int) -> None:
        self._client = client
        self._key = announcement_key(partition)

    async def append(self, bodies: Sequence[bytes]) -> list[str]:
        """Appends rounds in one round trip, each as JSON; returns their ids."""
        with faults():
            ids = await self._client.eval(APPEND, 1, self._key, "json", *bodies)
        return [stream_id.decode() for stream_id in ids]

    async def now_ms(self) -> int:
        """Returns the time by the clock of the stream server, which generates the ids."""
        return await server_time_ms(self._client, self._key)

    async def trim(self, below: str) -> None:
        """Deletes announcements with ids below `below`. The server deletes whole blocks, so some may remain."""
        with faults():
            await self._client.xtrim(self._key, minid=below, approximate=True)


def announcement_of(order: AdlOrder, price_decimals: int) -> Announcement:
    """Returns the announcement of an order's round: the lots still requested of each account."""
    allocations = tuple([RequestedLots(account, rest) for account, rest in order.progress.rests() if rest])
    symbol, generation = generation_of(order.symbol)
    return Announcement(
        symbol,
        order.adl,
        order.round,
        order.origin,
        order.cause,
        order.reduce,
        format_units(order.price, price_decimals),
        sum([each.lots for each in allocations]),
        allocations,
        order.ts,
        generation,
    )
