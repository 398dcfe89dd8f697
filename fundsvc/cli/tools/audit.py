"""The audit: recomputes funds from entry 1, or from the end of their archives, and compares them with the stored state."""

from collections.abc import Callable
from functools import partial

import msgspec

from fundsvc.cli.tools.archiving import file_rows, stub_difference
from fundsvc.core.commitment import NO_SECRETS, Secrets
from fundsvc.core.fund.archive import Stub
from fundsvc.core.fund.verification import missing
from fundsvc.core.policy import Policy
from fundsvc.store.archive.files import ArchiveFiles, ArchiveUnreachable
from fundsvc.store.archive.moves import hours_digest, list_stubs
from fundsvc.store.audits import LedgerPart, archived_checkpoint, beginning, read_archived_part, read_part
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


class _Audit:
    """Recomputes one contract's ledger in parts, and collects the result."""

    def __init__(self, pool: Pool, symbol: str, progress: Callable[[int], None], policy: Policy, secrets: Secrets) -> None:
        self._pool = pool
        self._symbol = symbol
        self._progress = progress
        self._policy = policy
        self._secrets = secrets
        self.since = beginning()
        self.entries = self.unopened = 0
        self.head = ""
        self.differences: list[str] = []

    async def follow(self, part: LedgerPart) -> None:
        """Recomputes a part."""
        if part.ledger is None:
            self.differences.append(missing(self._symbol))
            return
        policies = await policies_of(partial(fetch, self._pool), [self._symbol], lambda _: self._policy)
        replay = part.replay(part.ledger, policies[self._symbol], self._secrets)
        for _ in part.followed(replay):
            if len(replay.differences) >= DIFFERENCES_MAX:
                break
        part.compare(replay)
        for _ in part.compared_lots(replay):
            if len(replay.differences) >= DIFFERENCES_MAX:
                break
        self._progress(len(part))
        self.since, self.head = part.reached(replay), part.ledger.fund.head.hex()
        self.entries += self.since.checkpoint.entry - part.since.checkpoint.entry
        self.unopened += replay.unopened
        self.differences += replay.differences

    async def follow_archive(self, files: ArchiveFiles) -> None:
        """Recomputes the archived entries from their files, and compares each end with its stub."""
        for stub, bound in await list_stubs(self._pool, [self._symbol]):
            try:
                difference = await stub_difference(files, stub, self._secrets)
                while not (difference or self.differences) and self.since.checkpoint.entry < min(stub.last_entry, bound):
                    await self._follow_file(files, stub)
            except ArchiveUnreachable as unreachable:
                difference = f"{stub}: {unreachable}"
            self.differences += [difference] if difference else await self._end_differences(stub, bound)
            if self.differences:
                return

    async def _follow_file(self, files: ArchiveFiles, stub: Stub) -> None:
        """Recomputes a row group of a file, or as much of it as the ADL records of one read permit."""
        async for rows in file_rows(files, stub, self.since.checkpoint.entry):
            await self.follow(await read_archived_part(self._pool, self._symbol, self.since, rows))
            return

    async def _end_differences(self, stub: Stub, bound: int) -> list[str]:
        """Returns the differences between a stub and the state at its end, and its rollups."""
        found = (
            [] if await hours_digest(self._pool, stub) == stub.hours else [f"{stub}: the rollups differ from those archived"]
        )
        ours, saved = self.since.checkpoint, archived_checkpoint(stub.checkpoint)
        if stub.last_entry <= bound and (ours.head, ours.balance) != (stub.last_hash, saved.balance):
            found.append(
                f"{stub}: the stub has (hash, balance) {(stub.last_hash.hex(), saved.balance)}, its entries give others"
            )
        return found


async def audit_contract(
    pool: Pool,
    symbol: str,
    progress: Callable[[int], None],
    policy: Policy = DEFAULT_POLICY,
    secrets: Secrets = NO_SECRETS,
    files: ArchiveFiles | None = None,
) -> ContractAudit:
    """Recomputes one contract's ledger to its end; calls `progress` with the number of entries since the last call.

    It begins after the archived entries, or at entry 1 with the `files` of these. `policy` is used if the ledger has no
    recorded policy.
    """
    audit, is_last = _Audit(pool, symbol, progress, policy, secrets), False
    if files:
        await audit.follow_archive(files)
    while not is_last and not audit.differences:
        part = await read_part(pool, symbol, audit.since, PART_ENTRIES)
        await audit.follow(part)
        is_last = part.ended
    differences = audit.differences + await rollup_differences(pool, symbol)
    return ContractAudit(symbol, audit.entries, audit.head, differences[:DIFFERENCES_MAX], audit.unopened)
