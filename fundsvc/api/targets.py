"""The target size of a fund."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import msgspec
from msgspec import UNSET

from fundsvc.api.answers import Answer, milliseconds, target_size
from fundsvc.api.http.access import Roles
from fundsvc.api.http.application import Route, find_fund
from fundsvc.api.http.errors import BadParameter, NotFound
from fundsvc.api.http.parameters import Query, WhatIfQuery
from fundsvc.api.http.tokens import Caller
from fundsvc.api.visibility import rough, visibility_of
from fundsvc.core.adl.book import Book
from fundsvc.core.fund.fullness import RuleName, TargetPolicy
from fundsvc.core.fund.target_sizing import Cover, Explanation, StressedPosition
from fundsvc.core.generations import public_symbol
from fundsvc.core.numbers import format_units
from fundsvc.engine.target_sizing import TargetRequest, compute_targets
from fundsvc.readmodel.adl_books import AdlBooks
from fundsvc.store.reader import FundRow, Reader
from fundsvc.store.target_sizes import ExplainedTarget, Targets

RISK: Roles = frozenset({"risk"})

_GIVEN = tuple(name for name in WhatIfQuery.__struct_fields__ if name not in Query.__struct_fields__)


class TargetAnswer(Answer, frozen=True, kw_only=True):
    """A fund's target size as computed at `computedAt`, and the current balance.

    `explanation` contains all inputs of the rule, and is null without a target. `reason` states why there is no target, or that
    the history is too short for the level of a value at risk; else it is empty. `leverageCap` rises from
    `leverageMin` at fullness `fullnessLow` to `leverageMax`, the contract's maximum, at `fullnessHigh`. It is a signal; the
    service does not act on it. Numbers of single positions are rounded to two significant digits, except for risk.
    """

    symbol: str
    settle_currency: str
    rule: RuleName
    target: str | None
    reason: str
    balance: str
    fullness: float | None
    leverage_cap: float | None
    fullness_low: float
    fullness_high: float
    leverage_min: float
    leverage_max: float | None
    explanation: Explanation | None
    computed_at: int


class TargetResources:
    """The routes that answer with the targets in the ledger, and with those of other parameters.

    `policy_of` returns the target policy of a contract.
    """

    def __init__(self, reader: Reader, targets: Targets, books: AdlBooks, policy_of: Callable[[str], TargetPolicy]) -> None:
        self._reader = reader
        self._targets = targets
        self._books = books
        self._policy_of = policy_of
        path = "/api/v1/insurance-fund/{symbol}/target"
        self.routes = (
            Route(path, Query, self.target, token_optional=True),
            Route(f"{path}/what-if", WhatIfQuery, self.what_if, roles=RISK),
        )

    async def target(self, _query: Query, symbol: str, caller: Caller | None) -> TargetAnswer:
        """The size that a fund should have, and its computation."""
        fund = await find_fund(self._reader, symbol)
        explained = await self._targets.explained(fund.symbol)
        if explained is None:
            raise NotFound(f"the target of {symbol} is not computed yet: retry in a minute")
        answer = target_answer(fund, explained)
        return answer if visibility_of(caller).all_accounts else _rough_answer(answer)

    async def what_if(self, query: WhatIfQuery, symbol: str, caller: Caller) -> TargetAnswer:  # noqa: ARG002 - by its role
        """The size that a fund should have by other parameters than those of its policy, computed now.

        Parameters that are not given are those of the contract's policy in the configuration of the API.
        """
        fund = await find_fund(self._reader, symbol)
        given = {name: value for name in _GIVEN if (value := getattr(query, name)) is not UNSET}
        try:
            policy = changed(self._policy_of(symbol), given)
        except ValueError as error:
            raise BadParameter(str(error)) from None
        book = self._books.book(fund.symbol, fund.partition) or Book(fund.contract)
        request = TargetRequest(fund.contract, book, policy, self._books.exclusive(fund.partition))
        return target_answer(fund, await explained_target(self._targets, request))


def changed(policy: TargetPolicy, given: Mapping[str, object]) -> TargetPolicy:
    """Returns a policy with other parameters, by name; raises ValueError if they are out of range or contradict each other."""
    return msgspec.convert(msgspec.structs.asdict(policy) | dict(given), TargetPolicy)


async def explained_target(targets: Targets, request: TargetRequest) -> ExplainedTarget:
    """Returns the target of a contract, computed now, without storing it; raises StoreFault."""
    target, size = (await compute_targets(targets, [request]))[request.contract.symbol]
    return ExplainedTarget(target, size.explanation, size.reason, datetime.now(UTC))


def target_answer(fund: FundRow, explained: ExplainedTarget) -> TargetAnswer:
    """Returns the answer for a target and its fund."""
    target = explained.target
    return TargetAnswer(
        symbol=public_symbol(fund.symbol),
        settle_currency=fund.settle_currency,
        rule=target.rule,
        target=target_size(target, fund.settle_decimals),
        reason=explained.reason,
        balance=format_units(fund.balance, fund.settle_decimals),
        fullness=target.fullness(fund.balance),
        leverage_cap=target.leverage_cap(fund.balance),
        fullness_low=target.fullness_low,
        fullness_high=target.fullness_high,
        leverage_min=target.leverage_min,
        leverage_max=target.leverage_max,
        explanation=explained.explanation,
        computed_at=milliseconds(explained.computed_at),
    )


def _rough_answer(answer: TargetAnswer) -> TargetAnswer:
    """Rounds the numbers of single positions in the explanation."""
    cover = answer.explanation
    if not isinstance(cover, Cover):
        return answer
    explanation = msgspec.structs.replace(
        cover, positions=list(map(_rough_position, cover.positions)), loss_of_other_side=rough(cover.loss_of_other_side)
    )
    return msgspec.structs.replace(answer, explanation=explanation)


def _rough_position(position: StressedPosition) -> StressedPosition:
    return StressedPosition(**{name: rough(value) for name, value in msgspec.structs.asdict(position).items()})
