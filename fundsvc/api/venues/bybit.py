"""Endpoints of Bybit v5 market data. The fund of a contract is what Bybit calls an isolated insurance pool."""

import time
from collections.abc import Callable
from typing import Annotated, Generic, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from fundsvc.api.answers import FundAnswer
from fundsvc.api.http.errors import BadParameter, NotFound, Problem, TooManyRequests
from fundsvc.api.http.parameters import Parameters
from fundsvc.api.venues.facade import SECOND_MS, ErrorResponse, Facade, FundsReader, code_of, fund_of, latest_update
from fundsvc.core.events import Currency, Symbol
from fundsvc.core.policy import Policy

T = TypeVar("T")

CODES = {BadParameter: 10001, NotFound: 10001, TooManyRequests: 10006, Problem: 10016}
"""Bybit's error codes. Bybit answers errors with HTTP status 200, and its clients expect that."""

LIMIT_RESET = "X-Bapi-Limit-Reset-Timestamp"
"""The header with the end of a rate limit, in milliseconds. Bybit's client waits until then."""

FULL_DRAWDOWN = -1.0
"""The drawdown at which ADL starts and stops for a fund without a guard: the fund is empty."""


Coin = Annotated[Currency, msgspec.Meta(description="a settlement currency, in upper case")]


class InsuranceQuery(Parameters, frozen=True):
    """The pools of a `coin`, by default all."""

    coin: Coin | UnsetType = UNSET


class AlertQuery(InsuranceQuery, frozen=True):
    """One contract, by default all. Also accepts a `coin`, which the documentation of pybit names."""

    symbol: Annotated[Symbol, msgspec.Meta(description="a contract")] | UnsetType = UNSET


class BybitStruct(msgspec.Struct, rename="camel", frozen=True):
    """Base of Bybit's answers: camelCase names."""


class InsurancePool(BybitStruct, frozen=True):
    """A fund. `value` is in USD, taking one USDT as one USD; it is "" without a rate."""

    coin: str
    symbols: str
    balance: str
    value: str


class Alert(BybitStruct, frozen=True):
    """A fund and the limits at which ADL starts and stops. Ratios are relative to the peak of 8 hours, from 0 down to -1.

    Without a drawdown guard both limits are -1: the fund is empty. `adlTriggerThreshold` is the `minimum_balance` of the guard.
    """

    coin: str
    symbol: str
    balance: str
    max_balance: str
    insurance_pnl_ratio: str
    pnl_ratio: str
    adl_trigger_threshold: str
    adl_stop_ratio: str


class UpdatedList(BybitStruct, Generic[T], frozen=True):
    """A list and the time of its latest change."""

    updated_time: str
    list: list[T]


class EmptyObject(BybitStruct, frozen=True):
    """An object without fields."""


class BybitEnvelope(BybitStruct, Generic[T], frozen=True, kw_only=True):
    """The envelope of an answer."""

    ret_code: int = 0
    ret_msg: str = "OK"
    result: T
    ret_ext_info: EmptyObject = EmptyObject()
    time: int


class BybitError(BybitStruct, frozen=True, kw_only=True):
    """An error in Bybit's format."""

    ret_code: int
    ret_msg: str
    result: EmptyObject = EmptyObject()
    ret_ext_info: EmptyObject = EmptyObject()
    time: int


class BybitEndpoints:
    """Converts the present funds and their policies."""

    def __init__(self, funds: FundsReader, policy_of: Callable[[str], Policy]) -> None:
        self._funds = funds
        self._policy_of = policy_of
        self.endpoints = (
            FACADE.endpoint("/v5/market/insurance", self.insurance),
            FACADE.endpoint("/v5/market/adlAlert", self.alert),
        )

    async def insurance(self, query: InsuranceQuery) -> BybitEnvelope[UpdatedList[InsurancePool]]:
        """Returns the balances of insurance pools."""
        funds = await self._funds_of(query)
        pools = [InsurancePool(fund.settle_currency, fund.symbol, fund.balance, fund.balance_usdt or "") for fund in funds]
        return BybitEnvelope(result=UpdatedList(str(latest_update(funds)), pools), time=_now())

    async def alert(self, query: AlertQuery) -> BybitEnvelope[UpdatedList[Alert]]:
        """Returns the drawdown of funds and the limits at which ADL starts and stops."""
        funds = await self._funds_of(query)
        if query.symbol is not UNSET:
            funds = [fund_of(funds, query.symbol)]
        return BybitEnvelope(result=UpdatedList(str(latest_update(funds)), [self._alert(fund) for fund in funds]), time=_now())

    async def _funds_of(self, query: InsuranceQuery) -> list[FundAnswer]:
        return [fund for fund in await self._funds() if query.coin in (UNSET, fund.settle_currency)]

    def _alert(self, fund: FundAnswer) -> Alert:
        guard = self._policy_of(fund.symbol).drawdown_guard
        return Alert(
            coin=fund.settle_currency,
            symbol=fund.symbol,
            balance=fund.balance,
            max_balance=fund.peak8h,
            insurance_pnl_ratio=f"{-guard.start if guard else FULL_DRAWDOWN:g}",
            pnl_ratio=f"{0.0 - (fund.drawdown8h if fund.equity_drawdown is None else fund.equity_drawdown):.6f}".rstrip(
                "0"
            ).rstrip("."),
            adl_trigger_threshold=f"{guard.minimum_balance if guard else 0:g}",
            adl_stop_ratio=f"{-guard.stop if guard else FULL_DRAWDOWN:g}",
        )


def _error_response(problem: Problem) -> ErrorResponse:
    now = _now()
    waits = {LIMIT_RESET: str(now + problem.seconds * SECOND_MS)} if isinstance(problem, TooManyRequests) else {}
    return ErrorResponse(200, BybitError(ret_code=code_of(CODES, problem), ret_msg=str(problem), time=now), waits)


def _now() -> int:
    return time.time_ns() // 1_000_000


FACADE = Facade((200,), BybitError, _error_response)
