"""Checks the sessions, the version, the durability settings and the archiving of a database."""

from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from fundsvc.store.database import CONNECT_SECONDS, SQL, Pool, connect, faults
from fundsvc.store.hosts import dial
from fundsvc.store.reader import fetch

SESSION_ROUNDS = 5
"""Two connections alternate so often. A pooler in transaction mode without other clients is recognised in the first round."""


async def check_sessions(dsn: str) -> None:
    """Raises ValueError if each connection does not have a server process of its own; raises StoreFault.

    A pooler in transaction or statement mode assigns another process to each transaction, so settings and locks of a session
    would be lost. A pooler reports a process number of its own, so one statement recognises that there is none.
    """
    async with AsyncExitStack() as stack:
        with faults():
            first = await _dial(dsn, stack)
            if await _process(first) == first.get_server_pid():
                return
            second = await _dial(dsn, stack)
            processes: dict[Any, set[int]] = {first: set(), second: set()}
            for _ in range(SESSION_ROUNDS):
                for connection in (
                    first,
                    first,
                    second,
                ):  # A pooler that uses its servers in turn gives the second use another.
                    processes[connection].add(await _process(connection))
    if len(processes[first]) > 1 or len(processes[second]) > 1 or processes[first] & processes[second]:
        raise ValueError(
            "the connection pooler of the database gives each transaction another session, which would lose settings and locks:"
            " set pool_mode = session for this database, or let the DSN name PostgreSQL itself"
        )


async def _dial(dsn: str, stack: AsyncExitStack) -> Any:
    """Opens a connection without named statements, which also works without a session."""
    connection = await dial(dsn, timeout=CONNECT_SECONDS, command_timeout=CONNECT_SECONDS, statement_cache_size=0)
    stack.callback(connection.terminate)
    return connection


async def _process(connection: Any) -> int:
    """Returns the number of the server process that runs a statement."""
    number: int = await connection.fetchval(SQL["session_process"])
    return number


async def server_version(dsn: str) -> str:
    """Returns name and version of the server, such as "PostgreSQL 18.1"; raises StoreFault."""
    async with connect(dsn, "fundsvc config check") as connection:
        version = connection.get_server_version()
    return f"PostgreSQL {version.major}.{version.minor}"


async def weak_settings(primary: Pool) -> list[str]:
    """Returns the settings that are off and without which a crash may lose commits; raises StoreFault."""
    return [row["name"] for row in await fetch(primary, "weak_settings")]


class Archiving(NamedTuple):
    """Whether the last attempt to archive the write-ahead log failed, and when one last succeeded (seconds, 0 for never)."""

    failing: bool
    archived: float


async def archiving(primary: Pool) -> Archiving:
    """Returns the state of the archiving; raises StoreFault."""
    (row,) = await fetch(primary, "archiving")
    return Archiving(row["failing"], row["archived"])
