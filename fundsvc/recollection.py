"""What a run of events needs to know of sequences that were passed, asked of the ledger before they are applied."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from fundsvc.core.sequences import Facts, Sequences


class Ledger(Protocol):
    """A ledger that knows what was applied."""

    async def facts(self, wanted: Mapping[str, Sequence[int]]) -> Facts:
        """What it has of the first of some sequences, rising, of each contract: of the first one at least."""


async def recollect(sequences: Sequences, wanted: Mapping[str, Sequence[int]], ledger: Ledger) -> None:
    """Learns what a ledger has of some sequences, rising, by contract."""
    while wanted:
        facts = await ledger.facts(wanted)
        sequences.learn(facts)
        rest = {symbol: [seq for seq in seqs if (symbol, seq) not in facts.applied] for symbol, seqs in wanted.items()}
        wanted = {symbol: seqs for symbol, seqs in rest.items() if seqs}
        await asyncio.sleep(0)
