"""The commands of `fundsvc`. The module of a command is imported when the command runs.

Importing all of them takes a second, which `fundsvc --version`, the list of commands and the completion of a name do not need.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from fundsvc import __version__
from fundsvc.config import CONFIG_FILE_VARIABLE


class Command(NamedTuple):
    """A command or a group: the module of `fundsvc.cli` that adds it with all its commands, and its line in the list."""

    module: str
    summary: str


COMMANDS = {
    "up": Command("service", "Run engine and API in one process, with embedded servers unless the configuration names them."),
    "engine": Command("service", "Run an engine; any number of engines share the partitions, further ones stand by."),
    "api": Command("service", "Run the HTTP side; any number of processes may."),
    "migrate": Command("service", "Create or upgrade the schema as its owner (database.owner_dsn), in each cell."),
    "status": Command("state", "Show partitions, engines and the stream, and what waits for an operator."),
    "funds": Command("state", "List all funds with balance, target, state and open ADL orders."),
    "config": Command("configuration", "The effective configuration."),
    "contracts": Command("ledger", "Contracts of the funds."),
    "replay": Command("ledger", "Send a recording to the stream, wait until it is durable, and print the new entries' totals."),
    "audit": Command(
        "ledger", "Recompute every fund from entry 1, or from the end of its archive; exit with 1 on any difference."
    ),
    "archive": Command("archive", "Old entries in files instead of the database."),
    "export": Command("ledger", "Write a contract's entries, ADL records and fund to standard output."),
    "entries": Command("report", "Write the entries of contracts within a span of the engine's time, without accounts."),
    "report": Command(
        "report", "Write the report of a day: balances, changes, shortfalls, ADL orders and the state of the audit."
    ),
    "rebuild-rollups": Command("ledger", "Rebuild the hourly rollups from the entries."),
    "vectors": Command(
        "ledger", "Run conformance vectors of the reserve or the mutual through its rules; exit with 1 if an outcome differs."
    ),
    "adl": Command("adl", "ADL: orders, and the effect of a shortfall."),
    "target": Command(
        "target", "Compute the target size of a contract's fund from the current ledger and book, and explain it."
    ),
    "rejected": Command("rejected", "Rejected events, which the service keeps until they are replayed."),
    "cells": Command("cells", "Cells: the databases of the ledger, and the partitions that they hold."),
    "stream": Command("stream", "Gaps in the streams: messages that left a stream before they were settled."),
    "token": Command("token", "Mint and print an access token."),
    "revoke": Command("token", "Revoke an access token: append its id to the file token.revoked."),
    "mutual": Command("simulation", "The mutual: losses that become policies."),
}


class LazyCommands(TyperGroup):
    """The group of all commands. A command without its module has a name and a summary only."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        stubs = {name: TyperCommand(name, help=command.summary) for name, command in COMMANDS.items()}
        self.commands = stubs | dict(self.commands)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Imports the module of the first word's command, if there is one; returns what the group of typer returns."""
        if args[0] in COMMANDS:
            load(args[0])
            self.commands.update(get_group(cli).commands)
        return super().resolve_command(ctx, args)


cli = typer.Typer(
    help="The insurance fund of a derivatives exchange: settles liquidation fills into isolated per-contract funds.",
    cls=LazyCommands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def load(*names: str) -> None:
    """Imports the modules of commands, which add them to `cli`; without a name, those of all commands."""
    for name in names or COMMANDS:
        import_module(f"fundsvc.cli.{COMMANDS[name].module}")


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"fundsvc {__version__}\n")
        raise typer.Exit


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
