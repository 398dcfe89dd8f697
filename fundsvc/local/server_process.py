"""Runs a server as a process under a user without other rights. Any later process finds the server by its pid file.

PostgreSQL refuses to run as root. Where root starts a server, it runs as a user of its own, whose number no account has, and
keeps no capability. That user can pass neither the closed data directory nor what lies above it. So it gets its directories as
open descriptors, and its programs from a copy where they lie below a closed directory such as /root.
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

START_SECONDS_MAX = 60.0
"""Recovery after a crash replays what was written since the last checkpoint; that may take a while."""

STOP_SECONDS_MAX = 3.0
"""A fast shutdown takes well under a second; after this the server is killed, which loses nothing either."""

SERVER_USERS = range(61184, 65520)
"""Numbers of users without an account, by the convention of systemd's DynamicUser."""

PROGRAMS = Path("/var/lib/fundsvc-programs")
"""Where root copies programs that another user could not reach."""

READABLE = stat.S_IROTH | stat.S_IXOTH


class EmbeddedError(RuntimeError):
    """An embedded server cannot be started; the message says why and what to do."""


class Program(NamedTuple):
    """What runs a server: a command with full paths, and the directories it needs, in the first of which it works.

    `user` is the number of the user and group that it runs as, None for ours. `settings` go to its standard input.
    """

    command: Sequence[str]
    directories: Sequence[Path]
    user: int | None
    settings: str = ""

    def spawn(self, output: IO[bytes]) -> "subprocess.Popen[bytes]":
        """Starts it in a session of its own, which keeps the terminal's Ctrl-C from it."""
        with self._arguments() as arguments:
            child = subprocess.Popen(**arguments, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True)
        assert child.stdin is not None, "it is a pipe"
        with suppress(BrokenPipeError), child.stdin as settings:  # A server that ended at once says why in its log.
            settings.write(self.settings.encode())
        return child

    def run(self) -> None:
        """Runs it to its end; raises EmbeddedError when it fails."""
        with self._arguments() as arguments:
            done = subprocess.run(**arguments, input=self.settings, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EmbeddedError(f"{Path(self.command[0]).name} failed: {(done.stderr or done.stdout).strip()[-1000:]}")

    @contextmanager
    def _arguments(self) -> Iterator[dict[str, Any]]:
        """How subprocess is to start it: for another user with descriptors in place of the directories."""
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
    """A server process, found by its pid file; another process may have started it."""

    def __init__(self, name: str, program: Program, directory: Path, ready: Sequence[bytes], socket_path: Path) -> None:
        self._name = name
        self._program = program
        self._log = directory / f"{name}.log"
        self._pid_file = directory / f"{name}.pid"
        self._probe, self._answer = ready
        self._socket = socket_path

    @property
    def process(self) -> psutil.Process | None:
        """The server's process while it runs.

        It works in its directory, which a stranger that was given the same number does not. (The time a process was created
        would not do: it is reckoned from the clock, and moves when that is set.)
        """
        try:
            process = psutil.Process(int(self._pid_file.read_text()))
            is_ours = process.cwd() == str(self._program.directories[0])
        except (FileNotFoundError, ValueError, psutil.Error):
            return None
        return process if is_ours else None

    def start(self) -> None:
        """Starts the server unless it runs, and waits until it answers."""
        if self.process is None:
            self._reap()
            with self._log.open("ab") as output:
                child = self._program.spawn(output)
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

    def _reap(self) -> None:
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
                received = b""
                while len(received) < len(self._answer) and (part := connection.recv(64)):
                    received += part
                return received.startswith(self._answer)
        except OSError:
            return False

    def _log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-8:])


def new_server_user() -> int:
    """The number of a user that no account has."""
    while True:
        number = secrets.choice(SERVER_USERS)
        try:
            getpwuid(number)
        except KeyError:
            return number


def give(directory: Path, user: int) -> None:
    """Gives a directory and all in it to a user and the group of the same number; follows no links."""
    try:
        os.chown(directory, user, user, follow_symlinks=False)
        for parent, directories, files in os.walk(directory):
            for name in (*directories, *files):
                os.chown(Path(parent, name), user, user, follow_symlinks=False)
    except OSError as error:
        raise EmbeddedError(
            f"{directory} cannot be given to user {user}, as which its server would run ({error.strerror}):"
            " run fundsvc as an ordinary user"
        ) from None


def reachable(program: Path) -> Path:
    """A program of a package where every user can run it: where it is, or in a copy of its package that root keeps."""
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
            f"{program} cannot be run by another user than root, nor copied to {PROGRAMS} ({error}):"
            " install fundsvc where all users may read it, or run it as an ordinary user"
        ) from None


def _is_open(program: Path) -> bool:
    return program.stat().st_mode & READABLE == READABLE


def _copy(package: Path, copy: Path) -> None:
    """Copies a package whole or not at all, for all to read."""
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
        if not copy.exists():  # Another process may have been quicker.
            raise
