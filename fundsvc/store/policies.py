"""Stores recorded policies: a version's number, and its body as JSON."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import asyncpg
import msgspec

from fundsvc.core.policy import DrawdownGuard, Policies, Policy, TakeoverPolicy


def policies_body(policies: Policies) -> str:
    """Returns the stored JSON of a version."""
    return msgspec.json.encode({"default": policies.default, "contracts": policies.contracts}).decode()


def policies_from(row: asyncpg.Record) -> Policies:
    """Builds the version from a row; ignores keys that a later version of the service wrote."""
    body = msgspec.json.decode(row["body"])
    contracts = {symbol: _policy(keys) for symbol, keys in body["contracts"].items()}
    return Policies(row["version"], _policy(body["default"]), contracts)


async def policies_of(
    fetch: Callable[..., Awaitable[list[asyncpg.Record]]], symbols: Sequence[str], configured: Callable[[str], Policy]
) -> dict[str, dict[int, Policy]]:
    """Returns all recorded policies of contracts, by version. `fetch` runs a statement: name, parameters.

    Version 0 is the policy before the partition recorded any: the first recorded policy, or else the configured one.
    """
    found: dict[str, dict[int, Policy]] = {symbol: {} for symbol in symbols}
    for row in await fetch("policies_of", symbols):
        found[row["symbol"]][row["version"]] = _policy(msgspec.json.decode(row["policy"]))
    return {symbol: {0: versions.get(1) or configured(symbol), **versions} for symbol, versions in found.items()}


def _policy(keys: dict[str, Any]) -> Policy:
    guard = keys.get("drawdown_guard")
    known = _known(keys, Policy) | ({"drawdown_guard": _known(guard, DrawdownGuard)} if guard else {})
    if "takeover" in known:
        known["takeover"] = _known(known["takeover"], TakeoverPolicy)
    return msgspec.convert(known, Policy)


def _known(keys: dict[str, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {name: value for name, value in keys.items() if name in kind.__struct_fields__}
