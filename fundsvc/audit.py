"""The audit: recomputes funds from their first entry and compares them with what is stored."""

from collections.abc import Callable

import msgspec

from fundsvc.core.replay import Replay, missing
from fundsvc.store.database import Pool
from fundsvc.store.exports import Ledger, UnknownContract, open_ledger

DIFFERENCES_MAX = 20
"""Per contract: one altered entry may break all that follow, and the first differences say it."""


class ContractAudit(msgspec.Struct, rename="camel"):
    """What the audit found of one contract: how many entries it recomputed, the head they end in, and what differs."""

    symbol: str
    entries: int
    head: str
    differences: list[str]


async def audit_contract(pool: Pool, symbol: str, progress: Callable[[int], None]) -> ContractAudit:
    """Recomputes one contract's ledger to its end; calls `progress` with the number of entries done since."""
    try:
        return await _recompute(await open_ledger(pool, symbol), progress)
    except UnknownContract:
        return ContractAudit(symbol, 0, "", [missing(symbol)])


async def _recompute(ledger: Ledger, progress: Callable[[int], None]) -> ContractAudit:
    replay = Replay(ledger.contract, ledger.late)
    reported = 0
    async for line in ledger.lines():
        replay.follow(line.entry, line.hash)
        if replay.entry - reported >= 1000:  # noqa: PLR2004 - often enough for a progress bar
            progress(replay.entry - reported)
            reported = replay.entry
        if len(replay.differences) >= DIFFERENCES_MAX:
            break
    else:
        replay.finish(ledger.fund, ledger.orders)
    progress(max(0, ledger.fund.entry - reported))
    head = ledger.fund.head.hex()
    return ContractAudit(ledger.contract.symbol, replay.entry, head, replay.differences[:DIFFERENCES_MAX])
