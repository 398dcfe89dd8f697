"""The mutual in the database: restart with many live policies, an account's answer at that size, and durable trades.

Trades go through decoder, pool and one commit for each TRADES_PER_BATCH of them, without a stream. Times are those of the wall:
other processes add to them. Each has the share of the machine that other processes used meanwhile.
"""

import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeVar

import asyncpg
import msgspec
from ground import Cost, Ledger, connection_to, cost, new_ledger
from mutual_pool import (
    NAME,
    RESTORE_SECONDS_MAX,
    RULES,
    TARGET_POLICIES,
    TRADERS,
    TRADES,
    TRADES_PER_BATCH,
    TRADES_PER_MESSAGE,
    TRADES_PER_SECOND_MIN,
    account_name,
    account_row,
    accounts_of,
    message_bodies,
    policy_row,
    pool_row,
    trades,
)
from report import Target, at_least, at_most, table_of, target_table
from rich.console import Console

from fundsvc.cli.tools.mutual_answers import account_status
from fundsvc.core.batch import Offset
from fundsvc.local.servers import EmbeddedServers
from fundsvc.mutual.codec import decode
from fundsvc.mutual.core.terms import DAY_MS
from fundsvc.mutual.store.reader import MutualReader
from fundsvc.mutual.store.rows import ACCOUNT_COLUMNS, POLICY_COLUMNS, Totals
from fundsvc.mutual.store.writer import LoadedPool, PoolWriter, open_pool_writer
from fundsvc.store.database import open_pool
from fundsvc.store.leases import open_leases
from fundsvc.wire.codec import Codec

LEASE_SECONDS = 600.0
AHEAD_SECONDS = 300.0

ANSWERS = 500
"""Answers of accounts, spread over all."""

ANSWER_MS_MAX = 5.0

ShowProgress = Callable[[str], None]


class Results(msgspec.Struct, kw_only=True):
    """Results with a number of live policies. `answer` times are in milliseconds, CPU is in seconds; per million for trades.

    `others` are the shares of the machine that other processes used during restart, trades and answers.
    """

    policies: int
    restart_seconds: float
    restart_cpu: float
    restart_postgres_cpu: float
    answer_median_ms: float
    answer_p99_ms: float
    trades_per_second: float
    cpu: float
    postgres_cpu: float
    others: tuple[float, float, float]
    targets: list[Target] = []

    def show(self, console: Console) -> None:
        """Prints the tables."""
        table = table_of(f"The ledger with {self.policies:,} live policies", "", "measured", "others")
        table.columns[0].justify = "left"
        restart, settling, answering = (f"{share:.0%}" for share in self.others)
        for row in (
            ("restart from the database, s", f"{self.restart_seconds:.1f}", restart),
            (
                "  CPU of the engine's part, and of PostgreSQL, s",
                f"{self.restart_cpu:.1f}, {self.restart_postgres_cpu:.1f}",
                "",
            ),
            ("an account's answer, ms: median", f"{self.answer_median_ms:.2f}", answering),
            ("  p99", f"{self.answer_p99_ms:.2f}", ""),
            ("durable trades/s, without a stream", f"{self.trades_per_second:,.0f}", settling),
            ("  CPU of both, s per million", f"{self.cpu:.1f}, {self.postgres_cpu:.1f}", ""),
        ):
            table.add_row(*row)
        console.print(table)
        if self.targets:
            console.print(target_table(self.targets))


async def measure(servers: EmbeddedServers, policies: int, codec: Codec, show_progress: ShowProgress) -> Results:
    """Measures a ledger with a number of live policies."""
    async with new_ledger(servers, "bench_mutual") as ledger, _writer(ledger) as writer:
        await _load(writer)
        show_progress(f"writing {policies:,} policies")
        async with connection_to(ledger.owner_dsn) as owner:
            await _fill(owner, policies)
        show_progress("restart")
        restart, loaded = await _measured(servers, _load(writer))
        show_progress("durable trades")
        bodies = list(message_bodies(trades(TRADERS), codec))
        settling, _ = await _measured(servers, _settle(writer, loaded, bodies, codec))
        del loaded
        show_progress("answers")
        answering, answers = await _measured(servers, _answers(ledger, policies))
    results = Results(
        policies=policies,
        restart_seconds=restart.seconds,
        restart_cpu=restart.cost.benchmark,
        restart_postgres_cpu=restart.cost.postgres,
        answer_median_ms=statistics.median(answers),
        answer_p99_ms=statistics.quantiles(answers, n=100)[-1],
        trades_per_second=TRADES / settling.seconds,
        cpu=settling.cost.benchmark / TRADES * 1e6,
        postgres_cpu=settling.cost.postgres / TRADES * 1e6,
        others=(restart.others, settling.others, answering.others),
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
async def _writer(ledger: Ledger) -> AsyncIterator[PoolWriter]:
    async with open_leases(ledger.dsn, "bench", LEASE_SECONDS) as leases:
        epochs = await leases.keep()
        async with open_pool_writer(ledger.dsn, "bench pools", NAME, 0, epochs[0]) as writer:
            yield writer


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


async def _settle(writer: PoolWriter, loaded: LoadedPool, bodies: Sequence[bytes], codec: Codec) -> None:
    """Decodes, applies and commits trades."""
    pool, before = loaded.pool, loaded.offset
    for number, body in enumerate(bodies, 1):
        for event in decode(codec, body):
            pool.apply(event)
        if not number * TRADES_PER_MESSAGE % TRADES_PER_BATCH:
            after = Offset(f"{number}-0", number)
            distribution = pool.register.distribution
            totals = Totals(len(pool.register.policies), len(distribution), distribution.caps_left)
            await writer.commit(pool.take(), totals, (), before, after)
            before = after


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
        at_least("durable trades/s, without a stream", results.trades_per_second, TRADES_PER_SECOND_MIN, "{:,.0f}"),
    ]
