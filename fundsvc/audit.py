"""The audit: recomputes funds from their first entry and compares them with what is stored."""

from collections.abc import Callable

import msgspec

from fundsvc.core.replay import Replay, missing
from fundsvc.store.database import Pool
from fundsvc.store.exports import LedgerSnapshot, UnknownContract, open_snapshot

DIFFERENCES_MAX = 20
"""Per contract: one altered entry may break all that follow, and the first differences say it."""


class ContractAudit(msgspec.Struct, rename="camel"):
    """What the audit found of one contract: how many entries it recomputed, the head they end in, and what differs."""

    symbol: str
    entries: int
    head: str
    differences: list[str]


async def audit_contract(pool: Pool, symbol: str, progress: Callable[[int], None]) -> ContractAudit:
    """Recomputes one contract's ledger, as it was at one moment; calls `progress` with the number of entries done since."""
    try:
        async with open_snapshot(pool, symbol) as snapshot:
            return await _recompute(snapshot, progress)
    except UnknownContract:
        return ContractAudit(symbol, 0, "", [missing(symbol)])


async def _recompute(snapshot: LedgerSnapshot, progress: Callable[[int], None]) -> ContractAudit:
    replay = Replay(snapshot.contract, snapshot.late)
    reported = 0
    async for line in snapshot.lines():
        replay.follow(line.entry, line.hash)
        if replay.entry - reported >= 1000:  # noqa: PLR2004 - often enough for a progress bar
            progress(replay.entry - reported)
            reported = replay.entry
        if len(replay.differences) >= DIFFERENCES_MAX:
            break
    else:
        replay.finish(snapshot.fund, snapshot.orders)
    progress(max(0, snapshot.fund.entry - reported))
    head = snapshot.fund.head.hex()
    return ContractAudit(snapshot.contract.symbol, replay.entry, head, replay.differences[:DIFFERENCES_MAX])
