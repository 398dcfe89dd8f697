"""Checks of the fields of an event against the terms of its contract.

Settlement and the HTTP API call the same functions, so that both reject the same events for the same reason.
"""

from fundsvc.core.contracts import Contract
from fundsvc.core.events import SETTLEMENT, Event, Fill, Mark, Position, Rate, Reason, Rejection, Settle, Takeover, Unwind
from fundsvc.core.identifiers import are_plain, check_identifiers
from fundsvc.core.numbers import PRICE_DECIMALS_MAX, parse_amount, parse_price


def check(event: Event, contract: Contract) -> None:
    """Raises Rejection if a number of the event is not exact in the contract's units, or a name is not an identifier."""
    match event:
        case Fill():
            check_fill(event, contract)
        case Takeover():
            check_takeover(event, contract)
        case Unwind():
            check_unwind(event, contract)
        case Settle():
            check_settle(event, contract)
        case Mark():
            check_mark(event, contract)
        case Position():
            check_position(event, contract)


def check_fill(fill: Fill, contract: Contract) -> tuple[int, int]:
    """The price and the bankruptcy price in the contract's units; raises Rejection."""
    if not are_plain(fill.trade_id, fill.order_id, fill.account):
        check_identifiers(fill)
    return parse_price(fill.price, contract.price_decimals), contract.bankruptcy_price(fill.bankruptcy_price)


def check_takeover(takeover: Takeover, contract: Contract) -> int:
    """The bankruptcy price in the contract's units; raises Rejection."""
    if not are_plain(takeover.trade_id, takeover.order_id, takeover.account):
        check_identifiers(takeover)
    return contract.bankruptcy_price(takeover.bankruptcy_price)


def check_unwind(unwind: Unwind, contract: Contract) -> int:
    """The price in the contract's units; raises Rejection."""
    if not are_plain(unwind.trade_id, unwind.order_id):
        check_identifiers(unwind)
    if unwind.order_id == SETTLEMENT:
        raise Rejection(Reason.INVALID_FIELD, f"orderId {SETTLEMENT!r} is reserved for entries of settlements: use another one")
    return parse_price(unwind.price, contract.price_decimals)


def check_settle(settle: Settle, contract: Contract) -> int:
    """The settlement price in the contract's units; raises Rejection."""
    return parse_price(settle.price, contract.price_decimals)


def check_mark(mark: Mark, contract: Contract) -> int:
    """The mark price in the contract's units; raises Rejection."""
    price = parse_price(mark.price, contract.price_decimals)
    if mark.index_price is not None:
        parse_price(mark.index_price, contract.price_decimals)
    return price


def check_position(position: Position, contract: Contract) -> tuple[int, int]:
    """The entry price and the margin of a position in the contract's units; raises Rejection."""
    if position.position_side != "BOTH" or not are_plain(position.account, position.owner):
        check_identifiers(position)
    return position_numbers(position, contract)


def position_numbers(position: Position, contract: Contract) -> tuple[int, int]:
    """The entry price, 0 of a closed position, and the margin in the contract's units; raises Rejection."""
    entry_price = parse_price(position.entry_price, contract.price_decimals) if position.lots else 0
    return entry_price, parse_amount(position.margin, contract.settle_decimals)


def check_rate(rate: Rate) -> int:
    """The price of a rate in units of 10**-PRICE_DECIMALS_MAX; raises Rejection."""
    check_identifiers(rate)
    return parse_price(rate.price, PRICE_DECIMALS_MAX)
