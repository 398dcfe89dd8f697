"""Contracts and events with defaults, so that a test states only the fields that matter."""

from decimal import Decimal

import msgspec

from fundsvc.cli.tools.vectors import FundWithReserve
from fundsvc.core.contracts import Contract
from fundsvc.core.events import AdlEnd, AdlFill, Fill, Listing, Mark, Position, Settle, Takeover, Unwind
from fundsvc.core.fund.settlement import Fund, FundState
from fundsvc.core.partition import Partition
from fundsvc.core.policy import Policy

LINEAR = Contract(
    symbol="XBTUSDTM",
    settle_currency="USDT",
    settle_decimals=8,
    price_decimals=12,
    multiplier=Decimal("0.001"),
    is_inverse=False,
)
INVERSE = Contract(
    symbol="XBTUSDM",
    settle_currency="XBT",
    settle_decimals=10,
    price_decimals=12,
    multiplier=Decimal(1),
    is_inverse=True,
)
UNIT = msgspec.structs.replace(LINEAR, symbol="UNITUSDTM", multiplier=Decimal(1))
"""A lot is worth 1 USDT for each price difference of 1."""

NO_GUARD = Policy()

ONE = 10**8
"""1 USDT in atoms."""


def fill(seq: int = 1, **fields) -> Fill:
    """A fill of the unit contract, by default worth 0."""
    given = {"symbol": UNIT.symbol, "side": "sell", "lots": 1, "price": "100", "bankruptcy_price": "100", "ts": 1000 + seq}
    return Fill(**(given | {"seq": seq} | fields))


def worth(amount: int, seq: int = 1, **fields) -> Fill:
    """A fill of the unit contract with this worth in USDT."""
    return fill(seq, lots=abs(amount) or 1, price="101" if amount > 0 else "99" if amount else "100", **fields)


def specification(**fields) -> dict:
    """KuCoin's object of the unit contract."""
    return {"symbol": "UNITUSDTM", "settleCurrency": "USDT", "multiplier": 1.0, "isInverse": False} | fields


def listing(**fields) -> Listing:
    return Listing(specification(**fields))


def mark(price: str, **fields) -> Mark:
    return Mark(**({"symbol": UNIT.symbol, "ts": 1000} | fields | {"price": price}))


def position(account: str, lots: int, entry_price: str = "100", margin: str = "500", **fields) -> Position:
    given = {"symbol": UNIT.symbol, "ts": 1000, "lots": lots, "entry_price": entry_price, "margin": margin}
    return Position(account=account, **(given | fields))


def takeover(seq: int, lots: int, bankruptcy_price: str = "50", side: str = "sell", **fields) -> Takeover:
    given = {"symbol": UNIT.symbol, "ts": 1000 + seq, "side": side, "lots": lots, "bankruptcy_price": bankruptcy_price}
    return Takeover(seq=seq, **(given | fields))


def unwind(seq: int, lots: int, price: str = "50", side: str = "sell", **fields) -> Unwind:
    return Unwind(
        **({"symbol": UNIT.symbol, "seq": seq, "ts": 1000 + seq, "side": side, "lots": lots, "price": price} | fields)
    )


def settle(seq: int, price: str = "50", **fields) -> Settle:
    return Settle(**({"symbol": UNIT.symbol, "seq": seq, "ts": 1000 + seq, "price": price} | fields))


def adl_fill(seq: int, account: str, lots: int, adl: int = 1, **fields) -> AdlFill:
    return AdlFill(
        **({"symbol": UNIT.symbol, "seq": seq, "adl": adl, "account": account, "lots": lots, "ts": 1000 + seq} | fields)
    )


def adl_end(seq: int, adl: int = 1, **fields) -> AdlEnd:
    return AdlEnd(**({"symbol": UNIT.symbol, "seq": seq, "adl": adl, "ts": 1000 + seq} | fields))


def a_fund(contract: Contract = UNIT, policy: Policy = NO_GUARD, *, reserve_line: int = 0, **state) -> Fund:
    """A fund with these fields of its state, in atoms."""
    return FundWithReserve(contract, FundState(contract.symbol, **state), policy, reserve_line)


def partition(*funds: Fund, number: int = 0, partitions: int = 1) -> Partition:
    return Partition(number, partitions, funds, {"USDT": 8, "USDC": 8}, 10)
