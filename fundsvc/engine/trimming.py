"""Trims a stream by age and by size, never what a commit or a book still needs."""

from fundsvc.config.settings import StreamConfig
from fundsvc.streams.source import Source, id_order


async def trim(source: Source, config: StreamConfig, needed: str) -> int:
    """Deletes messages below the id `needed` that are older than the retention, by the clock of the stream server.

    Then deletes the oldest of them while the stream is larger than its limit. Returns its bytes; raises StreamFault.
    """
    oldest_ms = max(0, await source.now_ms() - int(config.retention_hours * 3_600_000))
    await source.trim(min(f"{oldest_ms}-0", needed, key=id_order))
    return await source.shrink(needed, config.retention_bytes) if config.retention_bytes else await source.bytes()
