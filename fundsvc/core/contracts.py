"""A contract, and what a liquidation fill of it is worth to its fund."""

import math
import zlib
from decimal import Decimal
from typing import Annotated, Any

import msgspec

from fundsvc.core.events import Reason, Rejection
from fundsvc.core.identifiers import is_identifier
from fundsvc.core.numbers import EXACT, INT64_MAX, PRICE_DECIMALS_MAX, format_units, parse_amount, parse_price, to_units

MULTIPLIER_DIGITS_MAX = 18
"""Of both the whole part and the fraction: generous for any listed contract, small enough to keep products quick."""

SPECIFICATION_DEPTH_MAX = 8
"""KuCoin's object is flat but for a list of names; unbounded nesting would exhaust the stack of whoever writes it."""


RESERVED_SYMBOLS = frozenset({"active", "all", "summary"})
"""What the API's paths and topics say in place of a symbol: nobody could ask for such a contract."""

DOT_SEGMENTS = frozenset({".", ".."})
"""Clients remove these from a URL's path (RFC 3986, section 5.2.4), also where they are percent-encoded."""


class Specification(msgspec.Struct, rename="camel", frozen=True):
    """The fields of KuCoin's contract object that settlement reads; all others are kept and passed through untouched.

    Numbers come as JSON numbers (also `1E-05`) or as strings. `multiplier` is negative for inverse contracts, whose lot
    is worth that many quote units.
    """

    symbol: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    settle_currency: Annotated[str, msgspec.Meta(min_length=1, max_length=16)]
    multiplier: Decimal
    is_inverse: bool
    max_price: Decimal | None = None


class Contract(msgspec.Struct, frozen=True, kw_only=True):
    """What never changes of a contract once it has entries: these fields decide what every entry means.

    A change of balance is counted in 10**-settle_decimals of `settle_currency`, a price in 10**-price_decimals.
    """

    symbol: str
    settle_currency: str
    settle_decimals: int
    price_decimals: int
    multiplier: Decimal
    is_inverse: bool

    def value_factor(self) -> tuple[int, int]:
        """The fraction (numerator, denominator) in lowest terms that turns price units x lots into atoms.

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
        """The highest price that the scale holds."""
        return format_units(INT64_MAX, self.price_decimals)

    def bankruptcy_price(self, text: str) -> int:
        """The price in the contract's units. 0 is legal for a linear contract: a fully margined long loses its margin there."""
        return (parse_price if self.is_inverse else parse_amount)(text, self.price_decimals)

    def same_terms(self, other: "Contract") -> bool:
        """Whether entries of both mean the same money: what a listed contract may not change."""
        return (self.settle_currency, self.multiplier, self.is_inverse) == (
            other.settle_currency,
            other.multiplier,
            other.is_inverse,
        )


CONTRACTS_MAX = 10_000
"""Contracts of a partition, unless configured otherwise: some ten times as many as the largest venue lists."""


class TermsChanged(Rejection):
    """A listing whose terms differ from those of the contract's entries: what comes after it cannot be settled."""


def check_relisting(known: Contract, listed: Contract) -> None:
    """Raises Rejection where a contract that has entries cannot be listed like this."""
    if not known.same_terms(listed):
        raise TermsChanged(
            Reason.CONTRACT_FIXED,
            f"{known.symbol} has entries: multiplier, settleCurrency and isInverse cannot change. Its events are refused until"
            " it is listed with its own terms (fundsvc contracts resume); list other terms under another symbol",
        )
    if listed.price_decimals < known.price_decimals:
        raise Rejection(
            Reason.CONTRACT_FIXED,
            f"{known.symbol} has entries: its prices keep {known.price_decimals} decimals and go up to {known.price_max}, below"
            " maxPrice. Leave maxPrice out to keep them, or list the contract under another symbol",
        )


def contract_of(specification: dict[str, Any], settle_decimals: dict[str, int], default_decimals: int) -> Contract:
    """The contract that a KuCoin contract object describes; raises Rejection when it cannot be listed."""
    if not _is_plain(specification):
        raise Rejection(Reason.CONTRACT_INVALID, "a contract must be plain JSON: finite numbers, no NUL, little nesting")
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
            Reason.CONTRACT_INVALID, f"symbol {read.symbol!r} is a word of the API: it would stand where a contract does"
        )
    if read.symbol in DOT_SEGMENTS:
        raise Rejection(
            Reason.CONTRACT_INVALID, f"symbol {read.symbol!r} is removed from every URL: no client could ask for it"
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
    """Whether a value can be kept as JSON, and read from there by any client and by SQL."""
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
        raise Rejection(Reason.CONTRACT_INVALID, f"multiplier {size} is not a size: it must be above 0, or not 0 if inverse")
    try:
        units = abs(to_units(size, MULTIPLIER_DIGITS_MAX))
    except ValueError:
        units = 0
    if not 0 < units < 10 ** (2 * MULTIPLIER_DIGITS_MAX):
        raise Rejection(Reason.CONTRACT_INVALID, f"multiplier {size} has over {MULTIPLIER_DIGITS_MAX} digits or decimals")
    return EXACT.normalize(EXACT.scaleb(Decimal(units), -MULTIPLIER_DIGITS_MAX))


def _price_decimals(max_price: Decimal | None) -> int:
    """All twelve decimals, fewer only where the contract's highest price would then not fit 64 bits."""
    if max_price is None or not max_price.is_finite():
        return PRICE_DECIMALS_MAX
    fitting = (d for d in range(PRICE_DECIMALS_MAX, 0, -1) if max_price <= Decimal(INT64_MAX).scaleb(-d))
    return next(fitting, 0)


def partition_of(symbol: str, partitions: int) -> int:
    """The partition whose stream carries everything of this contract."""
    return zlib.crc32(symbol.encode()) % partitions
