"""Announces ADL rounds to the matching engine, on a stream of the partition's own."""

from typing import Any

import msgspec

from fundsvc.core.batch import Round
from fundsvc.core.numbers import format_units
from fundsvc.streams.client import Client, faults

ROUNDS_KEPT = 10_000
"""The stream keeps about this many rounds: an engine reads them at once, and open ones are announced again at a restart."""


def announcement_key(partition: int) -> str:
    """The stream of a partition's ADL rounds."""
    return f"fundsvc:{{{partition}}}:adl"


class Announcer:
    """Appends rounds to the partition's ADL stream, at least once each: an engine knows them by order and round number."""

    def __init__(self, client: Client, partition: int) -> None:
        self._client = client
        self._key = announcement_key(partition)

    async def announce(self, round_: Round, price_decimals: int) -> None:
        """Appends one round: symbol, adl, round, cause, reduce, price, lots, allocations (of account, lots) and ts, as JSON."""
        with faults():
            body = msgspec.json.encode(_announcement(round_, price_decimals))
            await self._client.xadd(self._key, {"json": body}, maxlen=ROUNDS_KEPT, approximate=True)


def _announcement(round_: Round, price_decimals: int) -> dict[str, Any]:
    order = round_.order
    return {
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
