"""A partition's stream, read from a stored offset."""

from typing import Any, NamedTuple

import msgspec
from redis.exceptions import ResponseError

from fundsvc.streams.client import Client, faults, stream_key
from fundsvc.wire import Codec, Message

_CODECS: dict[bytes, Codec] = {b"json": "json", b"msgpack": "msgpack"}


class StreamState(NamedTuple):
    """What the server says of a stream: its newest id, how many messages were ever added, how many it still holds."""

    last_id: str
    added: int
    length: int


class Source:
    """Reads one partition's stream with plain XREAD: the offset lives with the data, not in the stream server.

    The stream of its events, unless `key` names another of the partition's.
    """

    def __init__(self, client: Client, partition: int, key: str = "") -> None:
        self._client = client
        self._key = key or stream_key(partition)
        # Without this callback the driver would build a dict per message.
        client.set_response_callback("XREAD", _as_it_came)

    async def read(self, after: str, count: int, block_ms: int | None = None) -> list[Message]:
        """Up to `count` messages with ids above `after`, waiting up to `block_ms` for the first; empty if none came."""
        waiting = () if block_ms is None else ("BLOCK", block_ms)
        with faults():
            reply = await self._client.execute_command(
                "XREAD", "COUNT", count, *waiting, "STREAMS", self._key, after, keys=[self._key]
            )
        if not reply:
            return []
        (messages,) = reply.values()
        return [_message(stream_id, fields) for stream_id, fields in messages]

    async def state(self) -> StreamState:
        """The newest id and the counts; of a stream that does not exist yet, zeros."""
        with faults():
            try:
                info = await self._client.xinfo_stream(self._key)
            except ResponseError as error:
                if str(error) != "no such key":
                    raise
                return StreamState("0-0", 0, 0)
        return StreamState(_text(info["last-generated-id"]), int(info["entries-added"]), int(info["length"]))

    async def trim(self, below: str) -> None:
        """Drops messages with ids below `below`, in whole blocks of the server's, so maybe some fewer."""
        with faults():
            await self._client.xtrim(self._key, minid=below, approximate=True)


def _as_it_came(response: Any, **_options: Any) -> Any:
    return response


def _message(stream_id: bytes, fields: list[bytes]) -> Message:
    identity = stream_id.decode()
    codec = _CODECS.get(fields[0])
    match fields:
        case [_, body] if codec:
            return Message(identity, codec, body)
        case [_, body, b"replayOf", key] if codec:
            return Message(identity, codec, body, key.decode(errors="replace"))
        case _:
            return Message(identity, "", msgspec.msgpack.encode(fields))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def id_order(stream_id: str) -> tuple[int, int]:
    """A stream id as (milliseconds, sequence), which compare as ids do."""
    milliseconds, _, sequence = stream_id.partition("-")
    return int(milliseconds), int(sequence or 0)
