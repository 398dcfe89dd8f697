"""Query parameters and bodies: one struct per route, whose types and bounds are the complete rule, and their parsing."""

from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
from msgspec import UNSET, UnsetType, inspect
from multidict import MultiMapping

from fundsvc.api.http.big_integers import Numbers
from fundsvc.api.http.errors import BadParameter, MissingParameter
from fundsvc.core.adl.order import State
from fundsvc.core.adl.valuation import SideName
from fundsvc.core.events import Account, Number, Positive, Timestamp
from fundsvc.core.fund.chain import Kind
from fundsvc.core.fund.fullness import CostOfCapital, CostOfLoss, HistoryDays, Move, PeriodHours, Positions, RuleName
from fundsvc.core.fund.fullness import Share as MarkShare
from fundsvc.core.numbers import INT64_MAX
from fundsvc.core.policy import MINUTE_MS, Share
from fundsvc.wire.duplicate_keys import decode_json

SHOWN_LENGTH_MAX = 60
"""Characters of an invalid value that an error message quotes."""

PAGE_ENTRIES_MAX = 500
"""KuCoin's own limit for a page."""

PAGE_ENTRIES = 10
"""KuCoin's own default."""

ACTIVITY_MAX, ACTIVITY = 100, 50
"""The limit of the latest steps of ADL, and the default. More make a page of the browser long, and the query slower."""

CANDLES_MAX = 500
"""The limit of KuCoin's klines."""

Entry = Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX - 1)]
"""An offset. The next number must fit 64 bits too."""

ProducerId = Annotated[str, msgspec.Meta(min_length=0, max_length=128, pattern="^[!-~]*$")]
"""Distinguishes producers whose tokens have the same subject."""

WholeUsdt = Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX)]

Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX)]


class Parameters(msgspec.Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    """Base of all queries and bodies; itself a query without parameters."""


class Query(Parameters, frozen=True, kw_only=True):
    """Base of the queries of API v1."""

    numbers: Numbers = "number"


class PostQuery(Query, frozen=True, kw_only=True):
    """The producer, if several share the subject of a token, and the stream epoch of its cursor."""

    producer_id: ProducerId = ""
    stream_epoch: Entry | UnsetType = UNSET


class FundsQuery(Query, frozen=True, kw_only=True):
    """Whether a list of funds contains those of closed contracts."""

    closed: bool = False


class CursorQuery(Query, frozen=True):
    """The producer that reads the cursor, if several share the subject of a token."""

    producer_id: ProducerId = ""


class HistoryQuery(Query, frozen=True):
    """A page of a ledger: `maxCount` entries after `offset` (an entry number) if `forward`, else before it.

    Without `offset` the page starts at the first entry if `forward`, else at the newest.
    """

    offset: Entry | UnsetType = UNSET
    forward: bool = False
    max_count: Annotated[int, msgspec.Meta(ge=1, le=PAGE_ENTRIES_MAX)] = PAGE_ENTRIES
    start_at: Milliseconds = 0
    end_at: Milliseconds = INT64_MAX
    kind: Kind | UnsetType = UNSET

    def __post_init__(self) -> None:
        _check_order("startAt", self.start_at, "endAt", self.end_at)


class InventoryQuery(Query, frozen=True):
    """A page of the tranches of an inventory; `offset` is a takeover entry. Pages work as in `history`."""

    offset: Entry | UnsetType = UNSET
    forward: bool = False
    max_count: Annotated[int, msgspec.Meta(ge=1, le=PAGE_ENTRIES_MAX)] = PAGE_ENTRIES
    side: SideName | UnsetType = UNSET


class SpanQuery(Parameters, frozen=True):
    """A time span by the engine's clock; both ends are included."""

    start_at: Milliseconds = 0
    end_at: Milliseconds = INT64_MAX

    def __post_init__(self) -> None:
        _check_order("startAt", self.start_at, "endAt", self.end_at)


class MomentQuery(Query, frozen=True):
    """A moment in milliseconds since the epoch."""

    ts: Timestamp


class CandlesQuery(Query, frozen=True):
    """Candles of `granularity` minutes, from the one at `from` to the one at `to`; by default the latest."""

    granularity: Literal[60, 1440] = 60
    begin: Timestamp | UnsetType = msgspec.field(default=UNSET, name="from")
    end: Timestamp | UnsetType = msgspec.field(default=UNSET, name="to")

    def starts(self, now_ms: int) -> range:
        """Returns the start times of the candles; raises BadParameter for too many."""
        width = self.granularity * MINUTE_MS
        end = now_ms if self.end is UNSET else self.end
        last = end - end % width
        begin = max(0, last - (CANDLES_MAX - 1) * width) if self.begin is UNSET else self.begin
        _check_order("from", begin, "to", end)
        starts = range(begin - begin % width, last + width, width)
        if len(starts) > CANDLES_MAX:
            raise BadParameter(
                f"from {begin} to {end} are {len(starts)} candles of {self.granularity} minutes: request at most {CANDLES_MAX}"
            )
        return starts


class ChartQuery(Query, frozen=True):
    """A time span of a chart by the engine's clock; by default from the first entry to the last one."""

    begin: Timestamp = msgspec.field(default=0, name="from")
    end: Timestamp | UnsetType = msgspec.field(default=UNSET, name="to")

    def __post_init__(self) -> None:
        if self.end is not UNSET:
            _check_order("from", self.begin, "to", self.end)


class OrdersQuery(Query, frozen=True):
    """A page of a contract's ADL orders; `offset` is an order number. Pages work as in `history`."""

    offset: Entry | UnsetType = UNSET
    forward: bool = False
    max_count: Annotated[int, msgspec.Meta(ge=1, le=PAGE_ENTRIES_MAX)] = PAGE_ENTRIES
    state: State | UnsetType = UNSET


class WhatIfQuery(Query, frozen=True):
    """Parameters of a target size in place of those of the contract's policy; see section "Target size" of the handbook."""

    rule: RuleName | UnsetType = UNSET
    period_hours: PeriodHours | UnsetType = UNSET
    history_days: HistoryDays | UnsetType = UNSET
    cost_of_capital: CostOfCapital | UnsetType = UNSET
    cost_of_loss: CostOfLoss | UnsetType = UNSET
    positions: Positions | UnsetType = UNSET
    move: Move | UnsetType = UNSET
    share: MarkShare | UnsetType = UNSET


class RoundQuery(Query, frozen=True):
    """A page of the allocations of a round by rank: `maxCount` positions after rank `offset`."""

    offset: Entry = 0
    max_count: Annotated[int, msgspec.Meta(ge=1, le=PAGE_ENTRIES_MAX)] = PAGE_ENTRIES


class AccountQuery(Query, frozen=True):
    """The account; by default that of a trader's token."""

    account: Account | UnsetType = UNSET


class AccountExportQuery(Parameters, frozen=True):
    """The account; by default that of a trader's token."""

    account: Account | UnsetType = UNSET


class ActivityQuery(Query, frozen=True):
    """The number of steps."""

    max_count: Annotated[int, msgspec.Meta(ge=1, le=ACTIVITY_MAX)] = ACTIVITY


class DeleveragedQuery(AccountQuery, frozen=True):
    """A page of an account's reductions; `offset` is the number of a reduction. Pages work as in `history`."""

    offset: Entry | UnsetType = UNSET
    forward: bool = False
    max_count: Annotated[int, msgspec.Meta(ge=1, le=PAGE_ENTRIES_MAX)] = PAGE_ENTRIES


class PreviewTakeoverPolicy(Parameters, frozen=True):
    """Replacements for keys of `takeover` of the contract's policy. `valueMax` is in whole USDT, null for no limit."""

    mode: Literal["capacity", "adl", "fund"] | UnsetType = UNSET
    value_max: WholeUsdt | UnsetType | None = UNSET


class PreviewPolicy(Parameters, frozen=True):
    """Replacements for keys of the contract's policy in this preview."""

    waterfall: Literal["fund_then_adl", "adl_then_fund"] | UnsetType = UNSET
    eligible: Literal["profitable", "all"] | UnsetType = UNSET
    allocation: Literal["queue", "pro_rata", "capped"] | UnsetType = UNSET
    cap_share: Share | UnsetType = UNSET
    takeover: PreviewTakeoverPolicy = PreviewTakeoverPolicy()


class PreviewBody(Parameters, frozen=True, kw_only=True):
    """A fill as the engine sends it, and changes of the contract's policy. `ts` is the current time by default."""

    type: Literal["fill"] = "fill"
    side: Literal["sell", "buy"]
    lots: Positive
    price: Number
    bankruptcy_price: Number
    ts: Timestamp | UnsetType = UNSET
    policy: PreviewPolicy = PreviewPolicy()


class TakeoverPreviewBody(Parameters, frozen=True, kw_only=True):
    """A takeover as the engine sends it, and changes of the contract's policy. `ts` is the current time by default."""

    type: Literal["takeover"]
    side: Literal["sell", "buy"]
    lots: Positive
    bankruptcy_price: Number
    ts: Timestamp | UnsetType = UNSET
    policy: PreviewPolicy = PreviewPolicy()


def _check_order(first: str, begin: int, second: str, end: int) -> None:
    if begin > end:
        raise BadParameter(f"{first} is {begin}: it must not be after {second}, {end}")


Q = TypeVar("Q", bound=Parameters)


def read_query(query: type[Q], given: MultiMapping[str]) -> Q:
    """Parses query parameters; raises BadParameter with the invalid value and the permitted ones."""
    fields = _fields(query)
    for name in given:
        if name not in fields:
            raise BadParameter(f"{_shown(name)} is not a parameter of this path; allowed: {', '.join(fields) or 'none'}")
        if len(given.getall(name)) > 1:
            raise BadParameter(f"{name} is given more than once")
    for name, field in fields.items():
        if field.required and name not in given:
            raise MissingParameter(f"{name} is missing: it must be {_allowed(field.type)}")
    try:
        return msgspec.convert(dict(given), query, strict=False)
    except msgspec.ValidationError as error:
        name = str(error).rpartition("$.")[2].rstrip("`")
        raise BadParameter(f"{name} is {_shown(given[name])}: it must be {_allowed(fields[name].type)}") from None


class _Typed(msgspec.Struct):
    type: str = ""


def read_body(kind: Any, body: bytes) -> Any:
    """Parses a JSON body; raises BadParameter with the reason.

    `kind` is a struct, or a union of structs that differ in `type`. The first of these is the default.
    """
    try:
        return decode_json(body, _variant(kind, body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadParameter(f"the body is invalid: {error}") from None


def _variant(kind: Any, body: bytes) -> Any:
    """Returns the struct of a union that has the `type` of a body, the first one if none has it."""
    variants = get_args(kind)
    if not variants:
        return kind
    given = msgspec.json.decode(body, type=_Typed).type
    return next((one for one in variants if given in _fields(one)["type"].type.values), variants[0])  # type: ignore[attr-defined]


@cache
def _fields(query: type[Parameters]) -> dict[str, inspect.Field]:
    return {field.encode_name: field for field in inspect.type_info(query).fields}  # type: ignore[attr-defined]


def _allowed(kind: inspect.Type) -> str:
    match kind:
        case inspect.IntType(ge=low, le=high):
            words = f"an integer from {low} to {high}"
        case inspect.FloatType(gt=low, lt=None, le=high):
            words = f"a number above {low:g}, at most {high:g}"
        case inspect.FloatType(gt=low, lt=high):
            words = f"a number above {low:g} and below {high:g}"
        case inspect.LiteralType(values=values):
            words = f"one of {', '.join(map(str, values))}"
        case inspect.BoolType():
            words = "true or false"
        case inspect.Metadata(type=described):
            words = _allowed(described)
        case inspect.StrType(min_length=low, max_length=high):
            words = f"text of {low} to {high} characters"
        case _:
            raise TypeError(f"parameters of type {kind} have no description")
    return words


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_LENGTH_MAX else text[:SHOWN_LENGTH_MAX] + "...")
