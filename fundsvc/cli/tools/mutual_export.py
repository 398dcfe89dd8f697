"""Exports the ledger of a pool as rows of text that `scripts/verify-export` verifies without any code of the service.

The column `line` is the kind of a row: `terms` (a version of the terms, before its first entry), `entry`, `cycle` (a cut-off,
after its entry of this kind), or `pool` at the end. A row has only the columns of its kind.
"""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import msgspec

from fundsvc.cli.tools.writers import Row
from fundsvc.core.commitment import NO_SECRETS, Secrets, seal_parts
from fundsvc.core.numbers import format_units
from fundsvc.mutual.core.chain import seal_domain
from fundsvc.mutual.core.rows import CycleRow, PoolRow
from fundsvc.mutual.store.exports import PoolLedger
from fundsvc.mutual.store.reader import EntryRow
from fundsvc.mutual.store.rows import TermsRow

POOL_COLUMNS = (
    "line",
    "pool",
    "entry",
    "seq",
    "ts",
    "kind",
    "account",
    "policy",
    "amount",
    "balance",
    "profits",
    "version",
    "recordedAt",
    "hash",
    "keyId",
    "commitment",
    "salt",
    "rules",
    "cycle",
    "capsLeft",
    "rate",
    "budget",
    "returned",
    "weight",
    "completed",
    "shareIndex",
    "rem",
    "fees",
    "inflow",
    "released",
    "settled",
    "paidOut",
    "policies",
)
"""Money is decimal text; `ts` is in milliseconds; `rules` is JSON; `shareIndex` and `rem` are integers without bound."""

_PRIVATE = {"account", "salt"}

PUBLIC_POOL_COLUMNS = tuple(name for name in POOL_COLUMNS if name not in _PRIVATE)
"""The columns of a public export: without accounts and their salts."""


async def pool_rows(ledger: PoolLedger, secrets: Secrets = NO_SECRETS) -> AsyncIterator[Row]:
    """Yields a row per version of the terms, entry and cut-off, in order, then the row of the pool.

    An entry with a commitment to its account has the salt too, if `secrets` contains the secret.
    """
    decimals = ledger.state.rules.decimals
    async for line in ledger.lines():
        if isinstance(line, TermsRow):
            yield _terms_row(ledger.state.row.pool, line)
        elif isinstance(line, EntryRow):
            yield _entry_row(line, decimals) | _opening(line, secrets)
        else:
            yield _cycle_row(ledger.state.row.pool, line, decimals)
    yield _pool_row(ledger.state.row, decimals)


async def public_pool_rows(ledger: PoolLedger) -> AsyncIterator[Row]:
    """Yields the rows of a public export: commitments instead of accounts."""
    async for row in pool_rows(ledger):
        yield {name: value for name, value in row.items() if name not in _PRIVATE}


def _terms_row(pool: str, terms: TermsRow) -> Row:
    return {
        "line": "terms",
        "pool": pool,
        "entry": terms.entry,
        "version": terms.version,
        "recordedAt": _written(terms.recorded_at),
        "rules": msgspec.json.encode(terms.rules).decode(),
    }


def _entry_row(line: EntryRow, decimals: int) -> Row:
    entry = line.entry
    return {
        "line": "entry",
        "pool": entry.pool,
        "entry": entry.entry,
        "seq": entry.seq,
        "ts": entry.ts,
        "kind": entry.kind,
        "account": entry.account,
        "policy": entry.policy,
        "amount": format_units(entry.amount, decimals),
        "balance": format_units(entry.balance, decimals),
        "profits": format_units(entry.profits, decimals),
        "version": entry.terms,
        "recordedAt": _written(line.recorded_at),
        "hash": line.hash.hex(),
    }


def _opening(line: EntryRow, secrets: Secrets) -> Row:
    entry = line.entry
    seal, salt = seal_parts(entry.seal), secrets.salt(seal_domain(entry.pool), entry.entry, entry.seal)
    found = {"keyId": seal.key_id.hex(), "commitment": seal.commitment.hex(), "salt": salt.hex() if salt else ""}
    return {name: value for name, value in found.items() if value}


def _cycle_row(pool: str, row: CycleRow, decimals: int) -> Row:
    return {
        "line": "cycle",
        "pool": pool,
        "entry": row.entry,
        "ts": row.at,
        "balance": format_units(row.pool, decimals),
        "version": row.terms,
        "cycle": row.cycle,
        "capsLeft": format_units(row.caps_left, decimals),
        "rate": row.rate,
        "budget": format_units(row.budget, decimals),
        "returned": format_units(row.returned, decimals),
        "weight": format_units(row.weight, decimals),
        "completed": row.completed,
        "shareIndex": str(row.share_index),
        "rem": str(row.rem),
    }


def _pool_row(row: PoolRow, decimals: int) -> Row:
    return {
        "line": "pool",
        "pool": row.pool,
        "entry": row.entry,
        "balance": format_units(row.balance, decimals),
        "version": row.terms,
        "hash": row.head.hex(),
        "cycle": row.cycle,
        "weight": format_units(row.weight, decimals),
        "shareIndex": str(row.share_index),
        "rem": str(row.rem),
        "fees": format_units(row.fees, decimals),
        "inflow": format_units(row.inflow, decimals),
        "released": format_units(row.released, decimals),
        "settled": format_units(row.settled, decimals),
        "paidOut": format_units(row.paid_out, decimals),
        "policies": row.policies,
    }


def _written(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")
