"""How a partition stands beside its offset: whether it is halted, and what its stream must still hold."""

from fundsvc.core.batch import Offset
from fundsvc.store.database import Pool
from fundsvc.store.reader import fetch


async def note_halted(pool: Pool, partition: int, epoch: int, reason: str) -> None:
    """Notes why a partition is halted, "" when it goes on, for as long as the epoch is the owner's; raises StoreFault."""
    await fetch(pool, "halt", partition, epoch, reason)


async def trim_bounds(pool: Pool, partition: int) -> tuple[Offset, list[str]]:
    """The offset, and the messages after which books are read from the stream; raises StoreFault."""
    ((*offset, kept),) = await fetch(pool, "trim_bounds", partition)
    return Offset(*offset), kept
