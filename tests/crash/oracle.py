"""The ledger as it would be had nothing gone wrong: the letters, settled by partitions in memory."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from fundsvc.config import CurrencyConfig
from fundsvc.core.adl import OrderState
from fundsvc.core.book import Book
from fundsvc.core.chain import Entry
from fundsvc.core.commitment import LedgerSecret
from fundsvc.core.events import PolicyChange
from fundsvc.core.partition import Partition
from fundsvc.core.policy import Policy
from fundsvc.core.records import AdlRecord
from fundsvc.core.settlement import FundState
from fundsvc.core.valuation import Standing
from tests.crash.letters import Letter

LEDGER_SECRET = "the ledger secret of the crash test which hides nothing"
"""With the same one, the same events give the same hashes."""


@dataclass
class Undisturbed:
    """Per symbol: entries with their hashes, the fund, its ADL orders, their sealed records, and the ranks of its book."""

    lines: dict[str, list[tuple[Entry, bytes]]] = field(default_factory=dict)
    funds: dict[str, FundState] = field(default_factory=dict)
    orders: dict[str, list[OrderState]] = field(default_factory=dict)
    records: dict[str, list[tuple[AdlRecord, bytes]]] = field(default_factory=dict)
    ranks: dict[str, list[list[Standing]]] = field(default_factory=dict)


def undisturbed(letters: Iterable[Letter], partitions: int) -> Undisturbed:
    """Settles what is not garbage, in order."""
    settling = [empty_partition(number, partitions) for number in range(partitions)]
    for letter in letters:
        for element in letter.elements:
            if not element.garbage:
                settling[letter.partition].apply(element.content)
    ledger = Undisturbed()
    for partition in settling:
        batch = partition.take()
        for entry, digest in zip(batch.entries, batch.hashes, strict=True):
            ledger.lines.setdefault(entry.symbol, []).append((entry, digest))
        for order in batch.orders.values():
            ledger.orders.setdefault(order.symbol, []).append(timeless(order))
        for sealed in batch.records:
            ledger.records.setdefault(sealed.record.symbol, []).append((sealed.record, sealed.hash))
        ledger.funds |= {state.symbol: state for state in batch.funds}
        ledger.ranks |= {contract.symbol: ranks(book) for contract, book in partition.books()}
    return ledger


def empty_partition(number: int, partitions: int) -> Partition:
    """A partition as engines have it at the very beginning, under the default policy."""
    currency = CurrencyConfig()
    partition = Partition(
        number, partitions, (), currency.decimals, currency.decimals_default, secret=LedgerSecret(LEDGER_SECRET)
    )
    partition.apply(PolicyChange(1, Policy(), {}, 0))
    return partition


def ranks(book: Book) -> list[list[Standing]]:
    """The positions of both sides by rank, with every number of it; empty without a mark."""
    if book.mark is None:
        return []
    return [[side.standing(int(row), book.mark) for row in side.ranking(book.mark).rows] for side in book.sides.values()]


def timeless(order: OrderState) -> OrderState:
    """An order without the time at which its round began, which is the stream server's."""
    return order._replace(round_ms=0)
