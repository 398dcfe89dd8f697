"""Endpoints of Gate futures, by settlement currency in lower case. A path shows only the contracts of its currency."""

import time
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from fundsvc.api.adl import AdlResources
from fundsvc.api.adl_answers.positions import ReductionAnswer
from fundsvc.api.answers import FundAnswer
from fundsvc.api.http.errors import BadParameter, Forbidden, NotFound, NoToken, Problem, TooManyRequests
from fundsvc.api.http.parameters import Parameters
from fundsvc.api.http.tokens import Caller
from fundsvc.api.venues.facade import SECOND_MS, TRADER, ErrorResponse, Facade, FundsReader, code_of
from fundsvc.core.events import Symbol
from fundsvc.core.fund.state import FundStateName
from fundsvc.core.numbers import format_units
from fundsvc.store.venue_histories import Histories

RiskState = Literal["normal", "warning", "adl_risk"]

RISK_STATES: dict[FundStateName, RiskState] = {"ok": "normal", "warning": "warning", "adl": "adl_risk", "uncovered": "adl_risk"}

RECORDS_MAX = 1000
RECORDS = 100
"""Gate's limit and default for a page."""

LABELS = {
    BadParameter: "INVALID_PARAM_VALUE",
    NotFound: "CONTRACT_NOT_FOUND",
    NoToken: "INVALID_KEY",
    Forbidden: "FORBIDDEN",
    TooManyRequests: "TOO_MANY_REQUESTS",
    Problem: "SERVER_ERROR",
}
"""Gate's labels of errors."""

Limit = Annotated[int, msgspec.Meta(ge=1, le=RECORDS_MAX)]
Second = Annotated[int, msgspec.Meta(ge=0, le=2**53, description="a time in seconds")]


class InsuranceQuery(Parameters, frozen=True):
    """The last `limit` days."""

    limit: Limit = RECORDS


class AutoDeleveragesQuery(Parameters, frozen=True, rename={"start": "from"}):
    """Reductions of one contract, by default all, between two times or at one; newest first, without the first `offset`."""

    contract: Annotated[Symbol, msgspec.Meta(description="a contract")] | UnsetType = UNSET
    limit: Limit = RECORDS
    offset: Annotated[int, msgspec.Meta(ge=0, le=RECORDS_MAX)] = 0
    start: Second = 0
    to: Second = 2**53
    at: Second | UnsetType = UNSET


class Record(msgspec.Struct, frozen=True):
    """The start of a day in seconds, and the balance at its end."""

    t: int
    b: str


class Risk(msgspec.Struct, frozen=True):
    """`warning`: the fund is near its guard. `adl_risk`: an ADL order is open, or an amount is uncovered."""

    state: RiskState
    calculated_at_ms: int


class Risks(msgspec.Struct, frozen=True):
    """ADL risk by contract."""

    settle: str
    states: dict[str, Risk]


class Reduction(msgspec.Struct, frozen=True):
    """A reduction of the caller's position. Sizes are lots, negative for a short. `order_id` is the number of the ADL order."""

    time: int
    order_id: int
    contract: str
    leverage: str
    cross_leverage_limit: str
    entry_price: str
    fill_price: str
    trade_size: str
    position_size: str


class GateError(msgspec.Struct, frozen=True):
    """An error in Gate's format."""

    label: str
    message: str


class GateEndpoints:
    """Converts the present funds, their daily balances, and the reductions of accounts."""

    def __init__(self, funds: FundsReader, histories: Histories, adl: AdlResources) -> None:
        self._funds = funds
        self._histories = histories
        self._adl = adl
        self.endpoints = (
            FACADE.endpoint("/api/v4/futures/{settle}/insurance", self.insurance),
            FACADE.endpoint("/api/v4/futures/{settle}/adl_risk_states", self.risks),
            FACADE.endpoint("/api/v4/futures/{settle}/auto_deleverages", self.deleveraged, TRADER),
        )

    async def insurance(self, query: InsuranceQuery, settle: str) -> list[Record]:
        """Returns the daily sum of the balances of a currency's funds, oldest first."""
        currency = (await self._funds_of(settle))[0].settle_currency
        days = await self._histories.days(currency, query.limit, _now())
        return [Record(day.start // SECOND_MS, format_units(day.balance, day.decimals)) for day in days]

    async def risks(self, query: Parameters, settle: str) -> Risks:  # noqa: ARG002 - the query has no parameters
        """Returns the ADL risk of each contract."""
        return Risks(settle, {fund.symbol: Risk(RISK_STATES[fund.state], _now()) for fund in await self._funds_of(settle)})

    async def deleveraged(self, query: AutoDeleveragesQuery, settle: str, caller: Caller) -> list[Reduction]:
        """Returns the ADL reductions of the caller's positions, newest first."""
        symbols = {fund.symbol for fund in await self._funds_of(settle)}
        found: list[Reduction] = []
        async for part in self._adl.newest_reductions(caller):
            found += [_reduction(row) for row in part if row.symbol in symbols and _matches(query, row)]
            if len(found) >= query.offset + query.limit:
                break
        return found[query.offset : query.offset + query.limit]

    async def _funds_of(self, settle: str) -> list[FundAnswer]:
        """Returns the funds of a currency. Raises NotFound."""
        if found := [fund for fund in await self._funds() if fund.settle_currency.lower() == settle]:
            return found
        raise NotFound(f"no contract settles in {settle!r}: name a settlement currency in lower case, such as usdt")


def _matches(query: AutoDeleveragesQuery, row: ReductionAnswer) -> bool:
    second = row.ts // SECOND_MS
    return query.contract in (UNSET, row.symbol) and query.start <= second <= query.to and query.at in (UNSET, second)


def _reduction(row: ReductionAnswer) -> Reduction:
    sign = 1 if row.side == "long" else -1
    leverage = "0" if row.leverage is None else f"{row.leverage:.2f}"
    return Reduction(
        time=row.ts // SECOND_MS,
        order_id=row.adl,
        contract=row.symbol,
        leverage=leverage,
        cross_leverage_limit="0",
        entry_price=row.entry_price,
        fill_price=row.price,
        trade_size=str(-sign * row.executed),
        position_size=str(sign * (row.lots - row.executed)),
    )


def _error_response(problem: Problem) -> ErrorResponse:
    return ErrorResponse(problem.status, GateError(code_of(LABELS, problem), str(problem)))


def _now() -> int:
    return time.time_ns() // 1_000_000


FACADE = Facade((400, 404, 429, 503), GateError, _error_response)
