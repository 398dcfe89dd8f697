"""Contracts, the service's clock, and the ingest cursor."""

import time
from collections.abc import Callable

import msgspec
from msgspec import UNSET

from fundsvc.api.answers import (
    ContractAnswer,
    ContractCursor,
    CursorAnswer,
    PartitionCursor,
    PoolCursor,
    SettlementCurrency,
    contract_answer,
)
from fundsvc.api.http.application import Route, find_contract
from fundsvc.api.http.parameters import CursorQuery, Query
from fundsvc.api.http.tokens import Caller
from fundsvc.api.stream_epochs import StreamEpochs, producer_name
from fundsvc.core.generations import generation_of, public_symbol
from fundsvc.mutual.store.reader import MutualReader, PoolState
from fundsvc.store.reader import Reader
from fundsvc.streams.client import pool_stream_key


class ContractResources:
    """Routes that answer from the ledgers of contracts and pools; `stream_key` returns the stream of a partition.

    `complete` reads lists that must not lack contracts of a cell that is away.
    """

    def __init__(
        self,
        reader: Reader,
        stream_key: Callable[[int], str],
        epochs: StreamEpochs,
        pools: MutualReader,
        complete: Reader | None = None,
    ) -> None:
        self._reader = reader
        self._complete = complete or reader
        self._stream_key = stream_key
        self._pools = pools
        self._epochs = epochs
        self.routes = (
            Route("/api/v1/timestamp", Query, self.timestamp, cached=False),
            Route("/api/v3/currencies", Query, self.currencies),
            Route("/api/v1/contracts/active", Query, self.active_contracts),
            Route("/api/v1/contracts/{symbol}", Query, self.contract),
            Route("/api/v1/ingest/cursor", CursorQuery, self.cursor, roles=frozenset({"engine", "risk"})),
        )

    async def timestamp(self, _query: Query) -> int:
        """The time of the service in milliseconds since the epoch."""
        return time.time_ns() // 1_000_000

    async def currencies(self, _query: Query) -> list[SettlementCurrency]:
        """The currencies in which contracts settle, for clients that load them with the contracts."""
        decimals = {found.contract.settle_currency: found.contract.settle_decimals for found in await self._reader.contracts()}
        return [SettlementCurrency(name, name, name, precision) for name, precision in sorted(decimals.items())]

    async def active_contracts(self, _query: Query) -> list[ContractAnswer]:
        """All contracts with status Open, KuCoin's definition of active, and all contracts without a status.

        Recordings contain listings without a status. Contracts with another status, and closed contracts, keep their funds and
        their own paths.
        """
        answers = [contract_answer(contract) for contract in await self._reader.contracts() if contract.closing is None]
        return [answer for answer in answers if answer.get("status", _OPEN) == _OPEN]

    async def contract(self, _query: Query, symbol: str) -> ContractAnswer:
        """One contract with any status."""
        return contract_answer(await find_contract(self._reader, symbol))

    async def cursor(self, query: CursorQuery, caller: Caller) -> CursorAnswer:
        """The last settled message of each stream and sequence of each contract and pool.

        A producer that has read it may post in the current stream epoch.
        """
        epoch = await self._epochs.acknowledge(producer_name(caller, query.producer_id) if caller.role == "engine" else "")
        funds = sorted(await self._complete.funds(), key=lambda fund: generation_of(fund.symbol))
        current = {public_symbol(fund.symbol): fund for fund in funds}.items()
        partitions = await self._complete.partitions()
        return CursorAnswer(
            stream_epoch=epoch,
            partitions=[
                PartitionCursor(
                    partition=row.partition,
                    stream=self._stream_key(row.partition),
                    last_id=row.last_id,
                    run_id=self._epochs.run_id(row.partition),
                )
                for row in partitions
            ],
            contracts=[ContractCursor(symbol=symbol, partition=fund.partition, seq=fund.seq) for symbol, fund in current],
            pools=[_pool_cursor(state) for state in await self._pools.pools()] or UNSET,
        )


def _pool_cursor(state: PoolState) -> PoolCursor:
    pool = state.row.pool
    return PoolCursor(pool=pool, partition=state.home, stream=pool_stream_key(pool), last_id=state.last_id, seq=state.row.seq)


_OPEN = msgspec.Raw(b'"Open"')
