"""Announces ADL rounds to the matching engine, on a stream of the partition's own."""

from collections.abc import Sequence
from typing import Any

import msgspec

from fundsvc.core.batch import Round
from fundsvc.core.numbers import format_units
from fundsvc.streams.client import Client, faults


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
            async with self._client.pipeline(transaction=False) as pipeline:
                for body in bodies:
                    pipeline.xadd(self._key, {"json": body})
                return [stream_id.decode() for stream_id in await pipeline.execute()]

    async def trim(self, below: str) -> None:
        """Drops announcements with ids below `below`, in whole blocks of the server's, so maybe some fewer."""
        with faults():
            await self._client.xtrim(self._key, minid=below, approximate=True)


def announcement(round_: Round, price_decimals: int) -> bytes:
    """A round as it is announced: symbol, adl, round, cause, reduce, price, lots, allocations (of account, lots) and ts."""
    order = round_.order
    told: dict[str, Any] = {
        "type": "adlOrder",
        "symbol": order.symbol,
        "adl": order.adl,
        "round": order.round,
        "cause": order.cause,
        "reduce": order.reduce,
        "price": format_units(order.price, price_decimals),
        "lots": sum(round_.lots),
        "allocations": [{"account": account, "lots": lots} for account, lots in zip(round_.accounts, round_.lots, strict=True)],
        "ts": order.ts,
    }
    return msgspec.json.encode(told)
