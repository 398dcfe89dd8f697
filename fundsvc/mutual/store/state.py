"""The state of a pool beside its ledger: the reason why it is halted, its offset, and gaps of its stream."""

from fundsvc.core.batch import Offset
from fundsvc.mutual.store.reader import fetch
from fundsvc.store.database import CellPool
from fundsvc.store.gaps import KnownGap
from fundsvc.store.writer import STREAM_START


async def note_halted(pool: CellPool, name: str, epoch: int, reason: str) -> None:
    """Records why a pool is halted, or "" when it continues, if `epoch` is still the owner's; raises StoreFault."""
    await fetch(pool, "halt", name, epoch, reason)


async def stored_offset(pool: CellPool, name: str) -> Offset:
    """Returns the offset of a pool in its stream, the beginning for a pool that is not stored yet; raises StoreFault."""
    for row in await fetch(pool, "offset", name):
        return Offset(*row)
    return Offset(STREAM_START, 0)


class PoolGaps:
    """The gaps of a pool's stream, as `fundsvc.store.gaps.Gaps` has those of a partition. Methods raise StoreFault."""

    def __init__(self, pool: CellPool, name: str) -> None:
        self._pool = pool
        self._name = name

    async def known(self) -> list[KnownGap]:
        """Returns all gaps found so far."""
        return [KnownGap(*row) for row in await fetch(self._pool, "gaps", self._name)]

    async def keep(self, gap: KnownGap) -> bool:
        """Stores a gap; returns whether it is new."""
        return bool(await fetch(self._pool, "gap_found", self._name, gap.after_id, gap.until_id, gap.messages))

    async def pass_over(self, until_id: str) -> None:
        """Acknowledges all deletions up to an id, so that no later load takes them for a gap."""
        await fetch(self._pool, "gap_found", self._name, STREAM_START, until_id, 0)
        await fetch(self._pool, "gap_acknowledge", self._name, until_id)

    async def acknowledge(self) -> list[KnownGap]:
        """Acknowledges all open gaps, so that the pool continues; returns them."""
        return [KnownGap(*row) for row in await fetch(self._pool, "gaps_acknowledge", self._name)]
