"""Rejected events for operators: lists them, and marks those that are sent again."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, NamedTuple

from fundsvc.store.database import Pool
from fundsvc.store.reader import fetch
from fundsvc.wire.codec import Codec


class KeptEvent(NamedTuple):
    """A kept rejected event. `entry` is the ledger entry of its late settlement, or None."""

    partition: int
    stream_id: str
    position: int
    reason: str
    detail: str
    codec: Codec | Literal[""]
    body: bytes
    rejected_at: datetime
    replayed_at: datetime | None
    settled_at: datetime | None
    symbol: str | None
    entry: int | None

    @property
    def key(self) -> str:
        """The name for operators: partition/stream id/position."""
        return f"{self.partition}/{self.stream_id}/{self.position}"

    @property
    def origin(self) -> str:
        """The name in a replay, within the partition: stream id/position."""
        return f"{self.stream_id}/{self.position}"


async def list_rejected(
    pool: Pool, *, reason: str | None = None, settled_too: bool = False, key: str | None = None, limit: int = 100
) -> Sequence[KeptEvent]:
    """Returns rejected events in stream order, by partition; `key` selects one.

    Raises ValueError if the key is not partition/stream id/position.
    """
    partition, stream_id, position = _parts(key) if key else (None, None, None)
    rows = await fetch(pool, "rejected_list", reason, settled_too or bool(key), partition, stream_id, position, limit)
    return [KeptEvent(*row) for row in rows]


async def mark_sent(pool: Pool, event: KeptEvent) -> None:
    """Records that an event was sent again."""
    await fetch(pool, "rejected_sent", event.partition, event.stream_id, event.position)


def _parts(key: str) -> tuple[int, str, int]:
    try:
        partition, stream_id, position = key.split("/")
        return int(partition), stream_id, int(position)
    except ValueError:
        raise ValueError(f"{key!r} is not partition/stream id/position, as `fundsvc rejected list` shows it") from None
