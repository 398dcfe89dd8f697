"""The positions of a contract of the demo market, and how they end.

The end of a position is fixed when it opens. Each slot of a contract holds one position after another, each for a number of
steps; the price move in that time decides whether it is liquidated. Most liquidations leave a surplus, some are flat, a few are
shortfalls.

A cascade costs what the fund of the contract has earned since the last cascade, plus `Cascade.uncovered`. So without savings it
empties the fund and leaves about that amount to ADL; the surpluses of the next cycle repay what ADL does not recover. The fund
does not drift, because the amount that one cascade leaves is part of the next one's balance.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from decimal import Decimal
from itertools import accumulate, pairwise
from random import Random
from typing import Literal, NamedTuple

from fundsvc.core.contracts import Contract
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.numbers import to_units
from fundsvc.demo.instruments import Cascade, Instrument
from fundsvc.demo.prices import CASCADE_STEPS, Prices, cycle_of, last_step, seeded, steps_into

Side = Literal["long", "short"]

SLOTS = 300
"""Positions that a contract has open at any time."""

LIFE_STEPS = (80, 320)
"""Bounds of a position's life: twenty to eighty seconds, so about seven positions of a contract end each second."""

LIQUIDATED = 0.5
"""The share of positions that end by liquidation."""

FLAT, COSTLY = 0.03, 0.01
"""The share of liquidations that are flat, and of those that are small shortfalls."""

GAIN_PPM, COST_PPM = (200, 3000), (50, 500)
"""Bounds of the difference between exit and bankruptcy price, in millionths of the price: surplus and shortfall."""

NOTIONAL = 25_000.0
"""The median size of a position in quote currency; half of all are between half and twice as large."""

LEVERAGE = (2, 25)
"""Bounds of the leverage of positions that are not liquidated."""

LEVERAGE_MAX = 100
"""The highest leverage of any position; KuCoin's limit is about the same."""

CASCADE_FILLS = 30
"""Liquidations of a cascade, in addition to the ordinary ones."""

TAKEOVERS_MAX = 3
"""Longs that the market does not take while a book is thin."""

CASCADE_AGE_STEPS = 120
"""The age of their positions in steps, and of longs that the market does not take: they opened after the price had recovered
from the last fall."""

FINAL_FILLS = 2
FINAL_SHARE = 2.5
"""The last liquidations of a cascade are large and equal. Together they cost more than twice the uncovered amount, so the fund
pays a part of one of them, and one or two ADL orders follow instead of a dozen."""

OVERSHOOT_PPM = (4_000, 15_000)
"""Bounds of the difference between their bankruptcy and exit price, in millionths of the price."""


class Stake(NamedTuple):
    """A position. Prices are in the contract's units; `exit_price` is None unless the position is liquidated."""

    account: str
    side: Side
    lots: int
    entry_price: int
    bankruptcy_price: int
    exit_price: int | None


class Closing(NamedTuple):
    """The end of a position: its age in steps, and in atoms what its owner gained (+) or lost (-), and its value at the end."""

    steps: int
    realised: int
    volume: int


class Stakes:
    """All positions of one contract."""

    def __init__(self, seed: str, instrument: Instrument, contract: Contract, prices: Prices) -> None:
        self._instrument = instrument
        self._contract = contract
        self._mark = prices.mark
        self._on_tick = prices.on_tick
        self._worth = Fund(contract).worth
        self._name = f"{seed}:{instrument.symbol}"
        self.accounts = [identifier(seeded(seed, slot)) for slot in range(SLOTS + CASCADE_FILLS + TAKEOVERS_MAX)]
        self._slots = {account: slot for slot, account in enumerate(self.accounts[:SLOTS])}
        self._lives = [_life(seeded(self._name, "life", slot)) for slot in range(SLOTS)]
        self._costs: dict[int, int] = {}

    def margin(self, stake: Stake, lots: int) -> int:
        """The margin of so many lots of a position, in atoms: their loss from the entry price to the bankruptcy price."""
        return self._worth(closing_side(stake.side), lots, stake.entry_price, stake.bankruptcy_price)

    def held(self, account: str, step: int) -> Stake | None:
        """The position of an account at the end of a step; None for accounts that a cascade or a thin book liquidates."""
        slot = self._slots.get(account)
        if slot is None:
            return None
        life, phase = self._lives[slot]
        return self._stake(slot, step - (step - phase) % life)

    def closing(self, account: str, step: int) -> Closing | None:
        """The end of an account's position in this step, if it ends then. A liquidated one loses its margin."""
        slot = self._slots[account]
        life, phase = self._lives[slot]
        if (step - phase) % life:
            return None
        stake = self._stake(slot, step - life)
        exit_price = self._mark(step) if stake.exit_price is None else stake.bankruptcy_price
        realised = self._worth(closing_side(stake.side), stake.lots, exit_price, stake.entry_price)
        return Closing(life, realised, self._worth("sell", stake.lots, exit_price, 0))

    def ending(self, step: int) -> Iterator[Stake]:
        """The positions that end in a step."""
        yield from self._ordinary_ends(step)
        yield from self._cascade_ends(step)

    def taken_over(self, step: int) -> Iterator[Stake]:
        """The longs that the market does not take in this step; the fund takes them over."""
        thin = self._instrument.thin
        for number, (after, overshoot) in enumerate(thin.overshoots if thin else ()):
            if thin and steps_into(thin.first, step) == after:
                mark = self._mark(step)
                bankruptcy_price = self._on_tick(mark * (1 + overshoot))
                entry_price = self._entry("long", self._mark(step - CASCADE_AGE_STEPS), bankruptcy_price)
                account, lots = self.accounts[SLOTS + CASCADE_FILLS + number], self._lots(thin.notional, mark)
                yield Stake(account, "long", lots, entry_price, bankruptcy_price, None)

    def beginning(self, step: int) -> Iterator[Stake]:
        """The positions that open in a step."""
        yield from (self._stake(slot, step) for slot in self._changing(step))
        yield from self._cascade_ends(step + CASCADE_AGE_STEPS)
        yield from self.taken_over(step + CASCADE_AGE_STEPS)

    def open_at_start(self) -> Iterator[Stake]:
        """The positions that are open at step 0."""
        for slot, (life, phase) in enumerate(self._lives):
            yield self._stake(slot, (phase or life) - life)
        for step in range(1, CASCADE_AGE_STEPS + 1):
            yield from self._cascade_ends(step)
            yield from self.taken_over(step)

    def _ordinary_ends(self, step: int) -> list[Stake]:
        return [self._stake(slot, step - self._lives[slot][0]) for slot in self._changing(step)]

    def _changing(self, step: int) -> list[int]:
        """The slots whose position is replaced by the next one in this step."""
        return [slot for slot, (life, phase) in enumerate(self._lives) if (step - phase) % life == 0]

    def _stake(self, slot: int, opens: int) -> Stake:
        """The position that a slot holds from step `opens` on."""
        draw = seeded(self._name, slot, opens)
        entry_price, exit_price = self._mark(opens), self._mark(opens + self._lives[slot][0])
        liquidated = draw.random() < LIQUIDATED
        rises = exit_price > entry_price
        side: Side = "long" if rises != liquidated else "short"
        if liquidated:
            bankruptcy_price = exit_price - toward(side, _gain(draw, exit_price))
        else:
            bankruptcy_price = entry_price - toward(side, entry_price // draw.randint(*LEVERAGE))
        lots = self._lots(NOTIONAL * draw.lognormvariate(0, 1), entry_price)
        entry_price = self._entry(side, entry_price, bankruptcy_price)
        return Stake(self.accounts[slot], side, lots, entry_price, bankruptcy_price, exit_price if liquidated else None)

    def _cascade_ends(self, step: int) -> Iterator[Stake]:
        """The positions that a cascade liquidates in this step."""
        cascade = self._instrument.cascade
        if cascade is None or step < cascade.first:
            return
        cycle = cycle_of(cascade, step)
        since = step - last_step(cascade, cycle) + CASCADE_STEPS - 1
        if since >= 0:
            deficits = self._deficits(cascade, cycle)
            for number in range(since * CASCADE_FILLS // CASCADE_STEPS, (since + 1) * CASCADE_FILLS // CASCADE_STEPS):
                yield self._doomed("long" if cascade.depth < 0 else "short", number, step, deficits[number])

    def _doomed(self, side: Side, number: int, step: int, deficit: int) -> Stake:
        """A position whose liquidation at the mark of this step costs `deficit`."""
        closing, exit_price = closing_side(side), self._mark(step)
        overshoot = exit_price * seeded(self._name, "cascade", number, step).randint(*OVERSHOOT_PPM) // 1_000_000
        thousand_lots = self._worth(closing, 1000, exit_price, exit_price + toward(side, overshoot))
        lots = max(1, deficit * 1000 // -thousand_lots)
        # The inverse of the fill formula: the first bankruptcy price at which the fill has this deficit.
        candidates = range(exit_price, exit_price + toward(side, exit_price // 2), toward(side, 1))
        found = bisect_left(candidates, deficit, key=lambda price: -self._worth(closing, lots, exit_price, price))
        bankruptcy_price = candidates[found]
        entry_price = self._entry(side, self._mark(step - CASCADE_AGE_STEPS), bankruptcy_price)
        return Stake(self.accounts[SLOTS + number], side, lots, entry_price, bankruptcy_price, exit_price)

    def _deficits(self, cascade: Cascade, cycle: int) -> list[int]:
        """The deficit of each liquidation of a cascade, in atoms."""
        if cycle not in self._costs:
            self._costs[cycle] = self._cost(cascade, cycle)
        cost = self._costs[cycle]
        final = min(cost, int(FINAL_SHARE * self._uncovered(cascade)))
        draw = seeded(self._name, "cascade", cycle)
        weights = [draw.randint(1, 10) for _ in range(CASCADE_FILLS - FINAL_FILLS)]
        return [*_shares(cost - final, weights), *_shares(final, [1] * FINAL_FILLS)]

    def _cost(self, cascade: Cascade, cycle: int) -> int:
        """The total deficit of a cascade: `taken` of what the other liquidations of its cycle earn, plus `uncovered`."""
        first = last_step(cascade, cycle - 1) + 1 if cycle else cascade.saved + 1
        ended = (stake for step in range(first, last_step(cascade, cycle) + 1) for stake in self._ordinary_ends(step))
        earned = sum(
            self._worth(closing_side(stake.side), stake.lots, stake.exit_price, stake.bankruptcy_price)
            for stake in ended
            if stake.exit_price is not None
        )
        return int(cascade.taken * earned) + self._uncovered(cascade)

    def _uncovered(self, cascade: Cascade) -> int:
        return to_units(Decimal(cascade.uncovered), self._contract.settle_decimals)

    def _entry(self, side: Side, mark: int, bankruptcy_price: int) -> int:
        """The entry price: the mark, moved away from the bankruptcy price if the leverage would exceed its maximum."""
        distance = max(toward(side, mark - bankruptcy_price), bankruptcy_price // LEVERAGE_MAX)
        return self._on_tick(bankruptcy_price + toward(side, distance))

    def _lots(self, notional: float, price: int) -> int:
        quote_per_lot = 1.0 if self._instrument.is_inverse else price / 10**self._contract.price_decimals
        return max(1, round(notional / quote_per_lot / float(self._contract.multiplier)))


def closing_side(side: Side) -> Literal["sell", "buy"]:
    """The side of the fill that closes a position."""
    return "sell" if side == "long" else "buy"


def toward(side: Side, amount: int) -> int:
    """The signed amount in the direction in which a side gains: positive for a long, negative for a short."""
    return amount if side == "long" else -amount


def _shares(amount: int, weights: Sequence[int]) -> list[int]:
    """Splits an amount by weights; the parts add up to it."""
    upto = [0, *accumulate(weights)]
    parts = [amount * share // upto[-1] for share in upto]
    return [after - before for before, after in pairwise(parts)]


def _gain(draw: Random, price: int) -> int:
    """The difference between exit and bankruptcy price: positive for a surplus, which is the usual case."""
    chance = draw.random()
    if chance < FLAT:
        return 0
    if chance < FLAT + COSTLY:
        return -price * draw.randint(*COST_PPM) // 1_000_000
    return price * draw.randint(*GAIN_PPM) // 1_000_000


def _life(draw: Random) -> tuple[int, int]:
    """The life of a slot's positions in steps, and the step at which its first position after step 0 begins."""
    life = draw.randint(*LIFE_STEPS)
    return life, draw.randrange(life)


def identifier(draw: Random) -> str:
    """A random id of 24 hexadecimal characters."""
    return f"{draw.getrandbits(96):024x}"
