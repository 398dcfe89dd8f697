"""Commands that run the service or parts of it: up, engine, api, migrate.

They import the parts when they run, after `run` has logged what starts: importing them takes most of a second.
"""

from functools import partial
from typing import Annotated

import typer

from fundsvc.cli.actions import Why, record_action
from fundsvc.cli.commands import cli
from fundsvc.cli.running import DONE, report, run
from fundsvc.config.settings import Config


@cli.command()
def up(
    context: typer.Context, demo: Annotated[bool, typer.Option("--demo", help="Run a demo market and show it.")] = False
) -> None:
    """Run engine and API in one process, with embedded servers unless the configuration names them."""

    async def command(config: Config) -> int:
        from fundsvc.app import prepared, run_service, stop_on_signals  # noqa: PLC0415
        from fundsvc.demo.show import show_demo  # noqa: PLC0415

        stop = stop_on_signals()
        async with prepared(config, stop) as complete:
            if demo:
                await show_demo(complete, stop)
            else:
                await run_service(complete, stop, partial(_report_address, config))
        return DONE

    run(context, command, quiet=False)


@cli.command()
def engine(context: typer.Context) -> None:
    """Run an engine; any number of engines share the partitions, further ones stand by."""
    run(context, lambda config: _serve(config, with_engine=True), quiet=False)


@cli.command()
def api(context: typer.Context) -> None:
    """Run the HTTP side; any number of processes may."""
    run(context, lambda config: _serve(config, with_engine=False), quiet=False)


@cli.command()
def migrate(context: typer.Context, why: Why = "") -> None:
    """Create or upgrade the schema as its owner (database.owner_dsn), in each cell."""

    async def command(config: Config) -> int:
        if config.database.dsn and not config.database.owner_dsn:
            raise ValueError("database.owner_dsn is not set: set it to a DSN of the schema's owner")
        for name, further in config.database.cells.items():
            if not further.owner_dsn:
                raise ValueError(f"database.cells.{name}.owner_dsn is not set: set it to a DSN of the schema's owner")
        record_action(config.log, "migrate", why)
        from fundsvc.app import migrate_cell, prepared  # noqa: PLC0415

        if config.database.owner_dsn:
            for cell in config.cells:
                await migrate_cell(config, cell)
        else:
            async with prepared(config):
                pass
        return DONE

    run(context, command)


async def _serve(config: Config, *, with_engine: bool) -> int:
    from fundsvc.app import prepared, run_service, stop_on_signals  # noqa: PLC0415

    stop = stop_on_signals()
    async with prepared(config, stop) as complete:
        await run_service(complete, stop, partial(_report_address, config), engine=with_engine, api=not with_engine)
    return DONE


async def _report_address(config: Config, url: str) -> None:
    report(config, f"listens on {url}" if url else "engine runs")
