"""The mutual in the database: restart with many live policies, an account's answer at that size, and durable trades.

An engine process settles a backlog of trades that is in the stream before it starts. The clock runs from the first commit that
another connection sees to the last, so it does not include the start of the process. As many fills of the reserve are settled
before and after, because the target is relative to them. Times are those of the wall: other processes add to them. Each has the
share of the machine that other processes used meanwhile.
"""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import asyncpg
import msgspec
from ground import SETTLED_SECONDS_MAX, Cost, Ledger, ServiceProcess, append, connection_to, cost, new_ledger, stream_of
from market import Market
from mutual_pool import (
    NAME,
    POLICIES_EACH,
    RESTORE_SECONDS_MAX,
    RULES,
    TARGET_POLICIES,
    TRADERS,
    TRADES_PER_MESSAGE,
    account_name,
    account_row,
    accounts_of,
    events_of,
    message_bodies,
    policy_row,
    pool_row,
)
from report import TARGET_CONTRACTS, Target, at_least, at_most, table_of, target_table
from rich.console import Console
from throughput import Load, ShowProgress, drain

from fundsvc.cli.tools.mutual_answers import account_status
from fundsvc.local.servers import EmbeddedServers
from fundsvc.mutual.core.terms import DAY_MS
from fundsvc.mutual.store.reader import MutualReader
from fundsvc.mutual.store.rows import ACCOUNT_COLUMNS, POLICY_COLUMNS
from fundsvc.mutual.store.writer import LoadedPool, PoolWriter, open_pool_writer
from fundsvc.store.database import open_pool
from fundsvc.store.leases import open_leases
from fundsvc.streams.client import pool_stream_key
from fundsvc.wire.codec import Codec

LEASE_SECONDS = 600.0
"""Longer than a measurement, so that the writer need not renew its lease."""

AHEAD_SECONDS = 300.0

POLL_SECONDS = 0.01
"""Pause between two looks at the ledger: a few thousandths of a run."""

MESSAGES_PER_APPEND = 200

ANSWERS = 500
"""Answers of accounts, spread over all."""

ANSWER_MS_MAX = 5.0

OF_FILLS_MIN = 0.5
"""50,000 trades per second where the reserve settles 100,000 fills per second."""


class Results(msgspec.Struct, kw_only=True):
    """Results with a number of live policies. `answer` times are in milliseconds, CPU is in seconds; per million for trades.

    `others` are the shares of the machine that other processes used during restart, answers and trades.
    """

    policies: int
    restart_seconds: float
    restart_cpu: float
    restart_postgres_cpu: float
    answer_median_ms: float
    answer_p99_ms: float
    trades_per_second: float
    fills_per_second: float
    engine_cpu: float
    postgres_cpu: float
    others: tuple[float, float, float]
    targets: list[Target] = []

    @property
    def of_fills(self) -> float:
        """The trades per second relative to the fills per second of the reserve."""
        return self.trades_per_second / self.fills_per_second

    def show(self, console: Console) -> None:
        """Prints the tables."""
        table = table_of(f"The ledger with {self.policies:,} live policies", "", "measured", "others")
        table.columns[0].justify = "left"
        restart, answering, settling = (f"{share:.0%}" for share in self.others)
        for row in (
            ("restart from the database, s", f"{self.restart_seconds:.1f}", restart),
            (
                "  CPU of the engine's part and PostgreSQL, s",
                f"{self.restart_cpu:.1f}, {self.restart_postgres_cpu:.1f}",
                "",
            ),
            ("an account's answer, ms: median", f"{self.answer_median_ms:.2f}", answering),
            ("  p99", f"{self.answer_p99_ms:.2f}", ""),
            ("durable trades/s", f"{self.trades_per_second:,.0f}", settling),
            ("  relative to fills/s of the reserve", f"{self.of_fills:.2f}", ""),
            ("  CPU of engine and PostgreSQL, s per million", f"{self.engine_cpu:.1f}, {self.postgres_cpu:.1f}", ""),
        ):
            table.add_row(*row)
        console.print(table)
        if self.targets:
            console.print(target_table(self.targets))


async def measure(
    servers: EmbeddedServers, policies: int, trades: int, codec: Codec, log: Path, show_progress: ShowProgress
) -> Results:
    """Measures a ledger with a number of live policies, and a number of durable trades on another one."""
    async with _filled(servers, policies, show_progress) as ledger, _writer(ledger) as writer:
        show_progress("restart", 0, 0)
        restart, loaded = await _measured(servers, _load(writer))
        del loaded
        show_progress("answers", 0, 0)
        answering, answers = await _measured(servers, _answers(ledger, policies))
    fills = [await _fills_per_second(servers, trades, codec, log, show_progress)]
    async with _filled(servers, TRADERS * POLICIES_EACH, show_progress) as ledger:
        show_progress("durable trades", 0, 0)
        settled, settling = await _settle(servers, ledger, trades, codec, log)
    fills.append(await _fills_per_second(servers, trades, codec, log, show_progress))
    results = Results(
        policies=policies,
        restart_seconds=restart.seconds,
        restart_cpu=restart.cost.benchmark,
        restart_postgres_cpu=restart.cost.postgres,
        answer_median_ms=statistics.median(answers),
        answer_p99_ms=statistics.quantiles(answers, n=100)[-1],
        trades_per_second=settled / settling.seconds,
        fills_per_second=statistics.mean(fills),
        engine_cpu=settling.cost.engine / settled * 1e6,
        postgres_cpu=settling.cost.postgres / settled * 1e6,
        others=(restart.others, answering.others, settling.others),
    )
    results.targets = _judge(results)
    return results


class Measured(NamedTuple):
    """The time and the cost of some work."""

    seconds: float
    cost: Cost

    @property
    def others(self) -> float:
        """The share of the machine that other processes used."""
        return self.cost.others_share(self.seconds)


Result = TypeVar("Result")


async def _measured(servers: EmbeddedServers, work: Awaitable[Result]) -> tuple[Measured, Result]:
    before, started = cost(servers), time.perf_counter()
    result = await work
    return Measured(time.perf_counter() - started, cost(servers).since(before)), result


@asynccontextmanager
async def _filled(servers: EmbeddedServers, policies: int, show_progress: ShowProgress) -> AsyncIterator[Ledger]:
    """Yields a ledger with a pool that has active policies, and no owner."""
    async with new_ledger(servers, "bench_mutual") as ledger:
        async with _writer(ledger) as writer:
            await _load(writer)
        show_progress(f"writing {policies:,} policies", 0, 0)
        async with connection_to(ledger.owner_dsn) as owner:
            await _fill(owner, policies)
        yield ledger


@asynccontextmanager
async def _writer(ledger: Ledger) -> AsyncIterator[PoolWriter]:
    """Yields a writer under a lease that ends with it."""
    async with open_leases(ledger.dsn, "bench", LEASE_SECONDS) as leases:
        epochs = await leases.keep()
        async with open_pool_writer(ledger.dsn, "bench pools", NAME, 0, epochs[0]) as writer:
            yield writer
        await leases.release(0, epochs[0])
        await leases.leave()


async def _load(writer: PoolWriter) -> LoadedPool:
    return await writer.load(RULES, None, AHEAD_SECONDS, lambda: None)


async def _fill(owner: asyncpg.Connection, policies: int) -> None:
    """Writes accounts and active policies, and the state of the pool that has them."""
    accounts, last_cutoff = accounts_of(policies), RULES.cutoff_from(pool_row(0, 0, 0).time) + 1_000 * DAY_MS
    records = ((NAME, number, *account_row(number, last_cutoff)) for number in range(accounts))
    await owner.copy_records_to_table("mutual_accounts", records=records, columns=ACCOUNT_COLUMNS)
    policy_records = ((NAME, *policy_row(number, RULES.cap)) for number in range(policies))
    await owner.copy_records_to_table("mutual_policies", records=policy_records, columns=POLICY_COLUMNS)
    state = pool_row(policies, 1_000 * 10**RULES.decimals, 0)
    await owner.execute(
        "UPDATE mutual_pools SET balance = $1, inflow = $1, weight = $2, time = $3, next_cutoff = $4, policies = $5, live = $5,"
        " active = $5, accounts = $6, caps_left = $7",
        state.balance, state.weight, state.time, state.next_cutoff, policies, accounts, policies * RULES.cap,
    )  # fmt: skip
    await owner.execute("ANALYZE mutual_accounts, mutual_policies")
    await owner.execute("CHECKPOINT")


async def _settle(servers: EmbeddedServers, ledger: Ledger, trades: int, codec: Codec, log: Path) -> tuple[int, Measured]:
    """Lets an engine settle a backlog of trades; returns the number of measured trades."""
    messages = message_bodies(events_of(trades), codec)
    async with stream_of(ledger) as client:
        while run := list(islice(messages, MESSAGES_PER_APPEND)):
            await append(client, pool_stream_key(NAME), run, codec)
    configuration = log.with_name("mutual.toml")
    configuration.write_text(f"[mutual.pools.{NAME}]\n")
    async with connection_to(ledger.owner_dsn) as connection:
        engine = ServiceProcess(ledger, log, FUNDSVC_CONFIG=str(configuration))
        try:
            first = await _settled_after(connection, 1, engine)
            before, started = cost(servers, engine), time.perf_counter()
            last = await _settled_after(connection, trades, engine)
            seconds, spent = time.perf_counter() - started, cost(servers, engine).since(before)
        finally:
            await asyncio.to_thread(engine.stop)
        if await connection.fetchval("SELECT count(*) FROM mutual_rejected"):
            raise RuntimeError("trades of the benchmark were rejected")
    return last - first, Measured(seconds, spent)


async def _fills_per_second(
    servers: EmbeddedServers, events: int, codec: Codec, log: Path, show_progress: ShowProgress
) -> float:
    """Returns fills per second of the reserve, of a backlog with as many events."""
    load = Load(events, TRADES_PER_MESSAGE, TARGET_CONTRACTS, codec)
    async with new_ledger(servers, "bench_reserve") as ledger:
        return (await drain(servers, ledger, load, Market(TARGET_CONTRACTS), log, show_progress)).fills_per_second


async def _settled_after(connection: asyncpg.Connection, seq: int, engine: ServiceProcess) -> int:
    """Returns the last settled sequence as soon as it is at least `seq`."""
    deadline = time.monotonic() + SETTLED_SECONDS_MAX
    while (settled := await connection.fetchval("SELECT seq FROM mutual_pools")) < seq:
        engine.check()
        if time.monotonic() > deadline:
            raise RuntimeError(f"the engine settled only {settled} of {seq} trades")
        await asyncio.sleep(POLL_SECONDS)
    return int(settled)


async def _answers(ledger: Ledger, policies: int) -> list[float]:
    """Returns the times of accounts' answers in milliseconds."""
    accounts, taken = accounts_of(policies), []
    async with open_pool(ledger.dsn, 2) as pool:
        reader = MutualReader(pool)
        for number in range(ANSWERS):
            started = time.perf_counter()
            state = await reader.account(NAME, account_name(number * 7_919 % accounts))
            assert state is not None, "the account was written"
            msgspec.json.encode(account_status(state))
            taken.append(1000 * (time.perf_counter() - started))
    return taken


def _judge(results: Results) -> list[Target]:
    if results.policies != TARGET_POLICIES:
        return []
    return [
        at_most("restart from the database, s", results.restart_seconds, RESTORE_SECONDS_MAX, "{:.1f}"),
        at_most("an account's answer, median ms", results.answer_median_ms, ANSWER_MS_MAX, "{:.2f}"),
        at_least("durable trades/s, relative to fills/s", results.of_fills, OF_FILLS_MIN, "{:.2f}"),
    ]
