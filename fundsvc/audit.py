"""The audit: recomputes funds from their first entry and compares them with what is stored."""

from collections.abc import Callable

import msgspec

from fundsvc.core.policy import Policy
from fundsvc.core.replay import START, missing
from fundsvc.store.audits import read_stretch
from fundsvc.store.database import Pool
from fundsvc.store.policies import policies_of
from fundsvc.store.rollup_audit import rollup_differences

DIFFERENCES_MAX = 20
"""Per contract: one altered entry may break all that follow, and the first differences say it."""

STRETCH_ENTRIES = 2000
"""One read of the database: memory is constant however long the ledger is."""

DEFAULT_POLICY = Policy()


class ContractAudit(msgspec.Struct, rename="camel"):
    """What the audit found of one contract: how many entries it recomputed, the head they end in, and what differs."""

    symbol: str
    entries: int
    head: str
    differences: list[str]


async def audit_contract(
    pool: Pool, symbol: str, progress: Callable[[int], None], policy: Policy = DEFAULT_POLICY
) -> ContractAudit:
    """Recomputes one contract's ledger to its end; calls `progress` with the number of entries done since.

    `policy` is the configured one, where none was recorded.
    """
    since, is_last = START, False
    differences: list[str] = []
    head = ""
    while not is_last and not differences:
        stretch = await read_stretch(pool, symbol, since, STRETCH_ENTRIES)
        if stretch.ledger is None:
            return ContractAudit(symbol, 0, "", [missing(symbol)])
        policies = await policies_of(pool, [symbol], lambda _: policy)
        replay = stretch.replay(stretch.ledger, policies[symbol])
        for _ in stretch.followed(replay):
            if len(replay.differences) >= DIFFERENCES_MAX:
                break
        stretch.compare(replay)
        progress(len(stretch))
        since, is_last = replay.checkpoint, stretch.ended
        differences, head = replay.differences, stretch.ledger.fund.head.hex()
    differences = differences + await rollup_differences(pool, symbol)
    return ContractAudit(symbol, since.entry, head, differences[:DIFFERENCES_MAX])
