"""Commands on the state of the whole service: status, funds."""

import time
from typing import Any

import typer

from fundsvc.app import connected, prepared
from fundsvc.cli.commands import cli
from fundsvc.cli.running import DONE, NO, Json, Terminal, print_json, run, servers_of, warn_of_away
from fundsvc.cli.tables import left, right, show_table
from fundsvc.config.settings import Config
from fundsvc.core.fund.fullness import Target
from fundsvc.core.fund.state import guard_at, state_of
from fundsvc.core.generations import public_symbol
from fundsvc.core.numbers import format_units
from fundsvc.core.policy import Policy, payable
from fundsvc.engine.continuity import unsettled_messages
from fundsvc.store.cell_pools import away_cells, lenient
from fundsvc.store.overview import KnownEngine, Overview, OwnedPartition, Waiting
from fundsvc.store.reader import FundRow, Reader
from fundsvc.store.target_sizes import Targets
from fundsvc.streams.client import StreamClient
from fundsvc.streams.source import Source

ALIVE_SECONDS = 10.0
"""An engine reports several times per lease; the longest useful lease is a few seconds."""


@cli.command()
def status(context: typer.Context, json: Json = False) -> None:
    """Show partitions, engines and the stream, and what waits for an operator; exit with 1 if a partition does not settle."""

    async def command(config: Config) -> int:
        async with prepared(config) as complete, connected(complete) as (pool, client):
            overview = Overview(lenient(pool))
            waiting = await overview.waiting()
            engines = await overview.engines()
            partitions = [(one, await _unsettled(client, one)) for one in await overview.partitions()]
            away = away_cells(pool)
        settles = not away and all(one.live and not one.halted for one, _ in partitions)
        if json:
            found = [_partition(*one) for one in partitions]
            others = {"engines": list(map(_engine, engines)), "waiting": waiting._asdict()}
            servers = servers_of(config)
            addresses = {"database": servers.database, "stream": servers.stream}
            print_json({"settles": settles, **addresses, "partitions": found, **others})
        else:
            _print_status(partitions, engines, waiting)
        warn_of_away(away)
        return DONE if settles else NO

    run(context, command)


@cli.command()
def funds(context: typer.Context, json: Json = False) -> None:
    """List all funds with balance, target, state and open ADL orders; closed contracts without a balance are left out."""

    async def command(config: Config) -> int:
        async with prepared(config) as complete, connected(complete) as (pool, _):
            reader = Reader(lenient(pool))
            targets, policies, now_ms = await Targets(lenient(pool)).all(), await reader.policies(), time.time_ns() // 1_000_000
            found = [
                _fund(row, targets.get(row.symbol), policies.get(row.partition, complete.policy).of(row.symbol), now_ms)
                for row in await reader.funds()
                if row.balance or row.outstanding or not row.closed
            ]
            away = away_cells(pool)
        if json:
            print_json(found)
        else:
            _print_funds(found)
        warn_of_away(away)
        return NO if away else DONE

    run(context, command)


async def _unsettled(client: StreamClient, partition: OwnedPartition) -> int:
    return unsettled_messages(await Source(client, partition.partition).state(), partition.offset)


def _partition(partition: OwnedPartition, unsettled: int) -> dict[str, Any]:
    return {
        "partition": partition.partition,
        "state": _state(partition),
        "owner": partition.owner,
        "epoch": partition.epoch,
        "lastId": partition.offset.last_id,
        "unsettled": unsettled,
    }


def _engine(engine: KnownEngine) -> dict[str, Any]:
    return {"engine": engine.engine, "since": engine.since, "silentSeconds": round(engine.silent, 1)}


def _state(partition: OwnedPartition) -> str:
    if partition.halted:
        return f"halted: {partition.halted}"
    return "settles" if partition.live else "without an owner"


def _print_status(partitions: list[tuple[OwnedPartition, int]], engines: list[KnownEngine], waiting: Waiting) -> None:
    console = Terminal()
    columns = *right("partition"), *left("owner"), *right("epoch"), *left("settled up to"), *right("unsettled"), *left("state")
    rows = [
        (str(one.partition), one.owner, str(one.epoch), one.offset.last_id, f"{unsettled:,}", _state(one))
        for one, unsettled in partitions
    ]
    show_table(console, columns, rows)
    console.print()
    live = [engine for engine in engines if engine.silent < ALIVE_SECONDS]
    if live:
        show_table(
            console, left("engine", "runs since (UTC)"), [(one.engine, f"{one.since:%Y-%m-%d %H:%M:%S}") for one in live]
        )
    else:
        console.print("no engine runs")
    console.print()
    rejected = ", ".join(f"{number:,} {reason}" for reason, number in waiting.rejected.items()) or "0"
    console.print(f"rejected events that wait: {rejected}", soft_wrap=True)
    console.print(f"unacknowledged gaps in streams: {waiting.gaps:,}")
    console.print(f"open ADL orders: {waiting.orders:,}")
    if waiting.suspended:
        console.print(f"suspended contracts: {', '.join(waiting.suspended)}", soft_wrap=True)


def _fund(row: FundRow, target: Target | None, policy: Policy, now_ms: int) -> dict[str, Any]:
    decimals = row.settle_decimals
    guard = guard_at(now_ms, policy, decimals, row.guard, row.balance)
    amount = target.amount if target else None
    return {
        "symbol": public_symbol(row.symbol),
        "settleCurrency": row.settle_currency,
        "balance": format_units(row.balance, decimals),
        "payable": format_units(payable(row.balance, guard), decimals),
        "target": None if amount is None else format_units(amount, decimals),
        "fullness": target.fullness(row.balance) if target else None,
        "outstanding": format_units(row.outstanding, decimals),
        "state": state_of(row.balance, row.outstanding, guard, target, escalated=row.escalated),
        "entry": row.entry,
        "suspended": row.suspended,
        "closed": row.closed,
    }


def _print_funds(found: list[dict[str, Any]]) -> None:
    rows = [
        (
            fund["symbol"],
            fund["settleCurrency"],
            fund["balance"],
            fund["payable"],
            fund["target"] or "",
            "" if fund["fullness"] is None else f"{fund['fullness']:.1%}",
            fund["outstanding"],
            f"{fund['entry']:,}",
            ", ".join([fund["state"], *(word for word in ("suspended", "closed") if fund[word])]),
        )
        for fund in found
    ]
    numbers = right("balance", "payable", "target", "fullness", "outstanding", "entries")
    show_table(Terminal(), (*left("contract", "currency"), *numbers, *left("state")), rows)
