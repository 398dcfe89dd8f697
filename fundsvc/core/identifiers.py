"""Checks of the text that identifies a trade, an order, an account or a contract, and of the leg of a position."""

from fundsvc.core.events import Fill, Position, Rate, Reason, Rejection, Takeover, Unwind

FORMULA_CHARACTERS = frozenset("=+-@\uff1d\uff0b\uff0d\uff20")
"""A spreadsheet evaluates a CSV cell that begins with one of these or their full-width forms, even if the cell is quoted."""


_DOUBTFUL = FORMULA_CHARACTERS | {" "}
"""The fast test does not accept a text that begins with one of these: spaces may precede a formula character."""


def is_identifier(text: str) -> bool:
    """Whether a text is printable and no spreadsheet evaluates it as a formula."""
    return text.isprintable() and text.lstrip()[:1] not in FORMULA_CHARACTERS


Named = Fill | Takeover | Unwind | Position | Rate
"""Events whose fields identify something."""


def check_identifiers(event: Named) -> None:
    """Raises Rejection if a field is not an identifier, or if the sign of the lots contradicts the leg.

    The names of a position with 0 lots are not checked, so that a position opened under an illegal name can be closed.
    """
    for name, text in _named(event):
        if not is_identifier(text):
            raise Rejection(Reason.INVALID_FIELD, f"{name} {text!r} must be printable text that does not begin with = + - or @")
    if isinstance(event, Rate) and not event.currency.isalnum():
        raise Rejection(Reason.INVALID_FIELD, f"currency {event.currency!r} must be letters and digits")
    if isinstance(event, Position) and event.position_side != "BOTH":
        _check_leg(event)


def are_plain(one: str, two: str, three: str = "") -> bool:
    """Whether texts are certainly identifiers. Nearly all are: this test saves most events `check_identifiers`.

    Most consist of ASCII letters and digits, which bytes recognise several times faster than text does.
    """
    text = one + two + three
    if text.isascii() and text.encode().isalnum():
        return True
    return text.isprintable() and not (one[:1] in _DOUBTFUL or two[:1] in _DOUBTFUL or three[:1] in _DOUBTFUL)


def _check_leg(position: Position) -> None:
    """Raises Rejection if the sign of the lots contradicts the leg."""
    side, lots = position.position_side, position.lots
    if (lots < 0) if side == "LONG" else (lots > 0):
        sign = "0 or more" if side == "LONG" else "0 or less"
        raise Rejection(Reason.INVALID_FIELD, f"lots of a {side} must be {sign}, not {lots}: see positionSide")


def _named(event: Named) -> tuple[tuple[str, str], ...]:
    match event:
        case Fill() | Takeover():
            return ("tradeId", event.trade_id), ("orderId", event.order_id), ("account", event.account)
        case Unwind():
            return ("tradeId", event.trade_id), ("orderId", event.order_id)
        case Position(lots=lots) if lots:
            return ("account", event.account), ("owner", event.owner)
        case _:
            return ()
