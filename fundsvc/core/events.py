"""What arrives on a partition's stream: the events of the matching engine, and why one is refused.

The structs are the wire format itself (camelCase there); `fundsvc.wire.codec` turns bytes into them and back.
Prices and margins stay text until the contract, which knows their scale, is at hand.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from fundsvc.core.policy import Policy

Symbol = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Identifier = Annotated[str, msgspec.Meta(max_length=64)]
Account = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Currency = Annotated[str, msgspec.Meta(min_length=1, max_length=16)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
Signed = Annotated[int, msgspec.Meta(ge=-(2**63 - 1), le=2**63 - 1)]
Previous = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | UnsetType | None
"""The contract's sequence before an event's own; 0 for its first. Neither required nor sent where it is not known."""

Number = Annotated[str, msgspec.Meta(min_length=1, max_length=40, extra_json_schema={"pattern": r"^[0-9]+(\.[0-9]+)?$"})]
"""A plain decimal number. The pattern is told to whoever asks for a schema; parsing refuses what does not match."""

TIMESTAMP_MAX = 253_402_300_799_999
"""The last millisecond of the year 9999, with which Python's calendar ends."""

Timestamp = Annotated[int, msgspec.Meta(ge=0, le=TIMESTAMP_MAX)]
"""Milliseconds since the epoch by the engine's clock."""


class Event(
    msgspec.Struct, tag_field="type", rename="camel", forbid_unknown_fields=True, omit_defaults=True, frozen=True, gc=False
):
    """Base of all events. `seq`, where there is one, increases strictly per symbol over all types that have it."""


class Fill(Event, frozen=True, tag="fill"):
    """A liquidation fill: `lots` closed at `price`; `sell` closes a long, `buy` a short."""

    symbol: Symbol
    seq: Positive
    side: Literal["sell", "buy"]
    lots: Positive
    price: Number
    bankruptcy_price: Number
    ts: Timestamp
    trade_id: Identifier = ""
    order_id: Identifier = ""
    account: Identifier = ""
    prev_seq: Previous = UNSET


class Mark(Event, frozen=True, tag="mark"):
    """The mark price of a contract, and its index price. The last one wins; one whose `seq` is known is a duplicate."""

    symbol: Symbol
    price: Number
    ts: Timestamp
    index_price: Number | None = None
    seq: Positive | None = None


class Position(Event, frozen=True, tag="position"):
    """An account's position: signed lots (0 = closed); margin in settlement currency without unrealised PnL.

    In hedge mode `position_side` names the leg: `LONG` with lots >= 0, `SHORT` with lots <= 0. `BOTH` replaces both legs.
    `owner` names the person behind several accounts: ADL asks no account of the owner of the liquidated one. `seq` is the
    engine's own sequence of positions: per leg, an event whose `seq` is not above the last one is a duplicate.
    """

    symbol: Symbol
    account: Account
    lots: Signed
    entry_price: Number
    margin: Number
    ts: Timestamp
    position_side: Literal["BOTH", "LONG", "SHORT"] = "BOTH"
    owner: Identifier = ""
    seq: Positive | None = None


class Snapshot(Event, frozen=True, tag="snapshot"):
    """Encloses all positions of a contract: `end` closes every leg that no position since `begin` named."""

    symbol: Symbol
    phase: Literal["begin", "end"]
    ts: Timestamp


class AdlFill(Event, frozen=True, tag="adlFill"):
    """The engine executed part of ADL order number `adl` of the contract against `account`."""

    symbol: Symbol
    seq: Positive
    adl: Positive
    account: Account
    lots: Positive
    ts: Timestamp
    prev_seq: Previous = UNSET


class AdlEnd(Event, frozen=True, tag="adlEnd"):
    """The engine is done with the present round of ADL order number `adl`."""

    symbol: Symbol
    seq: Positive
    adl: Positive
    ts: Timestamp
    prev_seq: Previous = UNSET


class AdlAck(Event, frozen=True, tag="adlAck"):
    """The engine has received a round of an ADL order, so that it need not be announced again."""

    symbol: Symbol
    adl: Positive
    round: Positive
    ts: Timestamp


class AdlTimeout(Event, frozen=True, tag="adlTimeout"):
    """A round of an ADL order went unanswered for `round_seconds`: it ends. The owner of the partition appends this event."""

    symbol: Symbol
    adl: Positive
    round: Positive
    ts: Timestamp


class Rate(Event, frozen=True, tag="rate"):
    """The price of one unit of a currency in USDT."""

    currency: Currency
    price: Number
    ts: Timestamp


class PolicyChange(Event, frozen=True, tag="policy"):
    """From here on these policies apply to all contracts of the partition.

    Its owner appends the event when the configuration has changed.
    """

    version: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    default: Policy
    contracts: dict[Symbol, Policy]
    ts: Timestamp


class Listing(Event, frozen=True, tag="contract"):
    """Lists or updates a contract: KuCoin's object whole, nested because it has a `type` of its own."""

    contract: dict[str, Any]


class Reason(StrEnum):
    """Why an event cannot be settled; what no retry of the same bytes under the same rules would make good."""

    UNDECODABLE = "undecodable"
    UNKNOWN_TYPE = "unknown_type"
    INVALID_FIELD = "invalid_field"
    INVALID_NUMBER = "invalid_number"
    NOT_A_LIQUIDATION = "not_a_liquidation"
    UNKNOWN_SYMBOL = "unknown_symbol"
    WRONG_PARTITION = "wrong_partition"
    TOO_MANY_DECIMALS = "too_many_decimals"
    OUT_OF_RANGE = "out_of_range"
    CONTRACT_INVALID = "contract_invalid"
    CONTRACT_FIXED = "contract_fixed"
    ADL_ORDER_UNKNOWN = "adl_order_unknown"
    ADL_ORDER_CLOSED = "adl_order_closed"
    ADL_NOT_ASKED = "adl_not_asked"
    ADL_TOO_MANY_LOTS = "adl_too_many_lots"
    SUPERSEDED = "superseded"
    TS_OUT_OF_RANGE = "ts_out_of_range"
    CONFLICT = "conflict"
    LATE = "late"
    TERMS_IN_DOUBT = "terms_in_doubt"
    DATABASE_REFUSED = "database_refused"
    TOO_LARGE = "too_large"
    TOO_MANY_CONTRACTS = "too_many_contracts"


UNDER_TERMS = Fill | Mark | Position | Snapshot | AdlFill | AdlEnd
"""Events whose numbers mean what the contract's terms say."""

DETAIL_LENGTH_MAX = 500
"""A detail may quote what arrived, and what arrived may be anything."""


class Rejection(Exception):
    """An event that cannot be settled; kept whole in the ledger's database with this reason and detail."""

    def __init__(self, reason: Reason, detail: str) -> None:
        shown = detail if detail.isprintable() else ascii(detail)
        super().__init__(shown)
        self.reason = reason
        self.detail = shown[:DETAIL_LENGTH_MAX]


def terms_in_doubt(symbol: str) -> Rejection:
    """Why an event of a suspended contract is refused."""
    return Rejection(
        Reason.TERMS_IN_DOUBT,
        f"{symbol} was listed with other terms than its entries have: list it with theirs, or run"
        f" fundsvc contracts resume {symbol}",
    )


def check_replayable(event: Event | Rejection) -> None:
    """Raises Rejection for a state that later events have replaced: sent again, an old one would overwrite a newer one."""
    if isinstance(event, Mark | Position | Rate):
        tag = event.__struct_config__.tag
        raise Rejection(
            Reason.SUPERSEDED, f"a {tag} is not replayed, a newer one may be known: ask the engine to send it again"
        )


class Rejected(msgspec.Struct, frozen=True, gc=False):
    """A refused event as it is kept: where it came from, why it was refused, and its bytes.

    One with an engine sequence is found again by its contract, its sequence and the digest of what it says.
    """

    stream_id: str
    position: int
    reason: Reason
    detail: str
    codec: str
    body: bytes
    identity: tuple[str, int, bytes] | None = None
