"""What can be asked: the table of routes and, in its order, what answers each."""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler
from msgspec import UNSET
from multidict import MultiDict

from fundsvc.api.answers import (
    ContractAnswer,
    ContractCursor,
    CursorAnswer,
    EntryAnswer,
    Envelope,
    FundAnswer,
    Page,
    PartitionCursor,
    contract_answer,
    entry_answer,
    fund_answer,
)
from fundsvc.api.errors import NotFound
from fundsvc.api.operations import Ping, make_operations_app
from fundsvc.api.parameters import HistoryQuery, Query, read_query
from fundsvc.metrics import Metrics
from fundsvc.store.reader import Listed, Reader


class Route(NamedTuple):
    """A path, the struct of its query parameters, and what answers it: called with the query and the path's parameters."""

    path: str
    query: type[Query]
    answer: Callable[..., Awaitable[Any]]


class Resources:
    """Answers questions about funds from the ledger; `stream_key` names the stream of a partition."""

    def __init__(self, reader: Reader, stream_key: Callable[[int], str]) -> None:
        self._reader = reader
        self._stream_key = stream_key
        self.routes = (
            Route("/api/v1/timestamp", Query, self.timestamp),
            Route("/api/v1/contracts/active", Query, self.active_contracts),
            Route("/api/v1/contracts/{symbol}", Query, self.contract),
            Route("/api/v1/insurance-fund", Query, self.funds),
            Route("/api/v1/insurance-fund/{symbol}", Query, self.fund),
            Route("/api/v1/insurance-fund/{symbol}/history", HistoryQuery, self.history),
            Route("/api/v1/ingest/cursor", Query, self.cursor),
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
        return contract_answer(await self._listed(symbol))

    async def funds(self, _query: Query) -> list[FundAnswer]:
        """All funds."""
        return [fund_answer(fund) for fund in await self._reader.funds()]

    async def fund(self, _query: Query, symbol: str) -> FundAnswer:
        """The fund of one contract."""
        for fund in await self._reader.funds(_possible(symbol)):
            return fund_answer(fund)
        raise _not_listed(symbol)

    async def history(self, query: HistoryQuery, symbol: str) -> Page[EntryAnswer]:
        """A page of a fund's ledger; one more entry is read than shown, to know whether there are more."""
        listed = await self._listed(symbol)
        entries = await self._reader.history(
            symbol,
            count=query.max_count + 1,
            offset=None if query.offset is UNSET else query.offset,
            forward=query.forward,
            kind=None if query.kind is UNSET else query.kind,
            start_ms=query.start_at,
            end_ms=query.end_at,
        )
        shown = [entry_answer(entry, listed.contract) for entry in entries[: query.max_count]]
        return Page(data_list=shown, has_more=len(entries) > len(shown))

    async def cursor(self, _query: Query) -> CursorAnswer:
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

    async def _listed(self, symbol: str) -> Listed:
        for listed in await self._reader.contracts(_possible(symbol)):
            return listed
        raise _not_listed(symbol)


_OPEN = msgspec.Raw(b'"Open"')


def make_app(reader: Reader, metrics: Metrics, pings: Mapping[str, Ping], stream_key: Callable[[int], str]) -> web.Application:
    """The whole HTTP side, the operations' paths included; whoever opened the reader's pool closes it."""
    application = make_operations_app(reader, metrics, pings)
    for route in Resources(reader, stream_key).routes:
        application.router.add_get(route.path, _handler(route))
    return application


def _handler(route: Route) -> Handler:
    async def handle(request: web.Request) -> web.Response:
        query = read_query(route.query, _asked(request))
        answer = Envelope(data=await route.answer(query, **request.match_info))
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    return handle


def _asked(request: web.Request) -> MultiDict[str]:
    """The query's parameters, without those that say again what the path says, as KuCoin's own client does with `symbol`."""
    path = request.match_info
    return MultiDict((name, value) for name, value in request.query.items() if path.get(name) != value)


def _possible(symbol: str) -> str:
    """The symbol, if a contract may have it at all: a database's text holds no NUL and no half characters."""
    if not symbol.isprintable():
        raise _not_listed(symbol)
    return symbol


def _not_listed(symbol: str) -> NotFound:
    return NotFound(f"no contract {symbol!r} is listed")
