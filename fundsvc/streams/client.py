"""Connections to Redis or Valkey (single, Sentinel or Cluster), and the one place where its exceptions become a fault."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    ClusterError,
    InvalidResponse,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fundsvc.config import StreamConfig

CONNECT_SECONDS = 5.0
"""As for the database: long enough for a busy server, short enough to notice that it is away."""

REPLY_SECONDS_MAX = 10.0
"""Longer than any blocking read of ours; a server that is silent for so long is away."""

LOST_CONNECTION = "the handler is closed"
"""What uvloop says, in a RuntimeError, of a write to a connection that was lost a moment ago."""

Client = Redis | RedisCluster

_FAULTS = (
    RedisConnectionError,
    RedisTimeoutError,
    InvalidResponse,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
    ClusterError,
    RedisClusterException,
    OSError,
    TimeoutError,
)
_REFUSED_FOR_NOW = re.compile(r"(^|caused error: \W*)(MISCONF|NOREPLICAS|BUSY) ")
"""Answers that the driver has no exception for: the disk is full, replicas are away, a script runs."""


class _TellsOfLoss:
    """A pool that says once when an idle connection was lost; the driver's own would silently make another.

    A server that went away may have come back without its tail: who appends or reads must hear of it.
    """

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        if connection.is_connected and await connection.can_read():
            await connection.disconnect()
            raise RedisConnectionError("the connection was lost since it was last used")
        await super().ensure_connection(connection)  # type: ignore[misc]


class _Pool(_TellsOfLoss, ConnectionPool):
    pass


class _SentinelPool(_TellsOfLoss, SentinelConnectionPool):
    pass


class StreamFault(Exception):
    """The stream is away or refuses for now; read again from the stored offset, or append again, later."""


@contextmanager
def faults() -> Iterator[None]:
    """Turns what the driver raises when the stream is away into StreamFault; lets our own mistakes through.

    Raises a cancellation that the driver swallowed: it sends by asyncio.wait_for, which before Python 3.12 forgets one that
    comes just as the sending is done. A reader that is not told to end would never let its partition be loaded again.
    """
    try:
        yield
        if (task := asyncio.current_task()) and task.cancelling():
            raise asyncio.CancelledError
    except _FAULTS as error:
        raise StreamFault(f"{type(error).__name__}: {error}") from error
    except RuntimeError as error:
        if LOST_CONNECTION not in str(error):
            raise
        raise StreamFault(str(error)) from error
    except ResponseError as error:
        if _REFUSED_FOR_NOW.search(str(error)):
            raise StreamFault(str(error)) from error
        raise


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
            cluster: RedisCluster = RedisCluster.from_url(config.url, **options)
            stack.push_async_callback(_close_cluster, cluster)
            yield cluster
        else:
            single = _master(config, options, stack) if config.mode == "sentinel" else _single(config, options)
            stack.push_async_callback(single.aclose)
            yield single


async def _close_cluster(cluster: RedisCluster) -> None:
    """Closes all connections; the driver's own way leaves them open when it is about to look the nodes up again."""
    await cluster.aclose()
    for nodes in ("nodes_cache", "startup_nodes"):
        await cluster.nodes_manager.aclose(nodes)


def _single(config: StreamConfig, options: dict[str, Any]) -> Redis:
    return Redis.from_pool(_Pool.from_url(config.url, **options))


def _master(config: StreamConfig, options: dict[str, Any], stack: AsyncExitStack) -> Redis:
    """A client of whichever server the sentinels call the master."""
    addresses = [address.rsplit(":", 1) for address in config.sentinels]
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        [(host, int(port)) for host, port in addresses], sentinel_kwargs=options
    )
    for watcher in sentinel.sentinels:
        stack.push_async_callback(watcher.aclose)
    master: Redis = sentinel.master_for(config.sentinel_master, connection_pool_class=_SentinelPool, **options)
    return master


def stream_key(partition: int) -> str:
    """The stream of a partition's events; the braces keep all keys of a partition in one cluster slot."""
    return f"fundsvc:{{{partition}}}:in"


async def server_version(client: Client) -> str:
    """What answers, and its version, such as "Valkey 9.1.0" (of a cluster, one node's); raises StreamFault."""
    with faults():
        await client.ping()
        told: dict[str, Any] = await client.info("server")
    one = told if "redis_version" in told else next(iter(told.values()))
    return f"Valkey {one['valkey_version']}" if "valkey_version" in one else f"Redis {one['redis_version']}"
