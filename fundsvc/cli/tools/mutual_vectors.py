"""Runs conformance vectors of the mutual: a pool's configuration, events, and all that must come out.

Amounts are decimal strings of the pool's asset, compared in their shortest form. `tests/vectors/mutual/README.md` defines the
fields.
"""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from fundsvc.cli.tools.vectors import Outcome, VectorError, differences_of, run_vector, snake_case
from fundsvc.core.events import Reason, Rejection
from fundsvc.core.numbers import format_units, to_units
from fundsvc.mutual.codec import decode
from fundsvc.mutual.core.accounts import Account
from fundsvc.mutual.core.chain import Entry
from fundsvc.mutual.core.pool import Pool
from fundsvc.mutual.core.rows import CycleRow, PolicyRow, PoolRow, State
from fundsvc.mutual.core.terms import Terms

POOL = "VECTOR"
"""The name of the pool: a vector has one pool, and its events do not name it."""

_MONEY = {
    *("amount", "balance", "arrears", "payable", "paidOut", "accumulated", "face", "cap", "paid", "due", "fees", "inflow"),
    *("released", "settled", "capsLeft", "budget", "returned", "weight", "pool"),
}
"""The expected fields that are amounts, where they are text."""


class MutualVector(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A vector as it is in the file. `pool` has the keys of the terms in camelCase, events are the wire's without `pool`."""

    name: str
    pool: dict[str, Any]
    events: tuple[dict[str, Any], ...]
    expect: dict[str, Any]
    source: str = ""


def run_any_vector(vector: dict[str, Any]) -> Outcome:
    """Runs a vector of the mutual, which has a `pool`, or of the reserve; raises VectorError if it is neither."""
    return run_mutual_vector(vector) if "pool" in vector else run_vector(vector)


def run_mutual_vector(vector: dict[str, Any]) -> Outcome:
    """Runs a vector and compares its complete outcome; raises VectorError if it is not a vector."""
    try:
        read = msgspec.convert(vector, MutualVector)
        terms = msgspec.convert({snake_case(key): value for key, value in read.pool.items()}, Terms)
        expected = _shortest(read.expect, terms.decimals)
    except (msgspec.ValidationError, ValueError, ArithmeticError) as error:
        raise VectorError(f"not a vector: {error}") from None
    pool = Pool(PoolRow(POOL), {1: terms.rules()})
    rejected = tuple(_apply(pool, read.events))
    got = _result(pool, rejected)
    missing = {key: None for key in got if key not in expected}
    differences = tuple(differences_of("expect", expected | missing, got | dict.fromkeys(expected.keys() - got.keys())))
    return Outcome("failed" if differences else "passed", differences)


def _apply(pool: Pool, events: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Applies the events in stream order; yields the rejected ones. A conflict is counted as a duplicate."""
    for number, event in enumerate(events):
        try:
            for decoded in decode("json", msgspec.json.encode({"pool": POOL} | event)):
                pool.apply(decoded)
        except Rejection as rejection:
            if rejection.reason == Reason.CONFLICT:
                pool.draft.duplicates += 1
            else:
                yield {"event": number, "reason": rejection.reason.value}


def _result(pool: Pool, rejected: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The actual outcome in the shape of `expect`."""
    units = _Units(pool.rules.decimals)
    live = [_policy(policy, pool, units) for policy in pool.register.save_policies()]
    accounts = sorted(pool.register.accounts.values(), key=lambda account: account.name)
    batch = pool.take()
    ended = [_policy(policy, pool, units) for policy in batch.policies if policy.state > State.FROZEN]
    return {
        "entries": [_entry(entry, units) for entry in batch.entries],
        "accounts": [_account(account, units) for account in accounts],
        "policies": sorted(live + ended, key=lambda policy: policy["policy"]),
        "pool": _pool(batch.pool, units),
        "cycles": [_cycle(cycle, units) for cycle in batch.cycles],
        "duplicates": batch.duplicates,
        "rejected": list(rejected),
    }


class _Units:
    """Formats amounts in atoms as the shortest decimal text."""

    def __init__(self, decimals: int) -> None:
        self._decimals = decimals

    def texts(self, **amounts: int) -> dict[str, str]:
        """Returns the amounts as text, by their names in vectors."""
        return {camel_case(name): format_units(amount, self._decimals) for name, amount in amounts.items()}


def camel_case(name: str) -> str:
    """Returns a name in camelCase."""
    first, *others = name.split("_")
    return first + "".join(map(str.title, others))


def _entry(entry: Entry, units: _Units) -> dict[str, Any]:
    texts = units.texts(amount=entry.amount, pool=entry.balance)
    given = {"entry": entry.entry, "seq": entry.seq, "ts": entry.ts, "kind": entry.kind}
    return given | {"account": entry.account, "policy": entry.policy} | texts


def _account(account: Account, units: _Units) -> dict[str, Any]:
    texts = units.texts(
        balance=account.balance,
        arrears=account.arrears,
        payable=account.payable,
        paid_out=account.paid_out,
        accumulated=account.accumulated,
    )
    return {"account": account.name, "enabled": account.enabled, "unfunded": account.unfunded} | texts


def _policy(policy: PolicyRow, pool: Pool, units: _Units) -> dict[str, Any]:
    standing = pool.standing(policy)
    times = {"issuedAt": policy.issued_at, "activeAt": standing.active_at, "expiresAt": policy.expires_at}
    texts = units.texts(face=policy.face, cap=policy.cap, paid=policy.paid, due=standing.due)
    return {"policy": policy.policy, "account": policy.account, "state": policy.state.name} | times | texts


def _pool(row: PoolRow, units: _Units) -> dict[str, Any]:
    texts = units.texts(
        balance=row.balance,
        fees=row.fees,
        inflow=row.inflow,
        released=row.released,
        settled=row.settled,
        paid_out=row.paid_out,
        weight=row.weight,
    )
    return {"index": str(row.share_index), "rem": str(row.rem)} | texts


def _cycle(row: CycleRow, units: _Units) -> dict[str, Any]:
    texts = units.texts(
        pool=row.pool,
        caps_left=row.caps_left,
        budget=row.budget,
        returned=row.returned,
        weight=row.weight,
    )
    numbers = {"cycle": row.cycle, "at": row.at, "rate": row.rate, "completed": row.completed}
    return numbers | {"index": str(row.share_index), "rem": str(row.rem)} | texts


def _shortest(expected: Any, decimals: int, key: str = "") -> Any:
    """Returns the same with every amount as the shortest decimal text."""
    if isinstance(expected, list):
        return [_shortest(element, decimals) for element in expected]
    if isinstance(expected, dict):
        return {name: _shortest(value, decimals, name) for name, value in expected.items()}
    if key in _MONEY:
        return format_units(to_units(Decimal(expected), decimals), decimals)
    return expected
