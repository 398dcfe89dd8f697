"""Caches the encoded answers for funds, and encodes an answer again only after its fund has changed.

The answers come from the ledger tail in memory. When the tail has had no contact with its database for some seconds, the
answer is 503 instead of a balance that may be outdated.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from fundsvc.api.answers import Envelope, FundAnswer
from fundsvc.api.http.application import Encoded, Route, symbol_not_listed
from fundsvc.api.http.parameters import FundsQuery, Query
from fundsvc.readmodel.cell_tails import AnyTail
from fundsvc.readmodel.inventories import HeldInventory
from fundsvc.store.reader import FundRow

VALUATION_SECONDS = 1.0
"""The maximum age of a cached answer. Marks, rates, statistics and the guard change between entries."""


class _CachedFund(NamedTuple):
    """The cached answer for a row of a fund and its inventory, valid until a time of the monotonic clock."""

    fund: FundRow
    held: HeldInventory | None
    until: float
    data: msgspec.Raw
    answer: Encoded[FundAnswer]


class _CachedList(NamedTuple):
    """The cached answer for all funds, of a version of the tail, while some cells are away."""

    version: int
    away: tuple[str, ...]
    until: float
    answer: Encoded[list[FundAnswer]]


class FundCache:
    """Answers requests for funds of a tail; `answer_of` makes the answer from a fund's row, `clock` returns seconds."""

    def __init__(
        self, tail: AnyTail, answer_of: Callable[[FundRow], FundAnswer], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tail = tail
        self._answer_of = answer_of
        self._clock = clock
        self._cached: dict[str, _CachedFund] = {}
        self._lists: dict[bool, _CachedList] = {}
        self.routes = (
            Route("/api/v1/insurance-fund", FundsQuery, self.funds),
            Route("/api/v1/insurance-fund/{symbol}", Query, self.fund),
        )

    async def funds(self, query: FundsQuery) -> Encoded[list[FundAnswer]]:
        """The funds of all open contracts; with `closed`, those of closed contracts too."""
        self._tail.check()
        now, kept, version = self._clock(), self._lists.get(query.closed), (self._tail.version, self._tail.away)
        if kept is None or (kept.version, kept.away) != version or now >= kept.until:
            shown = [self.data(fund.symbol) for fund in self._tail.shown() if query.closed or not fund.closed]
            answer: Encoded[list[FundAnswer]] = Encoded(_enveloped(shown))
            kept = self._lists[query.closed] = _CachedList(*version, now + VALUATION_SECONDS, answer)
        return kept.answer

    async def fund(self, _query: Query, symbol: str) -> Encoded[FundAnswer]:
        """The fund of one contract."""
        key = self._tail.key_of(symbol)
        if key is None:
            self._tail.check_name(symbol)
            raise symbol_not_listed(symbol)
        self._tail.check(key)
        return self._fresh(key).answer

    async def answers(self) -> list[FundAnswer]:
        """Returns the funds of all open contracts, for routes with another format."""
        self._tail.check()
        return [self._answer_of(fund) for fund in self._tail.shown() if not fund.closed]

    def data(self, key: str) -> msgspec.Raw:
        """Returns the encoded fund of a listed contract by ledger key, without its envelope."""
        return self._fresh(key).data

    def _fresh(self, key: str) -> _CachedFund:
        fund, held = self._tail.funds[key], self._tail.held.get(key)
        now, kept = self._clock(), self._cached.get(key)
        if kept is None or kept.fund is not fund or kept.held is not held or now >= kept.until:
            data = msgspec.Raw(msgspec.json.encode(self._answer_of(fund)))
            kept = self._cached[key] = _CachedFund(fund, held, now + VALUATION_SECONDS, data, Encoded(_enveloped(data)))
        return kept


def _enveloped(data: object) -> bytes:
    return msgspec.json.encode(Envelope(data=data))
