"""Rows of the mutual between PostgreSQL and the core. Index, weight and remainders are numeric there, integers here."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any, NamedTuple

import asyncpg
import msgspec

from fundsvc.core.events import Rejected
from fundsvc.mutual.core.chain import Entry
from fundsvc.mutual.core.rows import AccountRow, CycleRow, PolicyRow, PoolRow, State
from fundsvc.mutual.core.terms import Rules

ENTRY_COLUMNS = (
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
    "terms",
    "seal",
    "hash",
)
ACCOUNT_COLUMNS = ("pool", "number", *AccountRow._fields)
POLICY_COLUMNS = ("pool", *PolicyRow._fields)
CYCLE_COLUMNS = ("pool", *("balance" if name == "pool" else name for name in CycleRow._fields))
"""The columns that COPY writes; those of a cycle name the pool's balance `balance`."""

COPIED = {
    "mutual_entries": ENTRY_COLUMNS,
    "mutual_accounts": ACCOUNT_COLUMNS,
    "mutual_policies": POLICY_COLUMNS,
    "mutual_cycles": CYCLE_COLUMNS,
}
"""The columns that COPY writes, by table."""


class Totals(NamedTuple):
    """What readers show of a pool beside its row: numbers of live and of active policies, and the caps left in atoms."""

    live: int = 0
    active: int = 0
    caps_left: int = 0


class Applied(NamedTuple):
    """A rejected event that the message `settled_by` applied later, by its place or, if that is None, by its sequence."""

    stream_id: str | None
    position: int | None
    event_seq: int | None
    settled_by: str


class RejectedRow(NamedTuple):
    """A rejected event; sequence and digest are None for an event without a sequence."""

    stream_id: str
    position: int
    reason: str
    detail: str
    codec: str
    body: bytes
    event_seq: int | None
    digest: bytes | None


class TermsRow(NamedTuple):
    """A version of the terms of a pool; entries from `entry` on have this version or a later one."""

    version: int
    rules: Rules
    entry: int
    recorded_at: datetime


_IDENTITY = (None, None, None)
_STATES = tuple(State)
_COVER, _ACTIVITY = AccountRow._fields.index("cover"), AccountRow._fields.index("activity")


def rejected_row(event: Rejected) -> RejectedRow:
    """Returns the row of a rejected event."""
    _, seq, digest = event.identity or _IDENTITY
    return RejectedRow(event.stream_id, event.position, event.reason, event.detail, event.codec, event.body, seq, digest)


_entry_fields = attrgetter(*ENTRY_COLUMNS[:-1])


def entry_record(entry: Entry, digest: bytes) -> tuple[Any, ...]:
    """Returns the values of ENTRY_COLUMNS."""
    return *_entry_fields(entry), digest


def account_values(row: AccountRow) -> tuple[Any, ...]:
    """Returns the values of an account; `unnest` takes no arrays of different length, so cover and activity are text."""
    return row._replace(cover=_array(row.cover), activity=_array(row.activity))  # type: ignore[arg-type]


def changed_policy(row: PolicyRow) -> tuple[Any, ...]:
    """Returns what can change of a policy, after its number."""
    return row.policy, row.state, row.active_at, row.expires_at, row.paid, row.moved, row.entered


def columns(rows: Iterable[Sequence[Any]], count: int) -> list[list[Any]]:
    """Returns one list per column; `count` is their number."""
    return list(map(list, zip(*rows, strict=True))) or [[] for _ in range(count)]


def pool_row_from(row: asyncpg.Record) -> PoolRow:
    """Builds the state of a pool from a row with its columns."""
    values = {name: row[name] for name in PoolRow._fields}
    return PoolRow(**values | {name: int(row[name]) for name in ("share_index", "weight", "rem")})


def account_from(row: Iterable[Any]) -> AccountRow:
    """Builds the state of an account from the values of its fields."""
    values = list(row)
    values[_COVER], values[_ACTIVITY] = tuple(values[_COVER]), tuple(values[_ACTIVITY])
    return AccountRow(*values)


def policy_from(row: Iterable[Any]) -> PolicyRow:
    """Builds the state of a policy from the values of its fields."""
    policy, account, state, terms, face, cap, issued_at, active_at, expires_at, paid, moved, entered = row
    return PolicyRow(
        policy, account, _STATES[state], terms, face, cap, issued_at, active_at, expires_at, paid, moved, int(entered)
    )


def cycle_from(row: asyncpg.Record) -> CycleRow:
    """Builds a cut-off from the values of its fields."""
    cycle = CycleRow(*row)
    return cycle._replace(
        caps_left=int(cycle.caps_left), weight=int(cycle.weight), share_index=int(cycle.share_index), rem=int(cycle.rem)
    )


def rules_from(text: str) -> Rules:
    """Decodes stored rules."""
    return msgspec.json.decode(text, type=Rules)


def terms_from(row: asyncpg.Record) -> TermsRow:
    """Builds a version of the terms from a row of `load_terms`."""
    return TermsRow(row["version"], rules_from(row["rules"]), row["entry"], row["recorded_at"])


def rules_text(rules: Rules) -> str:
    """Encodes rules for the database."""
    return msgspec.json.encode(rules).decode()


def _array(numbers: Iterable[int]) -> str:
    return f"{{{','.join(map(str, numbers))}}}"
