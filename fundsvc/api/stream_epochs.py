"""What was answered with 200 may be lost all the same, where the stream's server loses its tail: each poster is made to notice.

A stream is known by the run id of its server, and by how many messages it ever had. When another server is found behind it, or
fewer messages, a new stream epoch begins. From then on nothing is taken from a poster before it has asked for the cursor: it
has to send again what the ledger does not have. A poster is known by the subject of its token with the `producerId` that it
names, or it says by `streamEpoch` which epoch the cursor told it.
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
"""In which nothing has been lost yet: nobody needs to ask for the cursor."""


class Poster(NamedTuple):
    """Who posts, and the epoch that it says it knows, 0 for none."""

    name: str
    epoch: int = 0


def poster_name(caller: Caller, producer_id: str) -> str:
    """By what a poster is known."""
    return f"{caller.subject}/{producer_id}"


class StreamEpochs:
    """The streams as this process knows them, and who may post. Methods raise StoreFault when the database is away."""

    def __init__(self, store: EpochStore, producer: Producer, partitions: int) -> None:
        self._store = store
        self._producer = producer
        self._partitions = partitions
        self._servers: dict[int, StreamServer] = {}
        self._known: dict[int, StreamVersion] = {}
        self._asked: dict[str, int] = {}

    @property
    def epoch(self) -> int:
        """The present epoch, as far as this process knows."""
        return FIRST_EPOCH + sum(server.changes for server in self._servers.values())

    def run_id(self, partition: int) -> str:
        """The run id of a partition's server; "" where none is known."""
        server = self._servers.get(partition)
        return server.run_id if server else ""

    async def admit(self, poster: Poster) -> None:
        """Returns if a poster may post; raises StreamChanged where it must ask for the cursor first."""
        if await self._knows(poster):
            return
        await self._refresh()
        if not await self._knows(poster):
            raise StreamChanged(
                f"the stream is in epoch {self.epoch}: its server was restarted or replaced, and may have lost what was posted"
                " before. Ask GET /api/v1/ingest/cursor, send everything after it again, then go on"
            )

    async def append(self, poster: Poster, partition: int, field: str, bodies: Sequence[bytes]) -> list[str]:
        """Appends messages of a poster; raises StreamChanged, or StreamFault."""
        known = self._known.get(partition) or await self._look(partition)
        while True:
            await self.admit(poster)
            try:
                ids, stands = await self._producer.append_after(known, partition, field, bodies)
            except StreamReplaced as replaced:
                known = await self._change(partition, replaced.found)
            else:
                self._note(partition, stands)
                return ids

    async def ask(self, poster: str) -> int:
        """Looks at all streams; notes that a poster asks for the cursor, which is read after this, and returns the epoch."""
        await asyncio.gather(*map(self._look_if_there, range(self._partitions)))
        await self._refresh()
        epoch = self.epoch
        if poster and epoch > FIRST_EPOCH:
            await self._store.confirm(poster, epoch)
            self._asked[poster] = epoch
        return epoch

    async def _knows(self, poster: Poster) -> bool:
        """Whether a poster knows the present epoch."""
        epoch = self.epoch
        if poster.epoch or epoch == FIRST_EPOCH:
            return poster.epoch in {0, epoch}
        if self._asked.get(poster.name) != epoch:
            self._asked[poster.name] = await self._store.confirmed_epoch(poster.name)
        return self._asked[poster.name] == epoch

    async def _look_if_there(self, partition: int) -> None:
        """Looks at a stream; one that is away now is looked at before anything is appended to it."""
        with suppress(StreamFault):
            await self._look(partition)

    async def _look(self, partition: int) -> StreamVersion:
        """How a stream stands; what it has lost since it was known is noted."""
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
        """Begins a new epoch, unless another process has, for the same server."""
        is_noted = False
        while not is_noted or self.run_id(partition) != found.run_id:
            await self._store.found_changed(partition, found.run_id, self._servers[partition].changes)
            await self._refresh()
            is_noted = True
        self._known[partition] = found
        return found

    def _note(self, partition: int, found: StreamVersion) -> None:
        known = self._known.get(partition)
        if known is None or known.run_id != found.run_id or known.added < found.added:
            self._known[partition] = found

    async def _refresh(self) -> None:
        self._servers = await self._store.servers()
