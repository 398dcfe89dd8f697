"""Accounts of the mutual, for their owners and risk: state, policies and statement."""

from collections.abc import AsyncIterator

from aiohttp import web
from msgspec import UNSET, UnsetType

from fundsvc.api.answers import Page
from fundsvc.api.csv_rows import CSV
from fundsvc.api.exports import STREAMED_ROWS, Exports
from fundsvc.api.http.access import ACCOUNT_READERS
from fundsvc.api.http.application import Route, query_parameters
from fundsvc.api.http.errors import BadParameter, NotFound
from fundsvc.api.http.parameters import read_query
from fundsvc.api.http.routes import Endpoint, Media
from fundsvc.api.http.tokens import Caller
from fundsvc.api.visibility import account_of
from fundsvc.core.numbers import INT64_MAX
from fundsvc.mutual.api.account_answers import (
    AccountAnswer,
    PolicyAnswer,
    StatementAnswer,
    insurance_answer,
    policy_answers,
    statement_answer,
)
from fundsvc.mutual.api.parameters import InsuredQuery, PoliciesQuery, StatementExportQuery, StatementQuery
from fundsvc.mutual.api.pools import find_pool
from fundsvc.mutual.readmodel import Pools
from fundsvc.mutual.store.reader import MutualReader, PoolState

ACCOUNT = "/api/v1/mutual/account"


class InsuredResources:
    """Private routes, which read one snapshot of the database each; `exporting` reads for CSV exports."""

    def __init__(self, pools: Pools, reader: MutualReader, exporting: MutualReader, exports: Exports) -> None:
        self._pools = pools
        self._reader = reader
        self._exporting = exporting
        self._exports = exports
        self.routes = (
            Route(ACCOUNT, InsuredQuery, self.account, roles=ACCOUNT_READERS),
            Route(f"{ACCOUNT}/policies", PoliciesQuery, self.policies, roles=ACCOUNT_READERS),
            Route(f"{ACCOUNT}/statement", StatementQuery, self.statement, roles=ACCOUNT_READERS),
            Endpoint(
                f"{ACCOUNT}/statement.csv",
                self.statement_csv,
                {200: Media(CSV)},
                query=StatementExportQuery,
                roles=ACCOUNT_READERS,
            ),
        )

    async def account(self, query: InsuredQuery, caller: Caller) -> AccountAnswer:
        """An account in the pools that have it: state, money, progress towards the next policy, and live policies."""
        account = account_of(query.account, caller)
        return await self.answer(account, None if query.pool is UNSET else self._given(query.pool).row.pool)

    async def answer(self, account: str, pool: str | None = None) -> AccountAnswer:
        """Returns the answer for an account, of one snapshot; raises StoreFault."""
        self._pools.check()
        as_of = self._pools.as_of_ms
        found = await self._reader.accounts(account, pool) if account.isprintable() else []
        return AccountAnswer(account, [insurance_answer(state) for state in found], as_of)

    async def policies(self, query: PoliciesQuery, caller: Caller) -> Page[PolicyAnswer]:
        """A page of the policies of an account in a pool, live and ended, the newest first."""
        account = account_of(query.account, caller)
        state, as_of = await self._pool(query.pool, account), self._pools.as_of_ms
        before = INT64_MAX if query.offset is UNSET else query.offset
        found = state and await self._reader.policy_page(state.row.pool, account, count=query.max_count + 1, before=before)
        if found is None:
            return Page([], has_more=False, as_of=as_of)
        shown = policy_answers(found.policies[: query.max_count], found.account, found.pool)
        return Page(shown, has_more=len(found.policies) > len(shown), as_of=as_of)

    async def statement(self, query: StatementQuery, caller: Caller) -> Page[StatementAnswer]:
        """A page of the entries of an account in a pool."""
        account = account_of(query.account, caller)
        state, as_of = await self._pool(query.pool, account), self._pools.as_of_ms
        if state is None:
            return Page([], has_more=False, as_of=as_of)
        rows = await self._reader.statement(
            state.row.pool,
            account,
            count=query.max_count + 1,
            offset=None if query.offset is UNSET else query.offset,
            forward=query.forward,
        )
        shown = [statement_answer(row, state.rules.decimals) for row in rows[: query.max_count]]
        return Page(shown, has_more=len(rows) > len(shown), as_of=as_of)

    async def statement_csv(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """The entries of an account in a pool as CSV, up to the last one at the time of the request.

        The columns are the fields of `statement`.
        """
        query = read_query(StatementExportQuery, query_parameters(request))
        account = account_of(query.account, caller)
        state = await self._pool(query.pool, account)
        return await self._exports.send(request, "statement", StatementAnswer, self._pages(state, account))

    async def _pages(self, state: PoolState | None, account: str) -> AsyncIterator[list[StatementAnswer]]:
        """Yields the entries of an account up to the pool's last one, in parts."""
        after = 0
        while state:
            rows = await self._exporting.statement(state.row.pool, account, count=STREAMED_ROWS, offset=after, forward=True)
            yield [statement_answer(row, state.rules.decimals) for row in rows if row.entry.entry <= state.row.entry]
            if len(rows) < STREAMED_ROWS or rows[-1].entry.entry >= state.row.entry:
                return
            after = rows[-1].entry.entry

    def _given(self, pool: str) -> PoolState:
        """Returns the pool that a query names; raises BadParameter."""
        try:
            return find_pool(self._pools, pool).state
        except NotFound as unknown:
            raise BadParameter(str(unknown)) from None

    async def _pool(self, given: str | UnsetType, account: str) -> PoolState | None:
        """Returns the given pool, by default the only one that has the account, None if none has it.

        Raises BadParameter for an unknown pool, or if several have the account.
        """
        self._pools.check()
        if given is not UNSET:
            return self._given(given)
        names = await self._reader.pools_of(account) if account.isprintable() else []
        if len(names) > 1:
            raise BadParameter(f"pool is required: the account is in {', '.join(names)}")
        return find_pool(self._pools, names[0]).state if names else None
