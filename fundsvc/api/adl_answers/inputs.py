"""The inputs of a rank: fields that answers about positions, allocations and reductions have in common."""

import math
from typing import Any

import msgspec

from fundsvc.api.answers import Answer
from fundsvc.core.adl.order import Reduced
from fundsvc.core.adl.valuation import Rank, SideName, Valuation, ValuedPosition
from fundsvc.core.contracts import Contract
from fundsvc.core.numbers import format_units
from fundsvc.store.adl import AllocationRow


class Inputs(Answer, frozen=True, kw_only=True):
    """A position and the inputs of its rank. `return` is unrealisedPnl / entry value, `leverage` is mark value / equity."""

    lots: int
    entry_price: str
    margin: str
    unrealised_pnl: str | None
    return_on_entry: float | None = msgspec.field(name="return")
    leverage: float | None
    score: float | None


def valued(contract: Contract, side: SideName, row: AllocationRow | Reduced, mark: int) -> ValuedPosition:
    """Returns a position of a round or a reduction, valued at a mark."""
    return Valuation(contract, side).valued("", row.lots, row.entry_price, row.margin, mark)


def input_fields(position: ValuedPosition, contract: Contract, *, known: bool = True) -> dict[str, Any]:
    """Returns the fields of `Inputs`. Fields that need the mark are None if it is not `known`, ranks also without equity."""
    has_leverage = known and math.isfinite(position.leverage)
    return {
        "lots": position.lots,
        "entry_price": format_units(position.entry_price, contract.price_decimals),
        "margin": format_units(position.margin, contract.settle_decimals),
        "unrealised_pnl": format_units(position.unrealised_pnl, contract.settle_decimals) if known else None,
        "return_on_entry": position.return_on_entry if known else None,
        "leverage": position.leverage if has_leverage else None,
        "score": position.score if has_leverage else None,
    }


def place_fields(row: AllocationRow | Reduced, executed: int) -> dict[str, Any]:
    """Returns the place of a position in the queue, and its allocated and executed lots."""
    lights = Rank(row.rank, row.ranked).lights
    return {"rank": row.rank, "ranked": row.ranked, "lights": lights, "asked": row.requested, "executed": executed}


def price_text(price: int | None, contract: Contract) -> str | None:
    """Returns a price of a contract as text, or None."""
    return None if price is None else format_units(price, contract.price_decimals)
