"""The books of the exchange before the first unsettled event, for snapshots."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fundsvc.core.adl.book import Book
from fundsvc.core.contracts import Contract
from fundsvc.core.events import AdlEnd, Event, Mark, Position, Snapshot
from fundsvc.core.numbers import format_units
from fundsvc.core.partition import Partition
from tests.crash.letters import Element, Letter
from tests.crash.oracle import empty_partition
from tests.crash.poison import BEGINNING_MS
from tests.crash.world import PARTITIONS

ElementIndex = tuple[int, int]
"""The number of a letter, and of an element in it."""

BEGINNING = (0, 0)


class Books:
    """Applies the letters, contract by contract, up to the ledger's cursor."""

    def __init__(self, letters: Sequence[Letter]) -> None:
        self._letters = letters
        self._partitions = [empty_partition(number, PARTITIONS) for number in range(PARTITIONS)]
        self._events: dict[str, list[tuple[ElementIndex, Event]]] = defaultdict(list)
        self._homes: dict[str, int] = {}
        self._followed: dict[str, int] = defaultdict(int)
        for number, letter in enumerate(letters):
            for position, element in enumerate(letter.elements):
                if not element.garbage:
                    self._events[element.symbol].append(((number, position), element.content))
                    self._homes[element.symbol] = letter.partition

    def letters_to_resend(self, cursor: Mapping[str, int], sent: int) -> list[Letter]:
        """Returns snapshots of the books at a cursor, and the later elements of the first `sent` letters."""
        starts = {
            symbol: self._follow(symbol, cursor[symbol], (sent, 0)) if symbol in cursor else BEGINNING
            for symbol in self._events
        }
        snapshots = [letter for symbol in self._events if (letter := self._snapshot(symbol))]
        return [*snapshots, *self._after(starts, sent)]

    def _follow(self, symbol: str, seq: int, end: ElementIndex) -> ElementIndex:
        """Applies events up to the first that raises the sequence beyond `seq`; returns its index, or the end."""
        partition, events = self._partitions[self._homes[symbol]], self._events[symbol]
        for index, event in events[self._followed[symbol] :]:
            if index >= end:
                return end
            if getattr(event, "seq", 0) > seq and not isinstance(event, Mark | Position) and _moves(partition, symbol, event):
                return index
            partition.apply(event)
            partition.take()
            self._followed[symbol] += 1
        return end

    def _snapshot(self, symbol: str) -> Letter | None:
        partition = self._partitions[self._homes[symbol]]
        contract, book = partition.contract(symbol), partition.book(symbol)
        if contract is None or book is None or book.mark is None:
            return None
        elements = [Element(event, symbol) for event in _whole(contract, book)]
        return Letter(self._homes[symbol], "json", elements)

    def _after(self, starts: Mapping[str, ElementIndex], sent: int) -> Iterator[Letter]:
        for number, letter in enumerate(self._letters[:sent]):
            elements = [
                element
                for position, element in enumerate(letter.elements)
                if not element.garbage and (number, position) >= starts[element.symbol]
            ]
            if elements:
                yield letter._replace(elements=elements)


def _moves(partition: Partition, symbol: str, event: Event) -> bool:
    """Whether a numbered event that is new moves the contract's sequence: the end of an order that is over does not."""
    return not isinstance(event, AdlEnd) or event.adl in partition.market(symbol).orders


def _whole(contract: Contract, book: Book) -> Iterator[Event]:
    """Yields the mark and a snapshot of the positions."""
    symbol, decimals = contract.symbol, contract.price_decimals
    assert book.mark is not None
    yield Mark(symbol, format_units(book.mark, decimals), BEGINNING_MS, seq=book.mark_seq or None)
    yield Snapshot(symbol, "begin", BEGINNING_MS)
    for name, side in book.sides.items():
        saved, sign = side.save(side.kept_rows()), 1 if name == "long" else -1
        columns = (np.frombuffer(column, "<i8").tolist() for column in (saved.lots, saved.entry_price, saved.margin))
        for account, lots, entry_price, margin in zip(saved.accounts, *columns, strict=True):
            if lots:
                prices = format_units(entry_price, decimals), format_units(margin, contract.settle_decimals)
                yield Position(symbol, account, sign * lots, *prices, BEGINNING_MS)
    yield Snapshot(symbol, "end", BEGINNING_MS)
