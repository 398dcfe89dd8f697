"""The contracts of the demo market, as KuCoin's contract objects describe them."""

from decimal import Decimal
from typing import Any, NamedTuple

FIRST_OPEN_DATE_MS = 1_585_555_200_000
"""All are listed as if since March 2020."""

MAX_PRICE = 1_000_000.0
"""KuCoin's usual limit; it leaves all twelve decimals of a price within 64 bits."""


class Cascade(NamedTuple):
    """Liquidations that feed each other: `depth` is how far the mark is carried (-0.08: eight per cent down).

    The first begins at step `first`. `uncovered` is about what is left unpaid when the fund is empty, in the settlement
    currency. `executed` bounds the share of its lots that the matching engine executes of an ADL order's first, second, ...
    round; the last bounds hold for those after it.
    """

    first: int
    depth: float
    uncovered: str
    executed: tuple[tuple[float, float], ...]


class Instrument(NamedTuple):
    """A contract of the market; `price` is where its path begins, `volatility` scales how far it swings."""

    symbol: str
    base: str
    quote: str
    settle: str
    price: float
    tick: str
    multiplier: float
    volatility: float
    cascade: Cascade | None = None

    @property
    def is_inverse(self) -> bool:
        """Whether it settles in the coin itself."""
        return self.settle == self.base

    def specification(self) -> dict[str, Any]:
        """The contract as KuCoin's GET /api/v1/contracts/active shows one."""
        index = f".B{self.base}" if self.is_inverse else f".K{self.base}{self.quote}"
        return {
            "symbol": self.symbol,
            "rootSymbol": self.settle,
            "type": "FFWCSX",
            "firstOpenDate": FIRST_OPEN_DATE_MS,
            "expireDate": None,
            "settleDate": None,
            "baseCurrency": self.base,
            "quoteCurrency": self.quote,
            "settleCurrency": self.settle,
            "maxOrderQty": 1_000_000,
            "maxPrice": MAX_PRICE,
            "lotSize": 1,
            "tickSize": float(self.tick),
            "indexPriceTickSize": float(self.tick),
            "multiplier": self.multiplier,
            "initialMargin": 0.01,
            "maintainMargin": 0.005,
            "maxRiskLimit": 250_000,
            "minRiskLimit": 250_000,
            "riskStep": 125_000,
            "makerFeeRate": 2e-4,
            "takerFeeRate": 6e-4,
            "takerFixFee": 0.0,
            "makerFixFee": 0.0,
            "settlementFee": None,
            "isDeleverage": True,
            "isQuanto": False,
            "isInverse": self.is_inverse,
            "markMethod": "FairPrice",
            "fairMethod": "FundingRate",
            "fundingBaseSymbol": f".{self.base}INT8H",
            "fundingQuoteSymbol": f".{self.quote}INT8H",
            "fundingRateSymbol": f".{self.symbol}FPI8H",
            "indexSymbol": index,
            "settlementSymbol": "",
            "status": "Open",
            "maxLeverage": 100,
        }

    def tick_units(self, price_decimals: int) -> int:
        """The tick in units of 10**-price_decimals."""
        return int(Decimal(self.tick).scaleb(price_decimals))


RECOVERED = Cascade(72, -0.08, "3000", ((0.4, 1.2), (1.0, 1.0)))
"""Its orders are executed whole, some of them only by their second round."""

LEFT = Cascade(192, 0.06, "1", ((0.1, 0.35),))
"""Its orders find so little that their rounds are used up, and later surplus repays the rest."""

INSTRUMENTS = (
    Instrument("XBTUSDTM", "XBT", "USDT", "USDT", 84_500.0, "0.1", 0.001, 1.0),
    Instrument("ETHUSDTM", "ETH", "USDT", "USDT", 2_900.0, "0.01", 0.01, 1.2),
    Instrument("SOLUSDTM", "SOL", "USDT", "USDT", 118.0, "0.001", 0.1, 1.5, RECOVERED),
    Instrument("DOGEUSDTM", "DOGE", "USDT", "USDT", 0.0924, "0.00001", 100.0, 1.6),
    Instrument("XBTUSDCM", "XBT", "USDC", "USDC", 84_500.0, "0.1", 0.001, 1.0),
    Instrument("SOLUSDCM", "SOL", "USDC", "USDC", 118.0, "0.01", 0.01, 1.5),
    Instrument("XBTUSDM", "XBT", "USD", "XBT", 84_500.0, "0.1", -1.0, 1.0),
    Instrument("ETHUSDM", "ETH", "USD", "ETH", 2_900.0, "0.01", -1.0, 1.2, LEFT),
)
"""Linear in USDT and in USDC, and inverse. Two have cascades, in turn, so that whoever looks sees one within half a minute."""
