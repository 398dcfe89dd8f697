"""Recomputes a pool's ledger from its entries, for the audit.

`Replay` is a pool that follows entries in place of events. The first entry of an event, or of a step of a cut-off, determines
the entries that must follow it: the premium of arrears and the end of cover after a transfer, the policies after a loss, all
that a cut-off expires, distributes and completes. They stay due until they come.

Entries do not contain uninsured trades, a `disable` without cover, and when a trade was opened. So a freeze, a thaw and an
activation are taken as given, as far as cover, waiting time and the other policies of the account permit them; what they move
is recomputed. Profits that owed nothing have no entry either. So premiums of a UTC day in which the terms change are checked
against bounds. What such a premium left as arrears is in doubt until a later entry or the stored account shows it.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from fundsvc.core.commitment import NO_SECRETS, SEAL_BYTES, Secrets, commitment, seal_parts
from fundsvc.core.events import TIMESTAMP_MAX, Rejection
from fundsvc.core.numbers import format_units
from fundsvc.mutual.core.accounts import Account
from fundsvc.mutual.core.batch import Draft
from fundsvc.mutual.core.chain import Entry, link, seal_domain
from fundsvc.mutual.core.cutoff import expire, share
from fundsvc.mutual.core.events import Cancel, Disable, Enable, Payout, TopUp, Transfer
from fundsvc.mutual.core.pool import Pool
from fundsvc.mutual.core.premium import premium
from fundsvc.mutual.core.rows import AccountRow, CycleRow, PolicyRow, PoolRow, State
from fundsvc.mutual.core.standing import delayed
from fundsvc.mutual.core.terms import DAY_MS, Rules

STEPS = {"freeze": 0, "thaw": 0, "activate": 1, "expire": 2, "cycle": 3}
"""The kinds of entries that begin a part of a cut-off, by step (rule 5)."""

TURNING = {"uncovered", "freeze", "thaw", "activate"}
"""The kinds of entries after which the next cut-off must find the policies of the account all active or all frozen."""

FREE = {"time", "seq", "terms", "head"}
"""Fields of a pool that events without an entry change, or that are compared by themselves."""

DERIVED = ("balance", "arrears", "payable", "paid_out", "accumulated", "unfunded", "cover")
"""Fields of an account that the entries determine."""


class Version(NamedTuple):
    """A version of the terms; entries from `entry` on have this version or a later one."""

    rules: Rules
    entry: int


class Doubt(NamedTuple):
    """Arrears that the entries leave open: the least that they can be, and whether the account is unfunded in any case.

    The account has the most that they can be. Its balance is 0.
    """

    least: int
    unfunded: bool


class Recomputed(NamedTuple):
    """The cut-offs of the entries followed, and the last states of the policies that they ended."""

    cycles: Sequence[CycleRow]
    ended: Sequence[PolicyRow]


class Replay(Pool):
    """Follows the ledger of a pool from entry 1, and collects every difference from the rules.

    `differences` are sentences; an empty list means that the ledger is correct. `differs_at` is the number of the first entry
    that differs; None without a difference. `unopened` counts the commitments to accounts whose secret is not configured.
    Memory is that of the pool: accounts and live policies. A replay may be continued after any entry.
    """

    def __init__(self, name: str, terms: Mapping[int, Version], secrets: Secrets = NO_SECRETS) -> None:
        super().__init__(PoolRow(name), {version: one.rules for version, one in terms.items()})
        self.differences: list[str] = []
        self.differs_at: int | None = None
        self.unopened = 0
        self._secrets = secrets
        self._starts: dict[int, int] = {}
        self._subject = name
        self._last = Entry(name, 0, 0, 0, "cycle", "", 0, 0, 0, 0, 1)
        self._head = self.ledger.head
        self._due: deque[Entry] = deque()
        self._step: tuple[int, int] | None = None
        self._funded = ""
        self._touched: set[str] = set()
        self._day, self._day_terms = 0, 1
        self._doubts: dict[str, Doubt] = {}
        self._unresolved: Account | None = None
        self._begin_with: dict[str, Callable[[Entry], None]] = {
            "transfer": self._follow_transfer,
            "topUp": self._follow_top_up,
            "uncovered": self._follow_disable,
            "loss": self._follow_loss,
            "premium": self._follow_profit,
            "cancel": self._follow_cancel,
            "payout": self._follow_payout,
            **dict.fromkeys(("freeze", "thaw", "activate"), self._follow_turn),
        }
        self.learn(terms)

    @property
    def entry(self) -> int:
        """The number of the last entry followed."""
        return self._last.entry

    @property
    def head(self) -> bytes:
        """The hash of the last entry followed."""
        return self._head

    def differ(self, sentence: str) -> None:
        """Adds a difference of the pool."""
        self._subject = self.name
        self._differ(sentence)

    def learn(self, terms: Mapping[int, Version]) -> None:
        """Adds versions of the terms that were recorded since; checks that they follow each other."""
        for version in sorted(terms.keys() - self._starts.keys()):
            rules, start = terms[version]
            before = self._starts.get(version - 1, 0)
            if (version > 1 and not before) or start < before or (version == 1 and start != 1):
                self._differ(f"version {version} of the terms begins at entry {start}, the one before at {before or 'none'}")
            if version - 1 in self.versions and not rules.same_units(self.versions[version - 1]):
                self._differ(f"version {version} of the terms has other decimals or other cut-offs than the one before")
            self.versions[version], self._starts[version] = rules, start

    def follow(self, entry: Entry, digest: bytes) -> None:
        """Checks one entry against the state before it."""
        deque(self.steps_of(entry, digest), maxlen=0)

    def steps_of(self, entry: Entry, digest: bytes) -> Iterator[None]:
        """Checks one entry, with a pause after each few milliseconds of work. Take all steps before the next entry."""
        self._subject = f"{self.name} entry {entry.entry}"
        self._resolve(entry)
        self._check_number(entry)
        if not self._due:
            yield from self._begin(entry)
        if entry.kind in TURNING:
            self._touched.add(entry.account)
        self._compare_due(entry)
        self._check_opening(entry)
        self._head = link(self._head, entry, self.rules.digest)
        self._expect("hash", digest.hex(), self._head.hex())
        self._head, self._last = digest, entry
        if not self._due and self.identity_error():
            self._differ(f"the money does not add up: the identity error is {self.identity_error()}")

    def recomputed(self) -> Recomputed:
        """Returns what the entries since the last call gave beside the states of accounts and live policies."""
        draft = self.ledger.draft
        self.ledger.draft = Draft(self.register.policies.count)
        return Recomputed(draft.cycles, draft.ended)

    # Stored states.

    def compare_pool(self, row: PoolRow) -> None:
        """Compares the stored state of the pool with that after all entries."""
        self._subject = self.name
        self._resolve(None)
        for missing in self._due:
            self._differ(f"{_shown(missing)} is missing after the last entry")
        if self._step:
            self._differ(f"the entry of kind cycle of the cut-off at {self.ledger.time} is missing after the last entry")
        wanted = self.row()
        for name in PoolRow._fields:
            if name not in FREE and (name != "next_cutoff" or wanted.next_cutoff):
                self._expect(name, getattr(row, name), getattr(wanted, name))
        self._expect("head", row.head.hex(), self._head.hex())
        self._expect("terms", row.terms, max(self.versions))
        if row.seq < wanted.seq:
            self._differ(f"seq is {row.seq}, the last entry has {wanted.seq}")
        if not wanted.time <= row.time < max(row.next_cutoff, 1):
            self._differ(f"time is {row.time}, it should be from {wanted.time} to before the next cut-off {row.next_cutoff}")

    def compare_cycle(self, row: CycleRow | None, wanted: CycleRow) -> None:
        """Compares a stored cut-off with the recomputed one."""
        self._subject = f"{self.name} cycle {wanted.cycle}"
        self._compare_rows(row, wanted)

    def compare_ended(self, row: PolicyRow | None, wanted: PolicyRow) -> None:
        """Compares a stored policy with one that has ended."""
        self._subject = f"{self.name} policy {wanted.policy}"
        self._compare_policy(row, wanted)

    def compare_policy(self, row: PolicyRow) -> None:
        """Compares a stored policy with its state after the entries followed; of one that has ended only that it has."""
        self._subject = f"{self.name} policy {row.policy}"
        place = self._place_of(row.policy)
        if place is not None:
            self._compare_policy(row, self.register.row_of(place))
        elif row.policy > self.register.policies.count:
            self._differ(f"is stored, but only {self.register.policies.count} are issued")
        elif row.state <= State.FROZEN:
            self._differ(f"state is {row.state.name}, but it has ended")

    def compare_account(self, row: AccountRow) -> None:
        """Compares a stored account with its state after the entries followed."""
        self._subject = f"{self.name} account {row.account}"
        self._resolve(None)
        account = self.register.accounts.get(row.account) or Account(0, row.account)
        self._accept(row, account)
        wanted = account.row()
        for name in DERIVED:
            self._expect(name, getattr(row, name), getattr(wanted, name))
        if (row.enabled and not row.unfunded) != account.is_covered:
            self._differ(f"is {'' if row.enabled else 'not '}enabled, but its cover says otherwise")
        self._check_profits(row, account)
        self._check_fitness(row, account)

    # Parts of an entry.

    def _check_number(self, entry: Entry) -> None:
        """Checks that an entry is the next one; drops the required entries that are missing before it."""
        self._expect("pool", entry.pool, self.name)
        number, wanted = entry.entry, self._last.entry + 1
        if number > wanted:
            self._differ(f"{_numbers(wanted, number - 1)} missing before it")
        elif number < wanted:
            self._differ(f"its number should be {wanted}")
        while self._due and self._due[0].entry < number:
            self._differ(f"{_shown(self._due.popleft())} is missing before it")

    def _begin(self, entry: Entry) -> Iterator[None]:
        """Determines what an entry requires that no earlier one does, itself included."""
        ledger = self.ledger
        funded, self._funded = self._funded, ""
        self._begin_day(entry)
        while self._starts.get(ledger.terms + 1, entry.entry + 1) <= entry.entry:
            ledger.terms += 1
            ledger.rules = self.versions[ledger.terms]
        is_cover = entry.kind == "covered" and entry.account == funded != "" and entry.seq == self._last.seq
        (self._check_step if entry.kind in STEPS else self._check_event)(entry, is_next=is_cover)
        ledger.entry, ledger.time, ledger.seq = entry.entry - 1, min(entry.ts, TIMESTAMP_MAX), entry.seq
        if entry.kind == "covered":
            self._clear(entry.account)
        try:
            if is_cover:
                self.register.accounts[entry.account].unfunded = False
                self._turn_cover(self.register.accounts[entry.account])
            elif entry.kind == "covered":
                self._enable(Enable(self.name, entry.ts, entry.seq, entry.account))
            elif entry.kind in ("expire", "cycle"):
                yield from self._finish_cutoff()
            elif entry.kind in self._begin_with:
                self._begin_with[entry.kind](entry)
        except Rejection as rejection:
            self._differ(f"{_shown(entry)} is not possible: {rejection}")
        account = self.register.accounts.get(entry.account)
        if account:
            account.enabled = account.is_covered  # A disable without cover has no entry, so an enable may follow.
        self._take_due()

    def _take_due(self) -> None:
        draft = self.ledger.draft
        self._due.extend(draft.entries)
        draft.entries.clear()
        draft.hashes.clear()

    def _compare_due(self, entry: Entry) -> None:
        """Compares an entry with the next one that is required."""
        if not self._due:
            self._differ(f"no rule requires {_shown(entry)}")
            return
        wanted, found = self._due.popleft(), msgspec.structs.replace(entry, seal=b"") if entry.seal else entry
        if found == wanted:
            return
        if (found.kind, found.policy) != (wanted.kind, wanted.policy):
            self._differ(f"it is {_shown(found)}, it should be {_shown(wanted)}")
        for name in ("seq", "ts", "account", "amount", "balance", "profits", "terms"):
            self._expect(name, getattr(found, name), getattr(wanted, name))

    def _check_opening(self, entry: Entry) -> None:
        """Checks that an entry's commitment belongs to its account, if the secret is configured."""
        if not entry.seal:
            return
        if not entry.account or len(entry.seal) != SEAL_BYTES:
            self._differ("it has a seal without an account, or of the wrong length")
            return
        salt = self._secrets.salt(seal_domain(self.name), entry.entry, entry.seal)
        if salt is None:
            self.unopened += 1
        elif commitment(salt, entry.account) != seal_parts(entry.seal).commitment:
            self._differ("its commitment does not belong to its account")

    # The place of an entry.

    def _check_event(self, entry: Entry, *, is_next: bool) -> None:
        """Checks sequence and time of an event's entry: cut-offs at or before it come first.

        `is_next` means that its event has entries before it.
        """
        register = self.register
        if self._step:
            self._differ(f"the entry of kind cycle of the cut-off at {self._last.ts} is missing before it")
            self._step, register.next_cutoff = None, 0
        if entry.seq <= self._last.seq - is_next:
            self._differ(f"seq {entry.seq} is not above {self._last.seq}")
        if entry.ts < self._last.ts:
            self._differ(f"ts {entry.ts} is before {self._last.ts}, that of the entry before")
        if register.next_cutoff and entry.ts >= register.next_cutoff:
            self._differ(f"the cut-off at {register.next_cutoff} is missing before it")
        if not register.next_cutoff or entry.ts >= register.next_cutoff:
            register.next_cutoff = self.rules.cutoff_after(entry.ts)

    def _check_step(self, entry: Entry, *, is_next: bool) -> None:  # noqa: ARG002 - an entry of an event may be the next one
        """Checks sequence, time and order of an entry of a cut-off."""
        register = self.register
        register.next_cutoff = register.next_cutoff or self.rules.cutoff_from(entry.ts)
        if entry.ts != register.next_cutoff:
            self._differ(f"ts is {entry.ts}, the next cut-off is at {register.next_cutoff}")
            register.next_cutoff = self.rules.cutoff_from(entry.ts)
        if entry.seq < self._last.seq or (self._step and entry.seq != self._last.seq):
            self._differ(f"seq is {entry.seq}, the entry before has {self._last.seq}")
        step = STEPS[entry.kind], entry.policy
        if self._step and step <= self._step:
            self._differ(f"{_shown(entry)} is out of order in its cut-off")
        self._step = step

    def _begin_day(self, entry: Entry) -> None:
        day = entry.ts // DAY_MS
        if day != self._day:
            self._day, self._day_terms = day, self.ledger.terms

    # Entries that an event or a step of a cut-off begins.

    def _follow_transfer(self, entry: Entry) -> None:
        was_unfunded = entry.account in self.register.accounts and self.register.accounts[entry.account].unfunded
        text = format_units(entry.amount, self.rules.decimals)
        self._transfer(Transfer(self.name, entry.ts, entry.seq, entry.account, text, ""), entry.amount)
        if was_unfunded and not self.register.accounts[entry.account].unfunded:
            self._funded = entry.account

    def _follow_top_up(self, entry: Entry) -> None:
        self._top_up(TopUp(self.name, entry.ts, entry.seq, "", ""), entry.amount)

    def _follow_disable(self, entry: Entry) -> None:
        self._disable(Disable(self.name, entry.ts, entry.seq, entry.account))

    def _follow_loss(self, entry: Entry) -> None:
        account = self._insured(entry)
        if account is None or not self.rules.min_loss <= entry.amount or not entry.amount:
            self._differ(f"a loss of {entry.amount} does not qualify, the least is {self.rules.min_loss}")
        self._lose(account or self.register.account(entry.account), entry.amount)

    def _follow_profit(self, entry: Entry) -> None:
        """The premium that a trade owes, from the profits of the day before and after it (rule 3)."""
        account = self._insured(entry) or self.register.account(entry.account)
        before = account.profits_of(self._day)
        if entry.profits <= before:
            self._differ(f"profits of the day are {entry.profits}, they were {before} before")
        most = self._owed(before, entry.profits)
        least = max(1, self._owed(self._most_profits(before, entry.profits - 1), entry.profits))
        if entry.amount < account.balance and least <= entry.amount < most:
            most = least = entry.amount
        account.day, account.profits = self._day, entry.profits
        self._owe_between(account, least, most)

    def _follow_cancel(self, entry: Entry) -> None:
        if self._place_of(entry.policy) is None:
            self._differ(f"policy {entry.policy} is not live")
            return
        self._cancel(Cancel(self.name, entry.ts, entry.seq, entry.account, entry.policy))

    def _follow_payout(self, entry: Entry) -> None:
        self._payout(Payout(self.name, entry.ts, entry.seq, entry.account))

    def _follow_turn(self, entry: Entry) -> None:
        """Freezes, thaws or activates a policy, as far as its state and its account permit."""
        register, wanted = self.register, TURNED[entry.kind]
        place = self._place_of(entry.policy)
        if place is None:
            self._differ(f"policy {entry.policy} is not live")
            return
        state, account = State(register.policies.state[place]), register.owner(place)
        if state != wanted:
            self._differ(f"policy {entry.policy} is {state.name}, only one that is {wanted.name} can have a {entry.kind}")
            return
        if entry.kind != "freeze" and not account.is_covered:
            self._differ(f"the account of policy {entry.policy} is not covered")
        if entry.kind == "activate" and register.policies.active_at[place] > entry.ts:
            self._differ(f"policy {entry.policy} waits until {register.policies.active_at[place]} or longer")
        {"freeze": register.freeze, "thaw": register.thaw, "activate": register.activate}[entry.kind](place)

    def _finish_cutoff(self) -> Iterator[None]:
        """The steps of a cut-off that the state before them determines: expiries, the budget and what it pays."""
        register, at = self.register, self.ledger.time
        register.checks.take(at)
        register.activations.take(at)
        for name in self._touched:
            self._check_frozen(name)
        self._touched.clear()
        yield from expire(register, at)
        yield from share(register, at)
        register.next_cutoff = at + self.rules.cycle_ms
        self._step = None

    def _check_frozen(self, name: str) -> None:
        """Checks that a cut-off left all policies of an account active or all frozen, and none active without cover (5a)."""
        account = self.register.accounts.get(name) or Account(0, name)
        states = {self.register.policies.state[place] for place in account.live}
        if State.ACTIVE in states and (State.FROZEN in states or not account.is_covered):
            reason = "others are frozen" if account.is_covered else "it is not covered"
            self._differ(f"the account {name} has active policies, but {reason}")

    # Arrears in doubt.

    def _owe_between(self, account: Account, least: int, most: int) -> None:
        """Takes a premium of which the entries give only bounds: the most, with a doubt about the arrears that it leaves."""
        known = self._doubts.get(account.name) or Doubt(account.arrears, account.unfunded)
        least_arrears = known.least + max(0, least - account.balance)
        doubt = Doubt(least_arrears, unfunded=known.unfunded or least_arrears > 0)
        was_covered = account.is_covered
        self._owe(account, most)
        self._note_doubt(account, doubt)
        if was_covered and not doubt.least and account.arrears:
            self._unresolved = account

    def _note_doubt(self, account: Account, doubt: Doubt) -> None:
        if doubt.least < account.arrears:
            self._doubts[account.name] = doubt
        else:
            self._doubts.pop(account.name, None)

    def _pay_arrears(self, account: Account) -> None:
        if account.name in self._doubts:
            self._unresolved = account
        else:
            super()._pay_arrears(account)

    def _resolve(self, entry: Entry | None) -> None:
        """Lets the entry after a premium or a transfer show what arrears the account had; None if there is no such entry."""
        account = self._unresolved
        if account is None:
            return
        self._unresolved = None
        follows = entry if entry and (entry.account, entry.seq) == (account.name, self._last.seq) else None
        if self._due:
            self._resolve_cover(account, follows)
        else:
            self._resolve_payment(account, follows)

    def _resolve_cover(self, account: Account, follows: Entry | None) -> None:
        """The cover of an account ended with a premium if that left arrears."""
        if follows and follows.kind == "uncovered":
            self._note_doubt(account, Doubt(1, unfunded=True))
            return
        self._due.clear()
        self.ledger.entry -= 1
        self._clear(account.name)
        account.turn_cover(self.ledger.time)
        account.enabled = True

    def _resolve_payment(self, account: Account, follows: Entry | None) -> None:
        """A transfer pays arrears: all of them, or all that it brought."""
        doubt, balance, was_unfunded = self._doubts.pop(account.name), account.balance, account.unfunded
        paid = follows.amount if follows and follows.kind == "premium" and not follows.profits else 0
        if paid < balance:
            account.arrears = min(account.arrears, max(doubt.least, paid))
            account.unfunded = account.arrears > 0 or doubt.unfunded
        super()._pay_arrears(account)
        least, has_minimum = max(0, doubt.least - balance), account.balance >= self.rules.min_funding
        self._note_doubt(account, Doubt(least, unfunded=least > 0 or not has_minimum))
        self._fund(account)
        if was_unfunded and (not account.unfunded or (has_minimum and not least)):
            self._funded = account.name
        self._take_due()

    def _clear(self, name: str) -> None:
        """An account that may be without arrears has none."""
        doubt = self._doubts.get(name)
        if doubt and not doubt.least:
            account = self.register.accounts[name]
            account.arrears, account.unfunded = 0, doubt.unfunded
            del self._doubts[name]

    def _accept(self, row: AccountRow, account: Account) -> None:
        """Takes the stored arrears of an account if they are possible."""
        doubt = self._doubts.get(account.name)
        if doubt and doubt.least <= row.arrears <= account.arrears:
            account.arrears = row.arrears
            account.unfunded = bool(row.arrears) or doubt.unfunded
            del self._doubts[account.name]

    # Values.

    def _insured(self, entry: Entry) -> Account | None:
        """Returns the account of an insured trade; notes a difference if it was never covered."""
        account = self.register.accounts.get(entry.account)
        if account is None or not account.cover:
            self._differ(f"the account {entry.account} was never covered")
        return account

    def _owed(self, before: int, after: int) -> int:
        return premium(after, self.rules) - premium(before, self.rules)

    def _most_profits(self, known: int, limit: int, *, current: bool = False) -> int:
        """Returns the most profits of the day that owed no more than `known` ones, under the terms of the day before now.

        With `current`, also under those in force now and later.
        """
        most = known
        for version in range(self._day_terms, max(self.versions) + 1 if current else self.ledger.terms):
            rules = self.versions[version]
            charged, too_many = premium(most, rules), limit + 1
            while most + 1 < too_many:
                middle = (most + too_many) // 2
                if premium(middle, rules) <= charged:
                    most = middle
                else:
                    too_many = middle
        return most

    def _place_of(self, policy: int) -> int | None:
        """Returns the place of a live policy; None if it is not live."""
        register, number = self.register, self.register.policies.number
        if not 0 < policy <= len(register.owners):
            return None
        live = register.by_number[register.owners[policy - 1]].live
        position = bisect_left(live, policy, key=number.__getitem__)
        return live[position] if position < len(live) and number[live[position]] == policy else None

    # Comparisons.

    def _compare_rows(self, row: CycleRow | PolicyRow | None, wanted: CycleRow | PolicyRow, free: str = "") -> None:
        if row is None:
            self._differ("is missing")
            return
        for name, found, value in zip(wanted._fields, row, wanted, strict=True):
            if name != free:
                self._expect(name, found, value)

    def _compare_policy(self, row: PolicyRow | None, wanted: PolicyRow) -> None:
        """Compares a policy; `active_at` may be later by whole cycles, until the policy became active."""
        self._compare_rows(row, wanted, free="active_at")
        if row is None:
            return
        delay, latest = row.active_at - wanted.active_at, self._latest_active_at(wanted)
        if delay < 0 or delay % self.rules.cycle_ms or row.active_at > latest:
            self._differ(f"active_at is {row.active_at}, it should be {wanted.active_at} or by cycles later, at most {latest}")

    def _latest_active_at(self, policy: PolicyRow) -> int:
        expiry_ms = self.versions[policy.terms].expiry_ms
        if policy.expires_at != policy.issued_at + expiry_ms:
            return policy.expires_at - expiry_ms
        first = self.rules.cutoff_after(policy.issued_at)
        return delayed(policy.active_at, policy.issued_at, first, self.register.next_cutoff, self.rules)

    def _check_fitness(self, row: AccountRow, account: Account) -> None:
        """Checks that the active policies of an account are those of a fit one, the frozen ones those of an unfit one."""
        states = {self.register.policies.state[place] for place in account.live}
        if (State.ACTIVE in states and row.unfit_since) or (State.FROZEN in states and not row.unfit_since):
            self._differ(f"unfit_since is {row.unfit_since}, its policies are {', '.join(State(one).name for one in states)}")

    def _check_profits(self, row: AccountRow, account: Account) -> None:
        """Checks the profits of the last day: entries contain them only after a trade that owed a premium."""
        if row.day < account.day:
            self._differ(f"day is {row.day}, its entries give {account.day} or later")
            return
        known = account.profits_of(row.day)
        if row.profits < known:
            self._differ(f"profits are {row.profits}, its entries give {known} or more")
        elif row.day >= self._day:
            most = self._most_profits(known, row.profits, current=True)
            if row.profits > most:
                self._differ(f"profits are {row.profits}, its entries give {known}, and at most {most} owe no more")

    def _expect(self, what: str, found: object, expected: object) -> None:
        if found != expected:
            self._differ(f"{what} is {found}, it should be {expected}")

    def _differ(self, sentence: str) -> None:
        if self.differs_at is None:
            self.differs_at = self._last.entry + 1
        self.differences.append(f"{self._subject}: {sentence}")


TURNED = {"freeze": State.ACTIVE, "thaw": State.FROZEN, "activate": State.WAITING}
"""The state that a policy must have for an entry of a kind."""


def _shown(entry: Entry) -> str:
    of = f" of policy {entry.policy}" if entry.policy else f" of {entry.account}" if entry.account else ""
    return f"the {entry.kind}{of}"


def _numbers(first: int, last: int) -> str:
    return f"entry {first} is" if first == last else f"entries {first} to {last} are"
