"""The target size of a fund."""

import msgspec

from fundsvc.api.answers import Answer, milliseconds, target_size
from fundsvc.api.http.application import Route, find_fund
from fundsvc.api.http.errors import NotFound
from fundsvc.api.http.parameters import Query
from fundsvc.api.http.tokens import Caller
from fundsvc.api.visibility import rough, visibility_of
from fundsvc.core.fund.fullness import RuleName
from fundsvc.core.fund.target_sizing import Cover, Explanation, StressedPosition
from fundsvc.core.generations import public_symbol
from fundsvc.core.numbers import format_units
from fundsvc.store.reader import FundRow, Reader
from fundsvc.store.target_sizes import ExplainedTarget, Targets


class TargetAnswer(Answer, frozen=True, kw_only=True):
    """A fund's target size as computed at `computedAt`, and the current balance.

    `explanation` contains all inputs of the rule. Without a target it is null, and `reason` is set. `leverageCap` rises from
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
    """The route that answers with the targets in the ledger."""

    def __init__(self, reader: Reader, targets: Targets) -> None:
        self._reader = reader
        self._targets = targets
        self.routes = (Route("/api/v1/insurance-fund/{symbol}/target", Query, self.target, token_optional=True),)

    async def target(self, _query: Query, symbol: str, caller: Caller | None) -> TargetAnswer:
        """The size that a fund should have, and its computation."""
        fund = await find_fund(self._reader, symbol)
        explained = await self._targets.explained(fund.symbol)
        if explained is None:
            raise NotFound(f"the target of {symbol} is not computed yet: retry in a minute")
        answer = target_answer(fund, explained)
        return answer if visibility_of(caller).all_accounts else _rough_answer(answer)


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
