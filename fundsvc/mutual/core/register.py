"""The accounts and policies of a pool, and the schedules of what coming cut-offs may change.

A cut-off looks only at what its schedules list: accounts whose fitness may change, policies that may become active, and
policies that may expire. A list may name what no longer applies, for example a policy that ended; each step checks.
"""

from array import array
from collections.abc import Iterable, Iterator

from fundsvc.mutual.core.accounts import Account
from fundsvc.mutual.core.chain import Kind
from fundsvc.mutual.core.distribution import Distribution
from fundsvc.mutual.core.ledger import Ledger
from fundsvc.mutual.core.policies import Policies
from fundsvc.mutual.core.rows import LIVE_MAX, AccountRow, PolicyRow, PoolRow, State
from fundsvc.mutual.core.schedule import Schedule
from fundsvc.mutual.core.standing import delayed
from fundsvc.mutual.core.terms import Rules


class Register:
    """Accounts by name and by number, live policies by place, the distribution, and the schedules of cut-offs.

    `owners[n - 1]` is the account number of policy n, live or ended. `next_cutoff` is in ms, 0 before the first event.
    """

    def __init__(self, row: PoolRow, versions: dict[int, Rules], ledger: Ledger) -> None:
        self.next_cutoff = row.next_cutoff
        self.cycle = row.cycle
        self.versions = versions
        self.ledger = ledger
        self.accounts: dict[str, Account] = {}
        self.by_number: list[Account] = []
        self.owners = array("I")
        self.policies = Policies()
        self.distribution = Distribution(self.policies, row.share_index, row.rem)
        self.checks, self.activations, self.expiries = Schedule(), Schedule(), Schedule()

    @property
    def rules(self) -> Rules:
        """The terms in force."""
        return self.ledger.rules

    def account(self, name: str) -> Account:
        """Returns an account that an event changes; opens it if it is new."""
        account = self.accounts.get(name)
        if account is None:
            account = self.accounts[name] = Account(len(self.by_number), name)
            self.by_number.append(account)
            self.ledger.draft.opened.add(name)
        self.ledger.draft.note(account)
        return account

    def owner(self, place: int) -> Account:
        """Returns the account of a live policy."""
        return self.by_number[self.policies.account[place]]

    def row_of(self, place: int) -> PolicyRow:
        """Returns the state of a live policy."""
        return self.policies.row(place, self.owner(place).name)

    # Policies: rules 2 and 4.

    def issue(self, account: Account) -> None:
        """Issues a policy of an account under the terms in force."""
        ledger, policies = self.ledger, self.policies
        place = policies.issue(account.number, ledger.terms, self.rules, ledger.time)
        self.owners.append(account.number)
        self._add_live(account, place)
        if len(account.live) == 1:
            account.unfit_since = 0
            self.plan_check(account)
        ledger.write("issue", account.name, policies.number[place], policies.face[place])

    def activate(self, place: int) -> None:
        """A WAITING policy becomes active and expires `expiry_days` of its terms later."""
        policies = self.policies
        policies.expires_at[place] = self.ledger.time + self.versions[policies.terms[place]].expiry_ms
        self._schedule_expiry(place)
        self._enter(place, "activate")

    def thaw(self, place: int) -> None:
        """A FROZEN policy becomes active again."""
        self._enter(place, "thaw")

    def freeze(self, place: int) -> None:
        """An ACTIVE policy becomes FROZEN; what is due becomes payable."""
        due = self._settle(place, self.distribution.leave(place))
        self.policies.state[place] = State.FROZEN
        self._write("freeze", place, due)

    def end(self, place: int, state: State, kind: Kind) -> None:
        """A live policy expires or is cancelled; what is due becomes payable, the rest is forfeited."""
        active = self.policies.state[place] == State.ACTIVE
        self._end(place, state, kind, self.distribution.leave(place) if active else 0)

    def complete(self, place: int, due: int) -> None:
        """An active policy that left the distribution at its cap ends; what was due becomes payable."""
        self._end(place, State.COMPLETED, "complete", due)

    def move_dues(self, account: Account) -> None:
        """Makes payable what is due of an account's active policies, which stay active (rule 6)."""
        for place in account.live:
            if self.policies.state[place] == State.ACTIVE:
                self._settle(place, self.distribution.move(place))

    def _enter(self, place: int, kind: Kind) -> None:
        self.policies.state[place] = State.ACTIVE
        self.distribution.enter(place)
        self._write(kind, place, 0)

    def _end(self, place: int, state: State, kind: Kind, due: int) -> None:
        account = self.owner(place)
        self._settle(place, due)
        self.policies.state[place] = state
        self._write(kind, place, due)
        self.ledger.draft.ended.append(self.row_of(place))
        account.live.remove(place)
        self.policies.free(place)

    def _settle(self, place: int, due: int) -> int:
        """Makes payable what was moved of a policy; returns it."""
        account = self.owner(place)
        account.payable += due
        self.ledger.settled += due
        self.ledger.draft.note(account)
        self._mark(place)
        return due

    def _write(self, kind: Kind, place: int, amount: int) -> None:
        self._mark(place)
        self.ledger.write(kind, self.owner(place).name, self.policies.number[place], amount)

    def _mark(self, place: int) -> None:
        if self.policies.mark(place):
            self.ledger.draft.changed.append(place)

    def take_changed(self) -> Iterator[PolicyRow]:
        """Iterates over the states of the live policies that changed, and removes their marks."""
        return (self.row_of(place) for place in self.ledger.draft.changed if self.policies.unmark(place))

    # Schedules: rule 5, steps a to c.

    def plan_check(self, account: Account) -> None:
        """Lists an account at the first coming cut-off that may find its fitness changed, unless it is listed before."""
        if not account.live:
            return
        cutoff = self.unfit_from(account, self.next_cutoff)
        if account.unfit_since:
            if cutoff == self.next_cutoff:
                return
            cutoff = self.next_cutoff
        self.check_at(account, cutoff)

    def check_at(self, account: Account, cutoff: int) -> None:
        """Lists an account at a cut-off, unless it is listed before."""
        if not account.check_at or cutoff < account.check_at:
            account.check_at = cutoff
            self.checks.add(cutoff, account.number)

    def check_all(self) -> None:
        """Lists all accounts with policies at the next cut-off, because the terms of the activity test have changed."""
        for account in self.by_number:
            if account.live:
                self.check_at(account, self.next_cutoff)

    def unfit_from(self, account: Account, cutoff: int) -> int:
        """Returns the first cut-off from `cutoff` on that finds an account unfit, if no event changes it (rule 5a)."""
        rules = self.rules
        if not account.is_covered:
            return cutoff
        return account.inactive_from(cutoff, rules.activity_volume, rules.cycle_ms)

    def delay(self, place: int, cutoff: int) -> None:
        """Moves `active_at` of a WAITING policy on, for all cut-offs before `cutoff` that found its account unfit."""
        policies, since = self.policies, self.owner(place).unfit_since
        moved = delayed(policies.active_at[place], policies.issued_at[place], since, cutoff, self.rules)
        if moved != policies.active_at[place]:
            policies.active_at[place] = moved
            self._mark(place)
        self._schedule_activation(place)

    def _add_live(self, account: Account, place: int) -> None:
        account.live.append(place)
        self._mark(place)
        self._schedule_activation(place)
        self._schedule_expiry(place)

    def _schedule_activation(self, place: int) -> None:
        self.activations.add(self._coming(self.policies.active_at[place]), place)

    def _schedule_expiry(self, place: int) -> None:
        self.expiries.add(self._coming(self.policies.expires_at[place]), place)

    def _coming(self, ts: int) -> int:
        """Returns the first cut-off at or after a time that has not happened yet."""
        return max(self.next_cutoff, self.rules.cutoff_from(ts))

    # Stored states.

    def restore(self, accounts: Iterable[AccountRow], policies: Iterable[PolicyRow], owners: Iterable[str]) -> Iterator[None]:
        """Restores accounts, live policies, and the account of each policy ever issued; some at each step."""
        for number, row in enumerate(accounts):
            account = self.accounts[row.account] = Account.restore(number, row)
            self.by_number.append(account)
            yield
        for row_of_policy in policies:
            self._restore_policy(row_of_policy)
            yield
        for name in owners:
            self.owners.append(self.accounts[name].number)
            yield
        self.policies.count = len(self.owners)
        for account in self.by_number:
            self.plan_check(account)
            yield

    def _restore_policy(self, row: PolicyRow) -> None:
        account = self.accounts[row.account]
        place = self.policies.put(account.number, row)
        account.live.append(place)
        self._schedule_expiry(place)
        if row.state == State.WAITING:
            self._schedule_activation(place)
        elif row.state == State.ACTIVE:
            self.distribution.restore(place)

    def save_policies(self) -> Iterator[PolicyRow]:
        """Iterates over the states of all live policies, by account."""
        return (self.row_of(place) for account in self.by_number for place in account.live)


def is_live(state: int) -> bool:
    """Whether a policy in a state has not ended."""
    return state <= LIVE_MAX
