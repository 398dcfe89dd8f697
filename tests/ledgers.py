"""Ledgers for tests, written as an engine writes them: events through a partition, batches through its writer."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from fundsvc.config import Config
from fundsvc.core.batch import Offset
from fundsvc.core.events import Event, Fill, Listing
from fundsvc.core.partition import Partition
from fundsvc.core.policy import Policy
from fundsvc.store.leases import open_leases
from fundsvc.store.writer import Writer, open_writer

FILLS_PER_COMMIT = 10_000

TS = 1_700_000_000_000
"""A time at which nothing happens."""


class Owner:
    """The owner of partition 0."""

    def __init__(self, writer: Writer, partition: Partition, offset: Offset) -> None:
        self._writer = writer
        self._partition = partition
        self.offset = offset

    async def settle(self, events: Iterable[Event]) -> None:
        for event in events:
            self._partition.apply(event)
            if len(self._partition.batch.entries) == FILLS_PER_COMMIT:
                await self._commit()
        await self._commit()

    async def _commit(self) -> None:
        after = Offset(f"{self.offset.messages + 1}-0", self.offset.messages + 1)
        await self._writer.commit(self._partition.take(), self.offset, after)
        self.offset = after


@asynccontextmanager
async def owned(config: Config, policy_of: Callable[[str], Policy] = lambda _: Policy()) -> AsyncIterator[Owner]:
    async with open_leases(config.database.dsn, "owner", 30) as leases:
        epochs = await leases.keep()
        async with open_writer(config.database.dsn, "owner", 0, epochs[0]) as writer:
            offset, funds = await writer.load(policy_of)
            currency = config.currency
            partition = Partition(0, 1, funds, currency.decimals, currency.decimals_default, policy_of)
            yield Owner(writer, partition, offset)


def listing(symbol: str, **fields: object) -> Listing:
    """A linear contract of one USDT per point and lot."""
    return Listing({"symbol": symbol, "settleCurrency": "USDT", "multiplier": 1, "isInverse": False, **fields})


def fill(symbol: str, seq: int, points: int, ts: int = TS) -> Fill:
    """A fill of one lot that leaves so many points."""
    ids = (f"trade-{seq}", f"order-{seq}", f"secret-{seq}")
    return Fill(symbol, seq, "sell", 1, str(1000 + points), "1000", ts, *ids)
