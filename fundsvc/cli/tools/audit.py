"""The audit: recomputes funds from entry 1 and compares them with the stored state."""

from collections.abc import Callable
from functools import partial

import msgspec

from fundsvc.core.commitment import NO_SECRETS, Secrets
from fundsvc.core.fund.verification import missing
from fundsvc.core.policy import Policy
from fundsvc.store.audits import beginning, read_part
from fundsvc.store.database import Pool
from fundsvc.store.policies import policies_of
from fundsvc.store.reader import fetch
from fundsvc.store.rollup_audit import rollup_differences

DIFFERENCES_MAX = 20
"""Differences reported per contract: one altered entry may affect all later ones, so the first differences suffice."""

PART_ENTRIES = 2000
"""Entries per read of the database; bounds memory for ledgers of any length."""

DEFAULT_POLICY = Policy()


class ContractAudit(msgspec.Struct, rename="camel"):
    """The result for one contract: the number of recomputed entries, their head, and the differences.

    `unopened` counts commitments to accounts that could not be checked, because their secrets are not configured.
    """

    symbol: str
    entries: int
    head: str
    differences: list[str]
    unopened: int = 0


async def audit_contract(
    pool: Pool,
    symbol: str,
    progress: Callable[[int], None],
    policy: Policy = DEFAULT_POLICY,
    secrets: Secrets = NO_SECRETS,
) -> ContractAudit:
    """Recomputes one contract's ledger to its end; calls `progress` with the number of entries since the last call.

    `policy` is used if the ledger has no recorded policy.
    """
    since, is_last = beginning(), False
    differences: list[str] = []
    head, unopened = "", 0
    while not is_last and not differences:
        part = await read_part(pool, symbol, since, PART_ENTRIES)
        if part.ledger is None:
            return ContractAudit(symbol, 0, "", [missing(symbol)])
        policies = await policies_of(partial(fetch, pool), [symbol], lambda _: policy)
        replay = part.replay(part.ledger, policies[symbol], secrets)
        for _ in part.followed(replay):
            if len(replay.differences) >= DIFFERENCES_MAX:
                break
        part.compare(replay)
        for _ in part.compared_lots(replay):
            if len(replay.differences) >= DIFFERENCES_MAX:
                break
        progress(len(part))
        since, is_last = part.reached(replay), part.ended
        unopened += replay.unopened
        differences, head = replay.differences, part.ledger.fund.head.hex()
    differences = differences + await rollup_differences(pool, symbol)
    return ContractAudit(symbol, since.checkpoint.entry, head, differences[:DIFFERENCES_MAX], unopened)
