"""Converts Binance's public liquidation orders (`forceOrder`), USD-margined and coin-margined, to fills.

An order's IOC limit is its bankruptcy price, its average price is the fill price. Binance assigns no sequence, so the sequence
is derived from the order: its time in the upper bits and a digest of its fields in the lower bits. An order therefore has the
same sequence in every recording, and an older order has a lower sequence than a newer one.

Other messages of a recording (acknowledgements, pings, other events) are counted and skipped. A line that is no valid order is
refused with its number and a reason; the other lines are read.
"""

from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from hashlib import sha256
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from fundsvc.core.contracts import MULTIPLIER_DIGITS_MAX, Contract, contract_of
from fundsvc.core.events import Fill, Listing, Reason, Rejection, Symbol
from fundsvc.core.numbers import INT64_MAX, format_units, parse_amount, parse_price, to_units

DIGEST_BITS = 21
"""Two orders of a contract in one millisecond have the same sequence with a probability of 1 in 2 million; the ledger then
rejects the second one as a conflict. The time has the other 42 bits, which suffice until the year 2109.
"""

TIME_MAX = 2 ** (63 - DIGEST_BITS) - 1
"""The latest time in milliseconds. Microseconds and nanoseconds of any recent year are beyond it."""

LOT = "0.00000001"
"""The lot of a linear contract: Binance has no finer quantity, so every later recording fits. The largest recorded order has
2e8 units; 63 bits hold 9e10.
"""

_STABLE = ("USDT", "USDC", "FDUSD", "BUSD", "USD1")
_COIN_MARGINED_PERPETUAL = "_PERP"
_BNB = "BNBUSD"
"""The only pair of a coin and USD with the ending of a BUSD pair."""

_FACES = {"BTC": 100}
_FACE = 10
"""The value of a coin-margined contract in USD: 100 for BTC, 10 for every other coin."""

_SAME_CURRENCY = {"XBT": "BTC"}
"""KuCoin's names of currencies by Binance's names."""


class Refusal(NamedTuple):
    """A line of a recording that cannot be settled, and the reason."""

    line: int
    reason: Reason
    detail: str


class Known(NamedTuple):
    """A listed contract with the sequence and time (ms) of its newest fill, or 0."""

    contract: Contract
    seq: int
    ts: int


class ForceOrder(msgspec.Struct, frozen=True):
    """The `o` of a forceOrder message: s symbol, S side, q quantity, p IOC limit, ap average price, z filled quantity, T time.

    T is in milliseconds; `ps`, the pair, is a field of the coin-margined stream alone.
    """

    s: Symbol
    S: Literal["SELL", "BUY"]
    p: Annotated[str, msgspec.Meta(max_length=40)]
    ap: Annotated[str, msgspec.Meta(max_length=40)]
    z: Decimal
    T: Annotated[int, msgspec.Meta(gt=0)]
    q: Decimal | None = None
    ps: str | None = None

    @property
    def pair(self) -> str:
        """The symbol without its delivery date, which is at the end or before the quote currency."""
        return self.s if self.s.endswith(_STABLE) else self.s.partition("_")[0]

    @property
    def coin_margined(self) -> bool:
        """Whether the contract is inverse: settled in the coin."""
        if self.ps is not None or self.s.endswith(_COIN_MARGINED_PERPETUAL) or self.pair == _BNB:
            return True
        return self.pair.endswith("USD") and not self.pair.endswith(_STABLE)

    @property
    def face(self) -> int:
        """The value of one unit of quantity: USD for a coin-margined contract, base units for a linear one."""
        return _FACES.get(self.pair.removesuffix("USD"), _FACE) if self.coin_margined else 1


class Orders(NamedTuple):
    """The orders of a recording with their line numbers, the number of lines without an order, and the refused lines."""

    orders: list[tuple[int, ForceOrder]]
    passed_over: int
    refused: list[Refusal]


class Fills(NamedTuple):
    """Orders as events: contracts to list, fills in the order of time, the number of repeated orders, and the refused lines."""

    listings: list[Listing]
    fills: list[Fill]
    duplicates: int
    refused: list[Refusal]


def read_orders(lines: Iterable[tuple[int, bytes]]) -> Orders:
    """The orders in the numbered lines of a recording."""
    orders: list[tuple[int, ForceOrder]] = []
    refused: list[Refusal] = []
    passed_over = 0
    for number, line in lines:
        found = _orders(line)
        passed_over += not found
        for order in found:
            if isinstance(order, Rejection):
                refused.append(Refusal(number, order.reason, order.detail))
            else:
                orders.append((number, order))
    return Orders(orders, passed_over, refused)


def fills_of(orders: Iterable[tuple[int, ForceOrder]], known: Mapping[str, Known], given: Mapping[str, Contract]) -> Fills:
    """The orders as fills, under the terms of the listed contracts, else of the given ones, else of Binance."""
    terms = _Terms(known, given)
    fills: dict[tuple[str, bytes], Fill] = {}
    refused: list[Refusal] = []
    duplicates = 0
    for number, order in orders:
        try:
            fill, digest = _fill(order, terms.of(order))
        except Rejection as refusal:
            refused.append(Refusal(number, refusal.reason, refusal.detail))
            continue
        duplicates += (fill.symbol, digest) in fills
        fills[fill.symbol, digest] = fill
    return Fills(terms.listings, sorted(fills.values(), key=lambda fill: fill.seq), duplicates, refused)


class _Terms:
    """The contracts of the orders; collects listings for contracts that are not listed yet."""

    def __init__(self, known: Mapping[str, Known], given: Mapping[str, Contract]) -> None:
        self.listings: list[Listing] = []
        self._known = known
        self._given = given
        self._found: dict[str, Contract | Rejection] = {}

    def of(self, order: ForceOrder) -> Contract:
        """The contract of an order; raises Rejection if no contract fits."""
        if order.s not in self._found:
            self._found[order.s] = self._find(order)
        found = self._found[order.s]
        if isinstance(found, Rejection):
            raise found
        return found

    def _find(self, order: ForceOrder) -> Contract | Rejection:
        try:
            own = specification_of(order)
            listed = self._listed(order.s)
            contract = contract_of(own, {}, 0)
            if listed:
                _check_money(listed, contract)
        except Rejection as refusal:
            return refusal
        if not listed:
            self.listings.append(Listing(own))
        return listed or contract

    def _listed(self, symbol: str) -> Contract | None:
        known, given = self._known.get(symbol), self._given.get(symbol)
        if known is None:
            return given
        if given and not known.contract.same_terms(given):
            raise Rejection(Reason.CONTRACT_FIXED, f"{symbol} is listed with other terms than those given")
        if known.seq and known.seq >> DIGEST_BITS != known.ts:
            # The sequences come from an engine: after a recorded order all its next events would be late.
            raise Rejection(
                Reason.CONFLICT, f"{symbol} has fills of another source: sequence {known.seq} is not of a recorded order"
            )
        return known.contract


def specification_of(order: ForceOrder) -> dict[str, Any]:
    """The contract of an order as a KuCoin contract object; raises Rejection for unknown currencies."""
    base, quote = _currencies(order)
    return {
        "symbol": order.s,
        "type": "FFWCSX",
        "baseCurrency": base,
        "quoteCurrency": quote,
        "settleCurrency": base if order.coin_margined else quote,
        "lotSize": 1,
        "multiplier": str(-order.face) if order.coin_margined else LOT,
        "isInverse": order.coin_margined,
        "status": "Open",
    }


def _currencies(order: ForceOrder) -> tuple[str, str]:
    quotes = ("USD",) if order.coin_margined else _STABLE
    quote = next((quote for quote in quotes if order.pair.endswith(quote) and order.pair != quote), None)
    if quote is None:
        raise Rejection(Reason.UNKNOWN_SYMBOL, f"the quote currency of {order.s} is none of {', '.join(_STABLE)}, USD")
    return order.pair.removesuffix(quote).partition("_")[0], quote


def _check_money(listed: Contract, own: Contract) -> None:
    """Raises Rejection if a listed contract would settle an order in another currency or unit."""
    terms = [(_SAME_CURRENCY.get(one.settle_currency, one.settle_currency), one.is_inverse) for one in (listed, own)]
    if terms[0] != terms[1]:
        found, wanted = (f"{'inverse' if inverse else 'linear'} in {currency}" for currency, inverse in terms)
        raise Rejection(Reason.CONTRACT_FIXED, f"{own.symbol} is listed as {found}, its orders are {wanted}")


def _fill(order: ForceOrder, contract: Contract) -> tuple[Fill, bytes]:
    """The fill of an order under a contract, and the digest of the order; raises Rejection."""
    if order.T > TIME_MAX:
        raise Rejection(Reason.TS_OUT_OF_RANGE, f"T {order.T} is not a time in milliseconds: it must be at most {TIME_MAX}")
    decimals = contract.price_decimals
    parse_limit = parse_price if contract.is_inverse else parse_amount
    prices = [format_units(units, decimals) for units in (parse_price(order.ap, decimals), parse_limit(order.p, decimals))]
    lots = _lots(order, contract)
    digest = _digest(order, prices)
    seq = order.T << DIGEST_BITS | int.from_bytes(digest) % 2**DIGEST_BITS
    side: Literal["sell", "buy"] = "sell" if order.S == "SELL" else "buy"
    return Fill(order.s, seq, side, lots, prices[0], prices[1], order.T), digest


def _lots(order: ForceOrder, contract: Contract) -> int:
    """The filled quantity in lots; raises Rejection unless it is a whole number of lots."""
    filled = _units(order.z)
    if filled <= 0:
        raise Rejection(Reason.OUT_OF_RANGE, f"the filled quantity (z) is {order.z}: it must be above 0")
    lots, rest = divmod(filled * order.face, _units(contract.multiplier))
    if rest:
        raise Rejection(
            Reason.TOO_MANY_DECIMALS,
            f"the filled quantity (z) is {order.z}: it must be a whole number of lots of {contract.multiplier:f}",
        )
    if lots > INT64_MAX:
        raise Rejection(Reason.OUT_OF_RANGE, f"the filled quantity (z) is {order.z}: it must be at most {INT64_MAX} lots")
    return lots


def _digest(order: ForceOrder, prices: Iterable[str]) -> bytes:
    quantities = [str(_units(order.z if order.q is None else order.q)), str(_units(order.z))]
    return sha256(msgspec.msgpack.encode([order.s, order.S, *quantities, *prices, order.T])).digest()


def _units(quantity: Decimal) -> int:
    try:
        return to_units(quantity, MULTIPLIER_DIGITS_MAX)
    except ValueError as error:
        raise Rejection(Reason.INVALID_NUMBER, str(error)) from None


def _orders(line: bytes) -> list[ForceOrder | Rejection]:
    """The orders of a line, with a Rejection in the place of each invalid one."""
    try:
        message = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        is_ping = line.strip().lower() in (b"ping", b"pong")
        return [] if is_ping else [Rejection(Reason.UNDECODABLE, f"not json: {error}")]
    return [_order(value) for value in _found(message)]


def _found(message: Any) -> Iterator[Any]:
    """The order values of a message: one message or an array, of the raw or the combined stream."""
    for part in _each(message):
        combined = isinstance(part, dict) and "stream" in part
        for event in _each(part.get("data") if combined else part):
            if isinstance(event, dict) and ("o" in event or "e" in event) and event.get("e", "forceOrder") == "forceOrder":
                yield event.get("o")


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _order(value: Any) -> ForceOrder | Rejection:
    try:
        return msgspec.convert(value, ForceOrder)
    except msgspec.ValidationError as error:
        return Rejection(Reason.INVALID_FIELD, f"no forceOrder message: {error}")
