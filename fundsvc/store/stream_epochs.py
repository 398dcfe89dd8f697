"""Which server the stream of each partition is on, how often that changed, and who has asked for the cursor since."""

from typing import NamedTuple

from fundsvc.store.database import Pool
from fundsvc.store.reader import fetch


class StreamServer(NamedTuple):
    """The run id of the server that a stream is on, and how often a change was found."""

    run_id: str
    changes: int


class EpochStore:
    """The tables, at the primary; every method raises StoreFault when that is away."""

    def __init__(self, primary: Pool) -> None:
        self._primary = primary

    async def servers(self) -> dict[int, StreamServer]:
        """The server of each partition of which one is known."""
        rows = await fetch(self._primary, "stream_servers")
        return {row["partition"]: StreamServer(row["run_id"], row["changes"]) for row in rows}

    async def found_first(self, partition: int, run_id: str) -> None:
        """Notes the server of a partition of which none is known."""
        await fetch(self._primary, "stream_server_first", partition, run_id)

    async def found_changed(self, partition: int, run_id: str, changes: int) -> None:
        """Notes that a partition's stream is not what it was after so many changes, unless somebody else has noted it."""
        await fetch(self._primary, "stream_server_changed", partition, run_id, changes)

    async def confirmed_epoch(self, poster: str) -> int:
        """In which epoch a poster asked for the cursor last; 0 where that is not known."""
        rows = await fetch(self._primary, "poster_epoch", poster)
        return rows[0]["epoch"] if rows else 0

    async def confirm(self, poster: str, epoch: int) -> None:
        """Notes that a poster asked for the cursor in an epoch, and forgets those that asked in earlier ones alone."""
        await fetch(self._primary, "poster_confirms", poster, epoch)
