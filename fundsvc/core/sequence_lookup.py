"""Looks up passed sequences in the ledger before the events that need them are applied."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Protocol

from fundsvc.core.sequences import Facts, Sequences


class Ledger(Protocol):
    """A ledger that can be queried for sequences."""

    async def facts(self, wanted: Mapping[str, Sequence[int]]) -> Facts:
        """Returns the facts of the first of some rising sequences of each contract; of one sequence at least."""


async def look_up(
    sequences: Sequences, wanted: Mapping[str, Collection[int]], ledger: Ledger, pause: Callable[[], Awaitable[None]]
) -> None:
    """Queries a ledger for some sequences, by contract, and adds the facts; pauses after each query."""
    rest = {symbol: sorted(seqs) for symbol, seqs in wanted.items()}
    while rest:
        facts = await ledger.facts(rest)
        sequences.learn(facts)
        unknown = {symbol: [seq for seq in seqs if (symbol, seq) not in facts.applied] for symbol, seqs in rest.items()}
        rest = {symbol: seqs for symbol, seqs in unknown.items() if seqs}
        await pause()
