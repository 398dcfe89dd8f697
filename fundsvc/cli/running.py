"""Shared parts of all commands: configuration, event loop, exit codes, output."""

import sys
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn

import msgspec
import structlog
import typer
import uvloop
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from fundsvc import __version__
from fundsvc.config.settings import Config, ConfigError, Database, Stream, load_config
from fundsvc.config.validation import presentable
from fundsvc.logs import configure_logs
from fundsvc.logs.escaping import visible, visible_json

log = structlog.get_logger()

DONE, NO, WRONG_USE = 0, 1, 2
"""Exit codes: success; a negative result or an unreachable server; wrong use or wrong configuration."""

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


class Terminal(Console):
    """A console without markup that escapes characters that are not printable."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Converts text like rich, and escapes it."""
        return super().render_str(visible(text, keeps="\n"), **options)


def run(context: typer.Context, command: Callable[[Config], Coroutine[Any, Any, int]], *, quiet: bool = True) -> None:
    """Runs a command and exits with its code. Reports an unreachable server or wrong use in one line.

    A quiet command logs errors only, because its output is its result. Another one logs at once what it starts with.
    """
    try:
        config = load_config(context.obj)
    except ConfigError as error:
        fail(str(error), WRONG_USE)
    configure_logs(msgspec.structs.replace(config.log, level="error") if quiet else config.log)
    servers = servers_of(config)
    log.info(
        "starting",
        version=__version__,
        command=context.info_name,
        database=servers.database,
        stream=servers.stream,
        data_directory=servers.data_directory,
    )
    code, message = DONE, ""
    try:
        code = uvloop.run(command(config))
    except* (ValueError, LookupError) as group:
        code, message = WRONG_USE, _message(group)
    except* _faults() as group:
        code, message = NO, _message(group)
    except* KeyboardInterrupt:
        code = NO
    if message and not quiet and config.log.format == "json":
        log.error("failed", detail=message, code=code)
    elif message:
        fail(message, code)
    raise typer.Exit(code)


class Servers(NamedTuple):
    """The addresses of servers without passwords, "embedded" for those that the service starts, and their directory or ""."""

    database: str
    stream: str
    data_directory: str


def servers_of(config: Config) -> Servers:
    """Returns the servers of a configuration."""
    database, stream = config.database, config.stream
    embedded = database.embedded or stream.embedded
    return Servers(
        "embedded" if database.embedded else presentable(database.dsn, Database),
        "embedded" if stream.embedded else presentable(stream.url, Stream) or ",".join(stream.sentinels),
        str(Path(config.data.directory).absolute()) if embedded else "",
    )


def _faults() -> tuple[type[Exception], ...]:
    """Returns the exceptions of servers that cannot be used. Their modules import the drivers, so only a failure does."""
    from fundsvc.api.http.server import ServerError  # noqa: PLC0415
    from fundsvc.local.server_process import EmbeddedError  # noqa: PLC0415
    from fundsvc.store.database import StoreFault  # noqa: PLC0415
    from fundsvc.streams.client import StreamFault  # noqa: PLC0415

    return StoreFault, StreamFault, EmbeddedError, ServerError, OSError


def report(config: Config, message: str) -> None:
    """Prints a progress message for people; with JSON logs, only the log reports progress."""
    if config.log.format == "console":
        Terminal(stderr=True).print(f"fundsvc {message}", soft_wrap=True)


def warn_of_away(cells: Iterable[str]) -> None:
    """Prints which cells of the ledger a result lacks."""
    for cell in cells:
        Terminal(stderr=True).print(
            f"fundsvc: cell {cell} is away: the result lacks its contracts", style="red", soft_wrap=True
        )


def fail(message: str, code: int) -> NoReturn:
    """Prints an error and exits."""
    Terminal(stderr=True).print(f"fundsvc: {message}", style="red", soft_wrap=True)
    raise typer.Exit(code)


def print_json(value: Any) -> None:
    """Prints a result as JSON."""
    sys.stdout.write(visible_json(msgspec.json.format(msgspec.json.encode(value), indent=2).decode()) + "\n")


class Bars(Progress):
    """Progress bars on standard error, so that results on standard output can be piped; none if it is no terminal."""

    def __init__(self) -> None:
        console = Terminal(stderr=True)
        super().__init__(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Moves a bar. Work that was added meanwhile raises the bar's total, so that no bar passes its end."""
        super().advance(task_id, advance)
        task = self.tasks[self.task_ids.index(task_id)]
        if task.total is not None and task.completed > task.total:
            self.update(task_id, total=task.completed)

    def finish(self, task_id: TaskID) -> None:
        """Ends a bar at what was done: there may have been less to do than expected."""
        self.update(task_id, total=self.tasks[self.task_ids.index(task_id)].completed)


def _message(group: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
