"""Appends changed terms of a pool to its stream, as an event."""

from structlog.typing import FilteringBoundLogger

from fundsvc.mutual.codec import encode
from fundsvc.mutual.core.events import TermsChange
from fundsvc.mutual.core.terms import FIXED, Rules
from fundsvc.streams.client import StreamClient, pool_stream_key, server_time_ms
from fundsvc.streams.producer import Producer


class TermsProposals:
    """The terms that a process proposes, once to each pool that it comes to settle.

    Engines with different configurations may own a pool in turn. Each proposes its own terms once after its start, so they do
    not alternate.
    """

    def __init__(self) -> None:
        self._compared: set[str] = set()

    async def propose(
        self,
        client: StreamClient,
        producer: Producer,
        pool: str,
        configured: Rules,
        versions: dict[int, Rules],
        log: FilteringBoundLogger,
    ) -> None:
        """Appends the configured terms if they differ from the recorded ones and may follow them."""
        if pool in self._compared:
            return
        latest = max(versions)
        recorded = versions[latest]
        if configured == recorded:
            self._compared.add(pool)
        elif not configured.same_units(recorded):
            log.error("terms fixed", detail=f"{', '.join(FIXED)} of a pool never change: configure a new pool with other ones")
            self._compared.add(pool)
        else:
            key = pool_stream_key(pool)
            change = TermsChange(pool, await server_time_ms(client, key), latest + 1, configured)
            await producer.append_to(key, "json", [encode([change])])
            self._compared.add(pool)
            log.warning("terms changed", version=latest + 1)
