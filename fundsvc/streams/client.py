"""Connections to Redis or Valkey (single, Sentinel or Cluster). Only this module converts driver exceptions into faults."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from redis._parsers.hiredis import _AsyncHiredisParser
from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterPipeline, RedisCluster
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import DataError, RedisClusterException, RedisError, ResponseError

from fundsvc.config.settings import StreamConfig
from fundsvc.streams.bounded_replies import Skimmer

CONNECT_SECONDS = 5.0
"""As for the database: long enough for a busy server, short enough to detect an unreachable one."""

REPLY_SECONDS_MAX = 3.0
"""Longer than any blocking read of the service. A server that is silent for this time is unreachable, also within a reply."""

KEEPALIVE = {socket.TCP_KEEPIDLE: 2, socket.TCP_KEEPINTVL: 1, socket.TCP_KEEPCNT: 3, socket.TCP_USER_TIMEOUT: 5000}
"""Idle connections to a lost peer are detected within five seconds."""

LOST_CONNECTION = "the handler is closed"
"""The text of uvloop's RuntimeError for a write to a connection that was just lost."""

StreamClient = Redis | RedisCluster

_MISTAKES = re.compile(
    r"^(ERR )?(wrong number of arguments|syntax error|Invalid stream ID|value is not an integer)", re.IGNORECASE
)
"""Errors of wrong commands of this service. An operator can repair all other errors: a full or loading server, a full disk,
missing replicas, changed rights, a key of another type."""

_REPLY_BYTES_MAX: ContextVar[int] = ContextVar("reply_bytes_max", default=0)


class _ReportsLoss:
    """A pool that reports the loss of an idle connection once. The driver's pool would reconnect silently.

    A restarted server may have lost its newest messages, so readers and producers must learn of the loss.
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


class _ClusterPipeline(ClusterPipeline):
    """A pipeline after whose failure the client looks up the nodes again. The driver does so only for single commands."""

    async def execute(self, raise_on_error: bool = True, allow_redirections: bool = True) -> list[Any]:
        answers: list[Any] = []
        try:
            answers = await super().execute(raise_on_error, allow_redirections)
        except RedisCluster.ERRORS_ALLOW_RETRY as error:
            answers = [error]
            raise
        finally:
            if any(isinstance(answer, RedisCluster.ERRORS_ALLOW_RETRY) for answer in answers):
                self.cluster_client._initialize = True  # noqa: SLF001 - the driver has no other way to it
        return answers


class _Cluster(RedisCluster):
    """A cluster whose pipelines follow a failover."""

    def pipeline(self, transaction: Any = None, *_: Any) -> ClusterPipeline:
        return _ClusterPipeline(self, transaction)  # type: ignore[abstract]


class ReplyTooLarge(Exception):
    """A reply is larger than `bounded_reply` allows. Its connection is closed."""


class _BoundedParser(_AsyncHiredisParser):
    """Aborts a reply that grows beyond the allowed size, because an incomplete reply stays in memory."""

    def __init__(self, socket_read_size: int) -> None:
        super().__init__(socket_read_size)
        self._received = 0

    async def read_response(self, disable_decoding: bool = False, push_request: bool = False) -> Any:
        self._received = 0
        return await super().read_response(disable_decoding, push_request)

    def on_connect(self, connection: Any) -> None:
        """Extends the driver's method: also keeps the connection."""
        super().on_connect(connection)  # type: ignore[no-untyped-call]
        self._connection = connection

    async def read_from_socket(self) -> bool:
        """Replaces the driver's method: also counts bytes and restarts the time limit, which bounds silence and not the reply's
        size.
        """
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
        """Reads one reply without holding all of it in memory."""
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


async def skim(client: StreamClient, key: str, command: Sequence[Any]) -> Any:
    """Runs a command for a key over a separate connection, and returns the reply as `Skimmer` reduces it."""
    connection = _own_connection(client, key)
    await connection.connect()
    try:
        await connection.send_command(*command)
        return await connection._parser.skim()  # noqa: SLF001 - the parser is _BoundedParser
    finally:
        await connection.disconnect(nowait=True)


def _own_connection(client: StreamClient, key: str) -> Any:
    if isinstance(client, RedisCluster):
        node = client.get_node_from_key(key)
        if node is None:
            raise RedisConnectionError("the node of the stream is not known at the moment")
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
    """The stream server is unreachable or refuses; time or an operator can repair it. Read from the stored offset or append
    later.
    """


@contextmanager
def faults() -> Iterator[None]:
    """Converts driver and server errors into StreamFault. Programming errors pass through.

    Raises a cancellation that the driver swallowed: it sends with asyncio.wait_for, which before Python 3.12 loses a
    cancellation that arrives just after the send. A reader that missed its cancellation would block its partition.
    """
    try:
        yield
        if (task := asyncio.current_task()) and task.cancelling():
            raise asyncio.CancelledError
    except (OSError, TimeoutError) as error:
        raise StreamFault(f"{type(error).__name__}: {error}") from error
    except (AttributeError, IndexError, KeyError, RuntimeError) as error:
        if not _is_of_driver(error):
            raise
        raise StreamFault(f"the connection was lost: {type(error).__name__}: {error}") from error
    except (RedisError, RedisClusterException) as error:
        if isinstance(error, DataError) or (isinstance(error, ResponseError) and _MISTAKES.search(str(error))):
            raise
        raise StreamFault(f"{type(error).__name__}: {error}") from error


def _is_of_driver(error: BaseException) -> bool:
    """Whether the driver or the event loop raised an error: a task uses a connection that another one just closed."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__")) if trace else ""
    return module.startswith("redis.") or LOST_CONNECTION in str(error)


@asynccontextmanager
async def open_client(config: StreamConfig) -> AsyncIterator[StreamClient]:
    """Opens a client for the configured server. It does not retry, because readers must learn of a reconnect."""
    options: dict[str, Any] = {
        "retry": Retry(NoBackoff(), 0),
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_timeout": REPLY_SECONDS_MAX,
        "protocol": 3,
    }
    async with AsyncExitStack() as stack:
        if config.mode == "cluster":
            cluster: RedisCluster = _Cluster.from_url(config.url, **options, socket_keepalive_options=KEEPALIVE)
            _bound(cluster)
            stack.push_async_callback(_close_cluster, cluster)
            yield cluster
        else:
            single = _master(config, options, stack) if config.mode == "sentinel" else _single(config, options)
            stack.push_async_callback(single.aclose)
            yield single


def _bound(cluster: RedisCluster) -> None:
    """Sets the parser of a cluster's connections. The cluster client has no parameter for it."""
    manager = cluster.nodes_manager
    for options in (manager.connection_kwargs, *(node.connection_kwargs for node in manager.startup_nodes.values())):
        options["parser_class"] = _BoundedParser


async def _close_cluster(cluster: RedisCluster) -> None:
    """Closes all connections. The driver's method leaves them open if it is about to look up the nodes again."""
    await cluster.aclose()
    for nodes in ("nodes_cache", "startup_nodes"):
        await cluster.nodes_manager.aclose(nodes)


def _single(config: StreamConfig, options: dict[str, Any]) -> Redis:
    over_tcp = {} if config.url.startswith("unix:") else {"socket_keepalive_options": KEEPALIVE}
    return Redis.from_pool(_Pool.from_url(config.url, parser_class=_BoundedParser, **options, **over_tcp))


def _master(config: StreamConfig, options: dict[str, Any], stack: AsyncExitStack) -> Redis:
    """Returns a client of the server that the sentinels report as master."""
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
    """Returns the key of the stream of a partition's events. The braces keep all keys of a partition in one cluster slot."""
    return f"fundsvc:{{{partition}}}:in"


def pool_stream_key(pool: str) -> str:
    """Returns the key of the stream of a pool of the mutual."""
    return f"fundsvc:mutual:in:{{{pool}}}"


async def to_node_of(client: StreamClient, key: str) -> Mapping[str, Any]:
    """Returns options that send a command to the node of a key; looks up the nodes of a cluster if they are not known."""
    if not isinstance(client, RedisCluster):
        return {}
    await client.initialize()
    return {"target_nodes": [client.get_node_from_key(key)]}


async def is_append_only(client: StreamClient) -> bool:
    """Returns whether the server, or each primary of a cluster, has its append-only file enabled; raises StreamFault."""
    return all(one["aof_enabled"] for one in await _info(client, "persistence", "aof_enabled"))


class Memory(NamedTuple):
    """The memory that a server uses, and its limit: `maxmemory`, or the memory of its host without one. In bytes."""

    used: int
    limit: int


async def memory(client: StreamClient) -> Memory:
    """Returns the memory of the server, or of the fullest primary of a cluster; raises StreamFault."""
    found = [
        Memory(one["used_memory"], one["maxmemory"] or one["total_system_memory"])
        for one in await _info(client, "memory", "used_memory")
    ]
    return max(found, key=lambda one: one.used / one.limit)


async def _info(client: StreamClient, section: str, key: str) -> list[dict[str, Any]]:
    """Returns a section of INFO of the server, or of each primary of a cluster; `key` is a key of the section."""
    to_all = {"target_nodes": RedisCluster.PRIMARIES} if isinstance(client, RedisCluster) else {}
    with faults():
        info: dict[str, Any] = await client.execute_command("INFO", section, **to_all)
    return [info] if key in info else list(info.values())


async def drop_idle(client: StreamClient) -> None:
    """Closes the unused connections. If one has lost its server, the others may have too, unnoticed."""
    if isinstance(client, RedisCluster):
        for node in client.get_nodes():
            await node.disconnect_free_connections()
    else:
        await client.connection_pool.disconnect(inuse_connections=False)


_TIME = "return redis.call('TIME')"
"""A script, because a command without a key may reach any node of a cluster."""


async def server_time_ms(client: StreamClient, key: str) -> int:
    """Returns the time by the clock of the server of a key, which generates the ids; raises StreamFault."""
    with faults():
        seconds, microseconds = await client.eval(_TIME, 1, key)
    return int(seconds) * 1000 + int(microseconds) // 1000


async def server_version(client: StreamClient) -> str:
    """Returns name and version of the server, such as "Valkey 9.1.0" (of one node of a cluster); raises StreamFault."""
    with faults():
        await client.ping()
        info: dict[str, Any] = await client.info("server")
    one = info if "redis_version" in info else next(iter(info.values()))
    return f"Valkey {one['valkey_version']}" if "valkey_version" in one else f"Redis {one['redis_version']}"
