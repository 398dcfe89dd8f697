"""Groups the accounts of a contract by owner. The matching engine may name the owner in position events."""

from collections.abc import Callable, Collection, Mapping


class Owners:
    """Stores the owner of each account. An account keeps its owner until the matching engine names another, or until no account
    of the owner has an open position.

    `changed` are the accounts whose owner changed or was forgotten since the book was last saved. Only events forget owners. If
    saving a book did, ADL would depend on the times of saves, and a replay could differ.
    """

    def __init__(self) -> None:
        self._owner: dict[str, str] = {}
        self._accounts: dict[str, set[str]] = {}
        self._open: dict[str, set[str]] = {}
        self.changed: set[str] = set()

    def __len__(self) -> int:
        return len(self._owner)

    def __contains__(self, account: str) -> bool:
        return account in self._owner

    def by_account(self) -> Mapping[str, str]:
        """Returns the owner of each account with a known one."""
        return self._owner

    def of_same(self, account: str) -> Collection[str]:
        """Returns all accounts of the account's owner, including itself; empty if the owner is unknown."""
        owner = self._owner.get(account)
        return () if owner is None else self._accounts[owner]

    def assign(self, account: str, owner: str) -> None:
        """Sets the owner of an account; `note` must follow."""
        before = self._owner.get(account)
        if before == owner:
            return
        if before is not None:
            self._accounts[before].remove(account)
            self._open[before].discard(account)
            self._forget_closed(before)
        self.changed.add(account)
        self._set(account, owner)

    def restore(self, account: str, owner: str) -> None:
        """Sets the saved owner of an account, or forgets it with "". Other accounts keep their owner; `note_saved` follows."""
        before = self._owner.pop(account, None)
        if before is not None:
            self._accounts[before].remove(account)
            self._open[before].discard(account)
            if not self._accounts[before]:
                del self._accounts[before], self._open[before]
        if owner:
            self._set(account, owner)

    def note_saved(self, account: str, *, is_open: bool) -> None:
        """Records whether an account of a book that is being restored has an open position; forgets no owner."""
        owner = self._owner.get(account)
        if owner is not None:
            (self._open[owner].add if is_open else self._open[owner].discard)(account)

    def _set(self, account: str, owner: str) -> None:
        self._owner[account] = owner
        self._accounts.setdefault(owner, set()).add(account)
        self._open.setdefault(owner, set())

    def note(self, account: str, *, is_open: bool) -> None:
        """Records whether an account has an open position; forgets its owner if no account of the owner has one."""
        owner = self._owner.get(account)
        if owner is None:
            return
        if is_open:
            self._open[owner].add(account)
        else:
            self._open[owner].discard(account)
            self._forget_closed(owner)

    def note_all(self, is_open: Callable[[str], bool]) -> None:
        """Records for all accounts whether they have an open position."""
        for account in list(self._owner):
            self.note(account, is_open=is_open(account))

    def _forget_closed(self, owner: str) -> None:
        if not self._open[owner]:
            del self._open[owner]
            for account in self._accounts.pop(owner):
                del self._owner[account]
                self.changed.add(account)
