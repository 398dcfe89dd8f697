"""The funds as they are asked for most: kept encoded, and encoded anew only when something in them is new.

What is answered is the ledger's tail in memory. A tail that has not heard of its database for some seconds answers 503
rather than a balance that may not be the ledger's any more.
"""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from fundsvc.api.answers import Envelope, FundAnswer
from fundsvc.api.http.application import Encoded, Route, symbol_not_listed
from fundsvc.api.http.fast_path import FastPath
from fundsvc.api.http.middleware import Middleware
from fundsvc.api.http.parameters import Query
from fundsvc.readmodel.ledger_tail import Tail
from fundsvc.store.reader import FundRow

VALUATION_SECONDS = 1.0
"""How often marks, rates, statistics and the guard's clock, which move between entries, may make an answer anew."""


FUND = "/api/v1/insurance-fund/{symbol}"
_FUNDS = FUND.removesuffix("{symbol}")

_DELIMITERS = frozenset("%?#")
"""Characters with a meaning of their own in a URL: the router answers requests for a contract with one in its symbol."""


class _Kept(NamedTuple):
    """A fund's answer: for this row of it, and until this time."""

    fund: FundRow
    until: float
    data: msgspec.Raw
    answer: Encoded[FundAnswer]


class _KeptList(NamedTuple):
    funds: Mapping[str, FundRow]
    until: float
    answer: Encoded[list[FundAnswer]]


class FundCache:
    """Answers with the funds in a tail, by what `answer_of` makes of a fund's row."""

    def __init__(self, tail: Tail, answer_of: Callable[[FundRow], FundAnswer]) -> None:
        self._tail = tail
        self._answer_of = answer_of
        self._kept: dict[str, _Kept] = {}
        self._list: _KeptList | None = None
        self.routes = (
            Route("/api/v1/insurance-fund", Query, self.funds),
            Route(FUND, Query, self.fund),
        )

    async def funds(self, _query: Query) -> Encoded[list[FundAnswer]]:
        """All funds."""
        self._tail.check()
        now, kept = time.monotonic(), self._list
        if kept is None or kept.funds is not self._tail.funds or now >= kept.until:
            funds = self._tail.funds
            answer: Encoded[list[FundAnswer]] = Encoded(_enveloped([self.data(symbol) for symbol in funds]))
            kept = self._list = _KeptList(funds, now + VALUATION_SECONDS, answer)
        return kept.answer

    async def fund(self, _query: Query, symbol: str) -> Encoded[FundAnswer]:
        """The fund of one contract."""
        if symbol not in self._tail.funds:
            self._tail.check()
            raise symbol_not_listed(symbol)
        return self._shown(symbol)

    def fast_path(self, middleware: Middleware) -> FastPath:
        """A short way to single funds, past the router that knows the routes."""
        return FastPath(middleware, FUND, self._symbol_at, self._shown)

    async def answers(self) -> list[FundAnswer]:
        """All funds, for who says them otherwise."""
        self._tail.check()
        return [self._answer_of(fund) for fund in self._tail.funds.values()]

    def data(self, symbol: str) -> msgspec.Raw:
        """The fund of a listed contract, encoded, without its envelope."""
        return self._fresh(symbol).data

    def _symbol_at(self, path: str) -> str | None:
        """The contract that is listed by the last part of a path, if the rest is a fund's and that part stands for itself."""
        symbol = path.removeprefix(_FUNDS)
        known = symbol in self._tail.funds and symbol is not path
        return symbol if known and _DELIMITERS.isdisjoint(symbol) else None

    def _shown(self, symbol: str) -> Encoded[FundAnswer]:
        self._tail.check()
        return self._fresh(symbol).answer

    def _fresh(self, symbol: str) -> _Kept:
        fund, now, kept = self._tail.funds[symbol], time.monotonic(), self._kept.get(symbol)
        if kept is None or kept.fund is not fund or now >= kept.until:
            data = msgspec.Raw(msgspec.json.encode(self._answer_of(fund)))
            kept = self._kept[symbol] = _Kept(fund, now + VALUATION_SECONDS, data, Encoded(_enveloped(data)))
        return kept


def _enveloped(data: object) -> bytes:
    return msgspec.json.encode(Envelope(data=data))
