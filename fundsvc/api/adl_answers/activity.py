"""What ADL did last in all contracts: orders that opened, further rounds, executions and ends, with their worth."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import groupby
from typing import Literal

from msgspec import UNSET, UnsetType

from fundsvc.api.answers import Answer
from fundsvc.api.valuation import EQUIVALENT_DECIMALS, in_usdt
from fundsvc.api.visibility import rough
from fundsvc.core.adl.order import Origin, State
from fundsvc.core.adl.valuation import SideName
from fundsvc.core.contracts import Contract
from fundsvc.core.generations import generation_of
from fundsvc.core.numbers import format_units
from fundsvc.store.adl import OrderRow, RoundStep

ActivityKind = Literal["opened", "round", "executed", "ended"]
"""The kinds of steps, in the order in which an order takes them."""

_KINDS: tuple[ActivityKind, ...] = ("opened", "round", "executed", "ended")

RateOf = Callable[[str], tuple[int | None, str]]
"""Returns USDT per unit of a currency, or None and the reason."""


class AdlActivityAnswer(Answer, frozen=True, kw_only=True):
    """A step of an ADL order at `ts`, by the engine's clock. No step names or describes an account.

    `opened` begins an order and its round 1, `round` a later round; `lots` are those that the order then needs. `executed` are
    the executions of a round so far, at the time of the last one. `ended` ends the order; `lots` are those that it executed.
    `state` is that of the order now. The lots of `round` and `executed` are rounded to two significant digits, because in a
    round of few positions they would reveal those of one.

    `notional` is the worth of the lots at the order's price in `settleCurrency`. If `notionalUsdt` is null, its reason states
    why. Both are rounded down.
    """

    symbol: str
    generation: int
    adl: int
    round: int
    kind: ActivityKind
    origin: Origin
    cause: int
    state: State
    reduce: SideName
    price: str
    lots: int
    settle_currency: str
    notional: str
    notional_usdt: str | None
    notional_usdt_reason: str | UnsetType = UNSET
    ts: int


def activity_answers(
    orders: Iterable[OrderRow], steps: Iterable[RoundStep], contracts: Mapping[str, Contract], rate_of: RateOf
) -> list[AdlActivityAnswer]:
    """Returns the steps of orders, the newest first. `steps` are sorted by order; `rate_of` returns the rate of a currency."""
    found = {key: list(rows) for key, rows in groupby(steps, lambda step: (step.symbol, step.adl))}
    answers = [
        answer
        for order in orders
        for answer in _answers_of(order, found.get((order.symbol, order.adl), []), contracts[order.symbol], rate_of)
    ]
    return sorted(answers, key=lambda step: (-step.ts, step.symbol, -step.adl, -step.round, -_KINDS.index(step.kind)))


def _answers_of(order: OrderRow, steps: list[RoundStep], contract: Contract, rate_of: RateOf) -> Iterator[AdlActivityAnswer]:
    rate, missing = rate_of(contract.settle_currency)
    generation = generation_of(order.symbol)
    for kind, number, lots, ts in _steps_of(order, steps):
        notional = _notional(contract, lots, order.price)
        yield AdlActivityAnswer(
            symbol=generation.symbol,
            generation=generation.number,
            adl=order.adl,
            round=number,
            kind=kind,
            origin=order.origin,
            cause=order.cause,
            state=order.state,
            reduce=order.reduce,
            price=format_units(order.price, contract.price_decimals),
            lots=lots,
            settle_currency=contract.settle_currency,
            notional=_text(notional, contract.settle_decimals),
            notional_usdt=None if rate is None else _text(in_usdt(notional, rate), EQUIVALENT_DECIMALS),
            notional_usdt_reason=UNSET if rate is not None else missing,
            ts=ts,
        )


def _steps_of(order: OrderRow, steps: list[RoundStep]) -> Iterator[tuple[ActivityKind, int, int, int]]:
    """Yields kind, round, lots and time (ms) of what an order did."""
    needed, last = order.lots, order.ts
    yield "opened", 1, order.lots, order.ts
    for step in steps:
        last = max(last, step.ts)
        if step.kind == "round":
            yield "round", step.round, rough(needed), step.ts
        elif step.kind == "execution":
            yield "executed", step.round, rough(step.lots), step.ts
        if step.kind in {"execution", "unwind"}:
            needed -= step.lots
    if order.state != "open":
        yield "ended", order.round, order.executed, last


def _notional(contract: Contract, lots: int, price: int) -> Fraction:
    """Returns the worth of lots at a price, in whole units of the settlement currency."""
    atoms, divisor = contract.value_factor()
    divisor *= 10**contract.settle_decimals
    return Fraction(lots * atoms, divisor * price) if contract.is_inverse else Fraction(lots * price * atoms, divisor)


def _text(amount: Fraction, decimals: int) -> str:
    return format_units(math.floor(amount * 10**decimals), decimals)
