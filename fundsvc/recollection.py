"""What a message's events need to know of sequences that were passed, asked of the ledger before they are applied."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from fundsvc.core.events import Event, Rejection
from fundsvc.core.partition import Partition
from fundsvc.core.sequences import Facts


class Ledger(Protocol):
    """A ledger that knows what was applied."""

    async def facts(self, wanted: Mapping[str, Sequence[int]]) -> Facts:
        """What it has of the first of some sequences, rising, of each contract: of the first one at least."""


async def recollect(
    partition: Partition, events: Sequence[Event | Rejection], ledger: Ledger, committed: Callable[[], Awaitable[None]]
) -> None:
    """Makes a partition know all that it must to apply a message. `committed` waits until the ledger has what is applied.

    Most messages bring nothing but new sequences, and then nothing is asked.
    """
    partition.sequences.trim()
    wanted = partition.lacking(events)
    if wanted:
        await committed()
    while wanted:
        facts = await ledger.facts(wanted)
        partition.sequences.learn(facts)
        rest = {symbol: [seq for seq in seqs if (symbol, seq) not in facts.applied] for symbol, seqs in wanted.items()}
        wanted = {symbol: seqs for symbol, seqs in rest.items() if seqs}
        await asyncio.sleep(0)
