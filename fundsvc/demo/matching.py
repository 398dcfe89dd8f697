"""The demo's matching engine: passes the market's events on and answers ADL orders, in one order of events per contract.

A round that it is asked for is executed over a second or so, often only in part, and then ended, so that the service begins
another for the rest. The same round gets the same answers, whenever it comes.

What it has executed it knows from the ledger when it begins, so a restart goes on with the rounds at hand.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from fundsvc.core.events import AdlEnd, AdlFill, Event, Fill
from fundsvc.demo.instruments import INSTRUMENTS
from fundsvc.demo.market import SEQ_PER_STEP, ContractMarket, Market, Taken
from fundsvc.demo.prices import seeded
from fundsvc.demo.stakes import Stake
from fundsvc.streams.announcements import Announcement

FIRST_ANSWER = 500
"""Answers are numbered from here within a step: behind its fills, and with room for each of a contract's accounts."""

ROUND_STEPS = 6
"""A round is executed within one and a half seconds: long enough to be seen, short enough for three of them to be."""

ORDERS_REMEMBERED = 1000
"""Of each contract, to know an announcement that is repeated; no order stays open while so many others begin."""

WHOLE = ((1.0, 1.0),)
"""Contracts without cascades are rarely asked for anything, and execute all of it."""


class Execution(NamedTuple):
    """Lots of a position, executed at a step."""

    step: int
    stake: Stake
    lots: int


class Answers(NamedTuple):
    """What a round is answered: executions in the order of their steps, and the step at which it ends."""

    announcement: Announcement
    executions: list[Execution]
    end: int


class MatchingEngine:
    """All contracts, from where the ledger is: `settled` is the last sequence of each, `taken` what was executed before."""

    def __init__(self, market: Market, settled: Mapping[str, int], taken: Taken) -> None:
        self._market = market
        self._settled = settled
        self._taken = Counter(taken)
        self._answers: dict[str, list[Answers]] = {symbol: [] for symbol in market.contracts}
        self._rounds: dict[tuple[str, int], int] = {}
        self._executed = {each.symbol: each.cascade.executed if each.cascade else WHOLE for each in INSTRUMENTS}

    def take_on(self, announcement: Announcement, step: int) -> None:
        """Begins to execute a round after a step; one that it knows already is repeated, and passed over."""
        symbol, adl = announcement.symbol, announcement.adl
        if announcement.round > self._rounds.get((symbol, adl), 0):
            self._rounds[symbol, adl] = announcement.round
            self._rounds.pop((symbol, adl - ORDERS_REMEMBERED), None)
            executions = sorted(self._executions(announcement, step), key=lambda execution: execution.step)
            self._answers[symbol].append(Answers(announcement, executions, step + ROUND_STEPS))

    def events(self, step: int, ts: int) -> list[Event]:
        """What is sent in a step: the market's events, then the answers that are due."""
        # A fill that the ledger knows would be a conflict, as its time is another now.
        events = [event for event in self._market.events(step, ts, self._taken) if not self._is_settled(event)]
        for symbol in self._answers:
            # A step that is sent again after a restart would repeat sequences that the ledger knows.
            if step * SEQ_PER_STEP > self._settled.get(symbol, 0):
                events += self._answer(symbol, step, ts)
        return events

    def _is_settled(self, event: Event) -> bool:
        return isinstance(event, Fill) and event.seq <= self._settled.get(event.symbol, 0)

    def _executions(self, announcement: Announcement, step: int) -> Iterator[Execution]:
        """The part of what is asked that will be executed, account by account in the order of their ranks."""
        draw = seeded(announcement.symbol, announcement.adl, announcement.round)
        bounds = self._executed[announcement.symbol]
        share = min(1.0, draw.uniform(*bounds[min(announcement.round, len(bounds)) - 1]))
        left = round(share * sum(asked.lots for asked in announcement.allocations))
        for asked in announcement.allocations:
            after = draw.randint(1, ROUND_STEPS - 1)
            stake = self._contract(announcement).held(asked.account, announcement.reduce, step)
            lots = min(asked.lots, left)
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
                    yield AdlFill(symbol, seq, adl, execution.stake.account, lots, ts)
                    yield self._reduced(answers.announcement, execution.stake, ts)
            if answers.end <= step:
                seq += 1
                yield AdlEnd(symbol, seq, adl, ts)
                self._answers[symbol].remove(answers)
                self._forget_closed(symbol, step)

    def _take(self, announcement: Announcement, execution: Execution, step: int) -> int:
        """The lots that can be taken off a position now: none when it was closed since it was asked."""
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
