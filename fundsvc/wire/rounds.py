"""The wire format of an announced ADL round, which the service appends to the stream of a partition's rounds as JSON."""

from typing import Annotated

import msgspec

from fundsvc.core.adl.order import Origin
from fundsvc.core.adl.valuation import SideName
from fundsvc.core.events import Account, Number, OrderNumber, Positive, RoundNumber, Symbol, Timestamp


class RequestedLots(msgspec.Struct, frozen=True, gc=False):
    """The lots that a round still requests of an account's position."""

    account: Account
    lots: Positive


class Announcement(msgspec.Struct, tag_field="type", tag="adlOrder", frozen=True, gc=False):
    """A round of an ADL order: reduce these positions of one side by these lots, at the price.

    The service may repeat it: `symbol`, `generation`, `adl` and `round` identify it. `lots` and `allocations` are the lots
    still requested when it was announced. `cause` is the entry number of the shortfall or takeover, 0 for a takeover of
    which the fund accepted no lots. `ts` is that of the event that caused the order.
    """

    symbol: Symbol
    adl: OrderNumber
    round: RoundNumber
    origin: Origin
    cause: Annotated[int, msgspec.Meta(ge=0)]
    reduce: SideName
    price: Number
    lots: Annotated[int, msgspec.Meta(ge=0)]
    allocations: tuple[RequestedLots, ...]
    ts: Timestamp
    generation: Positive
