"""Detects that a stream server lost messages, and makes each HTTP producer resend what the ledger does not have.

An answer of 200 does not exclude that the stream server loses its newest messages later. A stream is identified by the run id
of its server and the number of messages that were ever added. Another run id or a smaller number begins a new stream epoch.
The service then rejects the events of a producer until it has read the cursor. A producer is identified by the subject of its
token and its `producerId`, or it states the epoch of its cursor as `streamEpoch`.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from fundsvc.api.http.errors import StreamChanged
from fundsvc.api.http.tokens import Caller
from fundsvc.store.stream_epochs import EpochStore, StreamServer
from fundsvc.streams.client import StreamFault
from fundsvc.streams.producer import Producer, StreamReplaced, StreamVersion

FIRST_EPOCH = 1
"""The epoch before any loss. Producers need not read the cursor in it."""


class HttpProducer(NamedTuple):
    """A producer that posts events over HTTP, and the epoch that it states; 0 for none."""

    name: str
    epoch: int = 0


def producer_name(caller: Caller, producer_id: str) -> str:
    """Returns the name that identifies a producer."""
    return f"{caller.subject}/{producer_id}"


class StreamEpochs:
    """The last known state of the streams, and the admission of producers. Methods raise StoreFault."""

    def __init__(self, store: EpochStore, producer: Producer, partitions: int) -> None:
        self._store = store
        self._producer = producer
        self._partitions = partitions
        self._servers: dict[int, StreamServer] = {}
        self._known: dict[int, StreamVersion] = {}
        self._cursor_epochs: dict[str, int] = {}

    @property
    def epoch(self) -> int:
        """The current epoch as known to this process."""
        return FIRST_EPOCH + sum(server.changes for server in self._servers.values())

    def run_id(self, partition: int) -> str:
        """Returns the run id of a partition's stream server, or "" if unknown."""
        server = self._servers.get(partition)
        return server.run_id if server else ""

    async def admit(self, producer: HttpProducer) -> None:
        """Raises StreamChanged if a producer must read the cursor before it posts."""
        if await self._knows(producer):
            return
        await self._refresh()
        if not await self._knows(producer):
            raise StreamChanged(
                f"the stream is in epoch {self.epoch}: its server was restarted or replaced and may have lost posted events."
                " Read GET /api/v1/ingest/cursor, resend everything after the cursor, then continue"
            )

    async def append(self, producer: HttpProducer, partition: int, field: str, bodies: Sequence[bytes]) -> list[str]:
        """Appends messages of a producer and returns their ids; raises StreamChanged or StreamFault."""
        known = self._known.get(partition) or await self.examine(partition)
        while True:
            await self.admit(producer)
            try:
                ids, state = await self._producer.append_after(known, partition, field, bodies)
            except StreamReplaced as replaced:
                known = await self._change(partition, replaced.found)
            else:
                self._note(partition, state)
                return ids

    async def acknowledge(self, producer: str) -> int:
        """Examines all streams, records that a producer reads the cursor, and returns the epoch. Read the cursor after this.

        With `producer` "" nothing is recorded.
        """
        await asyncio.gather(*map(self._examine_if_reachable, range(self._partitions)))
        await self._refresh()
        epoch = self.epoch
        if producer and epoch > FIRST_EPOCH:
            await self._store.confirm(producer, epoch)
            self._cursor_epochs[producer] = epoch
        return epoch

    async def _knows(self, producer: HttpProducer) -> bool:
        """Returns whether a producer has read the cursor in the current epoch."""
        epoch = self.epoch
        if producer.epoch or epoch == FIRST_EPOCH:
            return producer.epoch in {0, epoch}
        if self._cursor_epochs.get(producer.name) != epoch:
            self._cursor_epochs[producer.name] = await self._store.confirmed_epoch(producer.name)
        return self._cursor_epochs[producer.name] == epoch

    async def _examine_if_reachable(self, partition: int) -> None:
        """Examines a stream. An unreachable stream is examined before the next append to it."""
        with suppress(StreamFault):
            await self.examine(partition)

    async def examine(self, partition: int) -> StreamVersion:
        """Returns the state of a stream; begins a new epoch if it lost messages."""
        found = await self._producer.version(partition)
        known = self._known.get(partition)
        if known is None:
            await self._store.found_first(partition, found.run_id)
            await self._refresh()
            known = StreamVersion(self.run_id(partition), 0)
        if found.run_id != known.run_id or found.added < known.added:
            return await self._change(partition, found)
        self._note(partition, found)
        return found

    async def _change(self, partition: int, found: StreamVersion) -> StreamVersion:
        """Begins a new epoch, unless another process has begun it for the same server."""
        is_recorded = False
        while not is_recorded or self.run_id(partition) != found.run_id:
            await self._store.found_changed(partition, found.run_id, self._servers[partition].changes)
            await self._refresh()
            is_recorded = True
        self._known[partition] = found
        return found

    def _note(self, partition: int, found: StreamVersion) -> None:
        known = self._known.get(partition)
        if known is None or known.run_id != found.run_id or known.added < found.added:
            self._known[partition] = found

    async def _refresh(self) -> None:
        self._servers = await self._store.servers()
