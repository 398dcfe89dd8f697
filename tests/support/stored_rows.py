"""Reads all rows of a pool of the mutual, which the service reads only in its audit."""

from fundsvc.mutual.store.reader import fetch
from fundsvc.mutual.store.rows import account_from, policy_from

PAGE_ROWS = 10_000
"""Rows of one query: few enough for the loop."""


async def stored_accounts(database, pool):
    """Returns all accounts of a pool in the order of their first event."""
    accounts = []
    while page := await fetch(database, "load_accounts", pool, len(accounts), PAGE_ROWS):
        accounts += map(account_from, page)
    return accounts


async def stored_policies(database, pool):
    """Returns all policies of a pool, live or ended, by number."""
    policies = []
    while page := await fetch(database, "policies_page", pool, policies[-1].policy if policies else 0, PAGE_ROWS):
        policies += map(policy_from, page)
    return policies
