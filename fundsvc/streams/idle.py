"""Waits for messages of many streams with one command, so that streams without messages cost next to nothing.

A stream that has messages is read alone, over a connection of its own: neither the size of its messages nor its back-pressure
affects another. A stream without messages waits here. All waits end at the same ticks, so the streams that wait again after a
tick share one blocking XREAD. When it returns, the streams with a message leave, and the others continue to wait.
"""

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

import msgspec
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import ResponseError

from fundsvc.streams.client import ReplyTooLarge, StreamClient, StreamFault, bounded_reply, faults
from fundsvc.streams.source import REPLY_BYTES_MAX

TICK_SECONDS = 0.5
"""The distance of ticks. A reader checks at each tick whether it must stop."""

GATHER_SECONDS = 0.002
"""How long the first stream waits for others. Replies to commands that end at the same tick arrive within this time."""


def milliseconds_to_tick() -> int:
    """Returns the time until the next tick, at least 1 ms."""
    return max(1, math.ceil((_next_tick() - time.monotonic()) * 1000))


def _next_tick() -> float:
    return (time.monotonic() // TICK_SECONDS + 1) * TICK_SECONDS


class _Wait(msgspec.Struct, frozen=True):
    """The wait of a stream for messages with ids above `after`."""

    after: str
    ends: asyncio.Future[bool]

    def end(self, *, has_messages: bool) -> None:
        if not self.ends.done():
            self.ends.set_result(has_messages)

    def fail(self, fault: StreamFault) -> None:
        if not self.ends.done():
            own = StreamFault(str(fault))
            own.__cause__ = fault.__cause__
            self.ends.set_exception(own)


class IdleStreams(AbstractAsyncContextManager["IdleStreams"]):
    """The streams of one process that wait for messages. Closing it ends all waits.

    In a cluster, streams share a command only if they share a slot, because a command must not name keys of several slots.
    """

    def __init__(self, client: StreamClient) -> None:
        self._client = client
        self._joining: defaultdict[int, dict[str, _Wait]] = defaultdict(dict)
        self._readers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        readers = list(self._readers)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)

    async def wait(self, key: str, after: str) -> bool:
        """Waits until a stream may have messages with ids above `after`; returns False if it has none by the next tick.

        Raises StreamFault.
        """
        group = self._joining[self._client.keyslot(key) if isinstance(self._client, RedisCluster) else 0]
        if not group:
            reader = asyncio.create_task(self._read(group))
            self._readers.add(reader)
            reader.add_done_callback(self._readers.discard)
        wait = group[key] = _Wait(after, asyncio.get_running_loop().create_future())
        return await wait.ends

    async def _read(self, group: dict[str, _Wait]) -> None:
        """Ends the waits of the streams that join a group, at their first message or at the next tick."""
        await asyncio.sleep(GATHER_SECONDS)
        waits = dict(group)
        group.clear()
        tick = _next_tick()
        try:
            while waits and time.monotonic() < tick:
                for key in await self._with_messages(waits, math.ceil((tick - time.monotonic()) * 1000)):
                    waits[key].end(has_messages=True)
                waits = {key: wait for key, wait in waits.items() if not wait.ends.done()}
        except StreamFault as fault:
            for wait in waits.values():
                wait.fail(fault)
        finally:
            for wait in waits.values():
                wait.end(has_messages=False)

    async def _with_messages(self, waits: Mapping[str, _Wait], block_ms: int) -> Sequence[str]:
        """Waits for messages; returns the streams that have some, or all if one of them is in trouble.

        Each of these streams is then read alone, and only the one in trouble fails.
        """
        keys = list(waits)
        streams = (*keys, *(wait.after for wait in waits.values()))
        try:
            with faults(), bounded_reply(REPLY_BYTES_MAX):
                reply = await self._client.execute_command(
                    "XREAD", "COUNT", 1, "BLOCK", block_ms, "STREAMS", *streams, keys=keys
                )
        except (ReplyTooLarge, ResponseError):
            return keys
        except StreamFault as fault:
            if isinstance(fault.__cause__, ResponseError):
                return keys
            raise
        return [key.decode() for key in reply or ()]
