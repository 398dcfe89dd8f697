"""Answers about funds: sums of all funds, a fund in the past, candles, and single entries with their proof."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import groupby
from typing import cast

from msgspec import UNSET, UnsetType, field

from fundsvc.api.adl_answers.orders import OrderAnswer
from fundsvc.api.answers import Answer, EntryAnswer, milliseconds
from fundsvc.api.valuation import EQUIVALENT_DECIMALS, in_usdt
from fundsvc.core.contracts import Contract
from fundsvc.core.generations import generation_of, public_symbol
from fundsvc.core.numbers import format_units
from fundsvc.store.reader import AuditRow, FundRow
from fundsvc.store.statistics import Bucket, Chart, ChartBucket, CurrencyHistory, FundAt, Hour

Candle = tuple[int, str, str, str, str, str, str, str, int]
"""Start time (ms); open, high, low and close of the balance; credited, paid, uncovered; fills."""


class CurrencyAnswer(Answer, frozen=True, kw_only=True):
    """The sums of all funds of a settlement currency. If `balanceUsdt` is null, the reason field states why."""

    currency: str
    balance: str
    balance_usdt: str | None
    balance_usdt_reason: str | UnsetType = UNSET
    outstanding: str
    contracts: int


class SummaryAnswer(Answer, frozen=True, kw_only=True):
    """The sums of all funds by settlement currency, and their total value at `ts`. No fund pays for another.

    All sums equal those of the funds' own answers at the same moment: each fund's value in USDT is rounded down, then added.

    The answer includes every commit before `asOf` by the database's clock.
    """

    currencies: list[CurrencyAnswer]
    total_usdt: str | None
    total_usdt_reason: str | UnsetType = UNSET
    ts: int
    as_of: int


CurrencyCandle = tuple[int, str, str, str, str, str, int]
"""Start time (ms); total balance at the start and at the end; credited, paid, uncovered; fills."""


class CurrencyCandlesAnswer(Answer, frozen=True):
    """The total balance of all funds of a currency over time: candles `[time, open, close, credited, paid, uncovered, fills]`.

    Only the sums are known, not their extremes within a candle.
    """

    currency: str
    candles: list[CurrencyCandle]


class FundHoursAnswer(Answer, frozen=True):
    """The hours of a fund with entries, oldest first: `[start, opening, lowest, closing]`.

    In other hours the balance did not change.
    """

    symbol: str
    generation: int
    hours: list[tuple[int, str, str, str]]


class FundAtAnswer(Answer, frozen=True):
    """A fund at `ts`: after `entry`, the last entry before the first one with a later engine time; 0 if there is none.

    `outstanding` is the amount immediately before the next entry.
    """

    symbol: str
    ts: int
    balance: str
    outstanding: str
    entry: int
    entry_ts: int


ChartPart = tuple[int, int, str, str, str, str, str, int]
"""Times of the first and last entry (ms); highest, lowest and last balance; paid, uncovered; fills."""


class ChartAnswer(Answer, frozen=True):
    """A fund's balance over time, up to its entry `entry`: `opening` at `from`, then at most some 3,000 parts, oldest first.

    A part is `[since, until, highest, lowest, closing, paid, uncovered, fills]`. It has all entries of a stretch of time, so no
    dip is missing. Few entries have a part each. `begin` is the time of the fund's first entry, null without entries.
    """

    symbol: str
    begin: int | None
    from_: int = field(name="from")
    opening: str
    entry: int
    parts: list[ChartPart]


class AuditAnswer(Answer, frozen=True, kw_only=True):
    """What the background audit found in the ledger of a contract.

    The audit recomputes every entry and every ADL record, and compares the results with the stored fund. `entry` is the last
    entry that it recomputed, and `good` is true if it found no difference; null before the first part of an audit. `verifiedAt`
    is the last time at which it reached the end of the ledger without a difference, `fullyVerifiedAt` the last time at which it
    did so from entry 1 on. Both are null before that.
    """

    symbol: str
    generation: int
    good: bool | None
    entry: int
    verified_at: int | None
    fully_verified_at: int | None


class EntryDetailAnswer(Answer, frozen=True):
    """An entry, the hash of the previous entry, which its own hash covers, and the ADL order that it caused.

    `inventoryAdl` are the first hundred ADL orders that close lots of the tranche of a takeover entry.

    A token of the entry's account or of risk also receives `account` and `salt` (hex), which open the commitment: it is
    HMAC-SHA-256 of the account with the salt as key. Both are absent if the entry has no commitment, or if the service does
    not have the secret of the commitment.
    """

    entry: EntryAnswer
    previous_hash: str
    adl: OrderAnswer | None
    inventory_adl: list[OrderAnswer]
    account: str | UnsetType = UNSET
    salt: str | UnsetType = UNSET


Rated = Callable[[str], tuple[int | None, str]]
"""Returns the rate of a currency, or None and the reason."""


def summary_answer(funds: Iterable[FundRow], rate_of: Rated, ts: int, as_of: int) -> SummaryAnswer:
    """Returns the sums of funds."""
    currencies = []
    total = Fraction(0)
    for currency, found in groupby(sorted(funds, key=_currency), _currency):
        group = list(found)
        balance = _sum(group, lambda fund: fund.balance)
        rate, missing = rate_of(currency)
        worth = None if rate is None else _sum_of_rounded(group, rate)
        total += worth or 0
        currencies.append(
            CurrencyAnswer(
                currency=currency,
                balance=_text(balance, _decimals(group)),
                balance_usdt=None if worth is None else _text(worth, EQUIVALENT_DECIMALS),
                balance_usdt_reason=missing or UNSET,
                outstanding=_text(_sum(group, lambda fund: fund.outstanding), _decimals(group)),
                contracts=len(group),
            )
        )
    reasons = [answer.balance_usdt_reason for answer in currencies if answer.balance_usdt_reason is not UNSET]
    return SummaryAnswer(
        currencies=currencies,
        total_usdt=None if reasons else _text(total, EQUIVALENT_DECIMALS),
        total_usdt_reason="; ".join(reasons) or UNSET,
        ts=ts,
        as_of=as_of,
    )


def audit_answer(contract: Contract, walks: Sequence[AuditRow]) -> AuditAnswer:
    """Returns the answer for the audit of a contract."""
    generation = generation_of(contract.symbol)
    ends = {walk.walk: milliseconds(walk.verified_at) for walk in walks if walk.verified_at}
    return AuditAnswer(
        symbol=generation.symbol,
        generation=generation.number,
        good=all(walk.good for walk in walks) if walks else None,
        entry=max((walk.entry for walk in walks), default=0),
        verified_at=max(ends.values(), default=None),
        fully_verified_at=ends.get("full"),
    )


def fund_at_answer(contract: Contract, ts: int, past: FundAt) -> FundAtAnswer:
    """Returns the answer for a fund in the past."""
    return FundAtAnswer(
        symbol=public_symbol(contract.symbol),
        ts=ts,
        balance=format_units(past.balance, contract.settle_decimals),
        outstanding=format_units(past.outstanding, contract.settle_decimals),
        entry=past.entry,
        entry_ts=past.entry_ts,
    )


def currency_candles_answer(history: CurrencyHistory) -> CurrencyCandlesAnswer:
    """Returns the answer for the total balance of a currency over time."""
    texts = [
        (bucket.start, *(format_units(amount, history.decimals) for amount in bucket[1:-1]), bucket.fills)
        for bucket in history.buckets
    ]
    return CurrencyCandlesAnswer(history.currency, cast("list[CurrencyCandle]", texts))


def fund_hours_answer(contract: Contract, hours: Iterable[Hour]) -> FundHoursAnswer:
    """Returns the answer for the hours of a fund."""
    generation, decimals = generation_of(contract.symbol), contract.settle_decimals
    texts = [(hour.start, *(format_units(amount, decimals) for amount in hour[1:])) for hour in hours]
    return FundHoursAnswer(generation.symbol, generation.number, cast("list[tuple[int, str, str, str]]", texts))


def chart_answer(contract: Contract, chart: Chart) -> ChartAnswer:
    """Returns the answer for a chart."""
    decimals = contract.settle_decimals
    return ChartAnswer(
        symbol=public_symbol(contract.symbol),
        begin=chart.begin,
        from_=chart.start,
        opening=format_units(chart.opening, decimals),
        entry=chart.entry,
        parts=[_chart_part(bucket, decimals) for bucket in chart.buckets],
    )


def _chart_part(bucket: ChartBucket, decimals: int) -> ChartPart:
    highest, lowest, closing, paid, uncovered = (format_units(amount, decimals) for amount in bucket[2:-1])
    return bucket.since, bucket.until, highest, lowest, closing, paid, uncovered, bucket.fills


def candles(buckets: Sequence[Bucket], span: range, now_ms: int, decimals: int) -> Iterator[Candle]:
    """Yields the candles that start within a span until now. A time without entries has a candle at the previous close.

    `buckets` are the buckets with entries in the span, preceded by the last earlier ones. The first candle is that of the
    fund's first entry.
    """
    earlier = [bucket for bucket in buckets if bucket.start < span.start]
    known = {bucket.start: bucket for bucket in buckets[len(earlier) :]}
    close = earlier[-1].closing if earlier else None
    last = max(now_ms, *known) if known else now_ms
    for start in span:
        bucket = known.get(start)
        if bucket is None and close is not None and start <= last:
            bucket = Bucket(start, close, close, close, close, 0, 0, 0, 0)
        if bucket:
            close = bucket.closing
            yield _candle(bucket, decimals)


def _candle(bucket: Bucket, decimals: int) -> Candle:
    opening, highest, lowest, closing, credited, paid, uncovered = (format_units(amount, decimals) for amount in bucket[1:-1])
    return bucket.start, opening, highest, lowest, closing, credited, paid, uncovered, bucket.fills


def _currency(fund: FundRow) -> str:
    return fund.settle_currency


def _sum(funds: Iterable[FundRow], amount_of: Callable[[FundRow], int]) -> Fraction:
    """Returns the exact sum, also of contracts with different decimals."""
    return sum((Fraction(amount_of(fund), 10**fund.settle_decimals) for fund in funds), Fraction(0))


def _sum_of_rounded(funds: Iterable[FundRow], rate: int) -> Fraction:
    """Returns the worth of funds, each rounded down, so that it equals the sum of their own answers."""
    scale = 10**EQUIVALENT_DECIMALS
    worths = (in_usdt(Fraction(fund.balance, 10**fund.settle_decimals), rate) for fund in funds)
    return Fraction(sum(math.floor(worth * scale) for worth in worths), scale)


def _decimals(funds: Iterable[FundRow]) -> int:
    return max(fund.settle_decimals for fund in funds)


def _text(amount: Fraction, decimals: int) -> str:
    return format_units(math.floor(amount * 10**decimals), decimals)
