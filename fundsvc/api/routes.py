"""What can be asked about funds: the table of routes and, in its order, what answers each."""

import time
from collections.abc import Callable

import msgspec
from msgspec import UNSET

from fundsvc.api.answers import (
    ContractAnswer,
    ContractCursor,
    CursorAnswer,
    EntryAnswer,
    FundAnswer,
    Page,
    PartitionCursor,
    contract_answer,
    entry_answer,
    fund_answer,
)
from fundsvc.api.parameters import HistoryQuery, Query
from fundsvc.api.serving import Route, listed, not_listed, possible
from fundsvc.api.tokens import Caller
from fundsvc.core.policy import Policy
from fundsvc.store.reader import Reader


class Resources:
    """Answers questions about funds from the ledger; `stream_key` names the stream of a partition, `policy_of` a policy."""

    def __init__(self, reader: Reader, stream_key: Callable[[int], str], policy_of: Callable[[str], Policy]) -> None:
        self._reader = reader
        self._policy_of = policy_of
        self._stream_key = stream_key
        self.routes = (
            Route("/api/v1/timestamp", Query, self.timestamp),
            Route("/api/v1/contracts/active", Query, self.active_contracts),
            Route("/api/v1/contracts/{symbol}", Query, self.contract),
            Route("/api/v1/insurance-fund", Query, self.funds),
            Route("/api/v1/insurance-fund/{symbol}", Query, self.fund),
            Route("/api/v1/insurance-fund/{symbol}/history", HistoryQuery, self.history),
            Route("/api/v1/ingest/cursor", Query, self.cursor, roles=frozenset({"engine", "risk"})),
        )

    async def timestamp(self, _query: Query) -> int:
        """The service's clock."""
        return time.time_ns() // 1_000_000

    async def active_contracts(self, _query: Query) -> list[ContractAnswer]:
        """The contracts that can be traded, which is what KuCoin's documentation says `active` means: status Open.

        A listing without a status (a recording's) says nothing against it. The others keep their funds and their own paths.
        """
        answers = [contract_answer(listed) for listed in await self._reader.contracts()]
        return [answer for answer in answers if answer.get("status", _OPEN) == _OPEN]

    async def contract(self, _query: Query, symbol: str) -> ContractAnswer:
        """One contract, whatever its status."""
        return contract_answer(await listed(self._reader, symbol))

    async def funds(self, _query: Query) -> list[FundAnswer]:
        """All funds."""
        return [fund_answer(fund, self._policy_of(fund.symbol)) for fund in await self._reader.funds()]

    async def fund(self, _query: Query, symbol: str) -> FundAnswer:
        """The fund of one contract."""
        for fund in await self._reader.funds(possible(symbol)):
            return fund_answer(fund, self._policy_of(symbol))
        raise not_listed(symbol)

    async def history(self, query: HistoryQuery, symbol: str) -> Page[EntryAnswer]:
        """A page of a fund's ledger; one more entry is read than shown, to know whether there are more."""
        found = await listed(self._reader, symbol)
        entries = await self._reader.history(
            symbol,
            count=query.max_count + 1,
            offset=None if query.offset is UNSET else query.offset,
            forward=query.forward,
            kind=None if query.kind is UNSET else query.kind,
            start_ms=query.start_at,
            end_ms=query.end_at,
        )
        shown = [entry_answer(entry, found.contract) for entry in entries[: query.max_count]]
        return Page(data_list=shown, has_more=len(entries) > len(shown))

    async def cursor(self, _query: Query, caller: Caller) -> CursorAnswer:  # noqa: ARG002 - any caller is told the same
        """What is durable, by stream and by contract."""
        funds = await self._reader.funds()
        partitions = await self._reader.partitions()
        return CursorAnswer(
            partitions=[
                PartitionCursor(partition=row.partition, stream=self._stream_key(row.partition), last_id=row.last_id)
                for row in partitions
            ],
            contracts=[ContractCursor(symbol=fund.symbol, partition=fund.partition, seq=fund.seq) for fund in funds],
        )


_OPEN = msgspec.Raw(b'"Open"')
