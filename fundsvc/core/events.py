"""The events of a partition's stream, and the reasons for rejecting one.

The structs define the wire format, in which names are camelCase; `fundsvc.wire.codec` decodes and encodes them. Prices and
margins are text, because only the contract determines their scale.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from fundsvc.core.generations import KEY_LENGTH_MAX
from fundsvc.core.policy import Policy

LedgerKey = Annotated[str, msgspec.Meta(min_length=1, max_length=KEY_LENGTH_MAX)]
Symbol = Annotated[str, msgspec.Meta(min_length=1, max_length=64, description="The symbol of the contract.")]
Identifier = Annotated[str, msgspec.Meta(max_length=64)]
Account = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Currency = Annotated[str, msgspec.Meta(min_length=1, max_length=16)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
Signed = Annotated[int, msgspec.Meta(ge=-(2**63 - 1), le=2**63 - 1)]
Sequence = Annotated[
    Positive,
    msgspec.Meta(
        description="The contract's sequence. It rises strictly over fill, takeover, unwind, settle, adlFill and adlEnd."
    ),
]
OwnSequence = Annotated[Positive, msgspec.Meta(description="A sequence of its own: an event that is not above it is ignored.")]
Previous = (
    Annotated[
        int,
        msgspec.Meta(
            ge=0, le=2**63 - 1, description="The contract's sequence before this one, 0 for the first. It makes gaps visible."
        ),
    ]
    | UnsetType
    | None
)
OrderNumber = Annotated[Positive, msgspec.Meta(description="The number of the ADL order of the contract.")]
RoundNumber = Annotated[Positive, msgspec.Meta(description="The number of the round of that order, from 1.")]

Number = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=40,
        extra_json_schema={"pattern": r"^[0-9]+(\.[0-9]+)?$"},
        description="A plain decimal number.",
    ),
]
"""A plain decimal number. The pattern is only part of the schema; the parser rejects other text."""

SETTLEMENT = "settlement"
"""The `order_id` of entries that close lots of a tranche at the settlement price. Their shortfalls do not escalate."""

TIMESTAMP_MAX = 253_402_300_799_999
"""The last millisecond of the year 9999, the last year of Python's calendar."""

Timestamp = Annotated[
    int,
    msgspec.Meta(ge=0, le=TIMESTAMP_MAX, description="Milliseconds since the Unix epoch."),
]


Side = Literal["sell", "buy"]
"""`sell` closes a long, `buy` closes a short."""


class Event(
    msgspec.Struct, tag_field="type", rename="camel", forbid_unknown_fields=True, omit_defaults=True, frozen=True, gc=False
):
    """The base of all events. `seq` rises strictly per symbol across fill, takeover, unwind, settle, adlFill and adlEnd."""


class Fill(Event, frozen=True, tag="fill"):
    """A liquidation fill: `lots` closed at `price`; `sell` closes a long, `buy` a short."""

    symbol: Symbol
    seq: Sequence
    side: Side
    lots: Positive
    price: Number
    bankruptcy_price: Number
    ts: Timestamp
    trade_id: Identifier = ""
    order_id: Identifier = ""
    account: Identifier = ""
    prev_seq: Previous = UNSET


class Takeover(Event, frozen=True, tag="takeover"):
    """`lots` of a liquidation that the market did not take; `sell` closes a long, so the fund takes over a long."""

    symbol: Symbol
    seq: Sequence
    side: Side
    lots: Positive
    bankruptcy_price: Number
    ts: Timestamp
    trade_id: Identifier = ""
    order_id: Identifier = ""
    account: Identifier = ""
    prev_seq: Previous = UNSET


class Unwind(Event, frozen=True, tag="unwind"):
    """The matching engine closed lots of the fund's inventory in the market; `sell` closes the fund's long."""

    symbol: Symbol
    seq: Sequence
    side: Side
    lots: Positive
    price: Number
    ts: Timestamp
    trade_id: Identifier = ""
    order_id: Identifier = ""
    prev_seq: Previous = UNSET


class Settle(Event, frozen=True, tag="settle"):
    """Settles the contract at `price`: closes the fund's inventory, ends the open ADL orders, and closes the contract."""

    symbol: Symbol
    seq: Sequence
    price: Number
    ts: Timestamp
    prev_seq: Previous = UNSET


class Mark(Event, frozen=True, tag="mark"):
    """The mark price of a contract, and optionally its index price. A mark replaces the one before.

    A mark whose `seq` is not above the last one is a duplicate.
    """

    symbol: Symbol
    price: Number
    ts: Timestamp
    index_price: Number | None = None
    seq: OwnSequence | None = None


class Position(Event, frozen=True, tag="position"):
    """An account's position: signed lots (0 = closed); margin in settlement currency without unrealised PnL.

    In hedge mode `position_side` names the leg: `LONG` with lots >= 0, `SHORT` with lots <= 0. `BOTH` replaces both legs.
    `owner` is the common owner of several accounts: ADL reduces no account of the owner of the liquidated account. `seq` is the
    matching engine's sequence of positions: an event whose `seq` is not above the last one of its leg is a duplicate.
    """

    symbol: Symbol
    account: Account
    lots: Signed
    entry_price: Number
    margin: Number
    ts: Timestamp
    position_side: Literal["BOTH", "LONG", "SHORT"] = "BOTH"
    owner: Identifier = ""
    seq: OwnSequence | None = None


class Snapshot(Event, frozen=True, tag="snapshot"):
    """Frames a complete list of a contract's positions: `end` closes every leg without a position event since `begin`."""

    symbol: Symbol
    phase: Literal["begin", "end"]
    ts: Timestamp


class AdlFill(Event, frozen=True, tag="adlFill"):
    """The matching engine executed lots of ADL order number `adl` of the contract against `account`."""

    symbol: Symbol
    seq: Sequence
    adl: OrderNumber
    account: Account
    lots: Positive
    ts: Timestamp
    prev_seq: Previous = UNSET


class AdlEnd(Event, frozen=True, tag="adlEnd"):
    """The matching engine has ended the current round of ADL order number `adl`."""

    symbol: Symbol
    seq: Sequence
    adl: OrderNumber
    ts: Timestamp
    prev_seq: Previous = UNSET


class AdlAck(Event, frozen=True, tag="adlAck"):
    """The matching engine has received a round of an ADL order. The service then stops announcing the round."""

    symbol: Symbol
    adl: OrderNumber
    round: RoundNumber
    ts: Timestamp


class AdlTimeout(Event, frozen=True, tag="adlTimeout"):
    """Ends a round of an ADL order that the matching engine did not answer within `round_seconds`.

    The owner of the partition appends this event. Its `symbol` is the ledger key.
    """

    symbol: LedgerKey
    adl: OrderNumber
    round: RoundNumber
    ts: Timestamp


class Rate(Event, frozen=True, tag="rate"):
    """The price of one unit of a currency in USDT."""

    currency: Currency
    price: Number
    ts: Timestamp


class PolicyChange(Event, frozen=True, tag="policy"):
    """Applies new policies to all contracts of the partition.

    The owner of the partition appends the event when the configuration has changed.
    """

    version: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    default: Policy
    contracts: dict[Symbol, Policy]
    ts: Timestamp


class Listing(Event, frozen=True, tag="contract"):
    """Lists or updates a contract. `contract` is KuCoin's complete object, nested because it has its own `type`."""

    contract: dict[str, Any]


class Reason(StrEnum):
    """Why an event cannot be settled. A retry of the same bytes under the same rules is rejected again.

    The last ones, from `insufficient` on, are reasons of the mutual.
    """

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
    INVENTORY_SHORT = "inventory_short"
    CONTRACT_CLOSED = "contract_closed"
    SUPERSEDED = "superseded"
    TS_OUT_OF_RANGE = "ts_out_of_range"
    CONFLICT = "conflict"
    LATE = "late"
    ARCHIVED = "archived"
    TERMS_IN_DOUBT = "terms_in_doubt"
    DATABASE_REFUSED = "database_refused"
    TOO_LARGE = "too_large"
    TOO_MANY_CONTRACTS = "too_many_contracts"
    INSUFFICIENT = "insufficient"
    NOT_FUNDED = "not_funded"
    UNKNOWN_POLICY = "unknown_policy"
    POLICY_OVER = "policy_over"
    UNKNOWN_POOL = "unknown_pool"
    TS_AHEAD = "ts_ahead"
    TERMS_FIXED = "terms_fixed"


UNDER_TERMS = Fill | Takeover | Unwind | Settle | Mark | Position | Snapshot | AdlFill | AdlEnd
"""Events whose numbers depend on the contract's terms. They are rejected while the terms are in doubt."""

DETAIL_LENGTH_MAX = 500
"""Details quote events, which may contain text of any length."""


class Rejection(Exception):
    """Raised for an event that cannot be settled. The database stores the event with this reason and detail."""

    def __init__(self, reason: Reason, detail: str) -> None:
        shown = detail if detail.isprintable() else ascii(detail)
        super().__init__(shown)
        self.reason = reason
        self.detail = shown[:DETAIL_LENGTH_MAX]


def contract_closed(symbol: str) -> Rejection:
    """Returns the rejection of an event whose contract is closed."""
    return Rejection(Reason.CONTRACT_CLOSED, f"{symbol} is closed and takes no events: send only listings of it")


def terms_in_doubt(symbol: str) -> Rejection:
    """Returns the rejection of an event whose contract is suspended."""
    return Rejection(
        Reason.TERMS_IN_DOUBT,
        f"{symbol} was listed with terms that differ from those of its entries: list it with the terms of its entries, or run"
        f" fundsvc contracts resume {symbol}",
    )


def check_replayable(event: Event | Rejection) -> None:
    """Raises Rejection for a mark, position or rate, because replaying an old one would overwrite a newer one."""
    if isinstance(event, Mark | Position | Rate):
        tag = event.__struct_config__.tag
        raise Rejection(
            Reason.SUPERSEDED,
            f"a {tag} cannot be replayed, because it may overwrite a newer one: let the matching engine send it again",
        )


class Rejected(msgspec.Struct, frozen=True, gc=False):
    """A rejected event as the database stores it: its place in the stream, the reason, and its bytes.

    `identity` is the contract, the sequence and the digest of an event with an engine sequence; None for other events.
    """

    stream_id: str
    position: int
    reason: Reason
    detail: str
    codec: str
    body: bytes
    identity: tuple[str, int, bytes] | None = None
