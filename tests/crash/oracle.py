"""The expected ledger: partitions in memory settle the letters without disturbances."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fundsvc.config.settings import CurrencyConfig
from fundsvc.core.adl.book import Book
from fundsvc.core.adl.order import OrderState
from fundsvc.core.adl.records import AdlRecord
from fundsvc.core.adl.valuation import ValuedPosition
from fundsvc.core.commitment import LedgerSecret
from fundsvc.core.events import Event, PolicyChange, Reason, Rejection
from fundsvc.core.fund.chain import Entry
from fundsvc.core.fund.inventory import HoldingState, TrancheState
from fundsvc.core.fund.settlement import Closing, FundState
from fundsvc.core.partition import Partition
from fundsvc.core.policy import Policy
from fundsvc.wire.codec import Codec, Contents, Message
from tests.crash.letters import Element, Letter

CODECS: Mapping[str, Codec] = {"json": "json", "msgpack": "msgpack"}
"""Codecs by the name of the field. Other fields have no codec."""

LEDGER_SECRET = "the ledger secret of the crash test which hides nothing"
"""The same secret and events give the same hashes."""


@dataclass
class Undisturbed:
    """Per symbol: entries with hashes, the fund, its ADL orders, their records with hashes, and the ranks of its book.

    `tranches` and `holdings` are the inventories of all contracts, by symbol, entry and side. `closings` are the
    ends of contracts.
    """

    lines: dict[str, list[tuple[Entry, bytes]]] = field(default_factory=dict)
    funds: dict[str, FundState] = field(default_factory=dict)
    orders: dict[str, list[OrderState]] = field(default_factory=dict)
    records: dict[str, list[tuple[AdlRecord, bytes]]] = field(default_factory=dict)
    ranks: dict[str, list[list[ValuedPosition]]] = field(default_factory=dict)
    tranches: list[TrancheState] = field(default_factory=list)
    holdings: list[HoldingState] = field(default_factory=list)
    closings: dict[str, Closing] = field(default_factory=dict)


def undisturbed(letters: Iterable[Letter], partitions: int) -> Undisturbed:
    """Settles all elements that are not garbage, in order."""
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
            ledger.orders.setdefault(order.symbol, []).append(without_times(order))
        for sealed in batch.records:
            ledger.records.setdefault(sealed.record.symbol, []).append((sealed.record, sealed.hash))
        ledger.funds |= {state.symbol: state for state in batch.funds}
        ledger.ranks |= {contract.symbol: ranks(book) for contract, book in partition.books()}
        ledger.tranches += [row for row in batch.tranches if row.lots]
        ledger.holdings += batch.holdings
        ledger.closings |= batch.closings
    ledger.tranches.sort()
    ledger.holdings.sort(key=lambda row: (row.symbol, row.side))
    return ledger


def rejections(letters: Iterable[Letter], partitions: int, stream_ms: int) -> Counter[Reason]:
    """Counts the reasons with which partitions reject garbage, except garbage that only the database rejects.

    Raises AssertionError for garbage that is settled, or rejected with an unexpected reason.
    """
    settling = [empty_partition(number, partitions) for number in range(partitions)]
    found: Counter[Reason] = Counter()
    for letter in letters:
        contents = Contents(Message(f"{stream_ms}-0", CODECS.get(letter.field, ""), letter.body()))
        events = [contents.run(position, 1)[0] for position in range(contents.size)]
        for event, element in zip(events, letter.elements, strict=not _is_broken(letter)):
            reason = _rejection_reason(settling[letter.partition], event, stream_ms, element)
            if reason:
                found[reason] += 1
    return found


def _is_broken(letter: Letter) -> bool:
    """Whether the letter consists of raw bytes, which decode to any number of events."""
    return isinstance(letter.elements[0].content, bytes)


def _rejection_reason(partition: Partition, event: Event | Rejection, stream_ms: int, element: Element) -> Reason | None:
    if Reason.DATABASE_REFUSED in element.reasons:
        return None
    try:
        partition.apply(event, stream_ms)
    except Rejection as rejection:
        reason = rejection.reason
    else:
        assert not element.garbage or element.rejected_by_seq, f"{element} is settled"
        return None
    assert reason in element.reasons, f"{element} is rejected with {reason}"
    return reason


def empty_partition(number: int, partitions: int) -> Partition:
    """Returns an empty partition under the default policy."""
    currency = CurrencyConfig()
    partition = Partition(
        number, partitions, (), currency.decimals, currency.decimals_default, secret=LedgerSecret(LEDGER_SECRET)
    )
    partition.apply(PolicyChange(1, Policy(), {}, 0))
    return partition


def ranks(book: Book) -> list[list[ValuedPosition]]:
    """Returns the positions of both sides by rank, with all numbers; empty without a mark."""
    if book.mark is None:
        return []
    return [[side.valued(int(row), book.mark) for row in side.ranking(book.mark).rows] for side in book.sides.values()]


def without_times(order: OrderState) -> OrderState:
    """Returns an order without the start of its round, which is a time of the stream server."""
    return order._replace(round_ms=0)
