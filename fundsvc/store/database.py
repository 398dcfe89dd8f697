"""Connections to the ledger's database, and the one place where a driver's exception becomes a fault."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib.resources import files
from typing import Any

import asyncpg
from asyncpg.exceptions._base import DataError as InvalidValue
from asyncpg.pool import PoolConnectionProxy

CONNECT_SECONDS = 5.0
"""Long enough for a busy server, short enough for a standby to notice that it should wait instead."""

COMMAND_SECONDS = 60.0
"""No statement of the service takes this long on a healthy server; one that does is a fault, not a wait."""

KEEPALIVE = {socket.TCP_KEEPIDLE: 2, socket.TCP_KEEPINTVL: 1, socket.TCP_KEEPCNT: 3, socket.TCP_USER_TIMEOUT: 5000}
"""Connections whose other end is gone are noticed within five seconds, also where nothing is asked ..."""

_SERVER_KEEPALIVE = {
    "tcp_keepalives_idle": "2",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "5000",
}
"""... and by the server, which holds the locks of a client that is gone. Over a Unix socket it ignores them."""

IDLE_IN_TRANSACTION_MS = 3000
"""A stopped process that holds a lock is cut off after this long, so that another can take its partition over."""

LOST_CONNECTION = "the handler is closed"
"""What uvloop says, in a RuntimeError, of a write to a connection that was lost a moment ago."""

Pool = asyncpg.Pool
"""A pool of connections for reading and for background work."""

_FAULTS = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # of a connection whose end the driver has been told of, but has not seen yet
)
_REFUSALS = ("22", "23")
"""SQLSTATE classes of what a value brings about: data exceptions and violated constraints ..."""

_ENCODING = "22P05"
"""... but for text that the encoding of this database has no character for: another database takes it."""

_MISTAKES = ("42601", "42702", "42704", "42803", "42804", "42846", "42883", "42P02", "42P08", "42P10", "42P18")
"""SQLSTATEs of a statement that no database takes. Everything else that the server answers time or an operator heals: a lost
connection, resources, time limits, a database that is read-only, missing rights, a missing table, an unreadable page."""


_DURABLE = ("on", "remote_write", "remote_apply")
"""Values of `synchronous_commit` with which a commit that was answered is on the server's disk."""

_PLANNING = {"plan_cache_mode": "force_custom_plan", "enable_sort": "off", "enable_bitmapscan": "off"}
"""Every order asked for has its index, which a page must follow and stop early: statistics that lag behind a ledger that
grows fast (or a plan for any parameters) would have whole contracts fetched and sorted for ten rows."""


class StoreFault(Exception):
    """The database is away or refuses, which time or an operator heals; nothing was written that is not known to be written."""


class StoreRefusal(Exception):
    """The database refuses a value, and would again; nothing was written."""


def _statements() -> dict[str, str]:
    blocks = files("fundsvc.store").joinpath("queries.sql").read_text().split("-- name: ")[1:]
    return dict(block.split("\n", 1) for block in blocks)


SQL = _statements()
"""The statements of queries.sql by name."""


@contextmanager
def faults() -> Iterator[None]:
    """Turns what the driver raises when the database is away or refuses into StoreFault; lets mistakes of ours through, and
    what a value brought about.
    """
    try:
        yield
    except InvalidValue:
        raise
    except _FAULTS as error:
        raise StoreFault(f"{type(error).__name__}: {error}") from error
    except RuntimeError as error:
        if LOST_CONNECTION not in str(error):
            raise
        raise StoreFault(str(error)) from error
    except asyncpg.PostgresError as error:
        if _is_refusal(error) or error.sqlstate in _MISTAKES:
            raise
        raise StoreFault(f"{type(error).__name__}: {error}") from error


@contextmanager
def refusals() -> Iterator[None]:
    """Turns into StoreRefusal what the driver or the server raises because of a value."""
    try:
        yield
    except (asyncpg.PostgresError, InvalidValue) as error:
        if not isinstance(error, InvalidValue) and not _is_refusal(error):
            raise
        # Without the driver's detail, which quotes the row.
        raise StoreRefusal(f"{type(error).__name__}: {error.args[0]}") from error


def _is_refusal(error: asyncpg.PostgresError) -> bool:
    state = str(error.sqlstate)
    return state.startswith(_REFUSALS) and state != _ENCODING


@asynccontextmanager
async def connect(dsn: str, name: str, command_seconds: float = COMMAND_SECONDS) -> AsyncIterator[asyncpg.Connection]:
    """One connection, closed on leaving; `name` shows in pg_stat_activity and is how a stopped owner is found."""
    with faults():
        connection = await asyncpg.connect(
            dsn,
            timeout=CONNECT_SECONDS,
            command_timeout=command_seconds,
            server_settings={
                "application_name": name,
                "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_MS),
                **_SERVER_KEEPALIVE,
            },
        )
    try:
        with faults():
            await _prepare(connection)
        yield connection
    finally:
        connection.terminate()


@asynccontextmanager
async def open_pool(dsn: str, connections_max: int, command_seconds: float = COMMAND_SECONDS) -> AsyncIterator[asyncpg.Pool]:
    """A pool for reading; it connects when first used and outlives a restart of the server.

    On leaving, connections are closed without a goodbye: a server that does not answer must not hold up the end.
    """
    pool = asyncpg.create_pool(
        dsn,
        min_size=0,
        max_size=connections_max,
        timeout=CONNECT_SECONDS,
        command_timeout=command_seconds,
        server_settings={"application_name": "fundsvc reader", **_PLANNING, **_SERVER_KEEPALIVE},
        init=_prepare,
        reset=_leave_as_is,
    )
    await pool
    try:
        yield pool
    finally:
        pool.terminate()


async def _prepare(connection: Any) -> None:
    """Has a new connection notice that its other end is gone, and its commits wait for the disk.

    `synchronous_commit` may be off for the server, the database or the role: what is announced must be durable. Settings that
    wait for standbys too are left as they are.
    """
    end = connection._transport.get_extra_info("socket")  # noqa: SLF001 - the driver has no other way to it
    if end.family != socket.AF_UNIX:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            end.setsockopt(socket.IPPROTO_TCP, option, value)
    waits_for = await connection.fetchval(SQL["commit_to_disk"])
    if waits_for not in _DURABLE:
        raise StoreFault(f"synchronous_commit is {waits_for} although it was set to on: commits may be lost")


async def _leave_as_is(_connection: object) -> None:
    """No statement here changes a session: to reset it all the same would be a round trip more for each one."""


@asynccontextmanager
async def acquired(pool: asyncpg.Pool) -> AsyncIterator[PoolConnectionProxy]:
    """A connection of a pool, closed if what is done with it fails: to clean it up would mean to wait for the server."""
    async with pool.acquire() as connection:
        try:
            yield connection
        except BaseException:
            _close(connection)
            raise


@asynccontextmanager
async def transaction(connection: asyncpg.Connection | PoolConnectionProxy) -> AsyncIterator[None]:
    """All of the statements within, or none. A failure closes the connection: the server rolls back, nobody waits for it."""
    try:
        async with _noticing_loss(connection):
            await connection.execute("BEGIN")
            yield
            await connection.execute("COMMIT")
    except BaseException:
        _close(connection)
        raise


@asynccontextmanager
async def snapshot(connection: asyncpg.Connection | PoolConnectionProxy) -> AsyncIterator[None]:
    """All of the statements within see the ledger at one moment. A lent connection, which is closed after a failure."""
    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    yield
    await connection.execute("COMMIT")


@asynccontextmanager
async def _noticing_loss(connection: asyncpg.Connection | PoolConnectionProxy) -> AsyncIterator[None]:
    """Raises TimeoutError when the connection is lost: the driver's COPY, while it waits to send more, would wait for ever."""
    async with asyncio.timeout(COMMAND_SECONDS) as limit:

        def lost(_connection: object) -> None:
            with suppress(RuntimeError):  # It is over already.
                limit.reschedule(asyncio.get_running_loop().time())

        connection.add_termination_listener(lost)
        try:
            yield
        finally:
            with suppress(asyncpg.InterfaceError):  # It was a pool's, which has taken it back.
                connection.remove_termination_listener(lost)


def _close(connection: asyncpg.Connection | PoolConnectionProxy) -> None:
    with suppress(asyncpg.InterfaceError):  # It was a pool's, which has taken it back.
        connection.terminate()
