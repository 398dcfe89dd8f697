"""The insurance-fund endpoint of OKX: the ledger of a contract as typed changes, newest first, paged by time."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from fundsvc.api.fund_answers import SummaryAnswer
from fundsvc.api.http.application import find_contract
from fundsvc.api.http.errors import BadParameter, MissingParameter, NotFound, Problem, TooManyRequests
from fundsvc.api.http.parameters import Parameters, Query
from fundsvc.api.venues.facade import ErrorResponse, Facade, code_of
from fundsvc.core.contracts import Contract
from fundsvc.core.events import Currency, Symbol, Timestamp
from fundsvc.core.fund.chain import Kind
from fundsvc.core.numbers import INT64_MAX, format_units
from fundsvc.store.reader import EntryRow, Listed, Reader
from fundsvc.store.venue_histories import Histories, TurnRow

R = TypeVar("R", TurnRow, EntryRow)

InstrumentType = Literal["MARGIN", "SWAP", "FUTURES", "OPTION"]
Change = Literal["regular_update", "liquidation_balance_deposit", "bankruptcy_loss", "platform_revenue", "adl"]
AdlType = Literal["", "bal_adl_start", "adl_end"]

DETAILS_MAX = 100
"""OKX's limit and default for a page."""

CHANGES_MAX = 20_000
"""The most changes of one time on a page: twice the events of a message; building the page takes some 20 MB."""

READ_MAX = 500
"""Entries per query: each occupies the event loop for a few milliseconds."""

INSTRUMENTS: dict[str, InstrumentType] = {"FFWCSX": "SWAP", "FFICSX": "FUTURES"}
"""OKX's instrument types by KuCoin's contract types, perpetual and dated. A contract without a type counts as perpetual."""

CHANGES: dict[Kind, Change] = {
    "flat": "regular_update",
    "takeover": "regular_update",
    "deleverage": "regular_update",
    "carry_out": "regular_update",
    "carry_in": "regular_update",
    "surplus": "liquidation_balance_deposit",
    "refund": "liquidation_balance_deposit",
    "shortfall": "bankruptcy_loss",
    "cover": "bankruptcy_loss",
}
"""OKX's types of changes by kind of entry. Funds receive no revenue, so `platform_revenue` does not occur."""

CODES = {MissingParameter: "50014", BadParameter: "51000", NotFound: "51001", TooManyRequests: "50011", Problem: "50001"}
"""OKX's error codes. The last one means that the service is temporarily unavailable."""


class FundQuery(Parameters, frozen=True):
    """Changes of a contract's fund, newest first: earlier than `after` and later than `before`, which is OKX's convention.

    A page never ends between changes of the same time. If all its changes have the same time, it contains all changes of that
    time, even beyond its limit. `instFamily` or `uly` names the contract.
    """

    inst_type: Annotated[InstrumentType, msgspec.Meta(description="SWAP is a perpetual, FUTURES a dated contract")]
    type: Change | UnsetType = UNSET
    uly: Annotated[Symbol, msgspec.Meta(description="another name of instFamily")] | UnsetType = UNSET
    inst_family: Annotated[Symbol, msgspec.Meta(description="a contract")] | UnsetType = UNSET
    ccy: Annotated[Currency, msgspec.Meta(description="a settlement currency")] | UnsetType = UNSET
    before: Annotated[Timestamp, msgspec.Meta(description="changes later than this")] | UnsetType = UNSET
    after: Annotated[Timestamp, msgspec.Meta(description="changes earlier than this")] | UnsetType = UNSET
    limit: Annotated[int, msgspec.Meta(ge=1, le=DETAILS_MAX)] = DETAILS_MAX


class Detail(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """A change. `amt` is "" if the balance did not change. `balance` is "" at the end of ADL."""

    amt: str = ""
    balance: str = ""
    ccy: str
    ts: str
    type: Change
    adl_type: AdlType = ""
    max_bal: str = ""
    max_bal_ts: str = ""


class Fund(msgspec.Struct, rename="camel", frozen=True):
    """The changes of a contract. `total` is the sum of all funds in USD, taking one USDT as one USD; "" without a rate."""

    total: str
    inst_family: str
    inst_type: InstrumentType
    details: list[Detail]


class OkxEnvelope(msgspec.Struct, frozen=True):
    """The envelope of an answer or error. `code` is "0" for an answer."""

    code: str
    msg: str
    data: list[Fund]


SummaryReader = Callable[[Query], Awaitable[SummaryAnswer]]
"""Returns the sums of all funds as GET /api/v1/insurance-fund/summary answers them."""


class OkxEndpoints:
    """Converts the entries and ADL orders of the ledger."""

    def __init__(self, summary: SummaryReader, reader: Reader, histories: Histories) -> None:
        self._summary = summary
        self._reader = reader
        self._histories = histories
        self.endpoints = (FACADE.endpoint("/api/v5/public/insurance-fund", self.insurance_fund),)

    async def insurance_fund(self, query: FundQuery) -> OkxEnvelope:
        """Returns the changes of a contract's fund, and the times at which ADL began and ended."""
        if query.inst_type == "MARGIN":
            return OkxEnvelope("0", "", [])  # No fund belongs to margin trading.
        symbol = query.uly if query.inst_family is UNSET else query.inst_family
        if symbol is UNSET:
            raise MissingParameter("instFamily or uly is required: the symbol of a contract")
        found = await find_contract(self._reader, symbol)
        if _instrument(found) != query.inst_type or query.ccy not in (UNSET, found.contract.settle_currency):
            return OkxEnvelope("0", "", [])
        details = _page(await self._details(query, found.contract), query.limit)
        total = (await self._summary(Query())).total_usdt or ""
        return OkxEnvelope("0", "", [Fund(total, symbol, query.inst_type, details)])

    async def _details(self, query: FundQuery, contract: Contract) -> list[Detail]:
        """Returns the newest changes between the query's times, newest first: at least `limit` if there are as many."""
        start = 0 if query.before is UNSET else query.before + 1
        end = INT64_MAX if query.after is UNSET else query.after - 1
        details: list[Detail] = []
        if query.type in (UNSET, "adl"):
            read_turns = partial(self._histories.turns, contract.symbol)
            details += [_turn(turn, contract) for turn in await _newest(read_turns, start, end, query.limit)]
        for kind in _kinds(query.type):
            read_entries = partial(self._entries, contract.symbol, kind)
            details += [_change(entry, contract) for entry in await _newest(read_entries, start, end, query.limit)]
        return sorted(details, key=lambda detail: int(detail.ts), reverse=True)

    async def _entries(self, symbol: str, kind: Kind | None, start: int, end: int, count: int) -> list[EntryRow]:
        """Returns the last `count` entries between two times. Reads them in several queries."""
        found: list[EntryRow] = []
        while len(found) < count:
            offset, part = found[-1].entry if found else None, min(READ_MAX, count - len(found))
            rows = await self._reader.history(symbol, count=part, offset=offset, kind=kind, start_ms=start, end_ms=end)
            found += rows
            if len(rows) < part:
                break
        return found


async def _newest(read: Callable[[int, int, int], Awaitable[Sequence[R]]], start: int, end: int, limit: int) -> Sequence[R]:
    """Returns all rows since some time, at least `limit` if there are as many.

    The last rows need not have the latest times, because entries may be late. So the first query only determines a time from
    which to read all rows. If these are too many, they determine a later time.
    """
    since, found, count = start, await read(start, end, limit), limit
    while len(found) == count:
        before, since = since, sorted((row.ts for row in found), reverse=True)[limit - 1]
        if since == before and count > limit:
            raise BadParameter(
                f"over {CHANGES_MAX} changes have the time {since}: read /api/v1/insurance-fund/…/history instead"
            )
        count = CHANGES_MAX + 1
        found = await read(since, end, count)
    return found


def _instrument(found: Listed) -> InstrumentType:
    kind = msgspec.json.decode(found.specification, type=dict[str, object]).get("type")
    return INSTRUMENTS.get(str(kind), "SWAP")


def _kinds(change: Change | UnsetType) -> Sequence[Kind | None]:
    """Returns the kinds of entries to query; None selects all kinds."""
    if change is UNSET:
        return (None,)
    return [kind for kind, type_ in CHANGES.items() if type_ == change]


def _page(details: list[Detail], limit: int) -> list[Detail]:
    """Returns the first details, cut where the time changes, because the next page is requested by time."""
    if len(details) <= limit:
        return details
    whole = [detail for detail in details[:limit] if detail.ts != details[limit].ts]
    return whole or [detail for detail in details if detail.ts == details[0].ts]


def _change(entry: EntryRow, contract: Contract) -> Detail:
    decimals = contract.settle_decimals
    return Detail(
        amt=format_units(entry.change, decimals) if CHANGES[entry.kind] != "regular_update" else "",
        balance=format_units(entry.balance, decimals),
        ccy=contract.settle_currency,
        ts=str(entry.ts),
        type=CHANGES[entry.kind],
    )


def _turn(turn: TurnRow, contract: Contract) -> Detail:
    balance = "" if turn.balance is None else format_units(turn.balance, contract.settle_decimals)
    adl_type: AdlType = "bal_adl_start" if turn.began else "adl_end"
    return Detail(balance=balance, ccy=contract.settle_currency, ts=str(turn.ts), type="adl", adl_type=adl_type)


def _error_response(problem: Problem) -> ErrorResponse:
    status = 400 if isinstance(problem, NotFound) else problem.status
    return ErrorResponse(status, OkxEnvelope(code_of(CODES, problem), str(problem), []))


FACADE = Facade((400, 429, 503), OkxEnvelope, _error_response)
