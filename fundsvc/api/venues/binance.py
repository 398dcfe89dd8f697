"""Endpoints of Binance USDⓈ-M. Each contract is a separate group with one asset, its settlement currency."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from fundsvc.api.adl import AdlResources
from fundsvc.api.adl_answers.positions import PositionAnswer, PositionsAnswer
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
"""The ADL risk of positions, by the state of the fund."""

CODES = {BadParameter: -1130, NotFound: -1121, NoToken: -2014, Forbidden: -2015, TooManyRequests: -1003, Problem: -1001}
"""Binance's error codes. The last one is a server error that clients retry."""


class SymbolQuery(Parameters, frozen=True):
    """One contract, by default all."""

    symbol: Annotated[Symbol, msgspec.Meta(description="a contract")] | UnsetType = UNSET


class SignedQuery(SymbolQuery, frozen=True, rename={"recv_window": "recvWindow"}):
    """One contract, by default all. The signature fields of Binance's clients are ignored: the access token authenticates."""

    timestamp: Identifier = ""
    recv_window: Identifier = ""
    signature: Identifier = ""


class Asset(msgspec.Struct, rename="camel", frozen=True):
    """The balance of a fund."""

    asset: str
    margin_balance: str
    update_time: int


class Group(msgspec.Struct, frozen=True):
    """The contracts that share a fund (here always one) and its assets."""

    symbols: list[str]
    assets: list[Asset]


class RiskRating(msgspec.Struct, rename="camel", frozen=True):
    """`low`: the fund is `ok`. `medium`: it is near its guard. `high`: an ADL order is open, or an amount is uncovered."""

    symbol: str
    adl_risk: Risk
    update_time: int


class Quantiles(msgspec.Struct, frozen=True, rename="upper"):
    """Lights minus one, 0 to 4, by side. In one-way mode `BOTH` is the quantile of the account's position.

    In hedge mode `HEDGE` replaces it; its value has no meaning.
    """

    long: int
    short: int
    both: int | UnsetType = UNSET
    hedge: int | UnsetType = UNSET


class Quantile(msgspec.Struct, rename="camel", frozen=True):
    """The quantiles of an account's positions in a contract."""

    symbol: str
    adl_quantile: Quantiles


class BinanceError(msgspec.Struct, frozen=True):
    """An error in Binance's format."""

    code: int
    msg: str


class BinanceEndpoints:
    """Converts the present funds and ADL positions."""

    def __init__(self, funds: FundsReader, adl: AdlResources) -> None:
        self._funds = funds
        self._adl = adl
        self.endpoints = (
            FACADE.endpoint("/fapi/v1/insuranceBalance", self.insurance),
            FACADE.endpoint("/fapi/v1/symbolAdlRisk", self.risk),
            FACADE.endpoint("/fapi/v1/adlQuantile", self.quantile, TRADER),
        )

    async def insurance(self, query: SymbolQuery) -> Group | list[Group]:
        """Returns the balances of insurance funds: a list, or with `symbol` a single object."""
        return _one_or_all(await self._funds(), query, _group)

    async def risk(self, query: SymbolQuery) -> RiskRating | list[RiskRating]:
        """Returns the ADL risk of contracts: a list, or with `symbol` a single object."""
        return _one_or_all(await self._funds(), query, _rating)

    async def quantile(self, query: SignedQuery, caller: Caller) -> list[Quantile]:
        """Returns the ADL quantiles of the caller's positions."""
        answer: PositionsAnswer = await self._adl.positions(AccountQuery(account=caller.account), caller=caller)
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
