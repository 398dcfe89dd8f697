"""The ledger as it would be had nothing gone wrong: the letters, settled by partitions in memory."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from fundsvc.config import CurrencyConfig
from fundsvc.core.adl import OrderState
from fundsvc.core.chain import Entry
from fundsvc.core.partition import Partition
from fundsvc.core.settlement import FundState
from tests.crash.letters import Letter


@dataclass
class Undisturbed:
    """Per symbol: entries with their hashes, the fund at the end, its ADL orders."""

    lines: dict[str, list[tuple[Entry, bytes]]] = field(default_factory=dict)
    funds: dict[str, FundState] = field(default_factory=dict)
    orders: dict[str, list[OrderState]] = field(default_factory=dict)


def undisturbed(letters: Iterable[Letter], partitions: int) -> Undisturbed:
    """Settles what is not garbage, in order."""
    currency = CurrencyConfig()
    settling = [Partition(p, partitions, (), currency.decimals, currency.decimals_default) for p in range(partitions)]
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
            ledger.orders.setdefault(order.symbol, []).append(order)
        ledger.funds |= {state.symbol: state for state in batch.funds}
    return ledger
