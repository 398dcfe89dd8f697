"""The rules of the mutual as plainly as possible: every cut-off walks over all accounts, all trades and all policies.

Written from the description alone, to compare with the pool that uses an index, a heap and schedules. Amounts are integers.
"""

from dataclasses import dataclass, field

SCALE, PPM, DAY = 10**18, 10**6, 86_400_000
LIVE = ("WAITING", "ACTIVE", "FROZEN")


class Refused(Exception):
    """An event is refused for what it would do."""


@dataclass
class PlainPolicy:
    number: int
    account: str
    face: int
    cap: int
    expiry: int
    issued_at: int
    active_at: int
    expires_at: int
    state: str = "WAITING"
    paid: int = 0
    moved: int = 0
    entered: int = 0
    room: int = 0
    finish: int = 0


@dataclass
class PlainAccount:
    balance: int = 0
    arrears: int = 0
    payable: int = 0
    paid_out: int = 0
    accumulated: int = 0
    enabled: bool = False
    unfunded: bool = False
    intervals: list = field(default_factory=list)
    profits: dict = field(default_factory=dict)
    trades: list = field(default_factory=list)

    @property
    def covered(self):
        return self.enabled and not self.unfunded


class PlainPool:
    def __init__(self, rules):
        self.rules = rules
        self.accounts, self.policies, self.entries, self.cycles = {}, [], [], []
        self.balance = self.fees = self.inflow = self.released = self.settled = self.paid_out = 0
        self.index = self.rem = self.seq = self.time = self.next = 0

    def write(self, kind, account="", policy=0, amount=0):
        self.entries.append((self.seq, self.time, kind, account, policy, amount, self.balance))

    def active(self):
        return [policy for policy in self.policies if policy.state == "ACTIVE"]

    def live(self, account):
        return [policy for policy in self.policies if policy.account == account and policy.state in LIVE]

    def accrued(self, policy):
        return min(policy.room, policy.face * (self.index - policy.entered) // SCALE)

    def apply(self, event, *amounts):
        """Applies an event with its amounts, after the cut-offs before it."""
        if not self.next:
            self.next = self.rules.anchor_ms + (event.ts - self.rules.anchor_ms) // self.rules.cycle_ms * self.rules.cycle_ms
            while self.next <= event.ts:
                self.next += self.rules.cycle_ms
        while self.next <= event.ts:
            self.cut_off(self.next)
            self.next += self.rules.cycle_ms
        self.time = max(self.time, event.ts)
        before, self.seq = self.seq, getattr(event, "seq", self.seq)
        try:
            getattr(self, type(event).__name__.lower())(event, *amounts)
        except Refused:
            self.seq = before
            raise

    def account(self, name):
        return self.accounts.setdefault(name, PlainAccount())

    def premium(self, profits):
        tiers = self.rules.premium_tiers
        if self.rules.tier_mode == "slab":
            return profits * ([0] + [rate for start, rate in tiers if start <= profits])[-1] // PPM
        ends = [start for start, _ in tiers[1:]] + [profits]
        return sum(max(0, min(end, profits) - start) * rate for (start, rate), end in zip(tiers, ends, strict=True)) // PPM

    def update_cover(self, name, was):
        account = self.accounts[name]
        if account.covered and not was:
            account.intervals.append([self.time, None])
            self.write("covered", name)
        elif was and not account.covered:
            account.intervals[-1][1] = self.time
            self.write("uncovered", name)

    def take(self, account, owed):
        taken = min(account.balance, owed)
        account.balance -= taken
        fee = taken * self.rules.platform_fee // PPM
        self.fees += fee
        self.inflow += taken - fee
        self.balance += taken - fee
        return taken

    def transfer(self, event, amount):
        if self.accounts.get(event.account, PlainAccount()).balance + amount < 0:
            raise Refused("insufficient")
        account = self.account(event.account)
        was = account.covered
        account.balance += amount
        self.write("transfer", event.account, 0, amount)
        if amount > 0 and account.arrears:
            taken = self.take(account, account.arrears)
            account.arrears -= taken
            self.write("premium", event.account, 0, taken)
        if amount < 0 and account.balance < self.rules.min_funding:
            account.unfunded = True
        if amount > 0 and not account.arrears and account.balance >= self.rules.min_funding:
            account.unfunded = False
        self.update_cover(event.account, was)

    def enable(self, event):
        known = self.accounts.get(event.account, PlainAccount())
        if not known.enabled and (known.arrears or known.balance < self.rules.min_funding):
            raise Refused("not_funded")
        account = self.account(event.account)
        was, account.enabled = account.covered, True
        self.update_cover(event.account, was)

    def disable(self, event):
        account = self.account(event.account)
        was, account.enabled = account.covered, False
        self.update_cover(event.account, was)

    def trade(self, event, pnl, volume):
        rules, account = self.rules, self.account(event.account)
        account.trades.append((self.time, volume))
        covered = any(start <= event.opened_at and (end is None or event.opened_at < end) for start, end in account.intervals)
        if not covered or set(event.tags) & set(rules.exclude) or (rules.symbols and event.symbol not in rules.symbols):
            return
        if pnl > 0:
            self.profit(event.account, account, pnl)
        elif pnl < 0 and -pnl >= rules.min_loss and not set(event.tags) & set(rules.exclude_losses):
            self.loss(event.account, account, -pnl)

    def profit(self, name, account, pnl):
        day = self.time // DAY
        before = account.profits.get(day, 0)
        account.profits[day] = before + pnl
        owed = self.premium(before + pnl) - self.premium(before)
        if owed:
            was, taken = account.covered, self.take(account, owed)
            account.arrears += owed - taken
            self.write("premium", name, 0, taken)
            account.unfunded = account.unfunded or account.arrears > 0
            self.update_cover(name, was)

    def loss(self, name, account, loss):
        rules = self.rules
        account.accumulated += loss
        self.write("loss", name, 0, loss)
        count = max(0, min(account.accumulated // rules.threshold, rules.live_max - len(self.live(name))))
        account.accumulated = min(account.accumulated - count * rules.threshold, rules.threshold)
        for _ in range(count):
            number, cap = len(self.policies) + 1, rules.face * rules.cap_rate // PPM
            times = self.time, self.time + rules.waiting_ms, self.time + rules.expiry_ms
            self.policies.append(PlainPolicy(number, name, rules.face, cap, rules.expiry_ms, *times))
            self.write("issue", name, number, rules.face)

    def topup(self, _, amount):
        self.balance += amount
        self.inflow += amount
        self.write("topUp", "", 0, amount)

    def cancel(self, event):
        policy = next((policy for policy in self.policies if policy.number == event.policy), None)
        if policy is None or policy.account != event.account:
            raise Refused("unknown_policy")
        if policy.state not in LIVE:
            raise Refused("policy_over")
        self.end(policy, "CANCELLED", "cancel")

    def payout(self, event):
        account = self.account(event.account)
        for policy in self.active():
            if policy.account == event.account:
                self.move(policy)
        amount, account.payable = account.payable, 0
        account.paid_out += amount
        self.paid_out += amount
        if amount:
            self.write("payout", event.account, 0, amount)

    def tick(self, _):
        pass

    def move(self, policy):
        due = self.accrued(policy) - policy.moved
        policy.moved += due
        policy.paid += due
        self.accounts[policy.account].payable += due
        self.settled += due
        return due

    def leave(self, policy):
        due = self.move(policy)
        return due, policy.face * (self.index - policy.entered) - policy.moved * SCALE

    def end(self, policy, state, kind):
        due = 0
        if policy.state == "ACTIVE":
            due, excess = self.leave(policy)
            self.rem += excess
        policy.state = state
        self.write(kind, policy.account, policy.number, due)

    def enter(self, policy, kind):
        policy.state, policy.entered, policy.moved = "ACTIVE", self.index, 0
        policy.room = policy.cap - policy.paid
        policy.finish = self.index + -(-policy.room * SCALE // policy.face)
        self.write(kind, policy.account, policy.number, 0)

    def is_fit(self, name, at):
        account, rules = self.accounts[name], self.rules
        volumes = [volume for ts, volume in account.trades if at - rules.activity_ms <= ts < at]
        return account.covered and len(volumes) > 0 and sum(volumes) >= rules.activity_volume

    def cut_off(self, at):
        self.time = at
        for policy in self.policies:
            if self.is_fit(policy.account, at):
                if policy.state == "FROZEN":
                    self.enter(policy, "thaw")
            elif policy.state == "ACTIVE":
                self.end(policy, "FROZEN", "freeze")
            elif policy.state == "WAITING":
                policy.active_at += self.rules.cycle_ms
        for policy in self.policies:
            if policy.state == "WAITING" and policy.active_at <= at:
                policy.expires_at = at + policy.expiry
                self.enter(policy, "activate")
        for policy in self.policies:
            if policy.state in LIVE and policy.expires_at <= at:
                self.end(policy, "EXPIRED", "expire")
        self.share(at)

    def share(self, at):
        active, pool = self.active(), self.balance
        weight = sum(policy.face for policy in active)
        shared = sum(policy.face * (self.index - policy.entered) for policy in active)
        available, caps_left = pool - self.rules.reserve_floor, sum(policy.room for policy in active) - shared // SCALE
        budget = rate = 0
        if available > 0 and caps_left > 0:
            rate = [rate for start, rate in self.rules.release if start * caps_left <= available * PPM][-1]
            budget = min(rate * available // PPM, caps_left)
        self.balance -= budget
        completed, returned = self.distribute(budget)
        self.balance += returned
        self.released += budget - returned
        self.write("cycle", "", 0, budget - returned)
        numbers = pool, caps_left, rate if budget else 0, budget, returned, weight, len(completed), self.index, self.rem
        self.cycles.append((len(self.cycles) + 1, at, *numbers))
        for policy, due in completed:
            self.write("complete", policy.account, policy.number, due)

    def distribute(self, budget):
        rest, completed = budget * SCALE + self.rem, []
        while rest > 0 and (active := self.active()):
            weight, finish = sum(policy.face for policy in active), min(policy.finish for policy in active)
            need = (finish - self.index) * weight
            if need > rest:
                self.index += rest // weight
                rest %= weight
                break
            self.index, rest = finish, rest - need
            for policy in active:
                if policy.finish == finish:
                    due, excess = self.leave(policy)
                    policy.state = "COMPLETED"
                    rest += excess
                    completed.append((policy, due))
        returned = 0
        if not self.active():
            returned, rest = divmod(rest, SCALE)
        self.rem = rest
        return completed, returned
