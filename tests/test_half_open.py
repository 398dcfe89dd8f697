"""Connections that a router forgot: they stay open, and nothing comes through any more."""

import asyncio
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from conftest import connected, with_section
from eventually import eventually
from ledgers import fill, listing
from test_engine import running

from fundsvc.streams.client import open_client
from fundsvc.streams.producer import Producer
from tests.crash.proxy import Proxy
from tests.crash.world import POSTGRES_SOCKET

SETTLED_SECONDS_MAX = 20.0
"""A lease runs out in 3 s and is taken anew a second later; the rest is for a busy machine. A statement may take 60 s."""


@contextmanager
def proxied(config):
    """The configuration of a service that reaches PostgreSQL through a proxy, and the proxy."""
    directory = parse_qs(urlsplit(config.database.dsn).query)["host"][0]
    with tempfile.TemporaryDirectory(prefix="half-") as listens:
        proxy = Proxy(Path(listens) / POSTGRES_SOCKET, Path(directory) / POSTGRES_SOCKET)
        proxy.start()
        try:
            yield with_section(config, "database", dsn=config.database.dsn.replace(directory, listens)), proxy
        finally:
            proxy.stop()


async def test_an_engine_whose_connections_are_half_open_settles_on_within_seconds(config):
    with proxied(config) as (through, proxy):
        async with running(through), open_client(config.stream) as client, connected(config.database.dsn) as ledger:
            producer = Producer(client, 1)
            await producer.append([listing("AAA"), fill("AAA", 1, 5)])
            await eventually(lambda: ledger.fetchval("SELECT seq = 1 FROM funds"))
            await asyncio.sleep(2)  # until each chore has a connection of the pool
            assert proxy.swallow() > 3
            began = time.monotonic()
            await producer.append([fill("AAA", 2, 5)])
            while not await ledger.fetchval("SELECT seq = 2 FROM funds"):
                assert time.monotonic() - began < SETTLED_SECONDS_MAX
                await asyncio.sleep(0.1)
