"""Connections to the ledger's database. Only this module converts driver exceptions into faults."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from importlib.resources import files
from typing import Any

import asyncpg
from asyncpg.exceptions._base import DataError as InvalidValue
from asyncpg.pool import PoolConnectionProxy

from fundsvc.store.cells import Cells
from fundsvc.store.hosts import dial, leave_old_primary

CONNECT_SECONDS = 5.0
"""Long enough for a busy server, and short enough for a standby to notice an unreachable server."""

COMMAND_SECONDS = 60.0
"""No statement of the service takes this long on a healthy server. A longer one counts as a fault."""

KEEPALIVE = {socket.TCP_KEEPIDLE: 2, socket.TCP_KEEPINTVL: 1, socket.TCP_KEEPCNT: 3, socket.TCP_USER_TIMEOUT: 5000}
"""Idle connections to a lost peer are detected within five seconds ..."""

_SERVER_KEEPALIVE = {
    "tcp_keepalives_idle": "2",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "5000",
}
"""... and by the server, which holds the locks of a lost client. The server ignores these settings for a Unix socket."""

IDLE_IN_TRANSACTION_MS = 3000
"""PostgreSQL disconnects a stopped process that holds a lock after this time, so that another can take over its partition."""

_IDLE_IN_TRANSACTION = {"idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_MS)}

LOST_CONNECTION = "the handler is closed"
"""The text of uvloop's RuntimeError for a write to a connection that was just lost."""

CellPool = asyncpg.Pool
"""A connection pool of one database."""

Pool = CellPool | Cells
"""What reads use: the pool of the only database of a ledger, or those of its cells."""

_FAULTS = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # The connection ended; the driver has not processed it yet.
)
_REFUSALS = ("22", "23")
"""SQLSTATE classes that a value causes: data exceptions and violated constraints ..."""

_ENCODING = "22P05"
"""... except text that the encoding of this database cannot represent. Another database may accept it."""

_MISTAKES = ("42601", "42702", "42704", "42803", "42804", "42846", "42883", "42P02", "42P08", "42P10", "42P18")
"""SQLSTATEs of statements that every database rejects. Time or an operator can repair all other server errors: lost
connections, exhausted resources, time limits, a read-only database, missing rights, a missing table, an unreadable page.
"""


_DURABLE = ("on", "remote_write", "remote_apply")
"""Values of `synchronous_commit` with which a confirmed commit is on the server's disk."""

_PLANNING = {"plan_cache_mode": "force_custom_plan", "enable_sort": "off", "enable_bitmapscan": "off"}
"""Each requested order has an index, and a page reads the index until it has enough rows. With outdated statistics of a growing
ledger, or a generic plan, PostgreSQL would fetch and sort whole contracts for ten rows."""


class StoreFault(Exception):
    """The database is unreachable or refuses; time or an operator can repair it. A commit that raised this may have been
    written.
    """


class CellAway(StoreFault):
    """One of several cells is unreachable. `public_text` is safe to publish."""

    def __init__(self, cell: str, cause: str) -> None:
        super().__init__(f"cell {cell} is away: {cause}")
        self.cell = cell
        self.public_text = f"the database of cell {cell} is unreachable: retry shortly"


class StoreRefusal(Exception):
    """The database rejects a value, and would again; nothing was written."""


def statements(package: str) -> dict[str, str]:
    """Returns the statements of the file queries.sql of a package by name."""
    blocks = files(package).joinpath("queries.sql").read_text().split("-- name: ")[1:]
    return dict(block.split("\n", 1) for block in blocks)


SQL = statements("fundsvc.store")
"""The statements of queries.sql by name."""


@contextmanager
def faults() -> Iterator[None]:
    """Converts driver errors of an unreachable or refusing database into StoreFault.

    Programming errors and errors that a value causes pass through.
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
    """Converts errors that a value causes, in the driver or the server, into StoreRefusal."""
    try:
        yield
    except (asyncpg.PostgresError, InvalidValue) as error:
        if not _is_value(error):
            raise
        # The driver's detail quotes the row, which may contain an account.
        raise StoreRefusal(f"{type(error).__name__}: {error.args[0]}") from error


def _is_value(error: BaseException) -> bool:
    """Whether a value caused an error: the server works, and settlement continues without that value."""
    if isinstance(error, asyncpg.PostgresError):
        return _is_refusal(error)
    return isinstance(error, StoreRefusal | InvalidValue)


def _is_refusal(error: asyncpg.PostgresError) -> bool:
    state = str(error.sqlstate)
    return state.startswith(_REFUSALS) and state != _ENCODING


@asynccontextmanager
async def connect(
    dsn: str,
    name: str,
    command_seconds: float | None = COMMAND_SECONDS,
    parameters: Mapping[str, str] = _IDLE_IN_TRANSACTION,
) -> AsyncIterator[asyncpg.Connection]:
    """Opens one connection with parameters of the session, and closes it on exit. pg_stat_activity shows `name`, which
    identifies the sessions of a stopped owner.
    """
    with faults():
        connection = await dial(
            dsn,
            timeout=CONNECT_SECONDS,
            command_timeout=command_seconds,
            server_settings={"application_name": name},
        )
    try:
        with faults():
            await _prepare(connection, parameters)
        yield connection
    finally:
        connection.terminate()


async def follow_primary(dsn: str) -> int:
    """Ends the connections of this process to primaries of a DSN that are older than the newest one; returns their number.

    Does nothing while no host answers.
    """
    with suppress(StoreFault), faults():
        return await leave_old_primary(dsn, timeout=CONNECT_SECONDS, server_settings={"application_name": "fundsvc primary"})
    return 0


@asynccontextmanager
async def open_pool(dsn: str, connections_max: int, command_seconds: float = COMMAND_SECONDS) -> AsyncIterator[asyncpg.Pool]:
    """Opens a pool for reads. It connects on first use and survives a restart of the server.

    On exit it closes connections without waiting for the server, which may not respond.
    """
    pool = asyncpg.create_pool(  # type: ignore[call-overload]
        dsn,
        connect=dial,
        min_size=0,
        max_size=connections_max,
        timeout=CONNECT_SECONDS,
        command_timeout=command_seconds,
        server_settings={"application_name": "fundsvc reader"},
        init=partial(_prepare, parameters=_PLANNING),
        reset=_leave_as_is,
    )
    await pool
    try:
        yield pool
    finally:
        pool.terminate()


async def _prepare(connection: Any, parameters: Mapping[str, str]) -> None:
    """Sets keep-alives and parameters of a new connection, and makes its commits wait for the disk.

    The parameters are not in the start-up packet, where a connection pooler would refuse them. `synchronous_commit` may be off
    for the server, the database or the role. Settings that also wait for standbys stay. Raises StoreFault if the setting cannot
    be changed.
    """
    end = connection._transport.get_extra_info("socket")  # noqa: SLF001 - the driver has no other way to it
    if end.family != socket.AF_UNIX:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            end.setsockopt(socket.IPPROTO_TCP, option, value)
    given = {**parameters, **_SERVER_KEEPALIVE}
    waits_for = await connection.fetchval(SQL["set_session"], list(given), list(given.values()))
    if waits_for not in _DURABLE:
        raise StoreFault(f"synchronous_commit is {waits_for} although it was set to on: a crash may lose commits")


async def _leave_as_is(_connection: object) -> None:
    """Skips the reset of a connection. No statement of the service changes a session, and a reset costs a round trip."""


def pool_of(pool: Pool, partition: int) -> CellPool:
    """Returns the pool of the database that holds a partition."""
    return pool.of(partition) if isinstance(pool, Cells) else pool


def pool_of_symbol(pool: Pool, symbol: str) -> CellPool:
    """Returns the pool of the database that holds a contract, by its symbol or ledger key."""
    return pool.of_symbol(symbol) if isinstance(pool, Cells) else pool


def main_pool(pool: Pool) -> CellPool:
    """Returns the pool of the first cell, for what belongs to no partition."""
    return pool.main if isinstance(pool, Cells) else pool


@asynccontextmanager
async def acquired(pool: CellPool) -> AsyncIterator[PoolConnectionProxy]:
    """Acquires a connection of a pool. A failure closes it, because a reset would wait for the server."""
    async with pool.acquire() as connection:
        try:
            yield connection
        except BaseException:
            _close(connection)
            raise


@asynccontextmanager
async def transaction(
    connection: asyncpg.Connection | PoolConnectionProxy, seconds: float | None = COMMAND_SECONDS
) -> AsyncIterator[None]:
    """Runs all statements of the block in one transaction, within some seconds or without a limit.

    A refusal leaves the connection open. Any other failure closes it, so the server rolls back without a wait.
    """
    try:
        async with _noticing_loss(connection, seconds):
            await connection.execute("BEGIN")
            yield
            await connection.execute("COMMIT")
    except BaseException as error:
        if not (_is_value(error) and await _roll_back(connection)):
            _close(connection)
        raise


@asynccontextmanager
async def single_statement(connection: asyncpg.Connection | PoolConnectionProxy) -> AsyncIterator[None]:
    """Runs the only statement of the block, which is a transaction of its own.

    A refusal leaves the connection open; any other failure closes it.
    """
    try:
        yield
    except BaseException as error:
        if not _is_value(error):
            _close(connection)
        raise


async def _roll_back(connection: asyncpg.Connection | PoolConnectionProxy) -> bool:
    """Rolls back a transaction that the server refused; returns whether it succeeded."""
    try:
        await connection.execute("ROLLBACK")
    except (asyncpg.PostgresError, *_FAULTS):
        return False
    return True


@asynccontextmanager
async def snapshot(connection: asyncpg.Connection | PoolConnectionProxy) -> AsyncIterator[None]:
    """Runs the statements of the block in one read-only snapshot. Requires an acquired connection, which a failure closes."""
    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    yield
    await connection.execute("COMMIT")


@asynccontextmanager
async def _noticing_loss(connection: asyncpg.Connection | PoolConnectionProxy, seconds: float | None) -> AsyncIterator[None]:
    """Raises TimeoutError if the connection is lost. Without it, the driver's COPY would wait for ever to send more."""
    async with asyncio.timeout(seconds) as limit:

        def lost(_connection: object) -> None:
            with suppress(RuntimeError):  # The block has ended.
                limit.reschedule(asyncio.get_running_loop().time())

        connection.add_termination_listener(lost)
        try:
            yield
        finally:
            with suppress(asyncpg.InterfaceError):  # The pool has taken it back.
                connection.remove_termination_listener(lost)


def _close(connection: asyncpg.Connection | PoolConnectionProxy) -> None:
    with suppress(asyncpg.InterfaceError):  # The pool has taken it back.
        connection.terminate()
