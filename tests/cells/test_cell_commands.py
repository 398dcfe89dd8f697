"""Commands on a ledger in two cells."""

import asyncio
import signal

import msgspec
from commands import environment_of, fundsvc
from conftest import connected, dsn_for, with_section
from eventually import eventually
from served import contract, fill
from two_cells import HELD, SYMBOLS, cell_templates, cells, owners, serving_cells

__all__ = ["cell_templates", "cells", "owners"]  # fixtures

AWAY = "postgresql://nobody@127.0.0.1:1/nothing"


def with_cells(config, **cells):
    """Returns the variables that configure the cells of a ledger; `cells` change keys of the further ones."""
    further = msgspec.to_builtins(config.database.cells)
    for name, keys in cells.items():
        further[name] |= keys
    return {"FUNDSVC_DATABASE_CELLS": msgspec.json.encode(further).decode()}


def with_owners(config, **cells):
    """Returns the variables for commands that need the owners of the schemas; with them, each command migrates first."""
    return with_cells(config, **cells) | {"FUNDSVC_DATABASE_OWNER_DSN": config.database.owner_dsn}


async def run(config, *arguments):
    """Runs a command that reads, without the owners."""
    return await fundsvc(config, *arguments, **with_cells(config, b={"owner_dsn": ""}))


async def run_as_owner(config, *arguments, **cells):
    return await fundsvc(config, *arguments, **with_owners(config, **cells))


async def filled(service):
    await service.send(*(contract(symbol) for symbol in SYMBOLS.values()))
    await service.send(*(fill(symbol, 1) for symbol in SYMBOLS.values()))
    await service.send(fill("UNKNOWN", 1))


async def test_commands_read_all_cells(cells):
    async with serving_cells(cells) as service:
        await filled(service)
    audit = await run(cells, "audit", "--json")
    assert (audit.code, {one["symbol"] for one in audit.result["contracts"]}) == (0, set(SYMBOLS.values()))
    assert all(one["entries"] == 1 for one in audit.result["contracts"])
    funds = await run(cells, "funds", "--json")
    assert [one["symbol"] for one in funds.result] == sorted(SYMBOLS.values())
    rejected = await run(cells, "rejected", "list", "--json")
    assert [one["reason"] for one in rejected.result] == ["unknown_symbol"]
    status = await run(cells, "status", "--json")
    assert [one["partition"] for one in status.result["partitions"]] == [0, 1, 2, 3]
    export = await run(cells, "export", SYMBOLS[3])
    assert export.output.count(SYMBOLS[3]) == 2
    report = await run(cells, "entries")
    assert sorted(line.split(",")[0] for line in report.output.splitlines()[1:]) == sorted(SYMBOLS.values())
    rebuilt = await run(cells, "rebuild-rollups")
    assert "condensed 4 entries" in rebuilt.error
    listed = await run(cells, "cells", "list", "--json")
    assert [(one["partition"], one["cell"], one["entries"]) for one in listed.result["partitions"]] == [
        (number, cell, 1) for cell, numbers in HELD.items() for number in numbers
    ]


async def test_commands_name_a_cell_that_is_away(cells):
    async with serving_cells(cells) as service:
        await filled(service)
    variables = with_cells(cells, b={"dsn": AWAY, "owner_dsn": ""})
    here = [SYMBOLS[number] for number in HELD["main"]]
    audit = await fundsvc(cells, "audit", "--json", **variables)
    assert (audit.code, {one["symbol"] for one in audit.result["contracts"]}) == (1, set(here))
    assert "cell b is away" in audit.error
    funds = await fundsvc(cells, "funds", "--json", **variables)
    assert (funds.code, [one["symbol"] for one in funds.result]) == (1, sorted(here))
    assert "cell b is away" in funds.error
    export = await fundsvc(cells, "export", SYMBOLS[3], **variables)
    assert (export.code, export.output) == (1, "")
    assert "cell b is away" in export.error
    report = await fundsvc(cells, "entries", **variables)
    assert (report.code, report.output) == (1, "")
    listed = await fundsvc(cells, "cells", "list", "--json", **variables)
    assert (listed.code, listed.result["away"], listed.result["unheld"]) == (1, ["b"], [2, 3])


async def test_partition_moves_by_command(cells, owners):
    async with serving_cells(cells) as service:
        await filled(service)
        moved = await run_as_owner(cells, "cells", "move", "1", "b", "--json", "--why", "main is full")
        assert (moved.code, moved.result["rows"]) == (0, 1), moved.error
        await service.send(fill(SYMBOLS[1], 2))
        await service.shows(SYMBOLS[1], 2)
    assert await owners["b"].fetchval("SELECT entry FROM funds WHERE symbol = $1", SYMBOLS[1]) == 2
    audit = await run(cells, "audit", "--json")
    assert (audit.code, len(audit.result["contracts"])) == (0, 4)
    again = await run_as_owner(cells, "cells", "move", "1", "b")
    assert again.code == 0
    for arguments, problem in (
        (("move", "1", "c"), "c is not a cell: there are main, b"),
        (("move", "9", "b"), "neither cell has partition 9"),
    ):
        refused = await run_as_owner(cells, "cells", *arguments)
        assert (refused.code, problem in refused.error) == (2, True), refused.error


async def test_command_that_is_killed_leaves_a_move_that_is_repeated(cells, owners):
    async with serving_cells(cells) as service:
        await filled(service)
        await owners["b"].execute("BEGIN")
        await owners["b"].execute("LOCK TABLE funds")  # the move waits for it after the pause
        process = await asyncio.create_subprocess_exec(
            *(".venv/bin/python", "-m", "fundsvc", "cells", "move", "1", "b"), env=environment_of(cells, **with_owners(cells))
        )

        async def is_paused():
            return await owners["main"].fetchval("SELECT moving_to FROM partitions WHERE partition = 1")

        await eventually(is_paused)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await owners["b"].execute("ROLLBACK")
        listed = await run(cells, "cells", "list")
        assert "paused: moves to b" in listed.output
        moved = await run_as_owner(cells, "cells", "move", "1", "b")
        assert moved.code == 0, moved.error
        await service.send(fill(SYMBOLS[1], 2))
        await service.shows(SYMBOLS[1], 2)


async def test_interrupted_move_is_undone_by_command(cells, owners):
    async with serving_cells(cells) as service:
        await filled(service)
        await owners["main"].execute("UPDATE partitions SET moving_to = 'b', owner = NULL WHERE partition = 1")
        undone = await run_as_owner(cells, "cells", "undo", "1")
        assert undone.code == 0, undone.error
        await service.send(fill(SYMBOLS[1], 2))
    assert await owners["main"].fetchval("SELECT entry FROM funds WHERE symbol = $1", SYMBOLS[1]) == 2
    assert await owners["b"].fetchval("SELECT count(*) FROM entries WHERE symbol = $1", SYMBOLS[1]) == 0


async def test_migrate_creates_all_cells(cells, servers):
    async with connected(dsn_for(servers.owner_dsn, "postgres")) as connection:
        for name in ("fresh_main", "fresh_b"):
            await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            await connection.execute(f"CREATE DATABASE {name}")
    dsns = {name: (dsn_for(servers.dsn, name), dsn_for(servers.owner_dsn, name)) for name in ("fresh_main", "fresh_b")}
    fresh = with_section(cells, "database", dsn=dsns["fresh_main"][0], owner_dsn=dsns["fresh_main"][1])
    done = await run_as_owner(fresh, "migrate", b={"dsn": dsns["fresh_b"][0], "owner_dsn": dsns["fresh_b"][1]})
    assert done.code == 0, done.error
    for name, held in (("fresh_main", HELD["main"]), ("fresh_b", HELD["b"])):
        async with connected(dsns[name][0]) as connection:
            assert [row[0] for row in await connection.fetch("SELECT partition FROM partitions ORDER BY 1")] == held
    checked = await run_as_owner(fresh, "config", "check", "--reachable", b={"dsn": dsns["fresh_main"][0]})
    assert checked.code == 1
    assert "schema of cell b: the database of cell b is the cell main of a ledger" in checked.error
