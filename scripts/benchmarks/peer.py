"""The simple alternative: one transaction per fill that locks the fund's row, inserts the entry and updates the balance.

It uses the same fills, the same rules in memory (`Fund.settle` with its hash), the same tables and constraints, the same
durability, prepared statements, and one event loop (uvloop). It does less: there is no stream, offset, duplicate check or ADL
order.
"""

import asyncio
import time
from collections.abc import Iterator

import asyncpg
import msgspec
from ground import Ledger, connection_to, cost, new_ledger
from market import Market

from fundsvc.config.settings import CurrencyConfig
from fundsvc.core.contracts import Contract, contract_of
from fundsvc.core.events import Fill
from fundsvc.core.fund.chain import Entry
from fundsvc.core.fund.settlement import Fund, FundState
from fundsvc.local.servers import EmbeddedServers

FIELDS = Entry.__struct_fields__

_TABLES = """
    CREATE TABLE peer_funds (LIKE funds INCLUDING ALL);
    CREATE TABLE peer_entries (LIKE entries INCLUDING ALL);
    CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON peer_entries FOR EACH ROW EXECUTE FUNCTION refuse_change();
    CREATE TRIGGER never_emptied BEFORE TRUNCATE ON peer_entries FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
    GRANT SELECT, UPDATE ON peer_funds TO fundsvc_service;
    GRANT INSERT ON peer_entries TO fundsvc_service;
"""
_STATE = "balance", "outstanding", "entry", "seq", "adl", "head"
"""The columns of a fund that a fill changes."""

_LOCK = f"SELECT {', '.join(_STATE)} FROM peer_funds WHERE symbol = $1 FOR UPDATE"  # noqa: S608 - the names are constants
_INSERT = (
    f"INSERT INTO peer_entries ({', '.join(FIELDS)}, hash)"  # noqa: S608 - the names are constants
    f" VALUES ({', '.join(f'${number}' for number in range(1, len(FIELDS) + 2))})"
)
_UPDATE = (
    f"UPDATE peer_funds SET {', '.join(f'{name} = ${number}' for number, name in enumerate(_STATE, 2))}, updated_at = now()"  # noqa: S608 - the names are constants
    " WHERE symbol = $1"
)


class Peer(msgspec.Struct, kw_only=True):
    """One measurement. CPU is in seconds per million fills; `others` is the share of the machine that other processes used."""

    connections: int
    fills: int
    fills_per_second: float
    postgres_cpu: float
    others: float


async def measure(servers: EmbeddedServers, contracts: int, connections: int, seconds: float) -> Peer:
    """Runs the given number of connections, each with one fill at a time, for some seconds on a new ledger."""
    market = Market(contracts)
    async with new_ledger(servers, f"bench_peer_{connections}") as ledger:
        funds = await _funds(ledger, market)
        fills = market.fills(1_000_000_000)
        before, started = cost(servers), time.perf_counter()
        settled = await asyncio.gather(*(_settle(ledger, funds, fills, started + seconds) for _ in range(connections)))
        took, spent = time.perf_counter() - started, cost(servers).since(before)
    done = sum(settled)
    return Peer(
        connections=connections,
        fills=done,
        fills_per_second=done / took,
        postgres_cpu=spent.postgres / done * 1e6,
        others=spent.others_share(took),
    )


async def _funds(ledger: Ledger, market: Market) -> dict[str, Fund]:
    """Creates the tables and an empty fund per contract."""
    currency = CurrencyConfig()
    contracts = [contract_of(listing.contract, currency.decimals, currency.decimals_default) for listing in market.listings()]
    funds = {contract.symbol: Fund(contract) for contract in contracts}
    async with connection_to(ledger.owner_dsn) as owner:
        await owner.execute(_TABLES)
        await owner.executemany(
            "INSERT INTO peer_funds (symbol, balance, outstanding, entry, seq, adl, head) VALUES ($1, 0, 0, 0, 0, 0, $2)",
            [(symbol, fund.head) for symbol, fund in funds.items()],
        )
    return funds


async def _settle(ledger: Ledger, funds: dict[str, Fund], fills: Iterator[Fill], until: float) -> int:
    settled = 0
    async with connection_to(ledger.dsn) as connection:
        while time.perf_counter() < until:
            fill = next(fills)
            async with connection.transaction():
                await _settle_one(connection, funds[fill.symbol].contract, fill)
            settled += 1
    return settled


async def _settle_one(connection: asyncpg.Connection, contract: Contract, fill: Fill) -> None:
    row = await connection.fetchrow(_LOCK, fill.symbol)
    assert row is not None, "every contract has a fund"
    fund = Fund(contract, FundState(contract.symbol, **row))
    entry, digest = fund.settle(fill)
    await connection.execute(_INSERT, *msgspec.structs.astuple(entry), digest)
    state = fund.state()
    await connection.execute(_UPDATE, fill.symbol, *(getattr(state, name) for name in _STATE))
