"""An exchange whose funds run dry: positions open, change sides and close, marks move, and the exchange answers ADL rounds
late, in full, in part or not at all.

Partitions in memory give the rounds in advance, so all letters can be written before the first is sent.
"""

import random
from collections.abc import Iterator

import msgspec

from fundsvc.core.batch import Round
from fundsvc.core.contracts import partition_of
from fundsvc.core.events import AdlEnd, AdlFill, Event, Fill, Mark, Position, Reason, Takeover, Unwind
from fundsvc.core.partition import Partition
from tests.crash.letters import (
    CLOCK_JUMP_SHARE,
    CLOCK_JUMPS_MS,
    CONTRACTS,
    DOUBTED_SHARE,
    LATE_SHARE,
    RELISTED_SHARE,
    Letter,
    Unit,
    disputed_terms,
    letters_of,
    listing_of,
    rejected_element,
)
from tests.crash.oracle import empty_partition
from tests.crash.poison import BEGINNING_MS, Destination, answer

ACCOUNTS = 60
SENT_AGAIN_SHARE = 0.03
WRONG_ANSWER_SHARE = 0.02
"""Shares of the events that a duplicate or a wrong answer follows."""

IN_FULL_SHARE = 0.4
EXECUTED_SHARE = 0.8
TRADED = tuple(contract for contract in CONTRACTS if contract[3] > 100)
"""Contracts whose prices are large enough for two decimals."""


def write_escalations(seed: int, partitions: int, steps: int) -> list[Letter]:
    """Writes letters in the order of sending, without duplicate letters."""
    chance = random.Random(seed)
    return list(letters_of(chance, partitions, Exchange(chance, partitions).events(steps), duplicate_share=0))


class Exchange:
    """Writes the events of an exchange, and remembers the answers that each round still needs."""

    def __init__(self, chance: random.Random, partitions: int) -> None:
        self._chance = chance
        self._partitions = [empty_partition(number, partitions) for number in range(partitions)]
        self._sequences = dict.fromkeys((symbol for symbol, *_ in TRADED), 0)
        self._states = dict(self._sequences)
        self._skipped: dict[str, int] = {}
        self._answers: dict[tuple[str, int], list[AdlFill | AdlEnd]] = {}
        self._numbered: list[Fill | Takeover | Unwind | AdlFill | AdlEnd] = []

    def events(self, steps: int) -> Iterator[Event | Unit]:
        """Yields the listings, a mark of each contract, and events of all kinds for this number of steps."""
        for contract in TRADED:
            yield self._settle(contract[0], listing_of(contract))
            yield self._settle(contract[0], self._mark(*contract, BEGINNING_MS))
        jump = 0
        for step in range(steps):
            contract = self._chance.choice(TRADED)
            jump = self._chance.choice(CLOCK_JUMPS_MS) if self._chance.random() < CLOCK_JUMP_SHARE else jump
            makes = self._position, self._mark, self._fill, self._takeover, self._unwind, self._answer
            make = self._chance.choices(makes, (45, 10, 8, 4, 4, 29))[0]
            event = make(*contract, BEGINNING_MS + step + jump)
            if event:
                yield self._settle(contract[0], event)
            if self._numbered and self._chance.random() < SENT_AGAIN_SHARE:
                yield self._chance.choice(self._numbered)
            yield from self._wrong(contract)

    def _settle(self, symbol: str, event: Event) -> Event:
        """Settles an event in memory, and prepares the answers to the rounds that it starts; returns the event."""
        partition = self._partition(symbol)
        partition.apply(event)
        for round_ in partition.take().rounds:
            self._answers[round_.order.symbol, round_.order.adl] = self._answers_to(round_)
        if isinstance(event, Fill | Takeover | Unwind | AdlFill | AdlEnd):
            self._numbered.append(event)
        return event

    def _answers_to(self, round_: Round) -> list[AdlFill | AdlEnd]:
        symbol, adl = round_.order.symbol, round_.order.adl
        in_full = self._chance.random() < IN_FULL_SHARE
        fills = [
            AdlFill(symbol, 1, adl, account, lots if in_full else self._chance.randint(1, lots), 0)
            for account, lots in zip(round_.accounts, round_.lots, strict=True)
            if in_full or self._chance.random() < EXECUTED_SHARE
        ]
        self._chance.shuffle(fills)
        return [*fills, AdlEnd(symbol, 1, adl, 0)]

    def _position(self, symbol: str, _currency: str, multiplier: str | float, about: int, ts: int) -> Position:
        lots = self._chance.choice((0, 1, 1, -1, -1)) * self._chance.randint(1, 50)
        size = abs(lots * float(multiplier))
        value = size / about if float(multiplier) < 0 else size * about
        margin = f"{value * self._chance.uniform(0.02, 0.3):.8f}"
        account, price = f"a{self._chance.randrange(ACCOUNTS)}", self._price(about, 0.03)
        return Position(symbol, account, lots, price, margin, ts, seq=self._next_state(symbol))

    def _mark(self, symbol: str, _currency: str, _multiplier: str | float, about: int, ts: int) -> Mark:
        return Mark(symbol, self._price(about, 0.01), ts, seq=self._next_state(symbol))

    def _fill(self, symbol: str, _currency: str, _multiplier: str | float, about: int, ts: int) -> Fill:
        side = self._chance.choice(("sell", "buy"))
        worse = 0.99 if side == "sell" else 1.01
        price, bankruptcy_price = self._price(about * worse, 0.02), self._price(about, 0.01)
        return Fill(symbol, self._next(symbol), side, self._chance.randint(1, 200), price, bankruptcy_price, ts)

    def _takeover(self, symbol: str, _currency: str, _multiplier: str | float, about: int, ts: int) -> Takeover:
        side = self._chance.choice(("sell", "buy"))
        price = self._price(about * (1.003 if side == "sell" else 0.997), 0.01)
        return Takeover(symbol, self._next(symbol), side, self._chance.randint(1, 100), price, ts, account="a0")

    def _unwind(self, symbol: str, _currency: str, _multiplier: str | float, about: int, ts: int) -> Unwind | None:
        """Returns an unwind of held lots; None if the fund holds none of a side."""
        side = self._chance.choice(("sell", "buy"))
        market = self._partition(symbol).market(symbol)
        held = market.fund.inventory.closed_by(side).lots if market and market.fund.inventory else 0
        if not held:
            return None
        return Unwind(symbol, self._next(symbol), side, self._chance.randint(1, held), self._price(about, 0.01), ts)

    def _partition(self, symbol: str) -> Partition:
        return self._partitions[partition_of(symbol, len(self._partitions))]

    def _answer(self, symbol: str, *rest: object) -> AdlFill | AdlEnd | None:
        """Returns the next answer to a round of the contract; None if no round needs one.

        An unwind may have taken lots of the order.
        """
        waiting = sorted(key for key, answers in self._answers.items() if key[0] == symbol and answers)
        if not waiting:
            return None
        key = self._chance.choice(waiting)
        answer, order = self._answers[key].pop(0), self._partition(symbol).open_order(*key)
        if isinstance(answer, AdlFill):
            if order is None:
                return None
            answer = msgspec.structs.replace(answer, lots=min(answer.lots, order.needed))
        numbers = {"seq": self._next(symbol), "ts": rest[-1]}
        return type(answer)(**{name: getattr(answer, name) for name in answer.__struct_fields__} | numbers)

    def _wrong(self, contract: tuple[str, str, str | float, int]) -> Iterator[Event | Unit]:
        """Yields, with small probability, events to reject and listings that change nothing."""
        symbol = contract[0]
        if self._chance.random() < WRONG_ANSWER_SHARE and (wrong := self._wrong_answer(symbol)):
            yield wrong
        if self._chance.random() < RELISTED_SHARE:
            yield self._settle(symbol, listing_of(contract, note=self._sequences[symbol]))
        if self._sequences[symbol] and self._chance.random() < DOUBTED_SHARE:
            yield disputed_terms(self._chance, contract)
        if 0 < self._skipped.get(symbol, 0) < self._settled_seq(symbol) and self._chance.random() < LATE_SHARE:
            seq = self._skipped[symbol]
            late = self._fill(*contract, BEGINNING_MS)
            yield (rejected_element(msgspec.structs.replace(late, seq=seq), symbol, Reason.LATE),)

    def _settled_seq(self, symbol: str) -> int:
        """The contract's sequence in the ledger, which the end of a closed order does not raise."""
        funds = self._partition(symbol).funds()
        return next(fund.seq for fund in funds if fund.contract.symbol == symbol)

    def _wrong_answer(self, symbol: str) -> Unit | None:
        """Returns an execution for an account outside the round, or of too many lots; None without a round."""
        rounds = sorted(key for key in self._answers if key[0] == symbol)
        if not rounds:
            return None
        _, adl = self._chance.choice(rounds)
        order = self._partition(symbol).open_order(symbol, adl)
        requested = [account for account, _ in order.progress.rests()] if order else []
        account = self._chance.choice(("nobody", f"a{self._chance.randrange(ACCOUNTS)}", *requested[:3]))
        execution = answer(Destination(symbol, 0, 0), "adlFill", adl, account=account, lots=10**15)
        return (rejected_element(execution, symbol, Reason.ADL_NOT_ASKED),)

    def _next(self, symbol: str) -> int:
        last = self._sequences[symbol]
        self._sequences[symbol] += self._chance.randint(1, 3)
        if self._sequences[symbol] > last + 1:
            self._skipped[symbol] = last + 1
        return self._sequences[symbol]

    def _next_state(self, symbol: str) -> int:
        """The next sequence of positions and marks, which is separate from that of fills."""
        self._states[symbol] += 1
        return self._states[symbol]

    def _price(self, about: float, spread: float) -> str:
        return f"{about * (1 + self._chance.uniform(-spread, spread)):.2f}"
