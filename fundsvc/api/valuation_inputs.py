"""Keeps the inputs of fund valuations up to date: rates, marks, open interest, targets and past balances."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog

from fundsvc.api.valuation import FundValuation
from fundsvc.concurrency.background import keep_running
from fundsvc.core.adl.book import Book
from fundsvc.core.batch import RateState
from fundsvc.core.fund.fullness import Target
from fundsvc.core.numbers import PRICE_DECIMALS_MAX
from fundsvc.core.policy import Policies
from fundsvc.logs.faults import Outage
from fundsvc.metrics import Metrics
from fundsvc.readmodel.adl_books import AdlBooks, NotFollowed
from fundsvc.store.database import Pool, StoreFault
from fundsvc.store.reader import FundRow, Reader
from fundsvc.store.statistics import Past, Statistics
from fundsvc.store.target_sizes import Targets

USDT = RateState("USDT", 10**PRICE_DECIMALS_MAX, 0)
"""The rate of USDT in USDT. It is 1 regardless of rate events."""

RATE_SECONDS = 1.0
"""The interval of reading rates and policies, which are a few rows."""

STATISTICS_SECONDS = 20.0
"""The interval of reading statistics. The changes of a day and a week hardly depend on it."""

STATISTICS_SHARE_MAX = 0.05
"""The maximum share of the time in which the statistics occupy the database. Slow queries run less often."""

log = structlog.get_logger()


class Appraiser:
    """Values funds. Inputs keep their last state while the database is unreachable; rates expire by their time.

    `policies` are the policies in force by partition.
    """

    def __init__(
        self,
        reader: Reader,
        statistics: Statistics,
        targets: Targets,
        books: AdlBooks,
        rate_seconds_max: float,
        metrics: Metrics,
    ) -> None:
        self.policies: dict[int, Policies] = {}
        self._reader = reader
        self._statistics = statistics
        self._targets = targets
        self._books = books
        self._metrics = metrics
        self._rate_ms_max = rate_seconds_max * 1000
        self._rates: dict[str, RateState] = {}
        self._marks: dict[str, int] = {}
        self._past: dict[str, Past] | None = None
        self._target_sizes: dict[str, Target] = {}
        self._due = 0.0

    async def run(self) -> None:
        """Refreshes the inputs until cancelled; retries after every fault."""
        outage = Outage(log, "values")
        while True:
            try:
                await self.refresh()
                outage.over()
            except StoreFault as fault:
                outage.note(fault)
            await asyncio.sleep(RATE_SECONDS)

    async def refresh(self) -> None:
        """Reads rates and policies, and the statistics when they are due; raises StoreFault."""
        self._rates |= await self._reader.rates()
        for currency, rate in self._rates.items():
            self._metrics.servers.rate.labels(currency).set(rate.ts / 1000)
        self.policies |= await self._reader.policies()
        started = time.monotonic()
        if started >= self._due:
            # A cell that is away keeps its last values.
            self._marks |= await self._statistics.marks()
            self._target_sizes |= await self._targets.all()
            self._past = (self._past or {}) | await self._statistics.past(time.time_ns() // 1_000_000)
            now = time.monotonic()
            self._due = now + max(STATISTICS_SECONDS, (now - started) / STATISTICS_SHARE_MAX)

    def value(self, fund: FundRow) -> FundValuation:
        """Returns the inputs of a fund's valuation; raises StoreFault until the statistics have been read."""
        if self._past is None:
            raise StoreFault("the funds' statistics are not loaded yet")
        rate, missing = self.rate(fund.settle_currency)
        mark, open_interest = self._market(fund)
        # A fund without statistics was listed after they were read.
        past = self._past.get(fund.symbol) or Past(0, 0, fund.balance)
        return FundValuation(rate, missing, mark, open_interest, past, self._target_sizes.get(fund.symbol))

    def mark(self, symbol: str) -> int | None:
        """Returns the live mark of a contract in its units, or the last stored one while the books are not loaded."""
        try:
            mark = self._books.mark(symbol)
        except NotFollowed:
            mark = None
        return self._marks.get(symbol) if mark is None else mark

    def rate(self, currency: str) -> tuple[int | None, str]:
        """Returns USDT per unit of a currency in units of 10**-PRICE_DECIMALS_MAX, or None and the reason."""
        if currency == USDT.currency:
            return USDT.price, ""
        known = self._rates.get(currency)
        if known is None:
            return None, f"no rate of {currency} is known yet"
        age_ms = time.time_ns() // 1_000_000 - known.ts
        if abs(age_ms) > self._rate_ms_max:
            direction = "before" if age_ms > 0 else "after"
            seconds = self._rate_ms_max / 1000
            return (
                None,
                f"the last rate of {currency} has ts {known.ts}: more than {seconds:g} s {direction} the service's clock",
            )
        return known.price, ""

    def _market(self, fund: FundRow) -> tuple[int | None, int | None]:
        """Returns the contract's mark and its open interest in lots, each None if unknown."""
        kept = self._marks.get(fund.symbol)
        try:
            book = self._books.book(fund.symbol, fund.partition)
        except NotFollowed:
            return kept, None
        return (kept, 0) if book is None else (kept if book.mark is None else book.mark, _open_interest(book))


def _open_interest(book: Book) -> int:
    """Returns the open lots. Every open lot has a long and a short side; this counts the long side."""
    return book.sides["long"].lots


@asynccontextmanager
async def appraising(pool: Pool, books: AdlBooks, rate_seconds_max: float, metrics: Metrics) -> AsyncIterator[Appraiser]:
    """Runs an appraiser while the context is open. Its inputs are loaded first unless the database is unreachable."""
    appraiser = Appraiser(Reader(pool), Statistics(pool), Targets(pool), books, rate_seconds_max, metrics)
    with suppress(StoreFault):
        await appraiser.refresh()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(keep_running("values", appraiser.run, log))
        try:
            yield appraiser
        finally:
            task.cancel()
