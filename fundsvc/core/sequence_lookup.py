"""What events need to know of sequences that were passed, asked of the ledger before they are applied."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Protocol

from fundsvc.core.sequences import Facts, Sequences


class Ledger(Protocol):
    """A ledger that knows what was applied."""

    async def facts(self, wanted: Mapping[str, Sequence[int]]) -> Facts:
        """What it has of the first of some sequences, rising, of each contract: of the first one at least."""


async def recollect(
    sequences: Sequences, wanted: Mapping[str, Collection[int]], ledger: Ledger, pause: Callable[[], Awaitable[None]]
) -> None:
    """Learns what a ledger has of some sequences, by contract; pauses after each answer."""
    rest = {symbol: sorted(seqs) for symbol, seqs in wanted.items()}
    while rest:
        facts = await ledger.facts(rest)
        sequences.learn(facts)
        unknown = {symbol: [seq for seq in seqs if (symbol, seq) not in facts.applied] for symbol, seqs in rest.items()}
        rest = {symbol: seqs for symbol, seqs in unknown.items() if seqs}
        await pause()
