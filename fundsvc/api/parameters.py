"""What may be asked: one struct per question, its types and bounds the whole rule, and how a wrong one is told."""

from functools import cache
from typing import Annotated, TypeVar

import msgspec
from msgspec import UNSET, UnsetType, inspect
from multidict import MultiMapping

from fundsvc.api.errors import BadParameter
from fundsvc.core.chain import Kind
from fundsvc.core.numbers import INT64_MAX

SHOWN_LENGTH_MAX = 60
"""How much of a wrong value an error quotes: enough to recognise it."""

PAGE_ENTRIES_MAX = 500
"""KuCoin's own limit for a page."""

PAGE_ENTRIES = 10
"""KuCoin's own default."""

Entry = Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX)]
Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX)]


class Query(msgspec.Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    """Base of the questions; on its own, one without parameters."""


class HistoryQuery(Query, frozen=True):
    """A page of a ledger: `maxCount` entries after `offset` (an entry number) if `forward`, else before it or the newest."""

    offset: Entry | UnsetType = UNSET
    forward: bool = False
    max_count: Annotated[int, msgspec.Meta(ge=1, le=PAGE_ENTRIES_MAX)] = PAGE_ENTRIES
    start_at: Milliseconds = 0
    end_at: Milliseconds = INT64_MAX
    kind: Kind | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.start_at > self.end_at:
            raise BadParameter(f"startAt is {self.start_at}: it must not be after endAt, {self.end_at}")


Q = TypeVar("Q", bound=Query)


def read_query(query: type[Q], given: MultiMapping[str]) -> Q:
    """The question that a request's parameters make; raises BadParameter, naming what was given and what is allowed."""
    fields = _fields(query)
    for name in given:
        if name not in fields:
            raise BadParameter(f"{_shown(name)} is no parameter here; allowed: {', '.join(fields) or 'none'}")
        if len(given.getall(name)) > 1:
            raise BadParameter(f"{name} is given more than once")
    try:
        return msgspec.convert(dict(given), query, strict=False)
    except msgspec.ValidationError as error:
        name = str(error).rpartition("$.")[2].rstrip("`")
        raise BadParameter(f"{name} is {_shown(given[name])}: it must be {_allowed(fields[name])}") from None


@cache
def _fields(query: type[Query]) -> dict[str, inspect.Type]:
    return {field.encode_name: field.type for field in inspect.type_info(query).fields}  # type: ignore[attr-defined]


def _allowed(kind: inspect.Type) -> str:
    match kind:
        case inspect.IntType(ge=low, le=high):
            return f"an integer from {low} to {high}"
        case inspect.LiteralType(values=values):
            return f"one of {', '.join(map(str, values))}"
        case inspect.BoolType():
            return "true or false"
        case _:
            raise TypeError(f"no words for a parameter of type {kind}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_LENGTH_MAX else text[:SHOWN_LENGTH_MAX] + "...")
