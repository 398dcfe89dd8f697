"""Rows that statements of queries.sql take as arrays, one parameter per column.

The fields of a row type are the columns of the statement's `unnest`, in the same order.
"""

from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from fundsvc.core.adl.order import OrderState, State
from fundsvc.core.contracts import Contract
from fundsvc.core.events import Rejected
from fundsvc.core.fund.chain import Entry
from fundsvc.core.fund.settlement import FundState
from fundsvc.core.policy import Policies
from fundsvc.store.policies import policies_body


class ListingRow(NamedTuple):
    """A listed contract; `specification` is JSON text."""

    symbol: str
    settle_currency: str
    settle_decimals: int
    price_decimals: int
    multiplier: Decimal
    is_inverse: bool
    specification: str


class RejectedRow(NamedTuple):
    """A rejected event; the last three columns are None for an event without a sequence."""

    stream_id: str
    position: int
    reason: str
    detail: str
    codec: str
    body: bytes
    event_symbol: str | None
    event_seq: int | None
    digest: bytes | None


class ReplayedRow(NamedTuple):
    """A rejected event that the message `settled_by` settled; `symbol` and `entry` name the entry that it wrote, if any."""

    stream_id: str
    position: int
    settled_by: str | None
    symbol: str | None
    entry: int | None


class MovedOrderRow(NamedTuple):
    """The columns of an ADL order that change."""

    symbol: str
    adl: int
    recovered: int
    executed: int
    unwound: int
    state: State
    round: int
    seq: int
    acknowledged: bool
    round_ms: int


class BookRow(NamedTuple):
    """A saved book; `body` is None if its positions have not changed. `is_whole` replaces all its parts."""

    symbol: str
    seq: int
    mark: int | None
    mark_ts: int
    mark_ts_max: int
    mark_seq: int
    body: bytes | None
    is_whole: bool


class BookPartRow(NamedTuple):
    """A part of a saved book."""

    symbol: str
    part: int
    body: bytes


class SuspensionRow(NamedTuple):
    """Whether the terms of a contract are in doubt."""

    symbol: str
    suspended: bool


class ClosingRow(NamedTuple):
    """The end of a contract; see `Closing`."""

    symbol: str
    at: int
    seq: int
    price: int


class PolicyRow(NamedTuple):
    """A recorded version of the policies; `body` is JSON text."""

    version: int
    body: str


ENTRY_COLUMNS = (*Entry.__struct_fields__, "hash")
"""The columns of an entry in the order of the statement `commit`. PostgreSQL sets `recorded_at`."""


def entry_columns(entries: Sequence[Entry], hashes: Sequence[bytes]) -> list[list[Any]]:
    """Returns one list per column of ENTRY_COLUMNS; `hashes` correspond to `entries` one to one."""
    columns = list(map(list, zip(*map(msgspec.structs.astuple, entries), strict=True)))
    return [*columns, list(hashes)] if columns else [[] for _ in ENTRY_COLUMNS]


def arrays(row_type: type[tuple[Any, ...]], rows: Iterable[tuple[Any, ...]]) -> list[list[Any]]:
    """Returns one list per column of a row type; empty lists without rows."""
    columns = list(map(list, zip(*rows, strict=True)))
    return columns or [[] for _ in row_type._fields]  # type: ignore[attr-defined]


def listing_row(contract: Contract, specification: Any) -> ListingRow:
    """Returns the row of a listing."""
    return ListingRow(
        contract.symbol,
        contract.settle_currency,
        contract.settle_decimals,
        contract.price_decimals,
        contract.multiplier,
        contract.is_inverse,
        msgspec.json.encode(specification).decode(),
    )


def fund_row(state: FundState) -> tuple[Any, ...]:
    """Returns the row of a fund: the fields of FundState, with the guard as JSON text."""
    return state._replace(guard=msgspec.json.encode(state.guard).decode() if state.guard else None)  # type: ignore[arg-type]


def rejected_row(event: Rejected) -> RejectedRow:
    """Returns the row of a rejected event."""
    *columns, identity = msgspec.structs.astuple(event)
    return RejectedRow(*columns, *(identity or (None, None, None)))


def replayed_row(stream_id: str, position: int, settled_by: str | None, entry: Entry | None) -> ReplayedRow:
    """Returns the row of a rejected event that a replay settled."""
    return ReplayedRow(stream_id, position, settled_by, entry.symbol if entry else None, entry.entry if entry else None)


moved_order_row: Callable[[OrderState], tuple[Any, ...]] = attrgetter(*MovedOrderRow._fields)
"""Returns the row of an ADL order that changed."""


def policy_row(policies: Policies) -> PolicyRow:
    """Returns the row of a version of the policies."""
    return PolicyRow(policies.version, policies_body(policies))
