"""Shared parts of all commands: configuration, event loop, exit codes, output."""

import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import structlog
import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from fundsvc import __version__
from fundsvc.api.http.server import ServerError
from fundsvc.config.settings import CONFIG_FILE_VARIABLE, Config, ConfigError, load_config
from fundsvc.local.server_process import EmbeddedError
from fundsvc.logs import configure_logs
from fundsvc.logs.escaping import visible, visible_json
from fundsvc.store.database import StoreFault
from fundsvc.streams.client import StreamFault

log = structlog.get_logger()

DONE, NO, WRONG_USE = 0, 1, 2
"""Exit codes: success; a negative result or an unreachable server; wrong use or wrong configuration."""

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

cli = typer.Typer(
    help="The insurance fund of a derivatives exchange: settles liquidation fills into isolated per-contract funds.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


class Terminal(Console):
    """A console without markup that escapes characters that are not printable."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Converts text like rich, and escapes it."""
        return super().render_str(visible(text, keeps="\n"), **options)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"fundsvc {__version__}\n")
        raise typer.Exit(DONE)


@cli.callback()
def _configure(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(envvar=CONFIG_FILE_VARIABLE, help="TOML file; config/fundsvc.toml lists every key.", dir_okay=False),
    ] = None,
    version: Annotated[  # noqa: ARG001 - its callback ends the command
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    context.obj = config


def run(context: typer.Context, command: Callable[[Config], Coroutine[Any, Any, int]], *, quiet: bool = True) -> None:
    """Runs a command and exits with its code. Reports an unreachable server or wrong use in one line.

    A quiet command logs errors only, because its output is its result.
    """
    try:
        config = load_config(context.obj)
    except ConfigError as error:
        fail(str(error), WRONG_USE)
    configure_logs(msgspec.structs.replace(config.log, level="error") if quiet else config.log)
    code, message = DONE, ""
    try:
        code = uvloop.run(command(config))
    except* (ValueError, LookupError) as group:
        code, message = WRONG_USE, _message(group)
    except* (StoreFault, StreamFault, EmbeddedError, ServerError, OSError) as group:
        code, message = NO, _message(group)
    except* KeyboardInterrupt:
        code = NO
    if message and not quiet and config.log.format == "json":
        log.error("failed", detail=message, code=code)
    elif message:
        fail(message, code)
    raise typer.Exit(code)


def at_primary(config: Config) -> Config:
    """Returns the configuration without a read replica, for commands that write, or that must see recent writes."""
    return msgspec.structs.replace(config, database=msgspec.structs.replace(config.database, reader_dsn=""))


def report(config: Config, message: str) -> None:
    """Prints a progress message for people; with JSON logs, only the log reports progress."""
    if config.log.format == "console":
        Terminal(stderr=True).print(f"fundsvc {message}", soft_wrap=True)


def fail(message: str, code: int) -> NoReturn:
    """Prints an error and exits."""
    Terminal(stderr=True).print(f"fundsvc: {message}", style="red", soft_wrap=True)
    raise typer.Exit(code)


def print_json(value: Any) -> None:
    """Prints a result as JSON."""
    sys.stdout.write(visible_json(msgspec.json.format(msgspec.json.encode(value), indent=2).decode()) + "\n")


def progress() -> Progress:
    """Returns a progress bar on standard error, so that results on standard output can be piped; none if it is no terminal."""
    console = Terminal(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _message(group: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
