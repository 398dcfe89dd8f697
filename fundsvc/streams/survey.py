"""The states of many streams and the clocks of their servers, read once a second in one round trip."""

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from redis.asyncio.cluster import RedisCluster

from fundsvc.streams.client import StreamClient, StreamFault, server_time_ms
from fundsvc.streams.source import Source, StreamState, read_states

SURVEY_SECONDS = 1.0
"""How often the streams are surveyed."""


RECENT_SECONDS = 3 * SURVEY_SECONDS
"""An older state is outdated: its stream is in trouble, or the server does not answer."""


class Seen(NamedTuple):
    """The state of a stream, with its server's clock (ms) and the monotonic time before it was read."""

    state: StreamState
    server_ms: int
    at: float

    @property
    def now_ms(self) -> int:
        """Returns the present time by the clock of the server."""
        return self.server_ms + int((time.monotonic() - self.at) * 1000)


class Survey:
    """The last states of the streams of one process. `run` reads them; `add` and `remove` choose which."""

    def __init__(self, client: StreamClient) -> None:
        self._client = client
        self._sources: dict[str, Source] = {}
        self._seen: Mapping[str, Seen] = {}

    def add(self, source: Source) -> None:
        """Includes a stream."""
        self._sources[source.key] = source

    def remove(self, source: Source) -> None:
        """Leaves a stream out."""
        self._sources.pop(source.key, None)

    def seen(self, source: Source, since: float) -> Seen | None:
        """Returns what a survey that began after a monotonic time found of a stream; None if there was none."""
        seen = self._seen.get(source.key)
        return seen if seen and seen.at > since else None

    async def look(self, source: Source, since: float) -> Seen:
        """Returns what a recent survey that began after a monotonic time found of a stream. Reads it if there was none.

        Raises StreamFault.
        """
        at = time.monotonic()
        seen = self.seen(source, max(since, at - RECENT_SECONDS))
        return seen or Seen(await source.state(), await source.now_ms(), at)

    async def run(self) -> None:
        """Reads the states of all streams. A stream in trouble keeps its last one; raises StreamFault if all are in trouble."""
        if not self._sources:
            return
        at, sources = time.monotonic(), list(self._sources.values())
        states = await read_states(self._client, sources)
        clocks = await self._clocks(sources)
        found = {
            source.key: Seen(state, clocks[node], at)
            for source, state in zip(sources, states, strict=True)
            if state and (node := self._node_of(source)) in clocks
        }
        self._seen = {key: seen for key, seen in {**self._seen, **found}.items() if key in self._sources}

    async def _clocks(self, sources: list[Source]) -> dict[str, int]:
        """Returns the time of the server of each source, by the name of the server."""
        keys = {self._node_of(source): source.key for source in sources}
        clocks = {}
        for node, key in keys.items():
            with suppress(StreamFault):
                clocks[node] = await server_time_ms(self._client, key)
        return clocks

    def _node_of(self, source: Source) -> str:
        """Returns the name of the server that has a stream, "" if there is only one."""
        node = self._client.get_node_from_key(source.key) if isinstance(self._client, RedisCluster) else None
        return str(node.name) if node else ""
