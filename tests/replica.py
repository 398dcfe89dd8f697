"""A physical replica of the tests' PostgreSQL, which can be held up as a real one may be."""

import asyncio
import signal
import subprocess
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import pytest
from conftest import connected, dsn_for

from fundsvc.local.server_process import Program, Server, give
from fundsvc.local.servers import EmbeddedServers, _postgres_binary, _postgres_probe

PROCESSES = {"replay": "startup", "receiver": "walreceiver"}


class Replica:
    """A hot standby that streams from the tests' server."""

    def __init__(self, servers: EmbeddedServers, directory: Path) -> None:
        self._primary = servers
        self._run, data = directory / "run", directory / "data"
        for made in (directory, self._run, data):
            made.mkdir(mode=0o700)
        copy = [str(_postgres_binary("pg_basebackup")), "-D", str(data), "-R", "-c", "fast", "--no-sync"]
        subprocess.run([*copy, "-h", str(servers._run), "-U", "postgres"], check=True, capture_output=True, cwd="/")
        if servers._user is not None:
            for made in (self._run, data):
                give(made, servers._user)
        asyncio.run(self._admit_replica())
        settings = ("-D", str(data), "-k", str(self._run), "--listen_addresses=", "--fsync=off")
        command = [str(_postgres_binary("postgres")), *settings, f"--primary_conninfo=user=replica host={servers._run}"]
        program = Program(command, (data, self._run, servers._run), servers._user)
        self.server = Server("replica", program, directory, (_postgres_probe(), b"R"), self._run / ".s.PGSQL.5432")

    async def _admit_replica(self) -> None:
        """Has the primary admit a role for streaming: the replica runs as a user without an account, who is nobody's peer."""
        access = self._primary.directory / "postgres" / "pg_hba.conf"
        access.write_text("local replication replica trust\n" + access.read_text())
        async with connected(self._primary.owner_dsn) as connection:
            await connection.execute("CREATE ROLE replica LOGIN REPLICATION")
            await connection.execute("SELECT pg_reload_conf()")

    def dsn(self, dsn: str) -> str:
        """A DSN of the primary's, at the replica."""
        return dsn.replace(str(self._primary._run), str(self._run))

    async def has(self, dsn: str) -> bool:
        """Whether a database of the primary's is there."""
        with suppress(asyncpg.PostgresError):
            async with connected(self.dsn(dsn)):
                return True
        return False

    @asynccontextmanager
    async def held_up(self, how: str):
        """While the context is open, the replica replays nothing new: it is paused, or a process of it stands still."""
        if how == "paused":
            await self._execute("SELECT pg_wal_replay_pause()")
            try:
                yield
            finally:
                await self._execute("SELECT pg_wal_replay_resume()")
            return
        children = self.server.process.children(recursive=True)
        (process,) = [child for child in children if PROCESSES[how] in " ".join(child.cmdline())]
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    async def _execute(self, statement: str) -> None:
        async with connected(self.dsn(dsn_for(self._primary.owner_dsn, "postgres"))) as connection:
            await connection.execute(statement)


@pytest.fixture(scope="session")
def replica(servers, template, short_directory):
    """A replica of the tests' server, made when it is first needed."""
    made = Replica(servers, short_directory / "replica")
    made.server.start()
    yield made
    made.server.stop()
