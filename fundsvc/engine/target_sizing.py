"""Computes target sizes: periodically in the engine that owns a partition, or once for `fundsvc target`.

Long work does not delay settlement: the history is read for a few contracts at a time and with pauses, and numpy searches the
positions in a thread.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from fundsvc.concurrency.exclusive import Exclusive
from fundsvc.core.adl.book import Book
from fundsvc.core.contracts import Contract
from fundsvc.core.fund.fullness import Target, TargetPolicy, exact
from fundsvc.core.fund.target_sizing import (
    Deficits,
    Size,
    largest_rows,
    size_by_cover,
    size_by_deficits,
    size_by_open_interest,
    stressed_sides,
    without_mark,
)
from fundsvc.core.partition import Partition
from fundsvc.store.target_sizes import Targets

CONTRACTS_PER_STEP = 20
"""Bounds a query: with a year of hours for each contract it takes a tenth of a second."""

SHARE_MAX = 0.05
"""The share of the time for which these queries may use the database. Slow queries are followed by longer pauses."""


class TargetRequest(NamedTuple):
    """A contract whose target is to be computed, with its book and the object that gives access to the book."""

    contract: Contract
    book: Book
    policy: TargetPolicy
    exclusive: Exclusive


class Metrics(Protocol):
    """The metrics that target sizing sets."""

    def target(self, symbol: str, target: Target) -> None:
        """Sets the metric of a contract's target."""


class TargetSizing:
    """Computes and stores the targets of a partition's contracts. `exclusive` gives access to the partition."""

    def __init__(
        self,
        state: Partition,
        exclusive: Exclusive,
        targets: Targets,
        policy_of: Callable[[str], TargetPolicy],
        metrics: Metrics,
    ) -> None:
        self._state = state
        self._exclusive = exclusive
        self._targets = targets
        self._policy_of = policy_of
        self._metrics = metrics

    async def recompute(self) -> None:
        """Computes all targets, some contracts at a time; raises StoreFault."""
        contracts = await self._exclusive.run(lambda: [fund.contract for fund in self._state.funds()])
        for start in range(0, len(contracts), CONTRACTS_PER_STEP):
            started = time.monotonic()
            await self._recompute(contracts[start : start + CONTRACTS_PER_STEP])
            await asyncio.sleep((time.monotonic() - started) / SHARE_MAX)

    async def _recompute(self, contracts: Sequence[Contract]) -> None:
        found = await compute_targets(self._targets, [self._request(contract) for contract in contracts])
        if found:
            await self._targets.keep(found)
        for symbol, (target, _) in found.items():
            self._metrics.target(symbol, target)

    def _request(self, contract: Contract) -> TargetRequest:
        book = self._state.book(contract.symbol) or Book(contract)
        return TargetRequest(contract, book, self._policy_of(contract.symbol), self._exclusive)


async def compute_targets(targets: Targets, requests: Sequence[TargetRequest]) -> dict[str, tuple[Target, Size]]:
    """Returns targets with their explanations, by symbol, of the contracts that the ledger contains; raises StoreFault."""
    by_deficits = {one.contract.symbol: one.policy for one in requests if one.policy.rule == "value_at_risk"}
    deficits = await targets.deficits(by_deficits) if by_deficits else {}
    leverages = await targets.leverages([one.contract.symbol for one in requests])
    found = {}
    for one in requests:
        symbol = one.contract.symbol
        if symbol in leverages:  # A new listing may not be committed yet.
            size = await _size(one, deficits.get(symbol))
            found[symbol] = _target(one.policy, size, leverages[symbol]), size
    return found


async def _size(request: TargetRequest, deficits: Deficits | None) -> Size:
    contract, book, policy, exclusive = request
    match policy.rule:
        case "value_at_risk":
            return size_by_deficits(contract, policy, deficits)
        case "cover":
            return await exclusive.run(partial(_size_by_cover, contract, policy, book), is_long=book.is_large)
        case "open_interest":
            return await exclusive.run(partial(size_by_open_interest, contract, policy, book))
        case "none":
            return Size(None, None, f"the configuration names no rule for {contract.symbol}")


def _size_by_cover(contract: Contract, policy: TargetPolicy, book: Book) -> Size:
    if book.mark is None:
        return without_mark(contract)
    sides = stressed_sides(book, book.mark, exact(policy.move))
    rows = [largest_rows(side, policy.positions) for side in sides]
    return size_by_cover(contract, policy, book, sides, rows)


def _target(policy: TargetPolicy, size: Size, leverage_max: float | None) -> Target:
    return Target(policy.rule, size.amount, policy.fullness_low, policy.fullness_high, policy.leverage_min, leverage_max)
