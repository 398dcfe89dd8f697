"""Commands on the ledger: contracts, replay, audit, export, rebuild-rollups, vectors."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from fundsvc.app import at_primary, connected, consuming, prepared
from fundsvc.cli.actions import Why, record_action
from fundsvc.cli.commands import cli
from fundsvc.cli.running import DONE, NO, Bars, Json, Terminal, print_json, run, warn_of_away
from fundsvc.cli.tables import left, right, show_table
from fundsvc.cli.tools.audit import DIFFERENCES_MAX, ContractAudit, audit_contract
from fundsvc.cli.tools.delivery import Delivered, Delivery, Gain, listed
from fundsvc.cli.tools.export import COLUMNS, PUBLIC_COLUMNS, export_rows, public_rows
from fundsvc.cli.tools.mutual_vectors import run_any_vector
from fundsvc.cli.tools.recordings import Fitting, Format, open_recording, read_contracts
from fundsvc.cli.tools.vectors import Outcome, read_vector
from fundsvc.cli.tools.writers import AnyForm, row_writer
from fundsvc.config.settings import Config
from fundsvc.core.events import Listing, Reason
from fundsvc.core.numbers import format_units
from fundsvc.engine.heads import head_differences, read_heads
from fundsvc.store.archive.files import ArchiveFiles
from fundsvc.store.cell_pools import away_cells, lenient, pools_by_cell
from fundsvc.store.database import Pool, pool_of
from fundsvc.store.exports import known_contracts, open_ledger
from fundsvc.store.reader import Reader
from fundsvc.store.rollups import condense, mark_unsound, rebuild
from fundsvc.streams.producer import Producer

contracts = typer.Typer(help="Contracts of the funds.", no_args_is_help=True)
cli.add_typer(contracts, name="contracts")


@contracts.command("load")
def contracts_load(context: typer.Context, file: Path, why: Why = "", json: Json = False) -> None:
    """List contracts from a JSON file in the format of KuCoin's GET /api/v1/contracts/active."""

    async def command(config: Config) -> int:
        record_action(config.log, "contracts load", why, file=str(file))
        return NO if (await _deliver(config, lambda _: read_contracts(file), json)).refused else DONE

    run(context, command)


@contracts.command()
def resume(context: typer.Context, symbol: str, why: Why = "") -> None:
    """Resume a suspended contract under the terms of its entries; exit with 1 if it is not suspended.

    The command appends the last accepted listing to the stream. `fundsvc rejected replay` then resends the events that were
    rejected meanwhile.
    """

    async def command(config: Config) -> int:
        async with prepared(config) as complete, connected(at_primary(complete)) as (pool, client):
            known = await Reader(pool).contracts(symbol)
            if not known or not known[0].suspended:
                Terminal(stderr=True).print(f"fundsvc: the contract {symbol} is unknown or not suspended", style="red")
                return NO
            record_action(config.log, "contracts resume", why, symbol=symbol)
            listing = Listing(msgspec.json.decode(known[0].specification))
            await Producer.configured(client, complete.stream).append([listing])
        Terminal().print(f"listed {symbol} with the terms of its entries")
        return DONE

    run(context, command)


@cli.command()
def replay(
    context: typer.Context,
    file: Path,
    form: Annotated[Format, typer.Option("--format", help="Format of the file.")] = "events",
    contracts: Annotated[
        Path | None, typer.Option(help="JSON file of contracts to list first, in the format of `contracts load`.")
    ] = None,
    why: Why = "",
    json: Json = False,
) -> None:
    """Send a recording to the stream, wait until it is durable, and print the new entries' totals.

    Exit with 1 if nothing was settled or a contract could not be listed.
    """

    async def command(config: Config) -> int:
        record_action(config.log, "replay", why, file=str(file))
        delivered = await _deliver(config, open_recording(file, form, contracts), json)
        return DONE if delivered.settled and not delivered.refused else NO

    run(context, command)


@cli.command()
def audit(
    context: typer.Context,
    heads: Annotated[
        list[Path] | None,
        typer.Option(help="File or directory of saved heads to compare with; may be repeated."),
    ] = None,
    archives: Annotated[
        bool, typer.Option("--archives", help="Also read archived entries from their files, and verify these and their stubs.")
    ] = False,
    json: Json = False,
) -> None:
    """Recompute every fund from entry 1, or from the end of its archive; exit with 1 on any difference."""

    async def command(config: Config) -> int:
        async with prepared(config) as complete, connected(complete) as (pool, _):
            files = ArchiveFiles(complete.archive.location)
            audits = await _audit_all(lenient(pool), complete, files if archives else None)
            away = away_cells(pool)
            saved = chain.from_iterable(map(read_heads, heads or ()))
            audits = _with_differences(audits, await head_differences(pool, saved, files))
        wrong = [audit for audit in audits if audit.differences]
        if json:
            print_json(
                {
                    "contracts": audits,
                    "differences": sum(len(audit.differences) for audit in wrong),
                    "unopened": sum(audit.unopened for audit in audits),
                }
            )
        else:
            _print_audits(audits, wrong)
        warn_of_away(away)
        return NO if wrong or away else DONE

    run(context, command)


@cli.command()
def export(
    context: typer.Context,
    symbol: str,
    form: Annotated[AnyForm, typer.Option("--format", help="Format; parquet needs pyarrow.")] = "csv",
    public: Annotated[
        bool, typer.Option("--public", help="Write commitments instead of accounts, and no ADL records: may be published.")
    ] = False,
) -> None:
    """Write a contract's entries, ADL records and fund to standard output.

    scripts/verify-export verifies CSV and NDJSON. Parquet has the same columns for analysis.
    """

    async def command(config: Config) -> int:
        async with prepared(config) as complete, connected(complete) as (pool, _):
            ledger = await open_ledger(pool, symbol, ArchiveFiles(complete.archive.location))
            rows = public_rows(ledger) if public else export_rows(ledger, complete.ledger.secrets)
            with row_writer(form, PUBLIC_COLUMNS if public else COLUMNS) as write:
                async for row in rows:
                    write(row)
        return DONE

    run(context, command)


@cli.command("rebuild-rollups")
def rebuild_rollups(context: typer.Context, why: Why = "") -> None:
    """Rebuild the hourly rollups from the entries; charts use the old rollups until the end."""

    async def command(config: Config) -> int:
        record_action(config.log, "rebuild-rollups", why)
        async with prepared(config) as complete, connected(at_primary(complete)) as (pool, _):
            for one in pools_by_cell(pool).values():
                await mark_unsound(one)
            homes = [(pool_of(pool, number), number) for number in range(complete.stream.partitions)]
            total = sum([await rebuild(home, number) + await condense(home, number) for home, number in homes])
        Terminal(stderr=True).print(f"condensed {total} entries")
        return DONE

    run(context, command)


@cli.command()
def vectors(files: list[Path], json: Json = False) -> None:
    """Run conformance vectors of the reserve or the mutual through its rules; exit with 1 if an outcome differs."""
    outcomes = {str(file): run_any_vector(read_vector(file)) for file in files}
    if json:
        print_json(outcomes)
    else:
        _print_outcomes(outcomes)
    raise typer.Exit(NO if any(outcome.differences for outcome in outcomes.values()) else DONE)


async def _deliver(config: Config, fitting: Fitting, json: bool) -> Delivered:
    async with prepared(config) as complete, connected(at_primary(complete)) as (pool, client), consuming(complete, pool):
        recording = fitting(await listed(pool))
        with Bars() as bars:
            sending = bars.add_task("sending", total=len(recording.listings) + len(recording.events))
            settling = bars.add_task("durable (%)", total=100)
            delivery = Delivery(
                pool,
                client,
                Producer.configured(client, complete.stream),
                lambda events: bars.advance(sending, events),
                lambda share: bars.update(settling, completed=int(share * 100)),
            )
            delivered = await delivery.run(recording)
            bars.finish(sending)
    if json:
        print_json(delivered)
    else:
        _print_delivered(delivered, len(recording.symbols))
    return delivered


def _print_delivered(delivered: Delivered, contracts_named: int) -> None:
    console = Terminal(soft_wrap=True)
    for refusal in delivered.refused:
        console.print(f"not listed: {refusal}", style="red")
    for line in delivered.lines:
        console.print(line, style="red")
    if delivered.gains:
        columns = *left("currency", "kind"), *right("entries", "credited", "paid", "uncovered", "repaid")
        rows = [(gain.currency, gain.kind, f"{gain.entries:,}", *_amounts(gain)) for gain in delivered.gains]
        show_table(console, columns, rows)
    for currency, decimals in dict.fromkeys((gain.currency, gain.decimals) for gain in delivered.gains):
        credited = sum(gain.credited for gain in delivered.gains if gain.currency == currency)
        console.print(f"credited in {currency}: {format_units(credited, decimals)}")
    entries = sum(gain.entries for gain in delivered.gains)
    rejected = ", ".join(f"{reason} {number:,}" for reason, number in delivered.rejected.items()) or "0"
    console.print(
        f"{delivered.events:,} events of {contracts_named:,} contracts in {delivered.seconds:.1f} s:"
        f" {delivered.settled:,} settled, {entries:,} entries, {delivered.duplicates:,} duplicates,"
        f" {delivered.passed_over:,} lines without an order, rejected: {rejected}"
    )
    if Reason.LATE in delivered.rejected:
        console.print("late events are older than settled ones; `fundsvc rejected replay --reason late` settles them")


def _amounts(gain: Gain) -> list[str]:
    return [format_units(amount, gain.decimals) for amount in (gain.credited, gain.paid, gain.uncovered, gain.repaid)]


async def _audit_all(pool: Pool, config: Config, files: ArchiveFiles | None) -> list[ContractAudit]:
    known, policy, secrets = await known_contracts(pool), config.policy, config.ledger.secrets
    with Bars() as bars:
        task = bars.add_task("entries recomputed", total=sum(entries for _, entries in known))
        audits = [
            await audit_contract(pool, symbol, lambda done: bars.advance(task, done), policy.of(symbol), secrets, files)
            for symbol, _ in known
        ]
        bars.finish(task)
        return audits


def _with_differences(audits: Sequence[ContractAudit], differences: Mapping[str, Sequence[str]]) -> list[ContractAudit]:
    """Adds differences to the audits; some may be of contracts that are missing in the ledger."""
    found = {one.symbol: one for one in audits}
    for symbol, further in differences.items():
        found.setdefault(symbol, ContractAudit(symbol, 0, "", [])).differences.extend(further[:DIFFERENCES_MAX])
    return list(found.values())


def _print_audits(audits: Sequence[ContractAudit], wrong: Sequence[ContractAudit]) -> None:
    console = Terminal()
    for audit_found in wrong:
        for difference in audit_found.differences:
            console.print(difference, style="red")
    entries = sum(audit_found.entries for audit_found in audits)
    verdict = f"{len(wrong)} contracts differ" if wrong else "no differences"
    console.print(f"{entries:,} entries of {len(audits):,} contracts recomputed: {verdict}")
    unopened = sum(audit_found.unopened for audit_found in audits)
    if unopened:
        console.print(
            f"{unopened:,} commitments to accounts were not checked: ledger.secret and ledger.previous lack their secrets"
        )


def _print_outcomes(outcomes: dict[str, Outcome]) -> None:
    console = Terminal()
    for name, outcome in outcomes.items():
        console.print(f"{outcome.verdict:<6} {name}")
        for difference in outcome.differences:
            console.print(f"       {difference}", style="red")
