"""Announces ADL rounds to the matching engine, on a stream of the partition's own."""

from collections.abc import Sequence
from typing import Any

import msgspec

from fundsvc.core.adl.order import AdlOrder
from fundsvc.core.numbers import format_units
from fundsvc.streams.client import Client, faults, server_time_ms
from fundsvc.streams.producer import APPEND


def announcement_key(partition: int) -> str:
    """The stream of a partition's ADL rounds."""
    return f"fundsvc:{{{partition}}}:adl"


class Announcer:
    """Appends rounds to the partition's ADL stream, at least once each: an engine knows them by order and round number."""

    def __init__(self, client: Client, partition: int) -> None:
        self._client = client
        self._key = announcement_key(partition)

    async def append(self, bodies: Sequence[bytes]) -> list[str]:
        """Appends rounds in one round trip, each as JSON; returns their ids."""
        with faults():
            ids = await self._client.eval(APPEND, 1, self._key, "json", *bodies)
        return [stream_id.decode() for stream_id in ids]

    async def now_ms(self) -> int:
        """The time by the clock of the server, which makes the ids."""
        return await server_time_ms(self._client, self._key)

    async def trim(self, below: str) -> None:
        """Drops announcements with ids below `below`, in whole blocks of the server's, so maybe some fewer."""
        with faults():
            await self._client.xtrim(self._key, minid=below, approximate=True)


def announcement(order: AdlOrder, price_decimals: int) -> bytes:
    """The round of an order as it is announced: what is still asked of each account."""
    rests = [(account, rest) for account, rest in order.asked.rests() if rest]
    fields: dict[str, Any] = {
        "type": "adlOrder",
        "symbol": order.symbol,
        "adl": order.adl,
        "round": order.round,
        "cause": order.cause,
        "reduce": order.reduce,
        "price": format_units(order.price, price_decimals),
        "lots": sum(rest for _, rest in rests),
        "allocations": [{"account": account, "lots": rest} for account, rest in rests],
        "ts": order.ts,
    }
    return msgspec.json.encode(fields)
