"""What can be asked about funds: how they stand, stood and moved, in sum and one by one."""

import time
from collections.abc import AsyncIterator, Callable
from urllib.parse import quote

import structlog
from aiohttp import hdrs, web
from msgspec import UNSET, UnsetType

from fundsvc.api.adl_answers import order_answers
from fundsvc.api.answers import EntryAnswer, FundAnswer, Page, entry_answer, fund_answer
from fundsvc.api.csv_rows import CSV, HEADER, csv_rows
from fundsvc.api.exports import Exports, write
from fundsvc.api.fund_answers import Candle, LinkAnswer, StandingAnswer, SummaryAnswer, candles, standing_answer, summary_answer
from fundsvc.api.http.access import ACCOUNT_READERS
from fundsvc.api.http.application import Route, asked, fund_of, listed
from fundsvc.api.http.errors import NotFound
from fundsvc.api.http.parameters import CandlesQuery, HistoryQuery, MomentQuery, Query, SpanQuery, read_query
from fundsvc.api.http.routes import Endpoint, Media
from fundsvc.api.http.tokens import Caller
from fundsvc.api.valuation_inputs import Appraiser
from fundsvc.api.visibility import sight_of
from fundsvc.core.commitment import NO_SECRETS, Secrets
from fundsvc.core.fund.chain import GENESIS
from fundsvc.core.policy import Policy
from fundsvc.logs.faults import ThrottledFaults
from fundsvc.readmodel.ledger_tail import Tail
from fundsvc.store.adl import Deleveragings
from fundsvc.store.database import StoreFault
from fundsvc.store.reader import EntryRow, FundRow, Reader
from fundsvc.store.statistics import Statistics

STREAMED_ENTRIES = 500
"""Entries read and written at a time: a few milliseconds of the loop, and all that a history of any length needs of memory."""

ENTRY_DIGITS_MAX = 18
"""No ledger has as many entries, and 64 bits hold them."""

log = structlog.get_logger()


class FundResources:
    """Answers from the ledger, its rollups and its tail, and what an appraiser keeps at hand."""

    def __init__(
        self,
        reader: Reader,
        tail: Tail,
        statistics: Statistics,
        ledger: Deleveragings,
        appraiser: Appraiser,
        policy_of: Callable[[str], Policy],
        exports: Exports | None = None,
        secrets: Secrets = NO_SECRETS,
    ) -> None:
        self._reader = reader
        self._exports = exports or Exports(reader)
        self._tail = tail
        self._statistics = statistics
        self._ledger = ledger
        self._appraiser = appraiser
        self._policy_of = policy_of
        self._secrets = secrets
        self._cut_off = ThrottledFaults(log, "history")
        self.routes = (
            Route("/api/v1/insurance-fund/summary", Query, self.summary),
            Route("/api/v1/insurance-fund/{symbol}/at", MomentQuery, self.at),
            Route("/api/v1/insurance-fund/{symbol}/candles", CandlesQuery, self.candles),
            Route("/api/v1/insurance-fund/{symbol}/history", HistoryQuery, self.history),
            Endpoint(
                "/api/v1/insurance-fund/{symbol}/history.csv",
                self.history_csv,
                {200: Media(CSV)},
                query=SpanQuery,
                cost=self.export_cost,
            ),
            Route("/api/v1/insurance-fund/{symbol}/entries/{entry}", Query, self.entry, viewed=True),
        )

    def answer(self, fund: FundRow) -> FundAnswer:
        """A fund now; raises StoreFault while it cannot be valued yet."""
        return fund_answer(fund, self._policy_of(fund.symbol), self._appraiser.value(fund), self._tail.as_of_ms)

    async def summary(self, _query: Query) -> SummaryAnswer:
        """All funds in sum, by settlement currency and in USDT."""
        self._tail.check()
        return summary_answer(self._tail.funds.values(), self._appraiser.rate, time.time_ns() // 1_000_000, self._tail.as_of_ms)

    async def at(self, query: MomentQuery, symbol: str) -> StandingAnswer:
        """A fund as it stood at a moment of the engine's clock."""
        self._tail.check_knows(query.ts)
        contract = (await listed(self._reader, symbol)).contract
        return standing_answer(contract, query.ts, await self._statistics.at(symbol, query.ts))

    async def candles(self, query: CandlesQuery, symbol: str) -> list[Candle]:
        """The balance over time and what moved it, oldest first, at most 500 candles: without `from` and `to`, the latest.

        Each is `[time, open, high, low, close, credited, paid, uncovered, fills]`, of which `time` is its start. Hours and days
        are those of UTC; a time without entries has the close before it. Nothing is told of the time before a fund's first
        entry.
        """
        contract = (await listed(self._reader, symbol)).contract
        now_ms = time.time_ns() // 1_000_000
        span = query.starts(now_ms)
        self._tail.check_knows(span.stop)
        buckets = await self._statistics.buckets(symbol, span.start, span.stop, span.step)
        return list(candles(buckets, span, now_ms, contract.settle_decimals))

    async def history(self, query: HistoryQuery, symbol: str) -> Page[EntryAnswer]:
        """A page of a fund's ledger; one more entry is read than shown, to know whether there are more."""
        as_of = self._tail.as_of_ms
        contract = (await listed(self._reader, symbol)).contract
        entries = await self._reader.history(
            symbol,
            count=query.max_count + 1,
            offset=None if query.offset is UNSET else query.offset,
            forward=query.forward,
            kind=None if query.kind is UNSET else query.kind,
            start_ms=query.start_at,
            end_ms=query.end_at,
        )
        shown = [entry_answer(entry, contract) for entry in entries[: query.max_count]]
        return Page(data_list=shown, has_more=len(entries) > len(shown), as_of=as_of)

    async def history_csv(self, request: web.Request) -> web.StreamResponse:
        """A fund's ledger as CSV, as far as it goes when it is asked for: the fields of a history's entries, a line for each.

        It is read a little at a time, as fast as whoever asks takes it. Where the ledger goes away meanwhile, the connection is
        cut off: an end that is told is the end.
        """
        query = read_query(SpanQuery, asked(request))
        fund = await fund_of(self._reader, request.match_info["symbol"])
        response = web.StreamResponse()
        response.content_type, response.charset = CSV, "utf-8"
        response.headers[hdrs.CONTENT_DISPOSITION] = f"attachment; filename*=UTF-8''{quote(fund.symbol)}.csv"
        with self._exports.place(request):
            await response.prepare(request)
            if request.method != hdrs.METH_HEAD:
                await self._stream(request, response, fund, query)
        return response

    def export_cost(self, symbol: str) -> int:
        """As how many requests more the history of a fund counts: as many as there are pages to be read."""
        fund = self._tail.funds.get(symbol)
        return fund.entry // STREAMED_ENTRIES if fund else 0

    async def _stream(self, request: web.Request, response: web.StreamResponse, fund: FundRow, query: SpanQuery) -> None:
        try:
            await write(response, HEADER)
            async for entries in self._pages(fund, query):
                await write(response, csv_rows([entry_answer(entry, fund.contract) for entry in entries]))
        except ConnectionError:
            log.debug("history left", symbol=fund.symbol)
            _cut_off(request)
        except StoreFault as fault:
            self._cut_off.note(fault, symbol=fund.symbol)
            _cut_off(request)

    async def entry(self, _query: Query, symbol: str, entry: str, viewer: Caller | None) -> LinkAnswer:
        """One entry with the hash before it, and the ADL order that it caused, if any; its owner is shown its salt too."""
        contract = (await listed(self._reader, symbol)).contract
        number = int(entry) if entry.isascii() and entry.isdecimal() and len(entry) <= ENTRY_DIGITS_MAX else 0
        found = await self._reader.history(symbol, count=2, offset=number + 1)
        if not number or not found or found[0].entry != number:
            raise NotFound(f"{symbol} has no entry {entry!r}: they are numbered from 1 to what its fund calls `entry`")
        orders = await order_answers(self._ledger, await self._ledger.caused_by(symbol, number), contract, sight_of(viewer))
        account, salt = await self._opening(found[0], viewer)
        return LinkAnswer(
            entry=entry_answer(found[0], contract),
            previous_hash=(found[1].hash if len(found) > 1 else GENESIS).hex(),
            adl=orders[0] if orders else None,
            account=account,
            salt=salt,
        )

    async def _opening(self, entry: EntryRow, viewer: Caller | None) -> tuple[str | UnsetType, str | UnsetType]:
        """The account and the salt that open an entry's commitment, for its owner and for risk."""
        salt = self._secrets.salt(entry.symbol, entry.entry, entry.seal)
        if viewer is None or viewer.role not in ACCOUNT_READERS or salt is None:
            return UNSET, UNSET
        account = await self._reader.account_of(entry.symbol, entry.entry)
        if viewer.role == "trader" and account != viewer.account:
            return UNSET, UNSET
        return account, salt.hex()

    async def _pages(self, fund: FundRow, query: SpanQuery) -> AsyncIterator[list[EntryRow]]:
        """The entries of a fund as far as its row goes, within a time span, some at a time."""
        after = 0
        while True:
            entries = await self._exports.reader.history(
                fund.symbol,
                count=STREAMED_ENTRIES,
                offset=after,
                forward=True,
                start_ms=query.start_at,
                end_ms=query.end_at,
            )
            yield [entry for entry in entries if entry.entry <= fund.entry]
            if len(entries) < STREAMED_ENTRIES:
                return
            after = entries[-1].entry
            if after >= fund.entry:
                return


def _cut_off(request: web.Request) -> None:
    if request.transport:
        request.transport.abort()
