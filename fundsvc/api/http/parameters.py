"""What may be asked: one struct per question, its types and bounds the whole rule, and how a wrong one is told."""

from functools import cache
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType, inspect
from multidict import MultiMapping

from fundsvc.api.http.big_integers import Numbers
from fundsvc.api.http.errors import BadParameter, MissingParameter
from fundsvc.core.adl.order import State
from fundsvc.core.events import Account, Number, Positive, Timestamp
from fundsvc.core.fund.chain import Kind
from fundsvc.core.numbers import INT64_MAX
from fundsvc.core.policy import MINUTE_MS, Share
from fundsvc.wire.duplicate_keys import decode_json

SHOWN_LENGTH_MAX = 60
"""How much of a wrong value an error quotes: enough to recognise it."""

PAGE_ENTRIES_MAX = 500
"""KuCoin's own limit for a page."""

PAGE_ENTRIES = 10
"""KuCoin's own default."""

CANDLES_MAX = 500
"""As KuCoin's klines."""

Entry = Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX - 1)]
"""The number before some other one, which must fit 64 bits too."""

ProducerId = Annotated[str, msgspec.Meta(min_length=0, max_length=128, pattern="^[!-~]*$")]
"""Tells senders apart whose tokens have the same subject."""

Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX)]


class Parameters(msgspec.Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    """Base of the questions, bodies and venues' questions; on its own, one without parameters."""


class Query(Parameters, frozen=True, kw_only=True):
    """Base of the questions of API v1; on its own, one without other parameters."""

    numbers: Numbers = "number"


class PostQuery(Parameters, frozen=True):
    """The producer that posts events, where several share the subject of a token, and the stream epoch of its cursor."""

    producer_id: ProducerId = ""
    stream_epoch: Entry | UnsetType = UNSET


class CursorQuery(Query, frozen=True):
    """The producer that reads the cursor, where several share the subject of a token."""

    producer_id: ProducerId = ""


class HistoryQuery(Query, frozen=True):
    """A page of a ledger: `maxCount` entries after `offset` (an entry number) if `forward`, else before it or the newest."""

    offset: Entry | UnsetType = UNSET
    forward: bool = False
    max_count: Annotated[int, msgspec.Meta(ge=1, le=PAGE_ENTRIES_MAX)] = PAGE_ENTRIES
    start_at: Milliseconds = 0
    end_at: Milliseconds = INT64_MAX
    kind: Kind | UnsetType = UNSET

    def __post_init__(self) -> None:
        _check_order("startAt", self.start_at, "endAt", self.end_at)


class SpanQuery(Parameters, frozen=True):
    """A time span by the engine's clock, both ends included."""

    start_at: Milliseconds = 0
    end_at: Milliseconds = INT64_MAX

    def __post_init__(self) -> None:
        _check_order("startAt", self.start_at, "endAt", self.end_at)


class MomentQuery(Query, frozen=True):
    """A moment in milliseconds since the epoch."""

    ts: Timestamp


class CandlesQuery(Query, frozen=True):
    """Candles of `granularity` minutes from the one that `from` lies in to the one that `to` lies in: by default the latest."""

    granularity: Literal[60, 1440] = 60
    begin: Timestamp | UnsetType = msgspec.field(default=UNSET, name="from")
    end: Timestamp | UnsetType = msgspec.field(default=UNSET, name="to")

    def starts(self, now_ms: int) -> range:
        """When the candles start; raises BadParameter where they are too many."""
        width = self.granularity * MINUTE_MS
        end = now_ms if self.end is UNSET else self.end
        last = end - end % width
        begin = max(0, last - (CANDLES_MAX - 1) * width) if self.begin is UNSET else self.begin
        _check_order("from", begin, "to", end)
        starts = range(begin - begin % width, last + width, width)
        if len(starts) > CANDLES_MAX:
            raise BadParameter(
                f"from {begin} to {end} are {len(starts)} candles of {self.granularity} minutes: ask for at most {CANDLES_MAX}"
            )
        return starts


class OrdersQuery(Query, frozen=True):
    """A page of a contract's ADL orders: as `HistoryQuery`, with `offset` an order number."""

    offset: Entry | UnsetType = UNSET
    forward: bool = False
    max_count: Annotated[int, msgspec.Meta(ge=1, le=PAGE_ENTRIES_MAX)] = PAGE_ENTRIES
    state: State | UnsetType = UNSET


class RoundQuery(Query, frozen=True):
    """A page of what a round asked, by rank: `maxCount` positions after rank `offset`."""

    offset: Entry = 0
    max_count: Annotated[int, msgspec.Meta(ge=1, le=PAGE_ENTRIES_MAX)] = PAGE_ENTRIES


class AccountQuery(Query, frozen=True):
    """About one account: a trader's own where none is given."""

    account: Account | UnsetType = UNSET


class DeleveragedQuery(AccountQuery, frozen=True):
    """A page of an account's reductions: as `HistoryQuery`, with `offset` the number of a reduction."""

    offset: Entry | UnsetType = UNSET
    forward: bool = False
    max_count: Annotated[int, msgspec.Meta(ge=1, le=PAGE_ENTRIES_MAX)] = PAGE_ENTRIES


class NoBody(Parameters, frozen=True):
    """Of a request that has none."""


class PreviewPolicy(Parameters, frozen=True):
    """What of the contract's policy is to be otherwise for once."""

    waterfall: Literal["fund_then_adl", "adl_then_fund"] | UnsetType = UNSET
    eligible: Literal["profitable", "all"] | UnsetType = UNSET
    allocation: Literal["queue", "pro_rata", "capped"] | UnsetType = UNSET
    cap_share: Share | UnsetType = UNSET


class PreviewBody(Parameters, frozen=True):
    """A fill as the engine would send it, by default now, and the policy to apply, by default the contract's."""

    side: Literal["sell", "buy"]
    lots: Positive
    price: Number
    bankruptcy_price: Number
    ts: Timestamp | UnsetType = UNSET
    policy: PreviewPolicy = PreviewPolicy()


def _check_order(first: str, begin: int, second: str, end: int) -> None:
    if begin > end:
        raise BadParameter(f"{first} is {begin}: it must not be after {second}, {end}")


Q = TypeVar("Q", bound=Parameters)


def read_query(query: type[Q], given: MultiMapping[str]) -> Q:
    """The question that a request's parameters make; raises BadParameter, naming what was given and what is allowed."""
    fields = _fields(query)
    for name in given:
        if name not in fields:
            raise BadParameter(f"{_shown(name)} is no parameter here; allowed: {', '.join(fields) or 'none'}")
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


def read_body(kind: type[Q], body: bytes) -> Q:
    """What a request's JSON body says; raises BadParameter, naming what is wrong with it."""
    try:
        return decode_json(body, kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadParameter(f"the body is not what it must be: {error}") from None


@cache
def _fields(query: type[Parameters]) -> dict[str, inspect.Field]:
    return {field.encode_name: field for field in inspect.type_info(query).fields}  # type: ignore[attr-defined]


def _allowed(kind: inspect.Type) -> str:
    match kind:
        case inspect.IntType(ge=low, le=high):
            return f"an integer from {low} to {high}"
        case inspect.LiteralType(values=values):
            return f"one of {', '.join(map(str, values))}"
        case inspect.BoolType():
            return "true or false"
        case inspect.Metadata(type=described):
            return _allowed(described)
        case inspect.StrType(min_length=low, max_length=high):
            return f"text of {low} to {high} characters"
        case _:
            raise TypeError(f"no words for a parameter of type {kind}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_LENGTH_MAX else text[:SHOWN_LENGTH_MAX] + "...")
