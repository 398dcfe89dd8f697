"""A pool in memory: it applies the events of its stream in order, and collects their effects.

It is restored from stored rows, changed by `apply` or `steps`, and discarded and restored again when a commit fails. `take`
returns the effects since the last commit as a `Batch`.
"""

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fundsvc.core.commitment import LedgerSecret
from fundsvc.core.events import Reason, Rejection
from fundsvc.core.identifiers import is_identifier
from fundsvc.core.numbers import format_units
from fundsvc.core.times import AHEAD_SECONDS_MAX, is_time
from fundsvc.mutual.core.accounts import Account
from fundsvc.mutual.core.amounts import parse_cut, parse_exact
from fundsvc.mutual.core.batch import Batch, Draft
from fundsvc.mutual.core.cutoff import cut_off
from fundsvc.mutual.core.events import (
    Cancel,
    Disable,
    Enable,
    Event,
    Payout,
    TermsChange,
    Tick,
    TopUp,
    Trade,
    Transfer,
)
from fundsvc.mutual.core.ledger import Ledger, check_sum
from fundsvc.mutual.core.premium import premium
from fundsvc.mutual.core.register import Register
from fundsvc.mutual.core.rows import AccountRow, PolicyRow, PoolRow, State
from fundsvc.mutual.core.standing import SCALE, Standing, standing
from fundsvc.mutual.core.terms import DAY_MS, Rules

RECENT_MAX = 1 << 14
"""Applied events whose content is in memory, to tell a duplicate from another event with the same sequence: 256 kB."""

Amounts = tuple[int, ...]
"""The amounts of an event in atoms, in the order of its fields."""


class Pool:
    """One pool. Events must be applied in stream order; a duplicate changes nothing.

    `row` is its stored state, `versions` its terms by version, of which `row.terms` is in force. `secret` seals the accounts of
    new entries. `ts_ahead_seconds_max` limits the time of an event after the time in its stream id.
    """

    def __init__(
        self,
        row: PoolRow,
        versions: dict[int, Rules],
        *,
        secret: LedgerSecret | None = None,
        ts_ahead_seconds_max: float = AHEAD_SECONDS_MAX,
    ) -> None:
        self.versions = dict(versions)
        self.ledger = Ledger(row, versions[row.terms], secret)
        self.register = Register(row, self.versions, self.ledger)
        self._ahead_ms = int(ts_ahead_seconds_max * 1000)
        self._recent_seq, self._recent_content = array("q", bytes(8 * RECENT_MAX)), array("q", bytes(8 * RECENT_MAX))
        self._checks: dict[type, Callable[[Any], Amounts]] = {
            Transfer: self._check_transfer,
            Trade: self._check_trade,
            TopUp: self._check_top_up,
            **dict.fromkeys((Enable, Disable, Cancel, Payout), self._check_account),
            **dict.fromkeys((Tick, TermsChange), self._check_nothing),
        }
        self._handlers: dict[type, Callable[..., None]] = {
            Transfer: self._transfer,
            Enable: self._enable,
            Disable: self._disable,
            Trade: self._trade,
            TopUp: self._top_up,
            Cancel: self._cancel,
            Payout: self._payout,
            Tick: self._tick,
            TermsChange: self._change_terms,
        }

    def restore(self, accounts: Iterable[AccountRow], policies: Iterable[PolicyRow], owners: Iterable[str]) -> Iterator[None]:
        """Restores accounts in the order of their first event, live policies by number, and the account of each policy ever
        issued, `owners`, by number; some at each step.
        """
        return self.register.restore(accounts, policies, owners)

    @property
    def name(self) -> str:
        """The name of the pool."""
        return self.ledger.pool

    @property
    def rules(self) -> Rules:
        """The terms in force."""
        return self.ledger.rules

    @property
    def draft(self) -> Draft:
        """The effects since the last `take`."""
        return self.ledger.draft

    # Applying events.

    def apply(self, event: Event | Rejection, stream_ms: int = 0) -> None:
        """Applies one event, after the cut-offs that are due; raises Rejection if it is malformed or refused.

        `stream_ms` is the time in the id of its message. If that is not a time, the event's own time is not limited. A
        malformed event changes nothing; a refused one moves only the pool's time, with the cut-offs up to it.
        """
        amounts = self._admit(event, stream_ms)
        if amounts is not None:
            deque(self._pass_time(event.ts), maxlen=0)  # type: ignore[union-attr]
            self._settle(event, amounts)  # type: ignore[arg-type]

    def steps(self, event: Event | Rejection, stream_ms: int = 0) -> Iterator[None]:
        """Applies one event as `apply` does, with pauses of which a long cut-off has many. The event is applied at the end.

        Between pauses nothing may be applied, taken or saved.
        """
        amounts = self._admit(event, stream_ms)
        if amounts is not None:
            yield from self._pass_time(event.ts)  # type: ignore[union-attr]
            self._settle(event, amounts)  # type: ignore[arg-type]

    def steps_late(self, event: Event | Rejection, stream_ms: int = 0) -> Iterator[None]:
        """Applies a rejected event that is sent again as `steps` does, although later sequences were applied meanwhile.

        The last applied sequence stays as it is. The caller knows that the event was not applied.
        """
        amounts = self.check(event, stream_ms)
        yield from self._pass_time(event.ts)  # type: ignore[union-attr]
        self._settle(event, amounts)  # type: ignore[arg-type]

    def check(self, event: Event | Rejection, stream_ms: int = 0) -> Amounts:
        """Returns the amounts of an event; raises Rejection if it is malformed, in whatever state the pool is."""
        self._check_stream(event, stream_ms)
        return self._checks[type(event)](event)

    def is_cutoff_due(self, event: Event | Rejection) -> bool:
        """Whether cut-offs come before an event, so that it should be applied in steps."""
        return 0 < self.register.next_cutoff <= getattr(event, "ts", 0)

    def _admit(self, event: Event | Rejection, stream_ms: int) -> Amounts | None:
        """Returns the amounts of an event; None for a duplicate. Raises Rejection if it is malformed or ahead of its time."""
        self._check_stream(event, stream_ms)
        seq = getattr(event, "seq", None)
        if seq is not None and seq <= self.ledger.seq:
            self._check_content(event, seq)  # type: ignore[arg-type]
            self.draft.duplicates += 1
            return None
        return self._checks[type(event)](event)

    def _check_stream(self, event: Event | Rejection, stream_ms: int) -> None:
        """Raises the event's Rejection, or one if it belongs to another pool or is ahead of its time."""
        if isinstance(event, Rejection):
            raise event
        if event.pool != self.name:
            raise Rejection(Reason.UNKNOWN_POOL, f"pool {event.pool!r} is not {self.name!r}, whose stream this is")
        if is_time(stream_ms) and event.ts > stream_ms + self._ahead_ms:
            latest = stream_ms + self._ahead_ms
            raise Rejection(Reason.TS_AHEAD, f"ts {event.ts} is later than {latest}, the latest time allowed")

    def _check_content(self, event: Event, seq: int) -> None:
        """Raises Rejection if another event was applied with this sequence, as far as memory knows."""
        slot = seq % RECENT_MAX
        if self._recent_seq[slot] == seq and self._recent_content[slot] != hash(event):
            raise Rejection(Reason.CONFLICT, f"{self.name} has applied another event with seq {seq}")

    def _pass_time(self, ts: int) -> Iterator[None]:
        """Moves the pool's time on to an event's, after the cut-offs at or before it, one by one. It never goes back."""
        register = self.register
        if not register.next_cutoff:
            register.next_cutoff = self.rules.cutoff_after(ts)
        while register.next_cutoff <= ts:
            yield from cut_off(register)
            self._check_identity()
        self.ledger.time = max(self.ledger.time, ts)

    def _settle(self, event: Event, amounts: Amounts) -> None:
        """Applies an event whose time has come. A refused event leaves the sequence where it was."""
        before = self.ledger.seq
        seq = self.ledger.seq = max(before, getattr(event, "seq", before))
        try:
            self._handlers[type(event)](event, *amounts)
        except Rejection:
            self.ledger.seq = before
            raise
        if seq != before:
            self._recent_seq[seq % RECENT_MAX], self._recent_content[seq % RECENT_MAX] = seq, hash(event)
        self._check_identity()

    # Fields, checked before the time moves.

    def _check_transfer(self, event: Transfer) -> Amounts:
        _check_names(event.account, event.id)
        amount = parse_exact(event.amount, self.rules.decimals)
        if not amount:
            raise Rejection(Reason.INVALID_FIELD, "transfer: amount is 0: send a positive or a negative amount")
        return (amount,)

    def _check_top_up(self, event: TopUp) -> Amounts:
        _check_names(event.id)
        amount = parse_exact(event.amount, self.rules.decimals)
        if amount <= 0:
            raise Rejection(Reason.INVALID_FIELD, f"topUp: amount {event.amount} is not above 0")
        return (amount,)

    def _check_trade(self, event: Trade) -> Amounts:
        _check_names(event.account, event.symbol, event.trade_id)
        if event.opened_at > event.ts:
            raise Rejection(Reason.INVALID_FIELD, f"trade: openedAt {event.opened_at} is later than ts {event.ts}")
        decimals = self.rules.decimals
        pnl, volume = parse_cut(event.realised_pnl, decimals), parse_cut(event.volume, decimals)
        if volume < 0:
            raise Rejection(Reason.INVALID_FIELD, f"trade: volume {event.volume} is below 0")
        return pnl, volume

    def _check_account(self, event: Enable | Disable | Cancel | Payout) -> Amounts:
        _check_names(event.account)
        return ()

    def _check_nothing(self, _: Event) -> Amounts:
        return ()

    # Accounts: rules 1 and 3.

    def _transfer(self, event: Transfer, amount: int) -> None:
        known = self.register.accounts.get(event.account)
        before, arrears = (known.balance, known.arrears) if known else (0, 0)
        if before + amount < 0:
            held = format_units(before, self.rules.decimals)
            raise Rejection(Reason.INSUFFICIENT, f"{event.account} has {held}: {event.amount} would leave less than 0")
        check_sum(f"the balance of {event.account}", before, amount)
        self.ledger.check_room(arrears)
        account = self.register.account(event.account)
        account.balance += amount
        self.ledger.write("transfer", account.name, amount=amount)
        if amount > 0:
            self._pay_arrears(account)
            self._fund(account)
        elif account.balance < self.rules.min_funding:
            self._unfund(account)

    def _pay_arrears(self, account: Account) -> None:
        """Pays arrears from what was transferred in, first of all."""
        taken = min(account.arrears, account.balance)
        if taken:
            account.arrears -= taken
            self._take(account, taken)
            self.ledger.write("premium", account.name, amount=taken)

    def _fund(self, account: Account) -> None:
        """An unfunded account without arrears and with `min_funding` is funded again; cover begins if it is enabled."""
        if account.unfunded and account.is_funded(self.rules.min_funding):
            account.unfunded = False
            if account.enabled:
                self._turn_cover(account)

    def _unfund(self, account: Account) -> None:
        """An account becomes unfunded; its cover ends."""
        account.unfunded = True
        if account.is_covered:
            self._turn_cover(account)

    def _turn_cover(self, account: Account) -> None:
        account.turn_cover(self.ledger.time)
        self.register.plan_check(account)
        self.ledger.write("covered" if account.is_covered else "uncovered", account.name)

    def _enable(self, event: Enable) -> None:
        known = self.register.accounts.get(event.account)
        is_funded = known.is_funded(self.rules.min_funding) if known else not self.rules.min_funding
        if not (is_funded or (known and known.enabled)):
            raise Rejection(Reason.NOT_FUNDED, self._missing(event.account, known))
        account = self.register.account(event.account)
        if not account.enabled:
            account.enabled, account.unfunded = True, False
            self._turn_cover(account)

    def _missing(self, name: str, account: Account | None) -> str:
        """Describes what an account lacks for cover."""
        balance, arrears = (account.balance, account.arrears) if account else (0, 0)
        rules = self.rules
        missing = format_units(max(0, rules.min_funding - balance) + arrears, rules.decimals)
        held, owed = format_units(balance, rules.decimals), format_units(arrears, rules.decimals)
        return f"{name} has {held} and owes {owed}: transfer {missing} to the insurance account, then enable"

    def _disable(self, event: Disable) -> None:
        account = self.register.account(event.account)
        account.enabled = False
        if account.is_covered:
            self._turn_cover(account)

    # Trades: rules 1 to 3.

    def _trade(self, event: Trade, pnl: int, volume: int) -> None:
        rules, register, now = self.rules, self.register, self.ledger.time
        known = register.accounts.get(event.account)
        insured = known is not None and known.cover and self._is_insured(event, known)
        day, profits, owed = self._priced(known, pnl) if known and insured and pnl > 0 else (0, 0, 0)
        account = register.account(event.account)
        account.note_trade(rules.last_cutoff_with(now), volume, register.next_cutoff)
        if account.unfit_since:
            register.plan_check(account)
        if profits:
            account.day, account.profits = day, profits
            self._owe(account, owed)
        elif insured and pnl < 0 and -pnl >= rules.min_loss and not _has(event, rules.exclude_losses):
            self._lose(account, -pnl)

    def _priced(self, account: Account, pnl: int) -> tuple[int, int, int]:
        """Returns the UTC day, the account's insured profits of it after a profit, and the premium that it owes (rule 3)."""
        day = self.ledger.time // DAY_MS
        before = account.profits_of(day)
        check_sum(f"the profits of {account.name} today", before, pnl)
        owed = premium(before + pnl, self.rules) - premium(before, self.rules)
        check_sum(f"the arrears of {account.name}", account.arrears, owed)
        self.ledger.check_room(owed)
        return day, before + pnl, owed

    def _is_insured(self, trade: Trade, account: Account) -> bool:
        """Whether a trade counts, for loss and premium (rule 1)."""
        rules = self.rules
        return (
            account.was_covered(trade.opened_at)
            and not _has(trade, rules.exclude)
            and (rules.symbols is None or trade.symbol in rules.symbols)
        )

    def _owe(self, account: Account, owed: int) -> None:
        """Takes a premium from the balance; what is not there becomes arrears, which leave the account unfunded (rule 3)."""
        if not owed:
            return
        taken = min(owed, account.balance)
        account.arrears += owed - taken
        self._take(account, taken)
        self.ledger.write("premium", account.name, amount=taken, profits=account.profits)
        if account.arrears:
            self._unfund(account)

    def _take(self, account: Account, taken: int) -> None:
        account.balance -= taken
        self.ledger.take_premium(taken)

    def _lose(self, account: Account, loss: int) -> None:
        """Adds a qualifying loss, and issues the policies that it completes (rule 2)."""
        rules = self.rules
        account.accumulated += loss
        self.ledger.write("loss", account.name, amount=loss)
        issued = max(0, min(account.accumulated // rules.threshold, rules.live_max - len(account.live)))
        account.accumulated = min(account.accumulated - issued * rules.threshold, rules.threshold)
        for _ in range(issued):
            self.register.issue(account)

    # The pool and its policies: rules 4 and 6.

    def _top_up(self, _: TopUp, amount: int) -> None:
        self.ledger.check_room(amount)
        self.ledger.add(amount)
        self.ledger.write("topUp", amount=amount)

    def _cancel(self, event: Cancel) -> None:
        register = self.register
        known, owners = register.accounts.get(event.account), register.owners
        if known is None or event.policy > len(owners) or owners[event.policy - 1] != known.number:
            raise Rejection(Reason.UNKNOWN_POLICY, f"{event.account} has no policy {event.policy}")
        number = register.policies.number
        place = next((place for place in known.live if number[place] == event.policy), None)
        if place is None:
            raise Rejection(Reason.POLICY_OVER, f"policy {event.policy} has ended")
        register.account(event.account)
        register.end(place, State.CANCELLED, "cancel")

    def _payout(self, event: Payout) -> None:
        account = self.register.account(event.account)
        self.register.move_dues(account)
        amount, account.payable = account.payable, 0
        if amount:
            account.paid_out += amount
            self.ledger.paid_out += amount
            self.ledger.write("payout", account.name, amount=amount)

    def _tick(self, _: Tick) -> None:
        pass

    def _change_terms(self, event: TermsChange) -> None:
        if self.versions.get(event.version) == event.rules:
            return
        if event.version != self.ledger.terms + 1:
            raise Rejection(Reason.SUPERSEDED, f"the terms of {self.name} have version {self.ledger.terms}")
        if not event.rules.same_units(self.rules):
            raise Rejection(
                Reason.TERMS_FIXED,
                f"decimals, cycle_seconds and cycle_anchor of {self.name} cannot change: configure a new pool with other ones",
            )
        fitness_changes = event.rules.activity_volume != self.rules.activity_volume
        self.adopt(event.version, event.rules)
        if fitness_changes:
            self.register.check_all()

    def adopt(self, version: int, rules: Rules) -> None:
        """Puts terms into force from now on. A new pool adopts its version 1, so that the first batch stores it."""
        self.versions[version] = self.draft.terms[version] = rules
        self.ledger.terms, self.ledger.rules = version, rules

    # What there is.

    def take(self) -> Batch:
        """Returns the effects of the events since the last call. See `Draft.rows` for how much that is."""
        ledger = self.ledger
        batch = ledger.draft.finish(self.row(), self.register.take_changed())
        ledger.draft = Draft(self.register.policies.count)
        return batch

    def standing(self, policy: PolicyRow) -> Standing:
        """Returns what a policy's row does not contain: what it has accrued by now, and until when it waits."""
        return standing(policy, self.register.accounts[policy.account].unfit_since, self.row(), self.rules)

    def row(self) -> PoolRow:
        """Returns the pool's state, which later events do not change."""
        ledger, register = self.ledger, self.register
        return PoolRow(
            ledger.pool,
            ledger.balance,
            ledger.fees,
            ledger.inflow,
            ledger.released,
            ledger.settled,
            ledger.paid_out,
            register.distribution.index,
            register.distribution.weight,
            register.distribution.rem,
            ledger.time,
            register.next_cutoff,
            register.cycle,
            register.policies.count,
            ledger.seq,
            ledger.entry,
            ledger.head,
            ledger.terms,
        )

    def identity_error(self) -> int:
        """Returns the sum of both errors of rule 7, in atoms times SCALE; 0 if the money adds up."""
        ledger, distribution = self.ledger, self.register.distribution
        flow = ledger.inflow - ledger.released - ledger.balance
        entitled = (ledger.settled - distribution.moved) * SCALE + distribution.rem + distribution.shared
        return abs(flow) * SCALE + abs(ledger.released * SCALE - entitled)

    def _check_identity(self) -> None:
        self.draft.identity_error = self.identity_error() or self.draft.identity_error


def _has(trade: Trade, tags: tuple[str, ...]) -> bool:
    return bool(trade.tags) and any(tag in tags for tag in trade.tags)


def _check_names(*names: str) -> None:
    """Raises Rejection unless all names are identifiers. Nearly all are, so one test of all comes first."""
    if "".join(names).isprintable() and all(name[:1].isalnum() for name in names):
        return
    for name in names:
        if not is_identifier(name):
            raise Rejection(Reason.INVALID_FIELD, f"{name!r} must be printable text that does not begin with = + - or @")
