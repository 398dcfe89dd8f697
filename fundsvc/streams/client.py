"""Connections to Redis or Valkey (single, Sentinel or Cluster), and the one place where its exceptions become a fault."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any

from redis._parsers.hiredis import _AsyncHiredisParser
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import DataError, RedisClusterException, RedisError, ResponseError

from fundsvc.config.settings import StreamConfig
from fundsvc.streams.bounded_replies import Skimmer

CONNECT_SECONDS = 5.0
"""As for the database: long enough for a busy server, short enough to notice that it is away."""

REPLY_SECONDS_MAX = 3.0
"""Longer than any blocking read of ours; a server that is silent for so long is away, also in the middle of a reply."""

KEEPALIVE = {socket.TCP_KEEPIDLE: 2, socket.TCP_KEEPINTVL: 1, socket.TCP_KEEPCNT: 3, socket.TCP_USER_TIMEOUT: 5000}
"""Connections whose other end is gone are noticed within five seconds, also where nothing is asked."""

LOST_CONNECTION = "the handler is closed"
"""What uvloop says, in a RuntimeError, of a write to a connection that was lost a moment ago."""

Client = Redis | RedisCluster

_MISTAKES = re.compile(
    r"^(ERR )?(wrong number of arguments|syntax error|Invalid stream ID|value is not an integer)", re.IGNORECASE
)
"""Answers to a command that we sent wrongly. Whatever else the server answers an operator can heal: it is full or loading, a
disk is, replicas are away, rights or the type of a key were changed."""

_REPLY_BYTES_MAX: ContextVar[int] = ContextVar("reply_bytes_max", default=0)


class _ReportsLoss:
    """A pool that says once when an idle connection was lost; the driver's own would silently make another.

    A server that went away may have come back without its tail: who appends or reads must hear of it.
    """

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        if connection.is_connected and await connection.can_read():
            await connection.disconnect()
            raise RedisConnectionError("the connection was lost since it was last used")
        await super().ensure_connection(connection)  # type: ignore[misc]


class _Pool(_ReportsLoss, ConnectionPool):
    pass


class _SentinelPool(_ReportsLoss, SentinelConnectionPool):
    pass


class ReplyTooLarge(Exception):
    """A reply is larger than `bounded_reply` allows; its connection is closed."""


class _BoundedParser(_AsyncHiredisParser):
    """Gives a reply up once it has grown beyond what is allowed: until it was whole it would lie in memory."""

    def __init__(self, socket_read_size: int) -> None:
        super().__init__(socket_read_size)
        self._received = 0

    async def read_response(self, disable_decoding: bool = False, push_request: bool = False) -> Any:
        self._received = 0
        return await super().read_response(disable_decoding, push_request)

    def on_connect(self, connection: Any) -> None:
        """As the driver's own, and keeps the connection."""
        super().on_connect(connection)  # type: ignore[no-untyped-call]
        self._connection = connection

    async def read_from_socket(self) -> bool:
        """As the driver's own, counts, and lets the time limit begin anew: it bounds silence, not the size of a reply."""
        buffer = await self._chunk()
        if limit := self._connection._active_read_timeout:  # noqa: SLF001 - the driver has no other way to it
            limit.reschedule(asyncio.get_running_loop().time() + REPLY_SECONDS_MAX)
        self._reader.feed(buffer)  # type: ignore[attr-defined]
        self._received += len(buffer)
        allowed = _REPLY_BYTES_MAX.get()
        if allowed and self._received > allowed:
            raise ReplyTooLarge(f"a reply of more than {allowed} bytes")
        return True

    async def skim(self) -> Any:
        """Reads one reply without ever having all of it in memory."""
        skimmer = Skimmer()
        while not skimmer.done:
            async with asyncio.timeout(REPLY_SECONDS_MAX):
                skimmer.feed(await self._chunk())
        return skimmer.reply

    async def _chunk(self) -> bytes:
        assert self._stream, "it is connected"
        buffer = await self._stream.read(self._read_size)
        if not buffer:
            raise RedisConnectionError("the server closed the connection")
        return buffer


async def skim(client: Client, key: str, command: Sequence[Any]) -> Any:
    """The reply to a command about a key as `Skimmer` gives it, over a connection of its own."""
    connection = _own_connection(client, key)
    await connection.connect()
    try:
        await connection.send_command(*command)
        return await connection._parser.skim()  # noqa: SLF001 - it is a parser of ours
    finally:
        await connection.disconnect(nowait=True)


def _own_connection(client: Client, key: str) -> Any:
    if isinstance(client, RedisCluster):
        node = client.get_node_from_key(key)
        assert node, "the client has been used before"
        return node.connection_class(**node.connection_kwargs)
    return client.connection_pool.make_connection()  # type: ignore[no-untyped-call]


@contextmanager
def bounded_reply(bytes_max: int) -> Iterator[None]:
    """Raises ReplyTooLarge when a command inside the block gets a larger reply; 0 allows any size."""
    token = _REPLY_BYTES_MAX.set(bytes_max)
    try:
        yield
    finally:
        _REPLY_BYTES_MAX.reset(token)


class StreamFault(Exception):
    """The stream is away or refuses, which time or an operator heals: read from the stored offset, or append, again later."""


@contextmanager
def faults() -> Iterator[None]:
    """Turns what the driver raises, and whatever the server answers, into StreamFault; lets our own mistakes through.

    Raises a cancellation that the driver swallowed: it sends by asyncio.wait_for, which before Python 3.12 forgets one that
    comes just as the sending is done. A reader that is not info to end would never let its partition be loaded again.
    """
    try:
        yield
        if (task := asyncio.current_task()) and task.cancelling():
            raise asyncio.CancelledError
    except (OSError, TimeoutError) as error:
        raise StreamFault(f"{type(error).__name__}: {error}") from error
    except RuntimeError as error:
        if LOST_CONNECTION not in str(error):
            raise
        raise StreamFault(str(error)) from error
    except (RedisError, RedisClusterException) as error:
        if isinstance(error, DataError) or (isinstance(error, ResponseError) and _MISTAKES.search(str(error))):
            raise
        raise StreamFault(f"{type(error).__name__}: {error}") from error


@asynccontextmanager
async def open_client(config: StreamConfig) -> AsyncIterator[Client]:
    """A client for the configured server; it does not retry by itself, because who reads must learn of a reconnect."""
    options: dict[str, Any] = {
        "retry": Retry(NoBackoff(), 0),
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_timeout": REPLY_SECONDS_MAX,
        "protocol": 3,
    }
    async with AsyncExitStack() as stack:
        if config.mode == "cluster":
            cluster: RedisCluster = RedisCluster.from_url(config.url, **options, socket_keepalive_options=KEEPALIVE)
            _bound(cluster)
            stack.push_async_callback(_close_cluster, cluster)
            yield cluster
        else:
            single = _master(config, options, stack) if config.mode == "sentinel" else _single(config, options)
            stack.push_async_callback(single.aclose)
            yield single


def _bound(cluster: RedisCluster) -> None:
    """Gives the connections of a cluster our parser, for which its client has no parameter."""
    manager = cluster.nodes_manager
    for options in (manager.connection_kwargs, *(node.connection_kwargs for node in manager.startup_nodes.values())):
        options["parser_class"] = _BoundedParser


async def _close_cluster(cluster: RedisCluster) -> None:
    """Closes all connections; the driver's own way leaves them open when it is about to look the nodes up again."""
    await cluster.aclose()
    for nodes in ("nodes_cache", "startup_nodes"):
        await cluster.nodes_manager.aclose(nodes)


def _single(config: StreamConfig, options: dict[str, Any]) -> Redis:
    over_tcp = {} if config.url.startswith("unix:") else {"socket_keepalive_options": KEEPALIVE}
    return Redis.from_pool(_Pool.from_url(config.url, parser_class=_BoundedParser, **options, **over_tcp))


def _master(config: StreamConfig, options: dict[str, Any], stack: AsyncExitStack) -> Redis:
    """A client of whichever server the sentinels call the master."""
    addresses = [address.rsplit(":", 1) for address in config.sentinels]
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        [(host, int(port)) for host, port in addresses], sentinel_kwargs=options
    )
    for watcher in sentinel.sentinels:
        stack.push_async_callback(watcher.aclose)
    master: Redis = sentinel.master_for(
        config.sentinel_master,
        connection_pool_class=_SentinelPool,
        parser_class=_BoundedParser,
        socket_keepalive_options=KEEPALIVE,
        **options,
    )
    return master


def stream_key(partition: int) -> str:
    """The stream of a partition's events; the braces keep all keys of a partition in one cluster slot."""
    return f"fundsvc:{{{partition}}}:in"


async def is_append_only(client: Client) -> bool:
    """Whether the server, or each primary of a cluster, writes what is appended to its file; raises StreamFault."""
    to_all = {"target_nodes": RedisCluster.PRIMARIES} if isinstance(client, RedisCluster) else {}
    with faults():
        info: dict[str, Any] = await client.execute_command("INFO", "persistence", **to_all)
    each = [info] if "aof_enabled" in info else info.values()
    return all(one["aof_enabled"] for one in each)


async def drop_idle(client: Client) -> None:
    """Closes the connections that nobody uses: where one has lost its server, so may have the others, without a sign of it."""
    if isinstance(client, RedisCluster):
        for node in client.get_nodes():
            await node.disconnect_free_connections()
    else:
        await client.connection_pool.disconnect(inuse_connections=False)


_TIME = "return redis.call('TIME')"
"""A script, as a command without a key may reach any node of a cluster."""


async def server_time_ms(client: Client, key: str) -> int:
    """The time by the clock of the server that has a key, which makes the ids; raises StreamFault."""
    with faults():
        seconds, microseconds = await client.eval(_TIME, 1, key)
    return int(seconds) * 1000 + int(microseconds) // 1000


async def server_version(client: Client) -> str:
    """What answers, and its version, such as "Valkey 9.1.0" (of a cluster, one node's); raises StreamFault."""
    with faults():
        await client.ping()
        info: dict[str, Any] = await client.info("server")
    one = info if "redis_version" in info else next(iter(info.values()))
    return f"Valkey {one['valkey_version']}" if "valkey_version" in one else f"Redis {one['redis_version']}"
