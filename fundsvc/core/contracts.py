"""Contracts: their terms, the conversion of prices and lots to money, and the checks of a listing."""

import math
import zlib
from decimal import Decimal
from typing import Annotated, Any

import msgspec

from fundsvc.core.events import Reason, Rejection
from fundsvc.core.generations import is_reserved, public_symbol
from fundsvc.core.identifiers import is_identifier
from fundsvc.core.numbers import EXACT, INT64_MAX, PRICE_DECIMALS_MAX, format_units, parse_amount, parse_price, to_units

MULTIPLIER_DIGITS_MAX = 18
"""The limit of digits before and after the decimal point. No listed contract needs as many, and products stay fast."""

SPECIFICATION_DEPTH_MAX = 8
"""KuCoin's object is flat except for a list of names. Deeper nesting could exhaust the stack of the JSON encoder."""


RESERVED_SYMBOLS = frozenset({"active", "all", "summary"})
"""Words that the API's paths and topics use in place of a symbol. A contract with such a symbol would be unreachable."""

DOT_SEGMENTS = frozenset({".", ".."})
"""Clients remove these from a URL's path (RFC 3986, section 5.2.4), even if they are percent-encoded."""


OPEN = "Open"
"""The value of `status` in KuCoin's object with which a listing opens the next generation of a closed contract."""

ENDED = frozenset(("Settled", "Closed"))
"""The values of `status` in KuCoin's object with which a listing ends a contract."""


class Specification(msgspec.Struct, rename="camel", frozen=True):
    """The fields of KuCoin's contract object that settlement reads. All other fields are stored and returned unchanged.

    Numbers are JSON numbers (also `1E-05`) or strings. The `multiplier` of an inverse contract is negative; its absolute value
    is the worth of a lot in quote units.
    """

    symbol: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    settle_currency: Annotated[str, msgspec.Meta(min_length=1, max_length=16)]
    multiplier: Decimal
    is_inverse: bool
    max_price: Decimal | None = None
    successor: Annotated[str, msgspec.Meta(max_length=64)] | None = None


class Contract(msgspec.Struct, frozen=True, kw_only=True):
    """The terms of a contract. They do not change once the contract has entries, because they determine what entries mean.

    Amounts are in units of 10**-settle_decimals of `settle_currency`, prices in units of 10**-price_decimals.
    """

    symbol: str
    settle_currency: str
    settle_decimals: int
    price_decimals: int
    multiplier: Decimal
    is_inverse: bool

    def value_factor(self) -> tuple[int, int]:
        """Returns the fraction (numerator, denominator), in lowest terms, that converts price units x lots to atoms.

        linear:  multiplier x 10^settle_decimals / 10^price_decimals
        inverse: multiplier x 10^settle_decimals x 10^price_decimals, then divided by both prices
        """
        numerator, denominator = self.multiplier.as_integer_ratio()
        numerator *= 10**self.settle_decimals
        if self.is_inverse:
            numerator *= 10**self.price_decimals
        else:
            denominator *= 10**self.price_decimals
        common = math.gcd(numerator, denominator)
        return numerator // common, denominator // common

    @property
    def price_max(self) -> str:
        """The highest price that fits 64 bits at the contract's scale, as decimal text."""
        return format_units(INT64_MAX, self.price_decimals)

    def bankruptcy_price(self, text: str) -> int:
        """Returns the price in the contract's units. A linear contract allows 0, as of a fully margined long."""
        return (parse_price if self.is_inverse else parse_amount)(text, self.price_decimals)

    def same_terms(self, other: "Contract") -> bool:
        """Whether amounts of both contracts are comparable. A listing must not change these terms."""
        return (self.settle_currency, self.multiplier, self.is_inverse) == (
            other.settle_currency,
            other.multiplier,
            other.is_inverse,
        )


CONTRACTS_MAX = 10_000
"""The default limit of contracts in a partition: about ten times as many as the largest venue lists."""


class TermsChanged(Rejection):
    """A listing whose terms differ from those of the contract's entries. It suspends the contract."""


def check_relisting(known: Contract, listed: Contract) -> None:
    """Raises Rejection if a contract that has entries cannot be listed with these terms."""
    if not known.same_terms(listed):
        raise TermsChanged(
            Reason.CONTRACT_FIXED,
            f"{known.symbol} has entries: multiplier, settleCurrency and isInverse cannot change. Its events are rejected until"
            " it is listed with the terms of its entries (fundsvc contracts resume); list other terms under another symbol",
        )
    if listed.price_decimals < known.price_decimals:
        raise Rejection(
            Reason.CONTRACT_FIXED,
            f"{known.symbol} has entries: its prices keep {known.price_decimals} decimals, so maxPrice must be at most"
            f" {known.price_max}. Omit maxPrice, or list the contract under another symbol",
        )


def check_listing_of_closed(known: Contract, listed: Contract) -> None:
    """Raises Rejection if a listing of a closed contract, which does not open its next generation, changes its terms."""
    if not known.same_terms(listed):
        raise Rejection(
            Reason.CONTRACT_CLOSED,
            f"{known.symbol} is closed and keeps its terms: list it with the status Open to begin its next generation",
        )


def successor_of(specification: dict[str, Any]) -> str:
    """Returns the symbol of the contract that continues a contract according to its listing, "" if that names none."""
    return specification.get("successor") or ""


def contract_of(specification: dict[str, Any], settle_decimals: dict[str, int], default_decimals: int) -> Contract:
    """Returns the contract that a KuCoin contract object describes; raises Rejection if it cannot be listed."""
    if not _is_plain(specification):
        raise Rejection(
            Reason.CONTRACT_INVALID,
            f"a contract must be plain JSON: finite numbers, no NUL, at most {SPECIFICATION_DEPTH_MAX} levels",
        )
    try:
        read = msgspec.convert(specification, Specification, strict=False)
    except msgspec.ValidationError as error:
        raise Rejection(Reason.CONTRACT_INVALID, str(error)) from None
    if not is_identifier(read.symbol) or any(character in " ,:/" for character in read.symbol):
        raise Rejection(
            Reason.CONTRACT_INVALID,
            f"symbol {read.symbol!r} must be printable without space , : or / and must not begin with = + - or @",
        )
    if read.symbol in RESERVED_SYMBOLS:
        raise Rejection(
            Reason.CONTRACT_INVALID, f"symbol {read.symbol!r} is reserved: the API uses it in paths. Use another symbol"
        )
    if is_reserved(read.symbol):
        raise Rejection(
            Reason.CONTRACT_INVALID,
            f"symbol {read.symbol!r} is reserved: @ and digits at the end name a generation. Use another symbol",
        )
    if read.symbol in DOT_SEGMENTS:
        raise Rejection(
            Reason.CONTRACT_INVALID, f"symbol {read.symbol!r} is reserved: clients remove it from URLs. Use another symbol"
        )
    if not read.settle_currency.isalnum():
        raise Rejection(Reason.CONTRACT_INVALID, f"settleCurrency {read.settle_currency!r} must be letters and digits")
    return Contract(
        symbol=read.symbol,
        settle_currency=read.settle_currency,
        settle_decimals=settle_decimals.get(read.settle_currency, default_decimals),
        price_decimals=_price_decimals(read.max_price),
        multiplier=_lot_size(read),
        is_inverse=read.is_inverse,
    )


def _is_plain(value: Any, depth: int = SPECIFICATION_DEPTH_MAX) -> bool:
    """Whether a value can be stored as JSON that every client and SQL can read."""
    match value:
        case None | bool() | int():
            return True
        case float():
            return math.isfinite(value)
        case str():
            return "\0" not in value
        case list():
            return depth > 0 and all(_is_plain(element, depth - 1) for element in value)
        case dict():
            return depth > 0 and all(isinstance(key, str) and _is_plain([key, value[key]], depth) for key in value)
        case _:
            return False


def _lot_size(read: Specification) -> Decimal:
    size = read.multiplier
    if not size.is_finite() or size == 0 or (size < 0 and not read.is_inverse):
        raise Rejection(
            Reason.CONTRACT_INVALID, f"multiplier {size} must be a finite number above 0, or not 0 for an inverse contract"
        )
    try:
        units = abs(to_units(size, MULTIPLIER_DIGITS_MAX))
    except ValueError:
        units = 0
    if not 0 < units < 10 ** (2 * MULTIPLIER_DIGITS_MAX):
        raise Rejection(
            Reason.CONTRACT_INVALID,
            f"multiplier {size} must have at most {MULTIPLIER_DIGITS_MAX} digits and {MULTIPLIER_DIGITS_MAX} decimals",
        )
    return EXACT.normalize(EXACT.scaleb(Decimal(units), -MULTIPLIER_DIGITS_MAX))


def _price_decimals(max_price: Decimal | None) -> int:
    """Returns twelve decimals, or fewer if the contract's highest price would not fit 64 bits."""
    if max_price is None or not max_price.is_finite():
        return PRICE_DECIMALS_MAX
    fitting = (d for d in range(PRICE_DECIMALS_MAX, 0, -1) if max_price <= Decimal(INT64_MAX).scaleb(-d))
    return next(fitting, 0)


def partition_of(symbol: str, partitions: int) -> int:
    """Returns the partition whose stream carries all events of a contract, in all its generations."""
    return zlib.crc32(public_symbol(symbol).encode()) % partitions
