"""The events of a market crash: contracts with open positions, then losing liquidation fills in one millisecond.

Prices are about 20,000. Shorts have a profit at the mark and at every bankruptcy price, so that ADL can reduce them without
bankrupting them; so do longs. Nine in ten fills close longs.
"""

import random
import time
from collections.abc import Iterator
from typing import Literal

from fundsvc.core.events import Event, Fill, Listing, Mark, Position

Funds = Literal["rich", "dry"]

ABOUT = 20_000
MULTIPLIER = "0.01"
RICH_LOTS = 1_000_000
"""Lots of the fill that fills a rich fund: 200 million USDT."""

POSITION_LOTS = (20, 100)
FILL_LOTS = (10, 30)
"""Minimum and maximum lots of a position and of a fill; there are more positions than fills."""

LONGS_CLOSED = 0.9
"""Share of the fills that close longs."""


class Burst:
    """A burst over given numbers of contracts, positions and fills; `sequences` holds the last sequence of each contract."""

    def __init__(self, contracts: int, positions: int, fills: int, funds: Funds, *, seed: int = 20251010) -> None:
        self._random = random.Random(seed)  # noqa: S311 - a market, not a secret
        self._symbols = [f"S{number:03d}USDTM" for number in range(contracts)]
        self._positions = positions
        self._fills = fills
        self._funds = funds
        self.sequences = dict.fromkeys(self._symbols, 0)

    def preparation(self) -> Iterator[Event]:
        """Yields the events before the burst: contracts, marks, positions, and the surplus of rich funds."""
        yield from map(_listing, self._symbols)
        yield from self.marks()
        yield from map(self._position, range(self._positions))
        if self._funds == "rich":
            yield from map(self._surplus, self._symbols)

    def marks(self) -> Iterator[Mark]:
        """Yields a new mark of each contract, near the last one."""
        for symbol in self._symbols:
            yield Mark(symbol, f"{ABOUT + self._random.randrange(-50, 50)}", _now())

    def fills(self) -> Iterator[Fill]:
        """Yields the fills of the burst; each is a shortfall."""
        for _ in range(self._fills):
            yield self._fill(self._random.choice(self._symbols))

    def next_sequence(self, symbol: str) -> int:
        """Returns the next sequence of a contract."""
        self.sequences[symbol] += 1
        return self.sequences[symbol]

    def _position(self, number: int) -> Position:
        short = number // len(self._symbols) % 2 == 0
        lots = self._random.randint(*POSITION_LOTS)
        entry = ABOUT + self._random.randrange(1_000, 4_000) * (1 if short else -1)
        margin = f"{entry * lots * self._random.uniform(0.01, 0.03) * float(MULTIPLIER) * 10:.2f}"
        symbol = self._symbols[number % len(self._symbols)]
        return Position(symbol, f"account-{number:05d}", -lots if short else lots, str(entry), margin, _now())

    def _fill(self, symbol: str) -> Fill:
        sell = self._random.random() < LONGS_CLOSED
        bankruptcy = ABOUT + self._random.randrange(-500, 500)
        price = bankruptcy * (0.99 if sell else 1.01)
        return self._liquidation(symbol, "sell" if sell else "buy", self._random.randint(*FILL_LOTS), price, bankruptcy)

    def _surplus(self, symbol: str) -> Fill:
        return self._liquidation(symbol, "sell", RICH_LOTS, 2.0 * ABOUT, ABOUT)

    def _liquidation(self, symbol: str, side: Literal["sell", "buy"], lots: int, price: float, bankruptcy: int) -> Fill:
        seq = self.next_sequence(symbol)
        ids = (f"{symbol}-{seq}", f"order-{seq}", f"liquidated-{seq}")
        return Fill(symbol, seq, side, lots, f"{price:.2f}", str(bankruptcy), _now(), *ids)


def _listing(symbol: str) -> Listing:
    return Listing({"symbol": symbol, "settleCurrency": "USDT", "multiplier": MULTIPLIER, "isInverse": False})


def _now() -> int:
    return time.time_ns() // 1_000_000
