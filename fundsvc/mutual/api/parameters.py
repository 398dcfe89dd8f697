"""Query parameters of the routes of the mutual."""

from typing import Annotated

import msgspec
from msgspec import UNSET, UnsetType

from fundsvc.api.http.parameters import PAGE_ENTRIES, PAGE_ENTRIES_MAX, AccountQuery, Entry, Parameters, Query
from fundsvc.core.events import Account
from fundsvc.mutual.core.events import PoolName

Count = Annotated[int, msgspec.Meta(ge=1, le=PAGE_ENTRIES_MAX)]


class CyclesQuery(Query, frozen=True):
    """A page of the cut-offs of a pool; `offset` is the number of a cut-off. Pages work as in `history` of a fund."""

    offset: Entry | UnsetType = UNSET
    forward: bool = False
    max_count: Count = PAGE_ENTRIES


class InsuredQuery(AccountQuery, frozen=True):
    """The account, by default that of a trader's token, and a pool, by default all pools."""

    pool: PoolName | UnsetType = UNSET


class PoliciesQuery(InsuredQuery, frozen=True):
    """A page of the policies of an account in a pool: `maxCount` policies before policy `offset`, by default the newest.

    `pool` is required if the account is in several pools.
    """

    offset: Entry | UnsetType = UNSET
    max_count: Count = PAGE_ENTRIES


class StatementQuery(InsuredQuery, frozen=True):
    """A page of the entries of an account in a pool; `offset` is an entry number. Pages work as in `history` of a fund.

    `pool` is required if the account is in several pools.
    """

    offset: Entry | UnsetType = UNSET
    forward: bool = False
    max_count: Count = PAGE_ENTRIES


class StatementExportQuery(Parameters, frozen=True):
    """The account, by default that of a trader's token, and a pool, which is required if the account is in several."""

    account: Account | UnsetType = UNSET
    pool: PoolName | UnsetType = UNSET
