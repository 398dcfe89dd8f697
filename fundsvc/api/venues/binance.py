"""Binance's USDⓈ-M paths. Each contract is a group of its own there, with its settlement currency as the one asset."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from fundsvc.api.adl import DeleveragingResources
from fundsvc.api.adl_answers import PositionAnswer, PositionsAnswer
from fundsvc.api.answers import FundAnswer
from fundsvc.api.http.errors import BadParameter, Forbidden, NotFound, NoToken, Problem, TooManyRequests
from fundsvc.api.http.parameters import AccountQuery, Parameters
from fundsvc.api.http.tokens import Caller
from fundsvc.api.venues.facade import TRADER, ErrorResponse, Facade, FundsReader, code_of, fund_of
from fundsvc.core.events import Identifier, Symbol
from fundsvc.core.fund.state import FundStateName

T = TypeVar("T")

Risk = Literal["low", "medium", "high"]

RISKS: dict[FundStateName, Risk] = {"ok": "low", "warning": "medium", "adl": "high", "uncovered": "high"}
"""What a fund's state means for who may be deleveraged."""

CODES = {BadParameter: -1130, NotFound: -1121, NoToken: -2014, Forbidden: -2015, TooManyRequests: -1003, Problem: -1001}
"""Binance's codes; the last says that something is wrong on this side, and to try again."""


class SymbolQuery(Parameters, frozen=True):
    """One contract, or all."""

    symbol: Annotated[Symbol, msgspec.Meta(description="a contract")] | UnsetType = UNSET


class SignedQuery(SymbolQuery, frozen=True, rename={"recv_window": "recvWindow"}):
    """One contract, or all. What Binance's clients sign with is not looked at: the access token says who asks."""

    timestamp: Identifier = ""
    recv_window: Identifier = ""
    signature: Identifier = ""


class Asset(msgspec.Struct, rename="camel", frozen=True):
    """A fund's balance."""

    asset: str
    margin_balance: str
    update_time: int


class Group(msgspec.Struct, frozen=True):
    """Contracts that share a fund, which is one, and what it holds."""

    symbols: list[str]
    assets: list[Asset]


class RiskRating(msgspec.Struct, rename="camel", frozen=True):
    """`low` while the fund is well, `medium` when it is near its guard, `high` while ADL goes on or something is uncovered."""

    symbol: str
    adl_risk: Risk
    update_time: int


class Quantiles(msgspec.Struct, frozen=True, rename="upper"):
    """Lights less one, 0 to 4, of each side that is held. `BOTH` is that of the only position of an account in one-way mode.

    `HEDGE` stands in its place in hedge mode, as a sign without a value.
    """

    long: int
    short: int
    both: int | UnsetType = UNSET
    hedge: int | UnsetType = UNSET


class Quantile(msgspec.Struct, rename="camel", frozen=True):
    """The places of an account's positions of a contract in its queues."""

    symbol: str
    adl_quantile: Quantiles


class BinanceError(msgspec.Struct, frozen=True):
    """An error."""

    code: int
    msg: str


class BinanceEndpoints:
    """Answers from the funds as they stand, and from the book."""

    def __init__(self, funds: FundsReader, deleveraging: DeleveragingResources) -> None:
        self._funds = funds
        self._deleveraging = deleveraging
        self.endpoints = (
            FACADE.endpoint("/fapi/v1/insuranceBalance", self.insurance),
            FACADE.endpoint("/fapi/v1/symbolAdlRisk", self.risk),
            FACADE.endpoint("/fapi/v1/adlQuantile", self.quantile, TRADER),
        )

    async def insurance(self, query: SymbolQuery) -> Group | list[Group]:
        """Balances of insurance funds; a single one is not in a list."""
        return _one_or_all(await self._funds(), query, _group)

    async def risk(self, query: SymbolQuery) -> RiskRating | list[RiskRating]:
        """How likely ADL is; a single contract is not in a list."""
        return _one_or_all(await self._funds(), query, _rating)

    async def quantile(self, query: SignedQuery, caller: Caller) -> list[Quantile]:
        """Where one's own positions stand in the queue."""
        answer: PositionsAnswer = await self._deleveraging.positions(AccountQuery(account=caller.account), caller=caller)
        positions = [position for position in answer.positions if query.symbol in (UNSET, position.symbol)]
        return [_quantile(symbol, list(legs)) for symbol, legs in groupby(positions, lambda position: position.symbol)]


def _one_or_all(funds: Sequence[FundAnswer], query: SymbolQuery, convert: Callable[[FundAnswer], T]) -> T | list[T]:
    return [convert(fund) for fund in funds] if query.symbol is UNSET else convert(fund_of(funds, query.symbol))


def _group(fund: FundAnswer) -> Group:
    return Group([fund.symbol], [Asset(fund.settle_currency, fund.balance, fund.updated_at)])


def _rating(fund: FundAnswer) -> RiskRating:
    return RiskRating(fund.symbol, RISKS[fund.state], fund.updated_at)


def _quantile(symbol: str, legs: Sequence[PositionAnswer]) -> Quantile:
    quantiles = {leg.side: (leg.lights or 1) - 1 for leg in legs}
    long, short = quantiles.get("long", 0), quantiles.get("short", 0)
    if any(leg.position_side != "BOTH" for leg in legs):
        return Quantile(symbol, Quantiles(long, short, hedge=0))
    return Quantile(symbol, Quantiles(long, short, both=max(long, short)))


def _error_response(problem: Problem) -> ErrorResponse:
    status = 400 if isinstance(problem, NotFound) else problem.status
    return ErrorResponse(status, BinanceError(code_of(CODES, problem), str(problem)))


FACADE = Facade((400, 429, 503), BinanceError, _error_response)
