"""Auto-deleveraging orders: what a shortfall that the fund could not pay asks of the opposing side."""

from typing import Literal

import msgspec

from fundsvc.core.chain import Entry

State = Literal["open", "done", "uncovered"]


class AdlOrder(msgspec.Struct, frozen=True, kw_only=True):
    """An order to reduce opposing positions at the bankruptcy price.

    `adl` numbers the orders of a contract from 1, `cause` is the ledger entry of the shortfall. Amounts are atoms.
    `uncovered` is what the order is to recover, `recovered` what it has; what no round can recover is outstanding.
    """

    symbol: str
    adl: int
    cause: int
    reduce: Literal["long", "short"]
    lots: int
    price: int
    uncovered: int
    recovered: int = 0
    state: State = "open"
    rounds: tuple[tuple[tuple[str, int], ...], ...] = ()


def order_for(shortfall: Entry, adl: int) -> AdlOrder:
    """The order that a shortfall with an uncovered part gives rise to: lots = ceil(uncovered x lots / deficit).

    So it takes enough to recover what is uncovered, and less than one lot more than that.
    """
    deficit = shortfall.uncovered - shortfall.change
    return AdlOrder(
        symbol=shortfall.symbol,
        adl=adl,
        cause=shortfall.entry,
        reduce="short" if shortfall.side == "sell" else "long",
        lots=-(-shortfall.uncovered * shortfall.lots // deficit),
        price=shortfall.bankruptcy_price,
        uncovered=shortfall.uncovered,
    )


def give_up(order: AdlOrder) -> AdlOrder:
    """The order after a round that found nobody to reduce: it is over, its rest becomes outstanding."""
    return msgspec.structs.replace(order, state="uncovered", rounds=(*order.rounds, ()))
