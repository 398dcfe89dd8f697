"""Recordings of liquidations as events: our own, KuCoin's contract lists, and Binance's public forceOrder stream."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from fundsvc.core.contracts import contract_of
from fundsvc.core.events import Event, Fill, Listing, Number, Rejection, Symbol
from fundsvc.keys import check_keys
from fundsvc.wire import Message, decode

Format = Literal["events", "binance-force-orders"]

SEQUENCES_PER_MS = 1000
"""Binance gives no sequence; the order's time and its place among those of the same millisecond make one."""

_QUOTES = ("USDT", "USDC", "BUSD", "FDUSD", "USD1", "USD")


class RecordingError(ValueError):
    """The file is not what it should be; the message names the line and what is wrong with it."""


class Recording(NamedTuple):
    """What a file holds: contracts to be listed first, without which its events would mean other money; events in order."""

    listings: Sequence[Listing]
    events: Sequence[Event]
    symbols: frozenset[str]


class _ForceOrder(msgspec.Struct):
    """The `o` of a forceOrder message: s symbol, S side, p IOC limit, ap average fill price, z filled quantity, T time."""

    s: Symbol
    S: Literal["SELL", "BUY"]
    p: Number
    ap: Number
    z: Decimal
    T: Annotated[int, msgspec.Meta(gt=0)]


class _ForceOrderMessage(msgspec.Struct):
    o: _ForceOrder


class _ContractsAnswer(msgspec.Struct):
    data: list[dict[str, Any]]


def read_recording(path: Path, form: Format) -> Recording:
    """The events of a file; raises RecordingError."""
    readers: dict[Format, Callable[[Path], Recording]] = {
        "events": _read_events,
        "binance-force-orders": _read_force_orders,
    }
    return readers[form](path)


def read_contracts(path: Path) -> Recording:
    """Listings from KuCoin's answer to GET /api/v1/contracts/active, or from a bare array of its contract objects."""
    text = _read(path)
    try:
        answer = msgspec.json.decode(text, type=_ContractsAnswer | list[dict[str, Any]])
        check_keys("json", text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordingError(f"{path} is not a KuCoin contracts answer: {error}") from None
    listings = [Listing(contract) for contract in (answer.data if isinstance(answer, _ContractsAnswer) else answer)]
    symbols = [_symbol(listing, f"{path}, contract {number}") for number, listing in enumerate(listings, 1)]
    return Recording(listings, [], frozenset(symbols))


def _symbol(event: Event, where: str) -> str:
    """The symbol of an event, "" if it has none; a contract must be one that can be listed."""
    if not isinstance(event, Listing):
        return getattr(event, "symbol", "")
    try:
        return contract_of(event.contract, {}, 0).symbol
    except Rejection as rejection:
        raise RecordingError(f"{where}: {rejection}") from None


def _read_events(path: Path) -> Recording:
    """One event or an array of events to a line, in JSON as on the wire."""
    events: list[Event] = []
    symbols: set[str] = set()
    for number, line in _lines(path):
        for event in decode(Message("0-0", "json", line)):
            if isinstance(event, Rejection):
                raise RecordingError(f"{path}, line {number}: {event}")
            events.append(event)
            symbols.add(_symbol(event, f"{path}, line {number}"))
    return Recording([], events, frozenset(symbols - {""}))


def _read_force_orders(path: Path) -> Recording:
    """Liquidation orders of Binance's public stream: the IOC limit is the bankruptcy price.

    A contract is listed per symbol, with the multiplier that makes every quantity of it a whole number of lots.
    """
    orders = [_force_order(path, number, line) for number, line in _lines(path)]
    multipliers: dict[str, Decimal] = defaultdict(lambda: Decimal(1))
    for order in orders:
        multipliers[order.s] = min(multipliers[order.s], _step(order.z))
    listings = [Listing(_binance_contract(path, symbol, multiplier)) for symbol, multiplier in multipliers.items()]
    return Recording(listings, list(_fills(orders, multipliers)), frozenset(multipliers))


def _force_order(path: Path, number: int, line: bytes) -> _ForceOrder:
    try:
        order = msgspec.json.decode(line, type=_ForceOrderMessage).o
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordingError(f"{path}, line {number} is no forceOrder message: {error}") from None
    if not (order.z.is_finite() and order.z > 0):
        raise RecordingError(f"{path}, line {number}: a filled quantity (z) of {order.z} is no fill")
    return order


def _fills(orders: Iterable[_ForceOrder], multipliers: dict[str, Decimal]) -> Iterator[Fill]:
    last: dict[str, int] = {}
    for order in orders:
        sequence = last[order.s] = max(last.get(order.s, 0) + 1, order.T * SEQUENCES_PER_MS)
        yield Fill(
            symbol=order.s,
            seq=sequence,
            side="sell" if order.S == "SELL" else "buy",
            lots=int(order.z / multipliers[order.s]),
            price=order.ap,
            bankruptcy_price=order.p,
            ts=order.T,
        )


def _binance_contract(path: Path, symbol: str, multiplier: Decimal) -> dict[str, Any]:
    pair = symbol if symbol.endswith(_QUOTES) else symbol.partition("_")[0]
    quote = next((quote for quote in _QUOTES if pair.endswith(quote)), None)
    if quote is None:
        raise RecordingError(f"{path}: the quote currency of {symbol} is none of {', '.join(_QUOTES)}")
    return {
        "symbol": symbol,
        "type": "FFWCSX",
        "baseCurrency": pair.removesuffix(quote),
        "quoteCurrency": quote,
        "settleCurrency": quote,
        "lotSize": 1,
        "multiplier": str(multiplier),
        "isInverse": False,
        "status": "Open",
    }


def _step(quantity: Decimal) -> Decimal:
    """The largest power of ten, at most 1, of which a quantity is a whole number."""
    exponent = quantity.normalize().as_tuple().exponent
    return Decimal(1).scaleb(min(0, int(exponent)))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    return ((number, line) for number, line in enumerate(_read(path).splitlines(), 1) if line.strip())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecordingError(f"cannot read {path}: {error.strerror}") from None
