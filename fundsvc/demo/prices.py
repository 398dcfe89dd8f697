"""Price paths in closed form: the price at any step, without state from earlier steps."""

import math
import random

from fundsvc.demo.instruments import CYCLE_STEPS, Cascade, Instrument

CASCADE_STEPS = 10
"""Steps in which a cascade moves the price: two and a half seconds."""

THIN_STEPS = 58
"""Steps from the beginning of a thin book's fall to the recovery of the price. The fall takes CASCADE_STEPS of them."""

RECOVERY_STEPS = 24
"""Time constant of the recovery after a cascade, in steps."""

WAVES = ((61, 0.0015), (173, 0.004), (467, 0.008), (1999, 0.02))
"""Periods in steps, and amplitudes. Short waves move a price within a position's life; long ones prevent a repeating path."""

NOISE = 0.0002
"""Standard deviation of a mark from its wave."""


class Prices:
    """The path of one contract; contracts with the same base currency share their waves.

    Prices are integers of 10**-decimals, on the contract's ticks.
    """

    def __init__(self, seed: str, instrument: Instrument, decimals: int) -> None:
        self._name = f"{seed}:{instrument.symbol}"
        self._instrument = instrument
        self._start = instrument.price * 10.0**decimals
        self._tick = instrument.tick_units(decimals)
        draw = seeded(seed, instrument.base)
        self._phases = [draw.random() for _ in WAVES]

    def index(self, step: int) -> int:
        """The price of the base currency, which cascades do not move."""
        return self.on_tick(self._start * math.exp(self._swing(step)))

    def mark(self, step: int) -> int:
        """The contract's own price."""
        stray = self._instrument.volatility * seeded(self._name, step).gauss(0, NOISE)
        price = self._start * math.exp(self._swing(step) + stray)
        cascade, thin = self._instrument.cascade, self._instrument.thin
        move = _moved(cascade.first, cascade.depth, CASCADE_STEPS, step) if cascade else 0.0
        move += _moved(thin.first, thin.depth, THIN_STEPS, step) if thin else 0.0
        return self.on_tick(price * (1 + move))

    def on_tick(self, price: float) -> int:
        """The nearest price that the contract can have."""
        return round(price / self._tick) * self._tick

    def _swing(self, step: int) -> float:
        """The logarithm of the relative move of the price by its waves."""
        waves = zip(WAVES, self._phases, strict=True)
        swing = sum(size * math.sin(2 * math.pi * (step / period + phase)) for (period, size), phase in waves)
        return self._instrument.volatility * swing


def seeded(*name: object) -> random.Random:
    """A random generator that depends only on the name, on every machine."""
    return random.Random(":".join(map(str, name)))  # noqa: S311 - a market, not a secret


def cycle_of(cascade: Cascade, step: int) -> int:
    """The number of the cycle that a step belongs to; a cycle ends with the last step of its cascade."""
    return max(0, -((last_step(cascade, 0) - step) // CYCLE_STEPS))


def last_step(cascade: Cascade, cycle: int) -> int:
    """The last step of a cycle's cascade."""
    return cascade.first + cycle * CYCLE_STEPS + CASCADE_STEPS - 1


def steps_into(first: int, step: int) -> int:
    """The steps since the latest of recurring times began, the first of them at the step `first`; negative before it."""
    return (step - first) % CYCLE_STEPS if step >= first else step - first


def _moved(first: int, depth: float, lasts: int, step: int) -> float:
    """The relative move of the price by a recurring fall: linear, then constant until `lasts` steps are over, then decaying."""
    since = steps_into(first, step) + 1
    if since <= 0:
        return 0.0
    if since <= lasts:
        return depth * min(1.0, since / CASCADE_STEPS)
    return depth * math.exp((lasts - since) / RECOVERY_STEPS)
