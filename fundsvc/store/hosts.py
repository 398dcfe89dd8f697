"""Connects to the right one of several PostgreSQL servers, all of which a DSN names.

asyncpg tries the hosts of a DSN one after the other within one time limit, so a first host that hangs is never passed. Here all
hosts are tried at the same time. Of those that answer, a primary is preferred to a standby, and the primary with the newest
timeline to one that was not stopped when another was promoted; then the order of the DSN decides.

A primary that has lost its synchronous standby accepts connections, but its commits wait for ever. If that standby is promoted,
no error ends them. So a process looks again and again (`leave_old_primary`) for a primary with a newer timeline. Without one, a
commit waits for its standby as long as before.
"""

import asyncio
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from weakref import WeakKeyDictionary

import asyncpg

GRACE_SECONDS = 0.5
"""How long the other hosts may take after the first one has answered."""

_STANDING = """
    SELECT CASE WHEN pg_is_in_recovery() THEN 0
                ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint END
"""
"""The timeline of a primary, from the name of its WAL file, which every role may read; 0 of a standby."""


_OPEN: WeakKeyDictionary[asyncpg.Connection, tuple[str, int]] = WeakKeyDictionary()
"""The open connections of this process that `dial` chose among several hosts: their DSN, and the timeline of their server."""

_ONE_AT_A_TIME = threading.Lock()
"""The lock of `_OPEN`: leases are kept in a thread."""


class Host(NamedTuple):
    """A server's address, or the directory of its socket."""

    name: str
    port: int | None


def hosts_of(dsn: str) -> list[Host]:
    """Returns the hosts of a DSN, in its authority or else in its parameters `host` and `port`."""
    parts = urlsplit(dsn)
    authority = parts.netloc.rpartition("@")[2]
    if authority:
        return [_host(one) for one in authority.split(",")]
    parameters = parse_qs(parts.query)
    names = [name for name in ",".join(parameters.get("host", [])).split(",") if name]
    ports = [int(port) for port in ",".join(parameters.get("port", [])).split(",") if port]
    one_port = ports[0] if ports else None
    return [Host(name, ports[place] if len(ports) == len(names) else one_port) for place, name in enumerate(names)]


def _host(text: str) -> Host:
    name, _, port = text.rpartition(":") if text.rpartition(":")[2].isdecimal() else (text, "", "")
    return Host(unquote(name).strip("[]"), int(port) if port else None)


async def dial(dsn: str, **options: Any) -> Any:
    """Connects to the best host of a DSN, with options of `asyncpg.connect`.

    Raises the error of the first host if none answers.
    """
    hosts = hosts_of(dsn)
    if len(hosts) < 2:  # noqa: PLR2004 - several
        return await asyncpg.connect(dsn, **options)
    dialling = [asyncio.create_task(_dial_one(dsn, host, options)) for host in hosts]
    try:
        waiting: set[asyncio.Task[_Answer]] = set(dialling)
        while waiting and not _answers(dialling):
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if waiting:
            await asyncio.wait(waiting, timeout=GRACE_SECONDS)
        answers = _answers(dialling)
    except BaseException:
        await _close(dialling)
        raise
    best = max(answers, key=lambda answer: answer.timeline, default=None)
    await _close(task for task in dialling if best is None or not task.done() or task.exception() or task.result() is not best)
    if best is None:
        return await dialling[0]  # raises the error of the first host
    with _ONE_AT_A_TIME:
        _OPEN[best.connection] = dsn, best.timeline
    return best.connection


async def leave_old_primary(dsn: str, **options: Any) -> int:
    """Ends the connections of this process to hosts of a DSN if they are older primaries than the best host, which it dials.

    Returns their number, always 0 for a DSN of one host. A statement on such a connection fails, so its caller dials again.
    """
    if len(hosts_of(dsn)) < 2:  # noqa: PLR2004 - several
        return 0
    found = await dial(dsn, **options)
    with _ONE_AT_A_TIME:
        _, newest = _OPEN[found]
        old = [
            one for one, (place, timeline) in _OPEN.items() if place == dsn and 0 < timeline < newest and not one.is_closed()
        ]
    for connection in (found, *old):
        # Its own loop, which may be that of another thread.
        connection._loop.call_soon_threadsafe(connection.terminate)  # noqa: SLF001 - the driver has no other way to it
    return len(old)


class _Answer(NamedTuple):
    connection: asyncpg.Connection
    timeline: int


async def _dial_one(dsn: str, host: Host, options: dict[str, Any]) -> _Answer:
    connection = await asyncpg.connect(dsn, host=host.name, port=host.port, **options)
    try:
        return _Answer(connection, await connection.fetchval(_STANDING))
    except BaseException:
        connection.terminate()
        raise


def _answers(dialling: Iterable["asyncio.Task[_Answer]"]) -> list[_Answer]:
    """Returns the answers so far, in the order of the hosts."""
    return [task.result() for task in dialling if task.done() and not task.cancelled() and not task.exception()]


async def _close(dialling: Iterable["asyncio.Task[_Answer]"]) -> None:
    """Closes connections that are not used, and those that are still made."""
    for task in dialling:
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            (await task).connection.terminate()
