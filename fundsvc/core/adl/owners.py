"""Groups the accounts of a contract by owner. The matching engine may name the owner in position events."""

from collections.abc import Callable, Collection, Mapping


class Owners:
    """Stores the owner of each account. An account keeps its owner until the matching engine names another."""

    def __init__(self) -> None:
        self._owner: dict[str, str] = {}
        self._accounts: dict[str, set[str]] = {}

    def assign(self, account: str, owner: str) -> None:
        """Sets the owner of an account."""
        before = self._owner.get(account)
        if before != owner:
            if before is not None:
                self._accounts[before].remove(account)
            self._owner[account] = owner
            self._accounts.setdefault(owner, set()).add(account)

    def of_same(self, account: str) -> Collection[str]:
        """Returns all accounts of the account's owner, including itself; empty if the owner is unknown."""
        owner = self._owner.get(account)
        return () if owner is None else self._accounts[owner]

    def forget_closed(self, is_open: Callable[[str], bool]) -> Mapping[str, str]:
        """Removes owners without an account with an open position; returns the owner of each remaining account."""
        for owner in [owner for owner, accounts in self._accounts.items() if not any(map(is_open, accounts))]:
            for account in self._accounts.pop(owner):
                del self._owner[account]
        return self._owner
