"""Appends events to the streams of their partitions, as a matching engine does."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

from fundsvc.config.settings import StreamConfig
from fundsvc.core.contracts import partition_of
from fundsvc.core.events import Event, Listing, PolicyChange, Rate
from fundsvc.streams.client import StreamClient, StreamFault, faults, stream_key, to_node_of
from fundsvc.wire.codec import Codec, encode

EVENTS_PER_MESSAGE = 100
"""Batching: a message of a hundred events costs the stream a tenth of a hundred single messages."""

CONFIRM_MS = 2000
"""The wait for replicas and disk: shorter than the limit of a reply, longer than `appendfsync everysec` needs."""

APPEND = """
local ids = {}
for place = 2, #ARGV do ids[place - 1] = redis.call('XADD', KEYS[1], '*', ARGV[1], ARGV[place]) end
return ids
"""
"""A script is atomic: a server that is full, or has lost its replicas, refuses it before the first write. The driver also
spends more time on each command of a pipeline than on the rest of an append.
"""

_APPEND_REPLAY = "return redis.call('XADD', KEYS[1], '*', ARGV[1], ARGV[2], 'replayOf', ARGV[3])"

_VERSION = """
local version = {string.match(redis.call('INFO', 'server'), 'run_id:(%x+)'), 0}
local stream = redis.pcall('XINFO', 'STREAM', KEYS[1])
for place = 1, #stream, 2 do if stream[place] == 'entries-added' then version[2] = stream[place + 1] end end
"""
_READ_VERSION = _VERSION + "return version"
_APPEND_AFTER = f"""{_VERSION}
if version[1] ~= table.remove(ARGV, 1) or version[2] < tonumber(table.remove(ARGV, 1)) then return {{version}} end
{APPEND.replace("return ids", "return {version, ids}")}
"""
"""Checks and appends in one step, so that it appends nothing to a stream that lost messages since the last check."""


class StreamVersion(NamedTuple):
    """The identity of a stream: the run id of its server, and the number of messages ever added."""

    run_id: str
    added: int


class StreamReplaced(Exception):
    """The stream changed: its server was restarted or replaced, or the stream was deleted. Nothing was appended.

    `found` is its current version.
    """

    def __init__(self, found: StreamVersion) -> None:
        super().__init__(f"the stream is on server {found.run_id} and had {found.added} messages")
        self.found = found


class Producer:
    """Routes events by contract and appends them in order. Events of one contract never overtake each other.

    Appends to one partition are atomic. With `replicas_min` or `fsync` an append returns once that many replicas have the
    messages, and once the messages are on disk at the server and at these replicas.
    """

    def __init__(self, client: StreamClient, partitions: int, *, replicas_min: int = 0, fsync: bool = False) -> None:
        self._client = client
        self._partitions = partitions
        self._replicas_min = replicas_min
        self._fsync = fsync

    @classmethod
    def configured(cls, client: StreamClient, config: StreamConfig) -> Self:
        """Returns a producer for the configured streams."""
        return cls(client, config.partitions, replicas_min=config.replicas_min, fsync=config.fsync)

    async def append(
        self, events: Iterable[Event], codec: Codec = "json", per_message: int = EVENTS_PER_MESSAGE
    ) -> dict[int, list[str]]:
        """Appends the events and returns the ids of the messages, by partition. A rate goes to every partition."""
        routed: dict[int, list[Event]] = defaultdict(list)
        for event in events:
            for partition in self.destinations(event):
                routed[partition].append(event)
        ids: dict[int, list[str]] = {}
        for partition, run in routed.items():
            bodies = [encode(run[start : start + per_message], codec) for start in range(0, len(run), per_message)]
            ids[partition] = await self.append_bodies(partition, codec, bodies)
        return ids

    async def append_bodies(self, partition: int, field: str, bodies: Iterable[bytes]) -> list[str]:
        """Appends message bodies to a partition's stream unchanged, all or none, and returns their ids."""
        return await self.append_to(stream_key(partition), field, bodies)

    async def append_to(self, key: str, field: str, bodies: Iterable[bytes]) -> list[str]:
        """Appends message bodies to the stream with a key unchanged, all or none, and returns their ids."""
        return _texts(await self._confirmed(key, APPEND, field, *bodies))

    async def version(self, partition: int) -> StreamVersion:
        """Returns the current version of a partition's stream."""
        with faults():
            return _version(await self._client.eval(_READ_VERSION, 1, stream_key(partition)))

    async def append_after(
        self, known: StreamVersion, partition: int, field: str, bodies: Sequence[bytes]
    ) -> tuple[list[str], StreamVersion]:
        """Appends bodies as `append_bodies` to a stream that lost nothing since version `known`; raises StreamReplaced.

        Returns the ids and the version after the append.
        """
        reply = await self._confirmed(stream_key(partition), _APPEND_AFTER, known.run_id, known.added, field, *bodies)
        found = _version(reply[0])
        if len(reply) == 1:
            raise StreamReplaced(found)
        return _texts(reply[1]), found._replace(added=found.added + len(bodies))

    async def append_replay(self, partition: int, codec: Codec, body: bytes, replay_of: str) -> None:
        """Sends a rejected event again. `replay_of` is its "stream id/position", so that it is settled at most once."""
        await self.replay_to(stream_key(partition), codec, body, replay_of)

    async def replay_to(self, key: str, codec: Codec, body: bytes, replay_of: str) -> None:
        """Sends a rejected event again to the stream with a key, as `append_replay`."""
        await self._confirmed(key, _APPEND_REPLAY, codec, body, replay_of)

    def destinations(self, event: Event) -> Sequence[int]:
        """Returns the partitions of an event."""
        if isinstance(event, Rate | PolicyChange):
            return range(self._partitions)
        symbol = event.contract["symbol"] if isinstance(event, Listing) else event.symbol  # type: ignore[attr-defined]
        return (partition_of(symbol, self._partitions),)

    async def _confirmed(self, key: str, script: str, *arguments: Any) -> Any:
        """Runs an appending script; returns its reply once the append is as durable as configured, or raises StreamFault."""
        with faults():
            if not (self._replicas_min or self._fsync):
                return await self._client.eval(script, 1, key, *arguments)
            target = await to_node_of(self._client, key)
            # A pipeline uses one connection, and the server waits for the writes of that connection.
            async with self._client.pipeline(transaction=False) as pipeline:
                pipeline.eval(script, 1, key, *arguments)
                pipeline.execute_command(*self._wait(), **target)
                answer, confirmed = await pipeline.execute()
        self._check(confirmed)
        return answer

    def _wait(self) -> tuple[Any, ...]:
        if self._fsync:
            return "WAITAOF", 1, self._replicas_min, CONFIRM_MS
        return "WAIT", self._replicas_min, CONFIRM_MS

    def _check(self, confirmed: Any) -> None:
        local, replicas = confirmed if self._fsync else (0, confirmed)
        if replicas < self._replicas_min or local < self._fsync:
            disk = f", {local} of 1 disks" if self._fsync else ""
            raise StreamFault(
                f"the messages were appended, but {replicas} of {self._replicas_min} replicas{disk} confirmed them"
                f" within {CONFIRM_MS} ms: send them again"
            )


def _texts(ids: Iterable[bytes]) -> list[str]:
    return [stream_id.decode() for stream_id in ids]


def _version(found: Sequence[Any]) -> StreamVersion:
    run_id, added = found
    return StreamVersion(run_id.decode(), added)
