"""What is answered about funds beyond the fund itself: all in sum, one as it was, its candles, an entry in its chain."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import groupby

from msgspec import UNSET, UnsetType

from fundsvc.api.adl_answers import OrderAnswer
from fundsvc.api.answers import Answer, EntryAnswer
from fundsvc.api.valuation import EQUIVALENT_DECIMALS, in_usdt
from fundsvc.core.contracts import Contract
from fundsvc.core.numbers import format_units
from fundsvc.store.reader import FundRow
from fundsvc.store.statistics import Bucket, FundAt

Candle = tuple[int, str, str, str, str, str, str, str, int]
"""Time (the bucket's start, ms), open, high, low and close of the balance, credited, paid, uncovered, fills."""


class CurrencyAnswer(Answer, frozen=True, kw_only=True):
    """All funds that settle in a currency, in sum; where `balanceUsdt` is null, its reason says why."""

    currency: str
    balance: str
    balance_usdt: str | None
    balance_usdt_reason: str | UnsetType = UNSET
    outstanding: str
    contracts: int


class SummaryAnswer(Answer, frozen=True, kw_only=True):
    """All funds by settlement currency, and what they are worth together at `ts`. A sum moves nothing: funds are isolated.

    Every commit before `asOf` is in it, by the database's clock.
    """

    currencies: list[CurrencyAnswer]
    total_usdt: str | None
    total_usdt_reason: str | UnsetType = UNSET
    ts: int
    as_of: int


class StandingAnswer(Answer, frozen=True):
    """A fund as it stood at `ts`: after entry `entry`, the last before any that is later by the engine's clock; 0 is none.

    `outstanding` is of just before the entry after that one.
    """

    symbol: str
    ts: int
    balance: str
    outstanding: str
    entry: int
    entry_ts: int


class LinkAnswer(Answer, frozen=True):
    """An entry, the hash that its own was made of with it, and the ADL order that it caused.

    With a token of the entry's account, or of risk, `account` and `salt` (hex) open its commitment, which is HMAC-SHA-256 of
    the account under the salt as the key. They are left out where there is no commitment, or where this service does not have
    the secret that made it.
    """

    entry: EntryAnswer
    previous_hash: str
    adl: OrderAnswer | None
    account: str | UnsetType = UNSET
    salt: str | UnsetType = UNSET


Rated = Callable[[str], tuple[int | None, str]]
"""The rate of a currency, or why there is none."""


def summary_answer(funds: Iterable[FundRow], rate_of: Rated, ts: int, as_of: int) -> SummaryAnswer:
    """Sums over funds."""
    currencies = []
    total = Fraction(0)
    for currency, found in groupby(sorted(funds, key=_currency), _currency):
        group = list(found)
        balance = _sum(group, lambda fund: fund.balance)
        rate, unrated = rate_of(currency)
        worth = None if rate is None else in_usdt(balance, rate)
        total += worth or 0
        currencies.append(
            CurrencyAnswer(
                currency=currency,
                balance=_text(balance, _decimals(group)),
                balance_usdt=None if worth is None else _text(worth, EQUIVALENT_DECIMALS),
                balance_usdt_reason=unrated or UNSET,
                outstanding=_text(_sum(group, lambda fund: fund.outstanding), _decimals(group)),
                contracts=len(group),
            )
        )
    lacking = [answer.balance_usdt_reason for answer in currencies if answer.balance_usdt_reason is not UNSET]
    return SummaryAnswer(
        currencies=currencies,
        total_usdt=None if lacking else _text(total, EQUIVALENT_DECIMALS),
        total_usdt_reason="; ".join(lacking) or UNSET,
        ts=ts,
        as_of=as_of,
    )


def standing_answer(contract: Contract, ts: int, standing: FundAt) -> StandingAnswer:
    """A fund as it stood, in its settlement currency."""
    return StandingAnswer(
        symbol=contract.symbol,
        ts=ts,
        balance=format_units(standing.balance, contract.settle_decimals),
        outstanding=format_units(standing.outstanding, contract.settle_decimals),
        entry=standing.entry,
        entry_ts=standing.entry_ts,
    )


def candles(buckets: Sequence[Bucket], span: range, now_ms: int, decimals: int) -> Iterator[Candle]:
    """The candles that start within a span, without holes: where nothing was written, the last close stands, until now.

    `buckets` are those with entries, and before them the last ones that are earlier. No candle is before a fund's first.
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
    """Exact, also where contracts of a currency were listed with different decimals."""
    return sum((Fraction(amount_of(fund), 10**fund.settle_decimals) for fund in funds), Fraction(0))


def _decimals(funds: Iterable[FundRow]) -> int:
    return max(fund.settle_decimals for fund in funds)


def _text(amount: Fraction, decimals: int) -> str:
    return format_units(math.floor(amount * 10**decimals), decimals)
