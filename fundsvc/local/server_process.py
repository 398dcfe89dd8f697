"""Runs a server as a process under a user without other rights. Later processes find the server by its pid file.

PostgreSQL refuses to run as root. If root starts a server, the server runs without capabilities as a user whose number no
account has. That user cannot pass the closed data directory or its parents, so it receives its directories as open descriptors.
Programs below a closed directory such as /root run from a copy.
"""

import hashlib
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from pwd import getpwuid
from typing import IO, Any, NamedTuple

import psutil
import structlog

START_SECONDS_MAX = 60.0
"""Recovery after a crash replays all writes since the last checkpoint, which may take a while."""

STOP_SECONDS_MAX = 3.0
"""A fast shutdown takes well under a second. After this time the server is killed, which loses nothing either."""

SERVER_USERS = range(61184, 65520)
"""Numbers of users without an account, by the convention of systemd's DynamicUser."""

PROGRAMS = Path("/var/lib/fundsvc-programs")
"""The directory to which root copies programs that another user cannot reach."""

READABLE = stat.S_IROTH | stat.S_IXOTH


log = structlog.get_logger()


class EmbeddedError(RuntimeError):
    """An embedded server cannot start. The message contains the reason and the remedy."""


class Program(NamedTuple):
    """The command of a server with full paths, and its directories; the first is the working directory.

    `user` is the number of the user and group of the process, None for the current user. `settings` go to its standard input.
    """

    command: Sequence[str]
    directories: Sequence[Path]
    user: int | None
    settings: str = ""

    def spawn(self, output: IO[bytes]) -> "subprocess.Popen[bytes]":
        """Starts the program in a separate session, so that Ctrl-C of the terminal does not reach it."""
        with self._arguments() as arguments:
            child = subprocess.Popen(**arguments, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True)
        assert child.stdin is not None, "it is a pipe"
        with suppress(BrokenPipeError), child.stdin as settings:  # The log contains why a server ended at once.
            settings.write(self.settings.encode())
        return child

    def run(self) -> None:
        """Runs the program to its end; raises EmbeddedError if it fails."""
        with self._arguments() as arguments:
            done = subprocess.run(**arguments, input=self.settings, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EmbeddedError(f"{Path(self.command[0]).name} failed: {(done.stderr or done.stdout).strip()[-1000:]}")

    @contextmanager
    def _arguments(self) -> Iterator[dict[str, Any]]:
        """Yields the arguments of subprocess. For another user, descriptors replace the directories."""
        if self.user is None:
            yield {"args": self.command, "cwd": self.directories[0]}
            return
        with ExitStack() as opened:
            descriptors = [_opened(directory, opened) for directory in self.directories]
            command = list(self.command)
            for directory, descriptor in zip(self.directories, descriptors, strict=True):
                command = [word.replace(str(directory), f"/proc/self/fd/{descriptor}") for word in command]
            yield {
                "args": command,
                "cwd": self.directories[0],
                "pass_fds": descriptors,
                "user": self.user,
                "group": self.user,
                "extra_groups": [],
            }


def _opened(directory: Path, opened: ExitStack) -> int:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    opened.callback(os.close, descriptor)
    return descriptor


class Server:
    """A server process, found by its pid file. Another process may have started it."""

    def __init__(self, name: str, program: Program, directory: Path, ready: Sequence[bytes], socket_path: Path) -> None:
        self._name = name
        self._program = program
        self._log = directory / f"{name}.log"
        self._pid_file = directory / f"{name}.pid"
        self._probe, self._answer = ready
        self._socket = socket_path

    @property
    def process(self) -> psutil.Process | None:
        """The server's process while it runs, else None.

        The working directory identifies it, because another process may reuse the number. The creation time would not do: it
        depends on the system clock.
        """
        try:
            process = psutil.Process(int(self._pid_file.read_text()))
            is_ours = process.cwd() == str(self._program.directories[0])
        except (FileNotFoundError, ValueError, psutil.Error):
            return None
        return process if is_ours else None

    def start(self) -> None:
        """Starts the server unless it runs, and waits until it responds."""
        if self.process is None:
            self._reap()
            with self._log.open("ab") as output:
                child = self._program.spawn(output)
            self._pid_file.write_text(str(child.pid))
            log.info("embedded server starts", server=self._name, directory=str(self._log.parent))
            child.returncode = 0  # The server may outlive this process: no wait, no warning.
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self._answers():
            if self.process is None or time.monotonic() > deadline:
                raise EmbeddedError(f"{self._name} did not start; {self._log} ends with:\n{self._log_tail()}")
            time.sleep(0.02)

    def interrupt(self) -> None:
        """Requests a stop of the server."""
        process = self.process
        if process is not None:
            process.send_signal(signal.SIGINT)

    def wait(self) -> None:
        """Waits for the end of a server whose stop was requested; kills it if that takes too long."""
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
        """Kills the server and its children, as a crash would."""
        process = self.process
        if process is not None:
            family = [process, *process.children(recursive=True)]
            for member in family:
                with suppress(psutil.NoSuchProcess):  # The children of a killed server end on their own.
                    member.kill()
            psutil.wait_procs(family, STOP_SECONDS_MAX)

    def _reap(self) -> None:
        """Reaps an ended child process. Until then its number is in use, and PostgreSQL takes it for a running server."""
        with suppress(FileNotFoundError, ValueError, ChildProcessError):
            os.waitpid(int(self._pid_file.read_text()), os.WNOHANG)

    def _answers(self) -> bool:
        """Returns whether the server responds on its socket, in its own protocol."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1)
                connection.connect(str(self._socket))
                connection.sendall(self._probe)
                received = b""
                while len(received) < len(self._answer) and (part := connection.recv(64)):
                    received += part
                return received.startswith(self._answer)
        except OSError:
            return False

    def _log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-8:])


def new_server_user() -> int:
    """Returns the number of a user without an account."""
    while True:
        number = secrets.choice(SERVER_USERS)
        try:
            getpwuid(number)
        except KeyError:
            return number


def give(directory: Path, user: int) -> None:
    """Changes the owner of a directory tree to a user and the group of the same number; follows no links."""
    try:
        os.chown(directory, user, user, follow_symlinks=False)
        for parent, directories, files in os.walk(directory):
            for name in (*directories, *files):
                os.chown(Path(parent, name), user, user, follow_symlinks=False)
    except OSError as error:
        raise EmbeddedError(
            f"{directory} cannot be given to user {user}, under which its server would run ({error.strerror}):"
            " run fundsvc as an ordinary user"
        ) from None


def reachable(program: Path) -> Path:
    """Returns a program that every user can run: in place, or in a copy of its package that belongs to root."""
    if all(above.stat().st_mode & stat.S_IXOTH for above in program.parents) and _is_open(program):
        return program
    package = next(above for above in program.parents if above.parent.name == "site-packages")
    found = program.stat()
    mark = hashlib.sha256(f"{program}:{found.st_size}:{found.st_mtime_ns}".encode()).hexdigest()[:16]
    copy = PROGRAMS / f"{package.name}-{mark}"
    try:
        if not copy.exists():
            _copy(package, copy)
        return copy / program.relative_to(package)
    except OSError as error:
        raise EmbeddedError(
            f"{program} cannot be run by users other than root, nor copied to {PROGRAMS} ({error}):"
            " install fundsvc where all users may read it, or run it as an ordinary user"
        ) from None


def _is_open(program: Path) -> bool:
    return program.stat().st_mode & READABLE == READABLE


def _copy(package: Path, copy: Path) -> None:
    """Copies a package atomically, readable for all users."""
    copy.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=copy.parent))
    try:
        shutil.copytree(package, new, dirs_exist_ok=True)
        for parent, directories, files in os.walk(new):
            for name in (*directories, *files, "."):
                found = Path(parent, name)
                if not found.is_symlink():
                    executable = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH if found.stat().st_mode & stat.S_IXUSR else 0
                    found.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH | stat.S_IWUSR | executable)
        new.rename(copy)
    except OSError:
        shutil.rmtree(new, ignore_errors=True)
        if not copy.exists():  # Another process may have copied it first.
            raise
