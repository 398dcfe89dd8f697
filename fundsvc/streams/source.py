"""Reads a partition's stream from a stored offset."""

import asyncio
import math
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec
from redis.exceptions import ResponseError

from fundsvc.streams.bounded_replies import ELEMENTS_MAX, Skimmed
from fundsvc.streams.client import (
    ReplyTooLarge,
    StreamClient,
    StreamFault,
    bounded_reply,
    faults,
    server_time_ms,
    skim,
    stream_key,
    to_node_of,
)
from fundsvc.wire.codec import EXCERPT_BYTES, Codec, Message, excerpt, excess

_CODECS: dict[bytes, Codec] = {b"json": "json", b"msgpack": "msgpack"}

READ_BYTES = 4_000_000
"""The target size of a read, estimated from the size of the last messages."""

REPLY_BYTES_MAX = 16_000_000
"""A larger reply is aborted and requested again with fewer messages, because these are larger than the last ones."""

REPLY_BYTES_REST = 100_000
"""The state of a stream contains its first and its last message, and little else."""

TRIMMED_AT_ONCE = 10_000
"""Messages that one command deletes: the server answers nothing else meanwhile. Without a limit it takes as many by itself."""

TRIMMED_MAX = 10_000_000
"""Messages that one call deletes; the next call continues."""

SAMPLES = 100
"""Blocks of a stream from which the server estimates its memory. Each has up to 100 messages or 4 kB."""

SHRINKS_MAX = 3
"""Attempts to reach a size, because the oldest messages may be smaller than the average."""

ID_SEQUENCE_MAX = 2**64 - 1
"""The highest sequence of a stream id."""

COUNT_FIRST, COUNT_MAX = 16, 1000
"""The number of messages that the first read requests, and the maximum of any read."""


class StreamState(NamedTuple):
    """The state of a stream on the server.

    Its newest id, the number of messages ever added, the number it contains, the first and the last of these ("" for none), and
    the highest id that was deleted individually.
    """

    last_id: str
    added: int
    length: int
    first_id: str
    final_id: str
    deleted_id: str


NO_STREAM = "no such key"
"""The error of a server about a stream that does not exist."""

EMPTY = StreamState("0-0", 0, 0, "", "", "0-0")
"""The state of a stream that does not exist yet."""


class Source:
    """Reads one partition's stream with plain XREAD. The offset is stored with the data, not in the stream server.

    `key` is the stream's key, by default that of the partition's events. Bytes bound a read. A message larger than
    `message_bytes_max` is reduced to its beginning.
    """

    def __init__(self, client: StreamClient, partition: int, key: str = "", message_bytes_max: int | None = None) -> None:
        self._client = client
        self._message_bytes_max = message_bytes_max or 0
        self.key = key or stream_key(partition)
        self._count = COUNT_FIRST
        self._oversized: set[str] = set()
        # Without this callback the driver builds a dict per message.
        client.set_response_callback("XREAD", _unparsed)

    async def read(self, after: str, count: int = COUNT_MAX, block_ms: int | None = None) -> list[Message]:
        """Returns up to `count` messages with ids above `after`, waiting up to `block_ms` for the first; may be empty."""
        while True:
            requested = min(count, self._count)
            xread = self._xread(after, requested, block_ms)
            try:
                with faults(), bounded_reply(self._allowed(requested)):
                    reply = await self._client.execute_command(*xread, keys=[self.key])
            except ReplyTooLarge:
                self._count = max(1, requested // 8)
                if requested == 1:
                    return await self._skim_message(xread)
            else:
                return await self._messages(reply)

    async def read_with_state(self, after: str, block_ms: int | None = None) -> tuple[list[Message], StreamState]:
        """Reads as `read`, and returns the state of the stream right after it."""
        while True:
            requested = self._count
            try:
                with faults(), bounded_reply(self._allowed(requested)):
                    reply, state = await self._read_both(self._xread(after, requested, block_ms))
            except ReplyTooLarge:
                self._count = max(1, requested // 8)
                if requested == 1:
                    return await self.read(after, 1, block_ms), await self.state()
            else:
                return await self._messages(reply), state

    async def state(self) -> StreamState:
        """Returns the current state."""
        try:
            with faults(), bounded_reply(self._allowed(1)):
                try:
                    return _state(await self._client.xinfo_stream(self.key))
                except ResponseError as error:
                    return _state(error)
        except ReplyTooLarge:
            info = await self._skim(("XINFO", "STREAM", self.key))
        info = {_text(name): value for name, value in info.items()}
        self._note_oversized(info["first-entry"], info["last-entry"])
        return _state(info)

    async def drop_oversized(self, until: str) -> None:
        """Deletes oversized messages up to an id, which the engine has already rejected.

        A stream that begins or ends with such a message transfers all of it in each reply about its state.
        """
        settled = [stream_id for stream_id in self._oversized if id_order(stream_id) <= id_order(until)]
        if settled:
            with faults():
                await self._client.xdel(self.key, *settled)
            self._oversized.difference_update(settled)

    async def now_ms(self) -> int:
        """Returns the time by the clock of the stream server, which generates the ids."""
        return await server_time_ms(self._client, self.key)

    async def message(self, stream_id: str) -> Message | None:
        """Returns the message with an id; None if the stream does not have it."""
        messages = await self.read(_before(stream_id), 1)
        return messages[0] if messages and messages[0].stream_id == stream_id else None

    async def count_between(self, after: str, until: str, count_step: Callable[[], None]) -> int:
        """Counts the messages with ids above `after` and up to `until`. Calls `count_step` for each read."""
        total = 0
        while messages := [one for one in await self.read(after) if id_order(one.stream_id) <= id_order(until)]:
            total += len(messages)
            after = messages[-1].stream_id
            count_step()
        return total

    def _xread(self, after: str, count: int, block_ms: int | None) -> tuple[Any, ...]:
        waiting = () if block_ms is None else ("BLOCK", block_ms)
        return "XREAD", "COUNT", count, *waiting, "STREAMS", self.key, after

    async def _read_both(self, xread: Sequence[Any]) -> tuple[Any, StreamState]:
        # Without a target, the driver looks up the keys of the command at another node of a cluster.
        target = await to_node_of(self._client, self.key)
        async with self._client.pipeline(transaction=False) as pipeline:
            pipeline.execute_command(*xread, **target)
            pipeline.xinfo_stream(self.key)
            reply, info = await pipeline.execute(raise_on_error=False)
        if isinstance(reply, Exception):
            raise reply
        return reply, _state(info)

    def _allowed(self, requested: int) -> int:
        """Returns the allowed size of a reply with that many messages and the state of the stream; 0 for any size."""
        if requested > 1:
            return REPLY_BYTES_MAX
        return max(REPLY_BYTES_MAX, 2 * self._message_bytes_max + REPLY_BYTES_REST) if self._message_bytes_max else 0

    async def _skim(self, command: Sequence[Any]) -> Any:
        """Returns the reduced reply of a command whose full reply is too large."""
        with faults():
            return await skim(self._client, self.key, command)

    async def _skim_message(self, xread: Sequence[Any]) -> list[Message]:
        """Returns the reduced message of a read of one message; empty if it no longer exists."""
        reply = await self._skim(xread)
        if not reply:
            return []
        (((stream_id, fields),),) = reply.values()
        self._note_oversized((stream_id, fields))
        return [_skimmed_message(stream_id, fields, self._message_bytes_max)]

    def _note_oversized(self, *entries: Any) -> None:
        """Records which of the reduced entries are too large."""
        for stream_id, fields in (entry for entry in entries if entry):
            sizes = [field.size for field in fields if isinstance(field, Skimmed)]
            if len(fields) == ELEMENTS_MAX or sum(sizes) > self._message_bytes_max:
                self._oversized.add(_text(stream_id))

    async def _messages(self, reply: Any) -> list[Message]:
        if not reply:
            return []
        (found,) = reply.values()
        messages = [message_of(stream_id, fields) for stream_id, fields in found]
        size = sum(len(message.body) for message in messages)
        fitting = READ_BYTES * len(messages) // max(1, size)
        self._count = max(1, min(COUNT_MAX, 4 * self._count, fitting))
        return messages if size <= (self._message_bytes_max or size) else [await self._bounded(message) for message in messages]

    async def _bounded(self, message: Message) -> Message:
        """Returns the message, reduced if it is too large. A thread computes the digest of a large one."""
        if len(message.body) <= self._message_bytes_max:
            return message
        return await asyncio.to_thread(excerpt, message, self._message_bytes_max)

    async def trim(self, below: str, count: int | None = None) -> None:
        """Deletes messages with ids below `below`, only the first `count` of them if given.

        The server deletes whole blocks, so some may remain.
        """
        left = TRIMMED_MAX if count is None else count
        while left > 0:
            limit = min(left, TRIMMED_AT_ONCE)
            with faults():
                deleted = await self._client.xtrim(self.key, minid=below, approximate=True, limit=limit)
            if not deleted:
                return
            left -= deleted

    async def bytes(self) -> int:
        """Returns the memory of the stream on the server, estimated from some of its messages; 0 without a stream."""
        with faults():
            found = await self._client.execute_command("MEMORY USAGE", self.key, "SAMPLES", SAMPLES, keys=[self.key])
        return int(found or 0)

    async def shrink(self, below: str, bytes_max: int) -> int:
        """Deletes the oldest messages below `below` until the stream has about `bytes_max` bytes; returns how many it has."""
        size = await self.bytes()
        for _ in range(SHRINKS_MAX):
            if size <= bytes_max:
                break
            await self.trim(below, math.ceil((await self.state()).length * (1 - bytes_max / size)))
            size = await self.bytes()
        return size


async def read_states(client: StreamClient, sources: Sequence[Source]) -> list[StreamState | None]:
    """Returns the current states of streams, read in one round trip; None for those that the server cannot tell."""
    try:
        with faults(), bounded_reply(REPLY_BYTES_MAX):
            async with client.pipeline(transaction=False) as pipeline:
                for source in sources:
                    pipeline.xinfo_stream(source.key)
                infos = await pipeline.execute(raise_on_error=False)
    except ReplyTooLarge:
        return [await _state_or_none(source) for source in sources]
    return [None if _is_trouble(info) else _state(info) for info in infos]


async def _state_or_none(source: Source) -> StreamState | None:
    try:
        return await source.state()
    except StreamFault:
        return None


def _is_trouble(info: Any) -> bool:
    return isinstance(info, Exception) and str(info) != NO_STREAM


def _unparsed(response: Any, **_options: Any) -> Any:
    return response


def message_of(stream_id: bytes, fields: list[bytes]) -> Message:
    """Returns the message of a stream entry, with an unknown codec ("") unless its fields are those of a message."""
    identity = stream_id.decode()
    codec = _CODECS.get(fields[0])
    match fields:
        case [_, body] if codec:
            return Message(identity, codec, body)
        case [_, body, b"replayOf", key] if codec:
            return Message(identity, codec, body, key.decode(errors="replace"))
        case _:
            return Message(identity, "", msgspec.msgpack.encode(fields))


def _skimmed_message(stream_id: bytes, fields: list[Any], bytes_max: int) -> Message:
    """Reduces a message that is too large. Size and digest are those of its largest value."""
    message = message_of(stream_id, [field.head if isinstance(field, Skimmed) else field for field in fields])
    largest = max((field for field in fields if isinstance(field, Skimmed)), key=attrgetter("size"), default=None)
    too_large = excess(largest.size, largest.digest, bytes_max) if largest else f"{ELEMENTS_MAX} values or more: send one"
    return msgspec.structs.replace(message, body=message.body[:EXCERPT_BYTES], too_large=too_large)


def _state(info: Any) -> StreamState:
    """Returns the state in a reply of XINFO STREAM, which may be an error if there is no stream."""
    if isinstance(info, Exception):
        if str(info) != NO_STREAM:
            raise info
        return EMPTY
    return StreamState(
        _text(info["last-generated-id"]),
        int(info["entries-added"]),
        int(info["length"]),
        _identity(info["first-entry"]),
        _identity(info["last-entry"]),
        _text(info["max-deleted-entry-id"]),
    )


def _identity(entry: Any) -> str:
    return _text(entry[0]) if entry else ""


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def id_order(stream_id: str) -> tuple[int, int]:
    """Returns a stream id as (milliseconds, sequence), which compares as ids do."""
    milliseconds, _, sequence = stream_id.partition("-")
    return int(milliseconds), int(sequence or 0)


def _before(stream_id: str) -> str:
    """Returns the highest id below an id other than 0-0."""
    milliseconds, sequence = id_order(stream_id)
    return f"{milliseconds}-{sequence - 1}" if sequence else f"{milliseconds - 1}-{ID_SEQUENCE_MAX}"
