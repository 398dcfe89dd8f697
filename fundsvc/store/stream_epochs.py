"""Stores the stream server of each partition, its number of changes, and the epochs that producers confirmed."""

from typing import NamedTuple

from fundsvc.store.database import Pool
from fundsvc.store.reader import fetch


class StreamServer(NamedTuple):
    """The run id of a stream's server, and the number of changes found."""

    run_id: str
    changes: int


class EpochStore:
    """Reads and writes the tables at the primary. Every method raises StoreFault if the primary is unreachable."""

    def __init__(self, primary: Pool) -> None:
        self._primary = primary

    async def servers(self) -> dict[int, StreamServer]:
        """Returns the known server of each partition."""
        rows = await fetch(self._primary, "stream_servers")
        return {row["partition"]: StreamServer(row["run_id"], row["changes"]) for row in rows}

    async def found_first(self, partition: int, run_id: str) -> None:
        """Records the server of a partition without a known one."""
        await fetch(self._primary, "stream_server_first", partition, run_id)

    async def found_changed(self, partition: int, run_id: str, changes: int) -> None:
        """Records a change of a partition's stream after `changes` changes, unless another process has recorded it."""
        await fetch(self._primary, "stream_server_changed", partition, run_id, changes)

    async def confirmed_epoch(self, producer: str) -> int:
        """Returns the epoch in which a producer last read the cursor; 0 if unknown."""
        rows = await fetch(self._primary, "producer_epoch", producer)
        return rows[0]["epoch"] if rows else 0

    async def confirm(self, producer: str, epoch: int) -> None:
        """Records that a producer read the cursor in an epoch, and deletes producers of earlier epochs."""
        await fetch(self._primary, "producer_confirms", producer, epoch)
