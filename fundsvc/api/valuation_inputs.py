"""What funds are valued by, kept at hand: rates, marks, open interest, and how the funds stood before."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog

from fundsvc.api.valuation import Valuation
from fundsvc.concurrency.background import keep_running
from fundsvc.core.adl.book import Book
from fundsvc.core.batch import RateState
from fundsvc.core.fund.fullness import Target
from fundsvc.core.numbers import PRICE_DECIMALS_MAX
from fundsvc.core.policy import Policies
from fundsvc.logs.faults import Outage
from fundsvc.readmodel.adl_books import Follower, NotFollowed
from fundsvc.store.database import Pool, StoreFault
from fundsvc.store.reader import FundRow, Reader
from fundsvc.store.statistics import Past, Statistics
from fundsvc.store.target_sizes import Targets

USDT = RateState("USDT", 10**PRICE_DECIMALS_MAX, 0)
"""What everything is counted in is worth itself, whatever a stream says."""

RATE_SECONDS = 1.0
"""How often rates are looked for: a few rows."""

STATISTICS_SECONDS = 20.0
"""How often the past is looked at anew: in this time a day's or a week's change hardly moves by what drops out of it."""

STATISTICS_SHARE_MAX = 0.05
"""Looking at the past may keep the database busy for this share of the time; where it takes long, it is done less often."""

log = structlog.get_logger()


class Appraiser:
    """Values funds. What is away stays what it was, and rates grow too old by themselves.

    `policies` are those in force, by partition.
    """

    def __init__(
        self, reader: Reader, statistics: Statistics, targets: Targets, follower: Follower, rate_seconds_max: float
    ) -> None:
        self.policies: dict[int, Policies] = {}
        self._reader = reader
        self._statistics = statistics
        self._targets = targets
        self._follower = follower
        self._rate_ms_max = rate_seconds_max * 1000
        self._rates: dict[str, RateState] = {}
        self._marks: dict[str, int] = {}
        self._past: dict[str, Past] | None = None
        self._found: dict[str, Target] = {}
        self._due = 0.0

    async def run(self) -> None:
        """Keeps everything fresh until cancelled, through every fault."""
        outage = Outage(log, "values")
        while True:
            try:
                await self.refresh()
                outage.over()
            except StoreFault as fault:
                outage.note(fault)
            await asyncio.sleep(RATE_SECONDS)

    async def refresh(self) -> None:
        """Looks at what may be new; raises StoreFault."""
        self._rates = await self._reader.rates()
        self.policies = await self._reader.policies()
        started = time.monotonic()
        if started >= self._due:
            self._marks = await self._statistics.marks()
            self._found = await self._targets.all()
            self._past = await self._statistics.past(time.time_ns() // 1_000_000)
            now = time.monotonic()
            self._due = now + max(STATISTICS_SECONDS, (now - started) / STATISTICS_SHARE_MAX)

    def value(self, fund: FundRow) -> Valuation:
        """What a fund is valued by now; raises StoreFault while nothing of the past has been read yet."""
        if self._past is None:
            raise StoreFault("the funds' statistics have not been read yet")
        rate, unrated = self.rate(fund.settle_currency)
        mark, open_interest = self._market(fund)
        # Whoever is not known yet was listed since, and has no longer past.
        past = self._past.get(fund.symbol) or Past(0, 0, fund.balance)
        return Valuation(rate, unrated, mark, open_interest, past, self._found.get(fund.symbol))

    def rate(self, currency: str) -> tuple[int | None, str]:
        """USDT per unit of a currency in units of 10**-PRICE_DECIMALS_MAX; None, and why, without one of these days."""
        if currency == USDT.currency:
            return USDT.price, ""
        known = self._rates.get(currency)
        if known is None:
            return None, f"no rate of {currency} has come yet"
        age_ms = time.time_ns() // 1_000_000 - known.ts
        if abs(age_ms) > self._rate_ms_max:
            way = "older" if age_ms > 0 else "later"
            return (
                None,
                f"the last rate of {currency} is of {known.ts} ms: more than {self._rate_ms_max / 1000:g} s {way} than now",
            )
        return known.price, ""

    def _market(self, fund: FundRow) -> tuple[int | None, int | None]:
        """The contract's mark, and its open interest in lots, where they are known."""
        kept = self._marks.get(fund.symbol)
        try:
            book = self._follower.book(fund.symbol, fund.partition)
        except NotFollowed:
            return kept, None
        return (kept, 0) if book is None else (kept if book.mark is None else book.mark, _open_interest(book))


def _open_interest(book: Book) -> int:
    """Every lot that is open has somebody long and somebody short of it; the long ones are counted."""
    return book.sides["long"].lots


@asynccontextmanager
async def appraising(pool: Pool, follower: Follower, rate_seconds_max: float) -> AsyncIterator[Appraiser]:
    """An appraiser that keeps everything fresh, and begins with all that there is unless the database is away."""
    appraiser = Appraiser(Reader(pool), Statistics(pool), Targets(pool), follower, rate_seconds_max)
    with suppress(StoreFault):
        await appraiser.refresh()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(keep_running("values", appraiser.run, log))
        try:
            yield appraiser
        finally:
            task.cancel()
