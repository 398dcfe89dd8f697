"""Who is behind several accounts of a contract, as far as the engine names owners."""

from collections.abc import Callable, Collection, Mapping


class Owners:
    """Accounts by owner. An account keeps its owner until the engine names another."""

    def __init__(self) -> None:
        self._owner: dict[str, str] = {}
        self._accounts: dict[str, set[str]] = {}

    def assign(self, account: str, owner: str) -> None:
        """Notes the owner of an account."""
        before = self._owner.get(account)
        if before != owner:
            if before is not None:
                self._accounts[before].remove(account)
            self._owner[account] = owner
            self._accounts.setdefault(owner, set()).add(account)

    def of_same(self, account: str) -> Collection[str]:
        """All accounts of the owner of an account; none where that is not known."""
        owner = self._owner.get(account)
        return () if owner is None else self._accounts[owner]

    def forget_closed(self, is_open: Callable[[str], bool]) -> Mapping[str, str]:
        """Forgets owners of whom no account has an open position; returns the owner of each account that is left."""
        for owner in [owner for owner, accounts in self._accounts.items() if not any(map(is_open, accounts))]:
            for account in self._accounts.pop(owner):
                del self._owner[account]
        return self._owner
