"""Commands on the mutual: pools, accounts, cut-offs, audit, export. `fundsvc.cli.simulation` adds `simulate`."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

import typer
from rich.table import Column, Table

from fundsvc.api.http.parameters import PAGE_ENTRIES_MAX
from fundsvc.app import connected, prepared
from fundsvc.cli.commands import cli
from fundsvc.cli.running import DONE, NO, Bars, Json, Terminal, print_json, run
from fundsvc.cli.tables import left, right, show_table
from fundsvc.cli.tools.mutual_answers import (
    AccountStatus,
    CycleStatus,
    PoolStatus,
    account_status,
    at_minute,
    cycle_status,
    pool_status,
)
from fundsvc.cli.tools.mutual_export import POOL_COLUMNS, PUBLIC_POOL_COLUMNS, pool_rows, public_pool_rows
from fundsvc.cli.tools.writers import Form, row_writer
from fundsvc.config.settings import Config
from fundsvc.core.commitment import Secrets
from fundsvc.mutual.store.audits import PoolAudit, PoolWalk, audited_pools
from fundsvc.mutual.store.exports import open_pool_ledger
from fundsvc.mutual.store.reader import MutualReader, PoolState
from fundsvc.store.database import CellPool, main_pool

mutual = typer.Typer(help="The mutual: losses that become policies.", no_args_is_help=True)
cli.add_typer(mutual, name="mutual")

GUARANTEE = "Nothing is guaranteed: amounts and times depend on the pool."


@mutual.command()
def status(context: typer.Context, json: Json = False) -> None:
    """Show all pools: balance, health, live policies, and the payout ratio of the last 30 cut-offs."""

    async def command(config: Config) -> int:
        async with _reader(config) as reader:
            found = [
                pool_status(pool, await reader.payouts(pool), await reader.unfunded(pool.row.pool), config.mutual)
                for pool in await reader.pools()
            ]
        if json:
            print_json(found)
        else:
            _print_pools(found)
        return DONE

    run(context, command)


@mutual.command()
def account(
    context: typer.Context,
    account: str,
    pool: Annotated[str | None, typer.Option(help="Only this pool.")] = None,
    json: Json = False,
) -> None:
    """Show an account in each pool: cover, money, live policies, and what its owner should do."""

    async def command(config: Config) -> int:
        async with _reader(config) as reader:
            names = [name for name in await reader.pools_of(account) if pool in {None, name}]
            found = [account_status(state) for name in names if (state := await reader.account(name, account))]
        if not found:
            raise LookupError(f"no pool has the account {account!r}" if pool is None else f"{pool} has no account {account!r}")
        if json:
            print_json(found)
        else:
            for one in found:
                _print_account(one)
            Terminal().print(GUARANTEE)
        return DONE

    run(context, command)


@mutual.command()
def cycles(
    context: typer.Context,
    pool: str,
    count: Annotated[int, typer.Option(min=1, max=PAGE_ENTRIES_MAX, help="Cut-offs, the newest first.")] = 30,
    json: Json = False,
) -> None:
    """List the last cut-offs of a pool: what each distributed."""

    async def command(config: Config) -> int:
        async with _reader(config) as reader:
            state = await _known(reader, pool)
            terms = {one.version: one.rules for one in await reader.terms(pool)}
            found = [cycle_status(row, terms[row.terms]) for row in await reader.cycles(state.row.pool, count=count)]
        if json:
            print_json(found)
        else:
            _print_cycles(found)
        return DONE

    run(context, command)


@mutual.command()
def audit(
    context: typer.Context, pool: Annotated[str | None, typer.Option(help="Only this pool.")] = None, json: Json = False
) -> None:
    """Recompute every pool from entry 1 and compare all stored rows; exit with 1 on any difference."""

    async def command(config: Config) -> int:
        async with prepared(config) as complete, connected(complete) as (database, _):
            known = [(name, entries) for name, entries in await audited_pools(main_pool(database)) if pool in {None, name}]
            if pool is not None and not known:
                raise LookupError(f"there is no pool {pool!r}")
            audits = await _audit_all(main_pool(database), known, complete.ledger.secrets)
        wrong = [one for one in audits if one.differences]
        if json:
            print_json({"pools": audits, "differences": sum(len(one.differences) for one in wrong)})
        else:
            _print_audits(audits, wrong)
        return NO if wrong else DONE

    run(context, command)


@mutual.command()
def export(
    context: typer.Context,
    pool: str,
    form: Annotated[Form, typer.Option("--format", help="Format of the lines.")] = "csv",
    public: Annotated[bool, typer.Option("--public", help="Write commitments instead of accounts: may be published.")] = False,
) -> None:
    """Write a pool's terms, entries and cut-offs to standard output, in the form that scripts/verify-export verifies."""

    async def command(config: Config) -> int:
        async with prepared(config) as complete, connected(complete) as (database, _):
            ledger = await open_pool_ledger(main_pool(database), pool)
            rows = public_pool_rows(ledger) if public else pool_rows(ledger, complete.ledger.secrets)
            with row_writer(form, PUBLIC_POOL_COLUMNS if public else POOL_COLUMNS) as write:
                async for row in rows:
                    write(row)
        return DONE

    run(context, command)


async def _audit_all(database: CellPool, known: Sequence[tuple[str, int]], secrets: Secrets) -> list[PoolAudit]:
    audits = []
    with Bars() as bars:
        task = bars.add_task("entries recomputed", total=sum(entries for _, entries in known))
        for name, _ in known:
            walk = PoolWalk(database, name, secrets)
            while not walk.ended:
                bars.advance(task, await walk.step())
            audits.append(walk.result())
        bars.finish(task)
    return audits


def _print_audits(audits: Sequence[PoolAudit], wrong: Sequence[PoolAudit]) -> None:
    console = Terminal()
    for one in wrong:
        for difference in one.differences:
            console.print(difference, style="red")
    verdict = f"{len(wrong)} pools differ" if wrong else "no differences"
    console.print(f"{sum(one.entries for one in audits):,} entries of {len(audits):,} pools recomputed: {verdict}")
    unopened = sum(one.unopened for one in audits)
    if unopened:
        console.print(
            f"{unopened:,} commitments to accounts were not checked: ledger.secret and ledger.previous lack their secrets"
        )


@asynccontextmanager
async def _reader(config: Config) -> AsyncIterator[MutualReader]:
    async with prepared(config) as complete, connected(complete) as (pool, _):
        yield MutualReader(main_pool(pool))


async def _known(reader: MutualReader, pool: str) -> PoolState:
    state = await reader.pool(pool)
    if state is None:
        names = ", ".join(one.row.pool for one in await reader.pools()) or "none"
        raise LookupError(f"there is no pool {pool!r}; there are: {names}")
    return state


def _print_pools(pools: list[PoolStatus]) -> None:
    console = Terminal()
    for pool in pools:
        _print_lines(
            console,
            f"pool {pool.pool}",
            {
                "state": f"{pool.state} {pool.halted}".rstrip(),
                "balance": pool.balance,
                "health": f"{_share(pool.health)}; a cut-off releases {_share(pool.release)}" if pool.active else "",
                "policies": f"{pool.active:,} active, {pool.live:,} live",
                "payout ratio": f"{_share(pool.ratio)} of the face, in the last {pool.ratio_cycles} cut-offs",
                "paid out": pool.paid_out,
                "accounts": f"{pool.accounts:,}, {pool.unfunded:,} of them unfunded",
                "next cut-off": at_minute(pool.next_cutoff),
                "terms": f"version {pool.terms}",
                "warning": "\n".join(pool.warnings),
            },
        )
    console.print(GUARANTEE if pools else "there is no pool: configure one as [mutual.pools.NAME]")


def _print_account(found: AccountStatus) -> None:
    console = Terminal()
    _print_lines(
        console,
        f"{found.account} in {found.pool}",
        {
            "cover": "covered" if found.covered else "not covered",
            "to do": "\n".join(found.advice),
            "balance": found.balance,
            "arrears": found.arrears,
            "next policy": f"{found.accumulated} of {found.threshold} lost",
            "due": found.due,
            "payable": found.payable,
            "paid out": found.paid_out,
        },
    )
    if found.policies:
        rows = [
            (
                f"{policy.policy}",
                policy.state,
                policy.cap,
                policy.accrued,
                policy.due,
                at_minute(policy.active_at or policy.expires_at),
            )
            for policy in found.policies
        ]
        show_table(console, (*left("policy", "state"), *right("cap", "accrued", "due"), *left("until")), rows)


def _print_cycles(found: list[CycleStatus]) -> None:
    rows = [
        (
            f"{cycle.cycle}",
            at_minute(cycle.at),
            cycle.balance,
            _share(cycle.health),
            cycle.released,
            _share(cycle.share),
            f"{cycle.completed:,}",
        )
        for cycle in found
    ]
    columns = *left("cycle", "at"), *right("balance", "health", "released", "of face", "completed")
    show_table(Terminal(), columns, rows)


def _print_lines(console: Terminal, title: str, values: dict[str, str]) -> None:
    """Prints a title and one line for each value that is not empty."""
    table = Table(Column(), Column(overflow="fold"), show_header=False, box=None)
    for name, value in values.items():
        if value:
            table.add_row(name, value)
    console.print(title, table, "", sep="\n")


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"
