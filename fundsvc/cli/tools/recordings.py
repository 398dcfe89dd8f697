"""Recordings of liquidations as events: our own, KuCoin's contract lists, and Binance's public forceOrder stream."""

import codecs
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from fundsvc.cli.tools.force_orders import Known, Orders, Refusal, fills_of, read_orders
from fundsvc.core.contracts import Contract, contract_of
from fundsvc.core.events import Event, Listing, Rejection
from fundsvc.wire.codec import Message, decode
from fundsvc.wire.duplicate_keys import check_keys

Format = Literal["events", "binance-force-orders"]


class RecordingError(ValueError):
    """The file is invalid; the message names the line and the error."""


class Recording(NamedTuple):
    """The content of a file: contracts to list first, since they decide what the events are worth, and events in order.

    `duplicates` counts repeated orders, `passed_over` counts lines without an order, `refused` lists lines that cannot be
    settled. `conflicts` are given contracts that the ledger has under other terms.
    """

    listings: Sequence[Listing]
    events: Sequence[Event]
    symbols: frozenset[str]
    duplicates: int = 0
    passed_over: int = 0
    refused: Sequence[Refusal] = ()
    conflicts: Sequence[str] = ()


Fitting = Callable[[Mapping[str, Known]], Recording]
"""Converts a file to a recording under the terms of the contracts in the ledger."""


class _ContractsAnswer(msgspec.Struct):
    data: list[dict[str, Any]]


def read_recording(path: Path, form: Format) -> Recording:
    """The events of a file for an empty ledger; raises RecordingError."""
    return open_recording(path, form)({})


def open_recording(path: Path, form: Format, contracts: Path | None = None) -> Fitting:
    """Reads a file, and the file of contracts to list before it; raises RecordingError."""
    listings = read_contracts(contracts).listings if contracts else []
    if form == "binance-force-orders":
        return partial(_fit, partial(_fills, read_orders(_lines(path))), listings)
    recording = _read_events(path)
    return partial(_fit, lambda _known, _given: recording, listings)


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
    """The symbol of an event, or "" without one; raises Rejection for a contract that cannot be listed."""
    if not isinstance(event, Listing):
        return getattr(event, "symbol", "")
    try:
        return contract_of(event.contract, {}, 0).symbol
    except Rejection as rejection:
        raise RecordingError(f"{where}: {rejection}") from None


def _read_events(path: Path) -> Recording:
    """Reads one event or an array of events per line, in the JSON of the stream."""
    events: list[Event] = []
    symbols: set[str] = set()
    for number, line in _lines(path):
        for event in decode(Message("0-0", "json", line)):
            if isinstance(event, Rejection):
                raise RecordingError(f"{path}, line {number}: {event}")
            events.append(event)
            symbols.add(_symbol(event, f"{path}, line {number}"))
    return Recording([], events, frozenset(symbols - {""}))


def _fit(
    recorded: Callable[[Mapping[str, Known], Mapping[str, Contract]], Recording],
    listings: Sequence[Listing],
    known: Mapping[str, Known],
) -> Recording:
    """A recording under the terms of a ledger, after the given contracts. It omits contracts that the ledger has under other
    terms, because their listing would suspend them.
    """
    given = {contract.symbol: contract for contract in map(_contract, listings)}
    conflicts = [
        symbol for symbol, contract in given.items() if symbol in known and not known[symbol].contract.same_terms(contract)
    ]
    kept = [listing for listing in listings if _contract(listing).symbol not in conflicts]
    recording = recorded(known, given)
    return recording._replace(listings=[*kept, *recording.listings], conflicts=conflicts)


def _fills(found: Orders, known: Mapping[str, Known], given: Mapping[str, Contract]) -> Recording:
    fills = fills_of(found.orders, known, given)
    symbols = frozenset(fill.symbol for fill in fills.fills)
    refused = sorted([*found.refused, *fills.refused])
    return Recording(fills.listings, fills.fills, symbols, fills.duplicates, found.passed_over, refused)


def _contract(listing: Listing) -> Contract:
    return contract_of(listing.contract, {}, 0)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, by number, without byte order marks, which concatenated files have at any line."""
    lines = (line.removeprefix(codecs.BOM_UTF8) for line in _read(path).splitlines())
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _read(path: Path) -> bytes:
    """The bytes of a file as UTF-8; converts UTF-16 with a byte order mark, which PowerShell writes."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecordingError(f"cannot read {path}: {error.strerror}") from None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace").encode()
    return content.removeprefix(codecs.BOM_UTF8)
