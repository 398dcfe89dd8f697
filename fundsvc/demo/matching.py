"""The demo's matching engine: passes the market's events on and answers ADL orders, in one order of events per contract.

The engine executes a round over about a second, often only in part, and then ends it, so that the service begins another round
for the rest. The same round always gets the same answers. At start the engine loads earlier executions from the ledger, so a
restart continues with the open rounds.

The engine keeps its own account of the lots that the fund took over: it adds takeovers, and subtracts what ADL executes of them
and what it unwinds in the market.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from fundsvc.core.events import AdlEnd, AdlFill, Event, Fill, Settle, Takeover, Unwind
from fundsvc.demo.instruments import INSTRUMENTS
from fundsvc.demo.market import SEQ_PER_STEP, ContractMarket, SimulatedMarket, Taken
from fundsvc.demo.prices import seeded
from fundsvc.demo.stakes import Stake
from fundsvc.wire.rounds import Announcement

FIRST_ANSWER = 500
"""First sequence of ADL answers within a step: above those of fills, with room for every account of a contract."""

ROUND_STEPS = 6
"""Duration of a round: one and a half seconds, so that viewers can follow an order of three rounds."""

ORDERS_REMEMBERED = 1000
"""Rounds remembered per contract, to recognise a repeated announcement. No order stays open while so many others begin."""

WHOLE = ((1.0, 1.0),)
"""Contracts without cascades have few ADL orders, and execute them completely."""


class Execution(NamedTuple):
    """Lots of a position, executed at a step."""

    step: int
    stake: Stake
    lots: int


class Answers(NamedTuple):
    """The answer to a round: executions in the order of their steps, and the step at which the round ends.

    `of_takeover` is whether the order reduces lots of takeovers.
    """

    announcement: Announcement
    executions: list[Execution]
    end: int
    of_takeover: bool


class MatchingEngine:
    """Answers ADL orders, and unwinds what the fund holds.

    `settled` holds the last sequence of each contract, `taken` the earlier executions, and `held` the lots that each fund
    holds, with those in its open takeover orders.
    """

    def __init__(
        self, market: SimulatedMarket, settled: Mapping[str, int], taken: Taken, held: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        self.held = Counter(held)
        self._market = market
        self._settled = settled
        self._taken = Counter(taken)
        self._answers: dict[str, list[Answers]] = {symbol: [] for symbol in market.contracts}
        self._rounds: dict[tuple[str, int], int] = {}
        self._executed = {each.symbol: each.cascade.executed if each.cascade else WHOLE for each in INSTRUMENTS}

    def take_on(self, announcement: Announcement, step: int) -> None:
        """Begins to execute a round after a step; ignores a repeated announcement."""
        symbol, adl = announcement.symbol, announcement.adl
        if announcement.round > self._rounds.get((symbol, adl), 0):
            self._rounds[symbol, adl] = announcement.round
            self._rounds.pop((symbol, adl - ORDERS_REMEMBERED), None)
            executions = sorted(self._executions(announcement, step), key=lambda execution: execution.step)
            of_takeover = self._contract(announcement).is_of_takeover(announcement.price, step)
            self._answers[symbol].append(Answers(announcement, executions, step + ROUND_STEPS, of_takeover))

    def events(self, step: int, ts: int) -> list[Event]:
        """The events to send in a step: those of the market, then unwinds, then the due answers."""
        # A settled fill would be a conflict if it came again, because its time differs.
        events = [event for event in self._market.events(step, ts, self._taken) if not self._is_settled(event)]
        for takeover in [event for event in events if isinstance(event, Takeover)]:
            self.held[takeover.symbol] += takeover.lots
        events += self._unwinds(step, ts)
        for symbol in self._answers:
            # A step that is sent again after a restart would repeat sequences that the ledger knows.
            if step * SEQ_PER_STEP > self._settled.get(symbol, 0):
                events += self._answer(symbol, step, ts)
        return events

    def _is_settled(self, event: Event) -> bool:
        return isinstance(event, Fill | Takeover | Unwind | Settle) and event.seq <= self._settled.get(event.symbol, 0)

    def _unwinds(self, step: int, ts: int) -> Iterator[Unwind]:
        """The unwinds of a step, without lots that a round requests."""
        for symbol, contract in self._market.contracts.items():
            promised = sum(
                execution.lots for answers in self._answers[symbol] if answers.of_takeover for execution in answers.executions
            )
            unwind = contract.unwind(step, self.held[symbol] - promised, ts)
            if unwind and not self._is_settled(unwind):
                self.held[symbol] -= unwind.lots
                yield unwind

    def _executions(self, announcement: Announcement, step: int) -> Iterator[Execution]:
        """The lots of each allocation that will be executed, in the order of ranks."""
        draw = seeded(announcement.symbol, announcement.adl, announcement.round)
        bounds = self._executed[announcement.symbol]
        share = min(1.0, draw.uniform(*bounds[min(announcement.round, len(bounds)) - 1]))
        left = round(share * sum(allocation.lots for allocation in announcement.allocations))
        for allocation in announcement.allocations:
            after = draw.randint(1, ROUND_STEPS - 1)
            stake = self._contract(announcement).held(allocation.account, announcement.reduce, step)
            lots = min(allocation.lots, left)
            if stake and lots:
                left -= lots
                yield Execution(step + after, stake, lots)

    def _answer(self, symbol: str, step: int, ts: int) -> Iterator[Event]:
        seq = step * SEQ_PER_STEP + FIRST_ANSWER
        for answers in list(self._answers[symbol]):
            adl = answers.announcement.adl
            while answers.executions and answers.executions[0].step <= step:
                execution = answers.executions.pop(0)
                if lots := self._take(answers.announcement, execution, step):
                    seq += 1
                    self.held[symbol] -= lots if answers.of_takeover else 0
                    yield AdlFill(symbol, seq, adl, execution.stake.account, lots, ts)
                    yield self._reduced(answers.announcement, execution.stake, ts)
            if answers.end <= step:
                seq += 1
                yield AdlEnd(symbol, seq, adl, ts)
                self._answers[symbol].remove(answers)
                self._forget_closed(symbol, step)

    def _take(self, announcement: Announcement, execution: Execution, step: int) -> int:
        """The lots that can be executed on a position now: none if it was closed since the round began."""
        contract, stake = self._contract(announcement), execution.stake
        if contract.held(stake.account, stake.side, step) != stake:
            return 0
        lots = min(execution.lots, contract.left(stake, self._taken))
        self._taken[contract.holding(stake)] += lots
        return lots

    def _reduced(self, announcement: Announcement, stake: Stake, ts: int) -> Event:
        contract = self._contract(announcement)
        return contract.position(stake, contract.left(stake, self._taken), ts)

    def _contract(self, announcement: Announcement) -> ContractMarket:
        return self._market.contracts[announcement.symbol]

    def _forget_closed(self, symbol: str, step: int) -> None:
        contract = self._market.contracts[symbol]
        for holding in [holding for holding in self._taken if holding.symbol == symbol]:
            if not contract.is_open(holding, step):
                del self._taken[holding]
