"""A synthetic market: seeded liquidation fills that resemble those of an exchange, generated quickly.

Four in five leave a surplus, one in ten is a shortfall, a few are flat. Prices are on the contract's tick, bankruptcy prices
have three decimals more, ids are 24 hexadecimal digits.
"""

import random
import time
from collections.abc import Iterator
from itertools import islice

from fundsvc.core.events import Fill, Listing
from fundsvc.core.numbers import format_units

SHORTFALLS = 0.10
FLATS = 0.02
"""Shares of all fills; the others leave a surplus."""

ACCOUNTS = 5_000
"""Traders that are liquidated repeatedly."""


class Market:
    """A market over the given number of contracts; sequences start at `first_seq` and never repeat."""

    def __init__(self, contracts: int, *, first_seq: int = 1, seed: int = 20251211) -> None:
        self._random = random.Random(seed)  # noqa: S311 - a market, not a secret
        self._seq = first_seq
        self._accounts = [self._identifier() for _ in range(ACCOUNTS)]
        self._quotes = [_Quote(f"M{number:04d}USDTM", number % 5) for number in range(contracts)]

    def listings(self) -> list[Listing]:
        """Returns the events that list the contracts."""
        return [Listing(_specification(quote.symbol)) for quote in self._quotes]

    def fills(self, count: int) -> Iterator[Fill]:
        """Returns the next `count` fills."""
        return islice(self._endless(), count)

    def _endless(self) -> Iterator[Fill]:
        while True:
            yield self._fill(self._random.choice(self._quotes))

    def _fill(self, quote: "_Quote") -> Fill:
        chance, sell = self._random.random(), self._random.random() < 0.5
        gain = self._gain(chance, quote.unit)
        price = quote.price + self._random.randrange(quote.price // 100) * 1000
        self._seq += 1
        return Fill(
            symbol=quote.symbol,
            seq=self._seq,
            side="sell" if sell else "buy",
            lots=self._random.randrange(1, 400),
            price=format_units(price, quote.decimals),
            bankruptcy_price=format_units(price - gain if sell else price + gain, quote.decimals),
            ts=time.time_ns() // 1_000_000,
            trade_id=self._identifier(),
            order_id=self._identifier(),
            account=self._random.choice(self._accounts),
        )

    def _gain(self, chance: float, unit: int) -> int:
        """Returns by how much a fill is better than the bankruptcy price, in the finest decimal."""
        if chance < FLATS:
            return 0
        if chance < FLATS + SHORTFALLS:
            return -self._random.randrange(1, unit)
        return self._random.randrange(1, unit)

    def _identifier(self) -> str:
        return f"{self._random.getrandbits(96):024x}"


class _Quote:
    """Returns the price level of a contract: about 20,000 ticks, in units three decimals finer than the tick."""

    def __init__(self, symbol: str, tick_decimals: int) -> None:
        self.symbol = symbol
        self.decimals = tick_decimals + 3
        self.price = 20_000 * 1000
        self.unit = self.price // 200


def _specification(symbol: str) -> dict[str, object]:
    return {
        "symbol": symbol,
        "type": "FFWCSX",
        "baseCurrency": symbol.removesuffix("USDTM"),
        "quoteCurrency": "USDT",
        "settleCurrency": "USDT",
        "multiplier": 0.001,
        "isInverse": False,
        "maxPrice": 1_000_000.0,
        "status": "Open",
    }
