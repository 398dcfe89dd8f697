"""ADL: orders and their allocations, the queue, positions and reductions of accounts, and previews."""

import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import msgspec
from aiohttp import web
from msgspec import UNSET

from fundsvc.api.adl_answers.activity import AdlActivityAnswer, RateOf, activity_answers
from fundsvc.api.adl_answers.instructions import InstructedOrderAnswer, instructed_order_answer
from fundsvc.api.adl_answers.orders import ALLOCATIONS_MAX, AllocationAnswer, OrderAnswer, allocation_answer, order_answers
from fundsvc.api.adl_answers.positions import (
    NumberedReductionAnswer,
    PositionsAnswer,
    ReductionAnswer,
    numbered_reduction_answer,
    position_answers,
    reduction_answer,
)
from fundsvc.api.adl_answers.preview import (
    PreviewAnswer,
    ShowOrder,
    TakeoverPreviewAnswer,
    preview_answer,
    takeover_preview_answer,
    trader_preview,
    whole_preview,
)
from fundsvc.api.adl_answers.queue import QueueAnswer, queue_answer
from fundsvc.api.answers import Page
from fundsvc.api.csv_rows import CSV
from fundsvc.api.exports import STREAMED_ROWS, Exports
from fundsvc.api.http.access import ACCOUNT_READERS, Roles
from fundsvc.api.http.application import Route, find_contract, query_parameters
from fundsvc.api.http.errors import BadParameter, NotFound
from fundsvc.api.http.parameters import (
    AccountExportQuery,
    AccountQuery,
    ActivityQuery,
    DeleveragedQuery,
    OrdersQuery,
    Parameters,
    PreviewBody,
    PreviewPolicy,
    Query,
    RoundQuery,
    TakeoverPreviewBody,
    read_query,
)
from fundsvc.api.http.routes import Endpoint, Media
from fundsvc.api.http.slots import Slots
from fundsvc.api.http.tokens import Caller
from fundsvc.api.visibility import account_of, rough, visibility_of
from fundsvc.core.adl.preview import RequestSize
from fundsvc.core.events import Fill, Rejection, Takeover
from fundsvc.core.policy import Policy
from fundsvc.readmodel.adl_books import AdlBooks, BookView
from fundsvc.readmodel.cell_tails import AnyTail
from fundsvc.store.adl import FIRST_PLACE, LAST_PLACE, AdlReader
from fundsvc.store.reader import Reader

EXECUTORS: Roles = frozenset({"engine", "risk"})
"""The roles that see which accounts an order reduces."""

REDUCTIONS_MAX = 100
"""The latest reductions of an account that `positions` shows."""

POSITIONS_PER_REQUEST = 1000
"""A preview ranks all positions, and counts as one more request per this many. All clients share the ranking of a queue."""

PREVIEWS_MAX = 16
"""Previews that run or wait at a time. One runs at a time in a process; over a million positions it takes about 4 s."""

CLIENT_PREVIEWS_MAX = 4
"""The previews of one client among these, so that no client makes all others wait."""

PREVIEW_RETRY_SECONDS = 4
"""The duration of a preview over a million positions."""

DIGITS_MAX = 9
"""Digits of the number of an order or a round. Larger numbers do not fit the database's type."""


class AdlResources:
    """Routes that answer from the ledger and from the followed books."""

    def __init__(
        self,
        reader: Reader,
        ledger: AdlReader,
        books: AdlBooks,
        tail: AnyTail,
        policy_of: Callable[[str], Policy],
        rate_of: RateOf,
        k_min: int,
        exporting: AdlReader,
        exports: Exports,
    ) -> None:
        self._reader = reader
        self._ledger = ledger
        self._books = books
        self._tail = tail
        self._policy_of = policy_of
        self._rate_of = rate_of
        self._k_min = k_min
        self._exporting = exporting
        self._exports = exports
        self._previews = Slots(PREVIEWS_MAX, CLIENT_PREVIEWS_MAX)
        self.routes = (
            Route("/api/v1/adl/positions", AccountQuery, self.positions, roles=ACCOUNT_READERS),
            Route("/api/v1/adl/deleveraged", DeleveragedQuery, self.deleveraged, roles=ACCOUNT_READERS),
            Endpoint(
                "/api/v1/adl/deleveraged.csv",
                self.deleveraged_csv,
                {200: Media(CSV)},
                query=AccountExportQuery,
                roles=ACCOUNT_READERS,
            ),
            Route("/api/v1/adl/activity", ActivityQuery, self.activity),
            Route("/api/v1/adl/{symbol}/orders", OrdersQuery, self.orders, token_optional=True),
            Route("/api/v1/adl/{symbol}/orders/{adl}", Query, self.order, roles=EXECUTORS),
            Route("/api/v1/adl/{symbol}/orders/{adl}/rounds/{round}", RoundQuery, self.round, token_optional=True),
            Route("/api/v1/adl/{symbol}/queue", Query, self.queue, token_optional=True),
            Route(
                "/api/v1/adl/{symbol}/preview",
                Query,
                self.preview,
                PreviewBody | TakeoverPreviewBody,
                roles=ACCOUNT_READERS,
                cost=self.preview_cost,
            ),
        )

    async def orders(self, query: OrdersQuery, symbol: str, caller: Caller | None) -> Page[OrderAnswer]:
        """A page of a contract's ADL orders."""
        as_of = self._tail.as_of_ms
        contract = (await find_contract(self._reader, symbol)).contract
        orders = await self._ledger.orders(
            contract.symbol,
            count=query.max_count + 1,
            offset=None if query.offset is UNSET else query.offset,
            forward=query.forward,
            state=None if query.state is UNSET else query.state,
        )
        shown = orders[: query.max_count]
        answers = await order_answers(self._ledger, shown, contract, visibility_of(caller))
        return Page(data_list=answers, has_more=len(orders) > len(shown), as_of=as_of)

    async def order(self, _query: Query, symbol: str, adl: str, caller: Caller) -> InstructedOrderAnswer:  # noqa: ARG002
        """An ADL order with its accounts, and its open round as announced."""
        found, number = await find_contract(self._reader, symbol), _number(adl)
        orders = await self._ledger.orders(found.contract.symbol, count=1, offset=number - 1, forward=True)
        if not orders or orders[0].adl != number:
            raise NotFound(f"{symbol} has no ADL order {number}")
        return await instructed_order_answer(self._ledger, orders[0], found.contract, found.partition)

    async def round(
        self,
        query: RoundQuery,
        symbol: str,
        adl: str,
        round: str,  # noqa: A002 - the name of the path's parameter
        caller: Caller | None,
    ) -> Page[AllocationAnswer]:
        """A page of the allocations of a round of an order, by rank."""
        contract = (await find_contract(self._reader, symbol)).contract
        order, number = _number(adl), _number(round)
        found = await self._ledger.orders(contract.symbol, count=1, offset=order - 1, forward=True)
        if not found or found[0].adl != order or found[0].round < number:
            raise NotFound(f"{symbol} has no ADL order {order} with a round {number}")
        rows = await self._ledger.round_after(contract.symbol, order, number, query.offset, query.max_count + 1)
        reduce, price, visibility = found[0].reduce, found[0].price, visibility_of(caller)
        shown = [allocation_answer(row, reduce, price, contract, visibility) for row in rows[: query.max_count]]
        return Page(data_list=shown, has_more=len(rows) > len(shown))

    async def queue(self, _query: Query, symbol: str, caller: Caller | None) -> QueueAnswer:
        """The current queue of a contract by lights: the positions that ADL may reduce by the contract's policy."""
        found, books = await find_contract(self._reader, symbol), self._books

        def read(view: BookView) -> QueueAnswer:
            eligible = self._policy_of(found.contract.symbol).eligible
            queue, is_mark_stale = books.queue(view, eligible), books.is_mark_stale(view)
            return queue_answer(view, queue, visibility_of(caller), self._k_min, is_mark_stale=is_mark_stale)

        return await books.read(found.contract, found.partition, read)

    async def positions(self, query: AccountQuery, caller: Caller) -> PositionsAnswer:
        """An account's positions with their ranks and the inputs of these, and its latest reductions."""
        account = account_of(query.account, caller)
        if not account.isprintable():
            return PositionsAnswer(account, [], [])  # Settlement rejects events with such an account.
        contracts = {found.contract.symbol: found.contract for found in await self._reader.contracts()}
        reductions = await self._ledger.latest_reductions(account, REDUCTIONS_MAX)
        positions = await position_answers(self._books, account, self._policy_of)
        return PositionsAnswer(
            account=account,
            positions=positions,
            deleveraged=[reduction_answer(row, contracts[row.symbol]) for row in reductions],
        )

    async def deleveraged(self, query: DeleveragedQuery, caller: Caller) -> Page[NumberedReductionAnswer]:
        """A page of an account's reductions."""
        as_of, account = self._tail.as_of_ms, account_of(query.account, caller)
        if not account.isprintable():
            return Page([], has_more=False, as_of=as_of)  # Settlement rejects events with such an account.
        contracts = {found.contract.symbol: found.contract for found in await self._reader.contracts()}
        rows = await self._ledger.reductions_page(
            account,
            count=query.max_count + 1,
            offset=None if query.offset is UNSET else query.offset,
            forward=query.forward,
        )
        shown = [numbered_reduction_answer(number, row, contracts[row.symbol]) for number, row in rows[: query.max_count]]
        return Page(data_list=shown, has_more=len(rows) > len(shown), as_of=as_of)

    async def newest_reductions(self, caller: Caller) -> AsyncIterator[list[ReductionAnswer]]:
        """Yields the reductions of the caller's positions in parts, newest first."""
        account, place = account_of(caller.account, caller), LAST_PLACE
        while account.isprintable():  # Settlement rejects events with another account.
            found = await self._ledger.reductions_before(account, place, STREAMED_ROWS)
            contracts = {each.contract.symbol: each.contract for each in await self._reader.contracts()}
            yield [reduction_answer(each.row, contracts[each.row.symbol]) for each in found]
            if len(found) < STREAMED_ROWS:
                return
            place = found[-1].place

    async def deleveraged_csv(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """All reductions of an account as CSV, the oldest first.

        The columns are the fields of `deleveraged`.
        """
        account = account_of(read_query(AccountExportQuery, query_parameters(request)).account, caller)
        return await self._exports.send(request, "deleveraged", NumberedReductionAnswer, self._reductions(account))

    async def _reductions(self, account: str) -> AsyncIterator[list[NumberedReductionAnswer]]:
        """Yields the reductions of an account, in parts."""
        number, place = 0, FIRST_PLACE
        while account.isprintable():  # Settlement rejects events with another account.
            found = await self._exporting.reductions_after(account, place, STREAMED_ROWS)
            contracts = {each.contract.symbol: each.contract for each in await self._reader.contracts()}
            numbered = enumerate((each.row for each in found), number + 1)
            yield [numbered_reduction_answer(count, row, contracts[row.symbol]) for count, row in numbered]
            if len(found) < STREAMED_ROWS:
                return
            number, place = number + len(found), found[-1].place

    async def activity(self, query: ActivityQuery) -> list[AdlActivityAnswer]:
        """The latest steps of the orders of all contracts: opened, further rounds, executions and ends, the newest first.

        The answer covers the orders that changed last.
        """
        self._tail.check()
        known = self._tail.contracts
        orders = [order for order in await self._ledger.latest(query.max_count) if order.symbol in known]
        return activity_answers(orders, await self._ledger.steps(orders), known, self._rate_of)[: query.max_count]

    async def preview(
        self, _query: Query, symbol: str, body: PreviewBody | TakeoverPreviewBody, caller: Caller
    ) -> PreviewAnswer | TakeoverPreviewAnswer:
        """The effect of a fill or a takeover that is not settled. Shows risk all allocations, and traders their own and sums of
        the others.

        No allocation names its account.
        """
        with self._previews.limited(caller.client, "previews", PREVIEW_RETRY_SECONDS):
            return await self._preview(symbol, body, caller)

    async def _preview(
        self, symbol: str, body: PreviewBody | TakeoverPreviewBody, caller: Caller
    ) -> PreviewAnswer | TakeoverPreviewAnswer:
        found = await find_contract(self._reader, symbol)
        policy = _changed(self._policy_of(found.contract.symbol), body.policy)
        show: ShowOrder = partial(whole_preview, allocations_max=ALLOCATIONS_MAX, accounts=False)
        request_size: RequestSize = int
        if caller.role == "trader":
            show = partial(trader_preview, account=caller.account, k_min=self._k_min)
            request_size = rough
        of_contract = found.contract, found.partition, policy
        try:
            if isinstance(body, TakeoverPreviewBody):
                rate = (await self._reader.rates()).get(found.contract.settle_currency)
                answer = partial(takeover_preview_answer, lots=body.lots, show=show)
                takeover = Takeover(symbol, 1, body.side, body.lots, body.bankruptcy_price, _ts(body))
                return await self._books.preview_takeover(
                    *of_contract, takeover, rate.price if rate else None, answer, request_size
                )
            fill = Fill(symbol, 1, body.side, body.lots, body.price, body.bankruptcy_price, _ts(body))
            return await self._books.preview(*of_contract, fill, partial(preview_answer, show=show), request_size)
        except Rejection as rejection:
            raise BadParameter(rejection.detail) from None

    def preview_cost(self, symbol: str) -> int:
        """Returns how many more requests a preview of a contract counts as."""
        key = self._tail.key_of(symbol)
        return self._books.size(key) // POSITIONS_PER_REQUEST if key else 0


def _number(text: str) -> int:
    """Returns the number in a path; raises NotFound for text that is not a number from 1."""
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= DIGITS_MAX else 0
    if not number:
        raise NotFound(f"{text!r} is not the number of an order or a round: these are numbered from 1")
    return number


def _ts(body: PreviewBody | TakeoverPreviewBody) -> int:
    return time.time_ns() // 1_000_000 if body.ts is UNSET else body.ts


def _changed(policy: Policy, given: PreviewPolicy) -> Policy:
    takeover = msgspec.structs.replace(policy.takeover, **_given(given.takeover))
    return msgspec.structs.replace(policy, **{**_given(given), "takeover": takeover})


def _given(changes: Parameters) -> dict[str, Any]:
    """Returns the fields that are set, by name."""
    return {name: value for name in changes.__struct_fields__ if (value := getattr(changes, name)) is not UNSET}
