"""Connections to Redis or Valkey (single, Sentinel or Cluster), and the one place where its exceptions become a fault."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from fundsvc.config import StreamConfig

CONNECT_SECONDS = 5.0
"""As for the database: long enough for a busy server, short enough to notice that it is away."""

REPLY_SECONDS_MAX = 10.0
"""Longer than any blocking read of ours; a server that is silent for so long is away."""

Client = Redis | RedisCluster


class StreamFault(Exception):
    """The stream is away or refuses for now; read again from the stored offset, or append again, later."""


@contextmanager
def faults() -> Iterator[None]:
    """Turns what the driver raises when the stream is away into StreamFault; lets our own mistakes through."""
    try:
        yield
    except ResponseError as error:
        if str(error).startswith(
            ("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "OOM", "MISCONF", "TRYAGAIN", "NOREPLICAS")
        ):
            raise StreamFault(str(error)) from error
        raise
    except (RedisError, OSError, TimeoutError) as error:
        raise StreamFault(f"{type(error).__name__}: {error}") from error


@asynccontextmanager
async def open_client(config: StreamConfig) -> AsyncIterator[Client]:
    """A client for the configured server; it does not retry by itself, because who reads must learn of a reconnect."""
    client = _client(config)
    try:
        yield client
    finally:
        await client.aclose()


def _client(config: StreamConfig) -> Client:
    options: dict[str, Any] = {"socket_connect_timeout": CONNECT_SECONDS, "socket_timeout": REPLY_SECONDS_MAX, "protocol": 3}
    if config.mode == "cluster":
        cluster: RedisCluster = RedisCluster.from_url(config.url, **options)
        return cluster
    no_retry = Retry(NoBackoff(), 0)
    if config.mode == "sentinel":
        sentinels = [tuple(address.rsplit(":", 1)) for address in config.sentinels]
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            [(host, int(port)) for host, port in sentinels], **options
        )
        master: Redis = sentinel.master_for(config.sentinel_master, retry=no_retry, **options)
        return master
    single: Redis = Redis.from_url(config.url, retry=no_retry, **options)
    return single


def stream_key(partition: int) -> str:
    """The stream of a partition's events; the braces keep all keys of a partition in one cluster slot."""
    return f"fundsvc:{{{partition}}}:in"
