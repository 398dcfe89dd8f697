"""Delivers a recording: sends it to the stream, then waits until it is settled."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from fundsvc.cli.tools.force_orders import Known
from fundsvc.cli.tools.recordings import Recording
from fundsvc.core.events import Event, Fill, Listing, Reason
from fundsvc.core.sequences import Applied, Found, Key, identity_of
from fundsvc.store.database import Pool
from fundsvc.store.reader import fetch
from fundsvc.store.sequences import facts_of
from fundsvc.store.writer import contract_from
from fundsvc.streams.client import StreamClient
from fundsvc.streams.client import faults as stream_faults
from fundsvc.streams.producer import Producer
from fundsvc.streams.source import id_order

SLICE_EVENTS = 5000
"""Events appended in one round trip: enough for throughput, few enough for a smooth progress bar."""

LINES_MAX = 20
"""Refused lines that the result names; one wrong field may affect all lines."""

POLL_SECONDS = 0.05
"""Seconds between two reads of the ledger's offset."""


class Gain(msgspec.Struct, rename="camel"):
    """New entries of one kind and currency; amounts are atoms of 10**-decimals."""

    currency: str
    decimals: int
    kind: str
    entries: int
    credited: int
    paid: int
    uncovered: int
    repaid: int


class Delivered(msgspec.Struct, rename="camel"):
    """The result of a delivery.

    `settled` is the number of settled events; listings count if the recording has nothing else. `duplicates` are repeated
    orders of the recording and events that were settled before. `rejected` counts by reason the refused lines, of which
    `lines` names the first few, and the rejected events, which the ledger keeps. `refused` names contracts that could not be
    listed; if the ledger refused one, no event was sent. `passedOver` counts lines without an order.
    """

    events: int
    settled: int
    gains: list[Gain]
    duplicates: int
    rejected: dict[str, int]
    refused: list[str]
    lines: list[str]
    passed_over: int
    seconds: float


_OF_LISTINGS = (Reason.CONTRACT_INVALID, Reason.CONTRACT_FIXED)


class _State(NamedTuple):
    """The progress of a ledger: the last entry by symbol, and the number of ignored duplicates."""

    entries: dict[str, int]
    duplicates: int


class Delivery:
    """Sends a recording and waits until all of it is settled.

    `sent` is called with the number of events appended since the last call, `durable` with the settled share of the messages.
    Settled events of other producers are counted too.
    """

    def __init__(
        self,
        pool: Pool,
        client: StreamClient,
        producer: Producer,
        sent: Callable[[int], None],
        durable: Callable[[float], None],
    ) -> None:
        self._pool = pool
        self._client = client
        self._producer = producer
        self._sent = sent
        self._durable = durable
        self._events = 0
        self._ids: dict[int, list[str]] = {}

    async def run(self, recording: Recording) -> Delivered:
        """Delivers the contracts and, if none is refused, the events.

        Raises StoreFault or StreamFault if a server becomes unreachable; deliver again, since repeated events are duplicates.
        """
        started = time.monotonic()
        before = await self._state()
        await self._deliver(recording.listings)
        refused = [f"{row['reason']}: {row['detail']}" for row in await self._rejected()]
        if not refused:
            await self._deliver(recording.events)
        return await self._delivered(recording, before, refused, started)

    async def _deliver(self, events: Iterable[Event]) -> None:
        for part in _slices(events):
            for partition, appended in (await self._producer.append(part)).items():
                self._ids.setdefault(partition, []).extend(appended)
            self._events += len(part)
            self._sent(len(part))
        await self._wait_until_settled()

    async def _wait_until_settled(self) -> None:
        """Waits for the ledger, and checks the stream: messages lost by the stream server would never be settled."""
        total = sum(map(len, self._ids.values()))
        waiting = {partition: [id_order(stream_id) for stream_id in appended] for partition, appended in self._ids.items()}
        while waiting:
            with stream_faults():
                await self._client.ping()
            offsets = {row["partition"]: id_order(row["last_id"]) for row in await self._fetch("partitions")}
            waiting = {
                partition: rest
                for partition, appended in waiting.items()
                if (rest := [stream_id for stream_id in appended if stream_id > offsets[partition]])
            }
            self._durable(1 - sum(map(len, waiting.values())) / total)
            await asyncio.sleep(POLL_SECONDS if waiting else 0)

    async def _rejected(self) -> list[Any]:
        return [row for item in self._ids.items() for row in await self._fetch("rejected_among", *item)]

    async def _state(self) -> _State:
        funds, partitions = await self._fetch("heads"), await self._fetch("partitions")
        return _State({row["symbol"]: row["entry"] for row in funds}, sum(row["duplicates"] for row in partitions))

    async def _delivered(self, recording: Recording, before: _State, refused: list[str], started: float) -> Delivered:
        gains = await self._fetch("totals_since", list(before.entries), list(before.entries.values()))
        rejected = Counter(row["reason"] for row in await self._rejected()) + await self._kept(recording.events)
        conflicts = [f"{Reason.CONTRACT_FIXED}: the ledger has {symbol} with other terms" for symbol in recording.conflicts]
        return Delivered(
            events=self._events,
            settled=0 if refused else self._settled(recording.events, rejected),
            gains=[Gain(*row[:3], *map(int, row[3:])) for row in (list(gain.values()) for gain in gains)],
            duplicates=recording.duplicates + (await self._state()).duplicates - before.duplicates,
            rejected=rejected + Counter(refusal.reason for refusal in recording.refused),
            refused=[*refused, *conflicts],
            lines=[f"line {line}: {reason}: {detail}" for line, reason, detail in recording.refused[:LINES_MAX]],
            passed_over=recording.passed_over,
            seconds=time.monotonic() - started,
        )

    def _settled(self, events: Sequence[Event], rejected: Counter[str]) -> int:
        """The number of settled events: listings count if there is nothing else, rates once per partition."""
        if all(isinstance(event, Listing) for event in events):
            return len(events) - rejected.total()
        sent = sum(len(self._producer.destinations(event)) for event in events if not isinstance(event, Listing))
        return sent - sum(number for reason, number in rejected.items() if reason not in _OF_LISTINGS)

    async def _kept(self, events: Iterable[Event]) -> Counter[str]:
        """The reasons of fills that were rejected and kept before; resent events do not count as new rejections."""
        now = {(row["event_symbol"], row["event_seq"], row["digest"]) for row in await self._rejected()}
        before = {kept for event in events if isinstance(event, Fill) and (kept := identity_of(event))} - now
        rows = await self._fetch("rejected_kept", *map(list, zip(*before, strict=True))) if before else []
        applied = await self._applied({(row["event_symbol"], row["event_seq"]) for row in rows})
        return Counter(row["reason"] for row in rows if applied[row["event_symbol"], row["event_seq"]] is Applied.NEVER)

    async def _applied(self, keys: Iterable[Key]) -> dict[Key, Found]:
        """The entries of the ledger under some sequences."""
        found: dict[Key, Found] = {}
        wanted: dict[str, list[int]] = defaultdict(list)
        for symbol, seq in sorted(keys):
            wanted[symbol].append(seq)
        while wanted:
            found |= (await facts_of(self._fetch, wanted)).applied
            rest = {symbol: [seq for seq in seqs if (symbol, seq) not in found] for symbol, seqs in wanted.items()}
            wanted = {symbol: seqs for symbol, seqs in rest.items() if seqs}
        return found

    async def _fetch(self, block: str, *parameters: Any) -> list[Any]:
        return await fetch(self._pool, block, *parameters)


async def listed(pool: Pool) -> dict[str, Known]:
    """The contracts of the ledger, by symbol; raises StoreFault."""
    rows = await fetch(pool, "newest_fills")
    return {row["symbol"]: Known(contract_from(row), row["seq"], row["ts"]) for row in rows}


def _slices(events: Iterable[Event]) -> Iterator[list[Event]]:
    rest = iter(events)
    while part := list(islice(rest, SLICE_EVENTS)):
        yield part
