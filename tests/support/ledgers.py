"""Writes ledgers for tests as an engine does: a partition settles events, and its writer writes batches."""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any

import asyncpg

from fundsvc.config.settings import Config
from fundsvc.core.batch import Offset
from fundsvc.core.events import Event, Fill, Listing, Reason, Rejected
from fundsvc.core.partition import Partition
from fundsvc.core.policy import Policies, Policy
from fundsvc.core.times import AHEAD_SECONDS_MAX
from fundsvc.store.leases import open_leases
from fundsvc.store.writer import Writer, open_writer

FILLS_PER_COMMIT = 10_000
EPOCH = datetime.fromtimestamp(0, UTC)

TS = 1_700_000_000_000
"""The default time of events."""


class Owner:
    """The owner of partition 0."""

    def __init__(self, writer: Writer, partition: Partition, offset: Offset) -> None:
        self._writer = writer
        self.partition = partition
        self.offset = offset

    async def settle(self, events: Iterable[Event]) -> None:
        for event in events:
            self.partition.apply(event)
            if len(self.partition.batch.entries) == FILLS_PER_COMMIT:
                await self._commit()
        await self._commit()

    def entries(self, symbol: str) -> int:
        """Returns the number of a contract's entries."""
        return next(fund.entry for fund in self.partition.funds() if fund.contract.symbol == symbol)

    def orders(self, symbol: str) -> int:
        """Returns the number of a contract's ADL orders."""
        return next(fund.adl for fund in self.partition.funds() if fund.contract.symbol == symbol)

    def requested(self, symbol: str, adl: int) -> list[tuple[str, int]]:
        """Returns the accounts of an order's current round, with the lots that it still requests."""
        return list(self.partition.market(symbol).orders[adl].progress.rests())

    async def settle_late(self, event: Event) -> None:
        """Settles a rejected event, as a replay does."""
        rejected = Rejected("0-1", 0, Reason.UNKNOWN_SYMBOL, "", "json", b"{}")
        self.partition.batch.rejected.append(rejected)
        await self._commit()
        entry = self.partition.apply_late(event)
        self.partition.batch.replayed.append((rejected.stream_id, rejected.position, None, entry))
        await self._commit()

    async def _commit(self) -> None:
        after = Offset(f"{self.offset.messages + 1}-0", self.offset.messages + 1)
        await self._writer.commit(self.partition.take(), self.offset, after)
        self.offset = after


@asynccontextmanager
async def owned(
    config: Config, policy_of: Callable[[str], Policy] = lambda _: Policy(), recorded: Policies | None = None
) -> AsyncIterator[Owner]:
    """Provides the owner of partition 0; it records `recorded` if given."""
    async with open_leases(config.database.dsn, "owner", 30) as leases:
        epochs = await leases.keep()
        async with open_writer(config.database.dsn, "owner", 0, epochs[0]) as writer:
            offset, funds = await writer.load(policy_of)
            currency = config.currency
            policies = await writer.load_policies(recorded) if recorded else ()
            partition = Partition(
                0,
                1,
                funds,
                currency.decimals,
                currency.decimals_default,
                policy_of,
                AHEAD_SECONDS_MAX,
                policies,
                config.ledger.secrets.current,
            )
            yield Owner(writer, partition, offset)


def listing(symbol: str, **fields: object) -> Listing:
    """A linear contract with a value of one USDT per point and lot."""
    return Listing({"symbol": symbol, "settleCurrency": "USDT", "multiplier": 1, "isInverse": False, **fields})


def fill(symbol: str, seq: int, points: float, ts: int = TS) -> Fill:
    """A fill of one lot with a change of `points`."""
    ids = (f"trade-{seq}", f"order-{seq}", f"secret-{seq}")
    return Fill(symbol, seq, "sell", 1, str(1000 + points), "1000", ts, *ids)


AHEAD_MS_MAX = 300_000
"""Charts do not use a time that is further ahead of the clock."""


def charted_at(entry: Mapping[str, Any]) -> int:
    """Returns the charted time of a row of `entries`, without regard to earlier entries."""
    recorded_ms = (entry["recorded_at"] - EPOCH) // timedelta(milliseconds=1)
    return entry["ts"] if entry["ts"] <= recorded_ms + AHEAD_MS_MAX else recorded_ms


def clocked(rows: Iterable[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    """Returns a contract's rows of `entries`, in order, with their charted times."""
    rows = list(rows)
    return list(zip(accumulate(map(charted_at, rows), max), rows, strict=True))


async def restamp(connection: asyncpg.Connection, symbol: str, entry: int, ts: int) -> None:
    """Changes the time of an entry, as if its time had not been checked. `connection` is the database owner's."""
    await connection.execute("ALTER TABLE entries DISABLE TRIGGER entries_are_append_only")
    await connection.execute("UPDATE entries SET ts = $3 WHERE symbol = $1 AND entry = $2", symbol, entry, ts)
    await connection.execute("ALTER TABLE entries ENABLE TRIGGER entries_are_append_only")
