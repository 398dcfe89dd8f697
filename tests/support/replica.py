"""A physical replica of the tests' PostgreSQL. Tests can delay its replay."""

import asyncio
import signal
import subprocess
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import pytest
from conftest import connected, dsn_for

from fundsvc.local.server_process import Program, Server, give
from fundsvc.local.servers import EmbeddedServers, postgres_binary, postgres_probe

PROCESSES = {"replay": "startup", "receiver": "walreceiver"}


class Replica:
    """A hot standby that streams from the tests' server."""

    def __init__(self, servers: EmbeddedServers, directory: Path) -> None:
        self._primary = servers
        self._run, data = directory / "run", directory / "data"
        for made in (directory, self._run, data):
            made.mkdir(mode=0o700)
        copy = [str(postgres_binary("pg_basebackup")), "-D", str(data), "-R", "-c", "fast", "--no-sync"]
        subprocess.run([*copy, "-h", str(servers.run_directory), "-U", "postgres"], check=True, capture_output=True, cwd="/")
        if servers.user is not None:
            for made in (self._run, data):
                give(made, servers.user)
        asyncio.run(self._admit_replica())
        settings = ("-D", str(data), "-k", str(self._run), "--listen_addresses=", "--fsync=off")
        command = [str(postgres_binary("postgres")), *settings, f"--primary_conninfo=user=replica host={servers.run_directory}"]
        program = Program(command, (data, self._run, servers.run_directory), servers.user)
        self.server = Server("replica", program, directory, (postgres_probe(), b"R"), self._run / ".s.PGSQL.5432")

    async def _admit_replica(self) -> None:
        """Creates a role for streaming on the primary. The replica's user has no account, so peer authentication cannot admit
        it.
        """
        access = self._primary.directory / "postgres" / "pg_hba.conf"
        access.write_text("local replication replica trust\n" + access.read_text())
        async with connected(self._primary.owner_dsn) as connection:
            await connection.execute("CREATE ROLE replica LOGIN REPLICATION")
            await connection.execute("SELECT pg_reload_conf()")

    def dsn(self, dsn: str) -> str:
        """Returns the replica's DSN for a DSN of the primary."""
        return dsn.replace(str(self._primary.run_directory), str(self._run))

    async def has(self, dsn: str) -> bool:
        """Returns whether a database of the primary exists on the replica."""
        with suppress(asyncpg.PostgresError):
            async with connected(self.dsn(dsn)):
                return True
        return False

    @asynccontextmanager
    async def held_up(self, how: str):
        """Stops the replay during the context: the replica is paused, or one of its processes is stopped."""
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
    """A replica of the tests' server, created on first use."""
    made = Replica(servers, short_directory / "replica")
    made.server.start()
    yield made
    made.server.stop()
