"""Commands on the configuration: validation, and reachability of the configured servers."""

import re
import sys
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any

import msgspec
import typer

from fundsvc.api.http.server import tls_context
from fundsvc.api.http.tokens import Tokens
from fundsvc.cli.commands import cli
from fundsvc.cli.running import DONE, NO, WRONG_USE, Json, Terminal, fail, print_json, run
from fundsvc.config.cells import MAIN
from fundsvc.config.settings import Config, ConfigError, read_config
from fundsvc.config.validation import keys, presentable
from fundsvc.mutual.store.reader import MutualReader
from fundsvc.store.database import StoreFault, open_pool
from fundsvc.store.schema import check_schema
from fundsvc.store.server_checks import check_sessions
from fundsvc.store.server_checks import server_version as database_version
from fundsvc.streams.client import StreamFault, open_client, server_version

configuration = typer.Typer(help="The effective configuration.")
cli.add_typer(configuration, name="config")

EMBEDDED = "embedded: started with the service"

_BARE = re.compile(r"[A-Za-z0-9_-]+")
"""TOML keys that need no quotes."""


@configuration.callback()
def _group() -> None:
    """The effective configuration."""


@configuration.command()
def check(
    context: typer.Context,
    json: Json = False,
    reachable: Annotated[bool, typer.Option(help="Also check the database, its schema and the stream server.")] = False,
) -> None:
    """Print the effective configuration without secrets, or all its problems.

    Exit with 2 if it is wrong, with 1 if a server is unreachable.
    """
    found, problems = read_config(context.obj)
    problems += _problems_of_files(found)
    if problems:
        fail("configuration: " + "\n".join(problems), WRONG_USE)

    async def command(config: Config) -> int:
        parts = await _checks(config) if reachable else {}
        has_ledger = parts.get("schema", {}).get("ok", False)
        shown, warnings = effective(config), config.mutual.warnings | (await _missing_pools(config) if has_ledger else {})
        if json:
            optional = {"parts": parts, "warnings": warnings}
            print_json({"configuration": shown} | {name: value for name, value in optional.items() if value})
        else:
            for name, warning in warnings.items():
                Terminal(stderr=True).print(f"warning: mutual.pools.{name}: {warning}", soft_wrap=True)
            sys.stdout.writelines(f"{line}\n" for line in lines(shown))
            for name, part in parts.items():
                Terminal(stderr=True).print(f"{name}: {part['found']}", soft_wrap=True)
        return DONE if all(part["ok"] for part in parts.values()) else NO

    run(context, command)


def effective(config: Config) -> dict[str, Any]:
    """Returns a configuration as a TOML file would contain it, without secrets and absent tables."""
    values: dict[str, Any] = msgspec.to_builtins(config)
    for path, kind in keys(Config):
        table = _table(values, path[:-1])
        if table is not None:
            table[path[-1]] = presentable(table[path[-1]], kind)
    return _without_none(values)


def lines(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields a table as lines of TOML, `section.key = value`."""
    for key, value in table.items():
        path = prefix + (key if _BARE.fullmatch(key) else msgspec.json.encode(key).decode())
        if isinstance(value, Mapping) and value:
            yield from lines(value, f"{path}.")
        else:
            yield f"{path} = {msgspec.json.encode(value).decode()}"


def _problems_of_files(config: Config) -> list[str]:
    """Returns the problems of the certificate, of the keys and secrets of tokens, and of the ledger's secrets."""
    problems = []
    for check in (
        lambda: tls_context(config.http.certificate, config.http.certificate_key),
        lambda: Tokens(config.token),
        lambda: config.ledger.secrets,
    ):
        try:
            check()
        except (ConfigError, ValueError, OSError) as problem:
            problems.append(str(problem))
    return problems


def _table(values: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any] | None:
    table: dict[str, Any] | None = values
    for name in path:
        table = table[name] if table is not None else None
    return table


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    inner = {key: _without_none(value) if isinstance(value, dict) else value for key, value in table.items()}
    return {key: value for key, value in inner.items() if value is not None}


async def _checks(config: Config) -> dict[str, dict[str, Any]]:
    """Checks each server; returns whether it can be used (`ok`), and its version or the fault (`found`)."""
    stream = config.stream
    parts: dict[str, dict[str, Any]] = {}
    for cell in config.cells:
        database, of_cell = config.in_cell(cell).database, "" if cell == MAIN else f" of cell {cell}"
        if database.embedded:
            parts["database"] = {"ok": True, "found": EMBEDDED}
        else:
            parts[f"database{of_cell}"] = await _check(_database(database.dsn))
            parts[f"schema{of_cell}"] = await _check(_schema(database.dsn, stream.partitions, cell))
        if database.reader_dsn:
            parts[f"reader{of_cell}"] = await _check(_database(database.reader_dsn))
    parts["stream"] = {"ok": True, "found": EMBEDDED} if stream.embedded else await _check(_stream(config))
    return parts


async def _missing_pools(config: Config) -> dict[str, str]:
    """Returns a warning for each pool of the ledger that is not configured, none if the ledger cannot be read."""
    async with open_pool(config.database.dsn, 1) as pool:
        with suppress(StoreFault):
            return config.mutual.missing([state.row.pool for state in await MutualReader(pool).pools()])
    return {}


async def _check(checking: Awaitable[str]) -> dict[str, Any]:
    try:
        return {"ok": True, "found": await checking}
    except (StoreFault, StreamFault, ValueError) as error:
        return {"ok": False, "found": str(error)}


async def _database(dsn: str) -> str:
    await check_sessions(dsn)
    return await database_version(dsn)


async def _schema(dsn: str, partitions: int, cell: str) -> str:
    await check_schema(dsn, partitions, cell)
    return f"current, {partitions} partitions"


async def _stream(config: Config) -> str:
    async with open_client(config.stream) as client:
        return await server_version(client)
