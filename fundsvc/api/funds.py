"""Funds: sums, past balances, candles, ledger histories and single entries."""

import time
from collections.abc import AsyncIterator, Callable

from aiohttp import web
from msgspec import UNSET, UnsetType

from fundsvc.api.adl_answers.orders import order_answers
from fundsvc.api.answers import EntryAnswer, FundAnswer, Page, entry_answer, fund_answer
from fundsvc.api.csv_rows import CSV
from fundsvc.api.exports import STREAMED_ROWS, Exports
from fundsvc.api.fund_answers import (
    AuditAnswer,
    Candle,
    ChartAnswer,
    CurrencyCandlesAnswer,
    EntryDetailAnswer,
    FundAtAnswer,
    FundHoursAnswer,
    SummaryAnswer,
    audit_answer,
    candles,
    chart_answer,
    currency_candles_answer,
    fund_at_answer,
    fund_hours_answer,
    summary_answer,
)
from fundsvc.api.http.application import Route, find_contract, find_fund, query_parameters
from fundsvc.api.http.errors import NotFound
from fundsvc.api.http.parameters import CandlesQuery, ChartQuery, HistoryQuery, MomentQuery, Query, SpanQuery, read_query
from fundsvc.api.http.routes import Endpoint, Media
from fundsvc.api.http.tokens import Caller
from fundsvc.api.policy_answers import FundPolicyAnswer, PolicyVersionAnswer, policy_answers, policy_version_answers
from fundsvc.api.valuation_inputs import Appraiser
from fundsvc.api.visibility import PUBLIC, visibility_of
from fundsvc.core.commitment import NO_SECRETS, Secrets
from fundsvc.core.fund.chain import GENESIS
from fundsvc.core.generations import public_symbol
from fundsvc.core.policy import Policy
from fundsvc.readmodel.cell_tails import AnyTail
from fundsvc.store.adl import AdlReader
from fundsvc.store.reader import HOUR_MS, EntryRow, FundRow, Reader
from fundsvc.store.statistics import Statistics

FUNDS_PER_REQUEST = 50
"""The funds whose history takes the database about as long as another request."""

ENTRY_DIGITS_MAX = 18
"""Digits of an entry number. 18 digits fit 64 bits."""


class FundResources:
    """Routes that answer from the ledger, its rollups, its tail, and the values of an appraiser."""

    def __init__(
        self,
        reader: Reader,
        tail: AnyTail,
        statistics: Statistics,
        ledger: AdlReader,
        appraiser: Appraiser,
        policy_of: Callable[[str], Policy],
        exporting: Reader | None = None,
        exports: Exports | None = None,
        secrets: Secrets = NO_SECRETS,
    ) -> None:
        self._reader = reader
        self._exporting = exporting or reader
        self._exports = exports or Exports()
        self._tail = tail
        self._statistics = statistics
        self._ledger = ledger
        self._appraiser = appraiser
        self._policy_of = policy_of
        self._secrets = secrets
        self.routes = (
            Route("/api/v1/insurance-fund/summary", Query, self.summary),
            Route("/api/v1/policies", Query, self.policies),
            Route("/api/v1/summary/candles", CandlesQuery, self.summary_candles, cost=self.summary_cost),
            Route("/api/v1/summary/hours", Query, self.summary_hours, cost=self.summary_cost),
            Route("/api/v1/insurance-fund/{symbol}/at", MomentQuery, self.at),
            Route("/api/v1/insurance-fund/{symbol}/audit", Query, self.audit),
            Route("/api/v1/insurance-fund/{symbol}/policies", Query, self.policy_versions),
            Route("/api/v1/insurance-fund/{symbol}/candles", CandlesQuery, self.candles),
            Route("/api/v1/insurance-fund/{symbol}/chart", ChartQuery, self.chart),
            Route("/api/v1/insurance-fund/{symbol}/history", HistoryQuery, self.history),
            Endpoint(
                "/api/v1/insurance-fund/{symbol}/history.csv",
                self.history_csv,
                {200: Media(CSV)},
                query=SpanQuery,
                cost=self.export_cost,
            ),
            Route("/api/v1/insurance-fund/{symbol}/entries/{entry}", Query, self.entry, token_optional=True),
        )

    def answer(self, fund: FundRow) -> FundAnswer:
        """Returns the answer for a fund; raises StoreFault before the first valuation."""
        held = self._tail.held.get(fund.symbol)
        return fund_answer(fund, self._policy_of(fund.symbol), self._appraiser.value(fund), self._tail.as_of_ms, held)

    async def summary(self, _query: Query) -> SummaryAnswer:
        """The sums of all funds by settlement currency and in USDT."""
        self._tail.check()
        return summary_answer(self._tail.shown(), self._appraiser.rate, time.time_ns() // 1_000_000, self._tail.as_of_ms)

    async def policies(self, _query: Query) -> list[FundPolicyAnswer]:
        """The policies in force, each with its contracts."""
        self._tail.check()
        return policy_answers(
            (symbol, self._policy_of(symbol)) for symbol in {public_symbol(fund.symbol): None for fund in self._tail.shown()}
        )

    async def summary_candles(self, query: CandlesQuery) -> list[CurrencyCandlesAnswer]:
        """The total balance of all funds of each settlement currency over time, and what changed it; at most 500 candles.

        Hours and days are in UTC. A currency's first candle is that of its first change. Without `from` and `to`, the answer
        contains the latest candles.
        """
        now_ms = time.time_ns() // 1_000_000
        span = query.starts(now_ms)
        self._tail.check_knows(span.stop)
        return [currency_candles_answer(history) for history in await self._statistics.currencies(span, now_ms)]

    async def summary_hours(self, _query: Query) -> list[FundHoursAnswer]:
        """The last 24 hours of each fund with a change in them, by hour in UTC: the lowest and the last balance."""
        self._tail.check()
        now_ms = time.time_ns() // 1_000_000
        found = await self._statistics.hours(now_ms - now_ms % HOUR_MS - 23 * HOUR_MS)
        contracts = self._tail.contracts
        return [fund_hours_answer(contracts[key], hours) for key, hours in found.items() if key in contracts]

    def summary_cost(self) -> int:
        """Returns how many more requests the history of all currencies counts as: it reads that of each fund."""
        return len(self._tail.funds) // FUNDS_PER_REQUEST

    async def at(self, query: MomentQuery, symbol: str) -> FundAtAnswer:
        """A fund at a time of the engine's clock."""
        contract = (await find_contract(self._reader, symbol)).contract
        self._tail.check_knows(query.ts, contract.symbol)
        return fund_at_answer(contract, query.ts, await self._statistics.at(contract.symbol, query.ts))

    async def audit(self, _query: Query, symbol: str) -> AuditAnswer:
        """What the background audit found in the ledger of a contract, up to which entry, and when."""
        contract = (await find_contract(self._reader, symbol)).contract
        return audit_answer(contract, await self._reader.audits(contract.symbol))

    async def policy_versions(self, _query: Query, symbol: str) -> list[PolicyVersionAnswer]:
        """All policies that a contract had, by version, with the one in force last."""
        contract = (await find_contract(self._reader, symbol)).contract
        return policy_version_answers(await self._reader.policies_of(contract.symbol, self._policy_of))

    async def candles(self, query: CandlesQuery, symbol: str) -> list[Candle]:
        """The balance over time and the amounts that changed it, oldest first; at most 500 candles.

        A candle is `[time, open, high, low, close, credited, paid, uncovered, fills]`; `time` is its start. Hours and days are
        in UTC. A candle without entries repeats the previous close. There are no candles before a fund's first entry. Without
        `from` and `to`, the answer contains the latest candles.
        """
        contract = (await find_contract(self._reader, symbol)).contract
        now_ms = time.time_ns() // 1_000_000
        span = query.starts(now_ms)
        self._tail.check_knows(span.stop, contract.symbol)
        buckets = await self._statistics.buckets(contract.symbol, span.start, span.stop, span.step)
        return list(candles(buckets, span, now_ms, contract.settle_decimals))

    async def chart(self, query: ChartQuery, symbol: str) -> ChartAnswer:
        """The balance over time with the lowest and highest of each part, for a chart that hides no dip."""
        contract = (await find_contract(self._reader, symbol)).contract
        end = None if query.end is UNSET else query.end
        self._tail.check_knows(end or 0, contract.symbol)
        return chart_answer(contract, await self._statistics.chart(contract.symbol, query.begin, end))

    async def history(self, query: HistoryQuery, symbol: str) -> Page[EntryAnswer]:
        """A page of a fund's ledger."""
        as_of = self._tail.as_of_ms
        contract = (await find_contract(self._reader, symbol)).contract
        entries = await self._reader.history(
            contract.symbol,
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
        """A fund's ledger as CSV, up to the last entry at the time of the request; the columns are the fields of `history`.

        The service reads and sends it in parts, as fast as the client reads. If the database becomes unreachable, the service
        aborts the connection. A complete response is therefore a complete ledger.
        """
        query = read_query(SpanQuery, query_parameters(request))
        fund = await find_fund(self._reader, request.match_info["symbol"])
        return await self._exports.send(request, fund.symbol, EntryAnswer, self._pages(fund, query))

    def export_cost(self, symbol: str) -> int:
        """Returns how many more requests an export counts as: the pages that it reads."""
        fund = self._tail.funds.get(self._tail.key_of(symbol) or "")
        return fund.entry // STREAMED_ROWS if fund else 0

    async def entry(self, _query: Query, symbol: str, entry: str, caller: Caller | None) -> EntryDetailAnswer:
        """One entry with the previous hash and the ADL order that it caused. Its owner and risk also receive its salt."""
        contract = (await find_contract(self._reader, symbol)).contract
        number = int(entry) if entry.isascii() and entry.isdecimal() and len(entry) <= ENTRY_DIGITS_MAX else 0
        found = await self._reader.history(contract.symbol, count=2, offset=number + 1)
        if not number or not found or found[0].entry != number:
            raise NotFound(f"{symbol} has no entry {entry!r}: entries are numbered from 1 to the fund's `entry`")
        orders = await order_answers(
            self._ledger, await self._ledger.caused_by(contract.symbol, number), contract, visibility_of(caller)
        )
        account, salt = await self._opening(found[0], caller)
        return EntryDetailAnswer(
            entry=entry_answer(found[0], contract),
            previous_hash=(found[1].hash if len(found) > 1 else GENESIS).hex(),
            adl=next((order for order in orders if order.origin != "inventory"), None),
            inventory_adl=[order for order in orders if order.origin == "inventory"],
            account=account,
            salt=salt,
        )

    async def _opening(self, entry: EntryRow, caller: Caller | None) -> tuple[str | UnsetType, str | UnsetType]:
        """Returns the account and the salt of an entry's commitment, if the caller may see them."""
        salt = self._secrets.salt(entry.symbol, entry.entry, entry.seal)
        visibility = visibility_of(caller)
        if salt is None or visibility == PUBLIC:
            return UNSET, UNSET
        account = await self._reader.account_of(entry.symbol, entry.entry)
        return (account, salt.hex()) if visibility.is_exact(account) else (UNSET, UNSET)

    async def _pages(self, fund: FundRow, query: SpanQuery) -> AsyncIterator[list[EntryAnswer]]:
        """Yields the entries of a fund up to the entry of its row, within a time span, in parts."""
        after = 0
        while True:
            entries = await self._exporting.history(
                fund.symbol,
                count=STREAMED_ROWS,
                offset=after,
                forward=True,
                start_ms=query.start_at,
                end_ms=query.end_at,
            )
            yield [entry_answer(entry, fund.contract) for entry in entries if entry.entry <= fund.entry]
            if len(entries) < STREAMED_ROWS:
                return
            after = entries[-1].entry
            if after >= fund.entry:
                return
