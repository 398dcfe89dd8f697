"""The contracts of the demo market, as KuCoin's contract objects describe them."""

from decimal import Decimal
from typing import Any, NamedTuple

FIRST_OPEN_DATE_MS = 1_585_555_200_000
"""The first open date of every contract: March 2020."""

EXPIRES_MS = 1_798_185_600_000
"""25 December 2026, 08:00 UTC. The demo settles its dated contract earlier, so that a viewer sees it."""

MAX_PRICE = 1_000_000.0
"""KuCoin's usual limit. A price of up to this with twelve decimals fits 64 bits."""


CYCLE_STEPS = 720
"""Steps between two storms: three minutes. A storm takes half a minute, and in the calm surpluses repay what it left."""


class Cascade(NamedTuple):
    """A recurring liquidation cascade of a contract.

    `first` is the step at which the first cascade begins. `depth` is the relative move of the mark (-0.08: eight per cent
    down). `uncovered` is the approximate amount that the empty fund leaves unpaid, in the settlement currency. `executed`
    bounds the share of lots that the matching engine executes in the first, second, ... round of an ADL order; the last
    bounds apply to all further rounds. A cascade takes the share `taken` of what the fund has earned since the last one, and
    nothing of what it earned in the first `saved` steps.
    """

    first: int
    depth: float
    uncovered: str = "0"
    executed: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    saved: int = 0
    taken: float = 1.0


class ThinBook(NamedTuple):
    """Recurring times with a thin order book: the market does not take liquidated longs, so the fund takes them over.

    `first` is the step at which the first such time begins. Meanwhile the mark falls by `depth` and stays there. `notional` is
    the value of each long in quote currency. `overshoots` are, for each of them, the step after the beginning at which it is
    liquidated, and the difference between its bankruptcy price and the mark of that step, as a share of it.
    """

    first: int
    depth: float
    notional: float
    overshoots: tuple[tuple[int, float], ...]


class Instrument(NamedTuple):
    """A contract of the demo market; `price` is its first price, `volatility` scales the amplitude of its price path.

    A dated contract is settled at the step `settles`; others never are.
    """

    symbol: str
    base: str
    quote: str
    settle: str
    price: float
    tick: str
    multiplier: float
    volatility: float
    cascade: Cascade | None = None
    thin: ThinBook | None = None
    settles: int | None = None

    @property
    def is_inverse(self) -> bool:
        """Whether the contract settles in its base currency."""
        return self.settle == self.base

    def specification(self) -> dict[str, Any]:
        """The contract in the shape of KuCoin's GET /api/v1/contracts/active."""
        index = f".B{self.base}" if self.is_inverse else f".K{self.base}{self.quote}"
        return {
            "symbol": self.symbol,
            "rootSymbol": self.settle,
            "type": "FFWCSX" if self.settles is None else "FFICSX",
            "firstOpenDate": FIRST_OPEN_DATE_MS,
            "expireDate": None if self.settles is None else EXPIRES_MS,
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
            "nextFundingRateTime": 0 if self.settles is None else None,  # ccxt distinguishes dated contracts by this field
            "indexSymbol": index,
            "settlementSymbol": "",
            "status": "Open",
            "maxLeverage": 100,
        }

    def tick_units(self, price_decimals: int) -> int:
        """The tick in units of 10**-price_decimals."""
        return int(Decimal(self.tick).scaleb(price_decimals))


RECOVERED = Cascade(72, -0.08, "3000", ((0.4, 1.2), (1.0, 1.0)))
"""ADL orders of this cascade are executed completely, some of them in their second round."""

LEFT = Cascade(192, 0.06, "1", ((0.1, 0.35),))
"""ADL orders of this cascade execute so few lots that they end uncovered; later surpluses repay the rest."""

EARLIER = Cascade(72 + CYCLE_STEPS + 10, -0.03, saved=100, taken=0.8)
"""Leaves the fund too little for the thin book that follows; takeovers cost the rest of what it earns."""

THIN = ThinBook(132, -0.05, 160_000.0, ((0, 0.0005), (3, 0.002), (7, 0.06)))
"""The fund accepts the first two longs, and the last in part. The further fall makes the inventory too heavy."""


def _covered(after: int, depth: float) -> Cascade:
    """Returns a cascade that the fund covers, that many steps after the beginning of each storm but the first.

    It takes all that the fund has earned since the last one, so the balance stays between the savings and twice that.
    """
    return Cascade(72 + CYCLE_STEPS + after, depth, saved=CYCLE_STEPS)


INSTRUMENTS = (
    Instrument("XBTUSDTM", "XBT", "USDT", "USDT", 84_500.0, "0.1", 0.001, 1.0, _covered(20, -0.02)),
    Instrument("ETHUSDTM", "ETH", "USDT", "USDT", 2_900.0, "0.01", 0.01, 1.2, _covered(100, 0.03)),
    Instrument("SOLUSDTM", "SOL", "USDT", "USDT", 118.0, "0.001", 0.1, 1.5, RECOVERED),
    Instrument("DOGEUSDTM", "DOGE", "USDT", "USDT", 0.0924, "0.00001", 100.0, 1.6, EARLIER, THIN),
    Instrument("XBTUSDCM", "XBT", "USDC", "USDC", 84_500.0, "0.1", 0.001, 1.0, _covered(40, -0.02)),
    Instrument("SOLUSDCM", "SOL", "USDC", "USDC", 118.0, "0.01", 0.01, 1.5, _covered(60, -0.04)),
    Instrument("XBTUSDM", "XBT", "USD", "XBT", 84_500.0, "0.1", -1.0, 1.0, _covered(80, -0.02)),
    Instrument("ETHUSDM", "ETH", "USD", "ETH", 2_900.0, "0.01", -1.0, 1.2, LEFT),
    Instrument("XBTMZ26", "XBT", "USD", "XBT", 84_900.0, "0.1", -1.0, 0.6, settles=2 * CYCLE_STEPS + 360),
)
"""Linear contracts in USDT and USDC, inverse ones, and a dated one, which is settled in the calm after the first live storm.
In a storm, two funds run dry one after another; the others pay what they earned in the calm. One holds positions.
"""
