"""The measured values of one contract's fund, as plain numbers: a commit may change a thousand funds."""

import time
from collections import Counter
from typing import NamedTuple

from fundsvc.core.adl.order import AdlOrder, OrderState, refund_of
from fundsvc.core.batch import Moved
from fundsvc.core.fund.fullness import Target
from fundsvc.core.fund.settlement import Fund, FundState
from fundsvc.core.fund.state import FundStateName, drawdown, guard_at, state_of
from fundsvc.core.policy import Guard, payable
from fundsvc.core.takeover import Exposure
from fundsvc.metrics.exposition import labels_text
from fundsvc.metrics.extremes import Extreme


class OpenOrder(NamedTuple):
    """An open ADL order, and its start time (seconds since the epoch)."""

    order: OrderState
    since: float


class FundMetrics:
    """A fund as of its last commit in this process, and the counts since this process owns it; amounts in atoms.

    `held` are the lots of both sides of its inventory, empty before the first takeover. `exposure` changes
    between commits, too. `dry` counts how often payments took the last atom of the balance, `guarded` how often the
    drawdown guard became active. `peak` is the highest known balance of the last eight hours. `drawdown_high`, `equity_low`
    and `outstanding_high` are extremes of the last minute.
    """

    def __init__(self, fund: Fund, peak: int = 0) -> None:
        self.kinds: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.outcome_lots: Counter[str] = Counter()
        self.orders: Counter[str] = Counter()
        self.old = self.gaps = self.repeated_trades = self.uncarried = 0
        self.duplicates = self.rounds = self.lots_needed = self.lots_taken = 0
        self.dry = self.guarded = 0
        self.credited = self.paid = self.uncovered = self.recovered = self.refunded = self.repaid = 0
        self.target: Target | None = None
        self._dry_seconds = 0.0
        self._dry_since: float | None = None
        now = time.time()
        self.peak = peak
        self.drawdown_high: Extreme[float] = Extreme(max, 0.0, now)
        self.outstanding_high: Extreme[int] = Extreme(max, fund.outstanding, now)
        self.equity_low: Extreme[int] | None = None
        self.load(fund)

    def load(self, fund: Fund) -> None:
        """Continues from a fund that was loaded from the ledger, or listed."""
        contract = fund.contract
        self.policy = fund.policy
        self.suspended = fund.suspended
        self.state = fund.state()
        self.open: dict[int, OpenOrder] = {}
        self.positions: dict[str, int] = {}
        self.held: dict[str, int] = {one.side: one.held for one in (fund.inventory.states() if fund.inventory else ())}
        self.exposure: Exposure | None = None
        self._moved = Moved(0, 0, 0, 0)
        self.unit: int = 10**contract.settle_decimals
        self.decimals = contract.settle_decimals
        self.symbol_label = labels_text(symbol=contract.symbol)
        self.money_labels = labels_text(symbol=contract.symbol, currency=contract.settle_currency)
        self._remember()

    def update(self, state: FundState, moved: Moved) -> None:
        """Records the state of the fund after a commit, and the totals that it has moved since it was loaded."""
        credited = moved.credited - self._moved.credited
        self.credited += credited
        self.paid += credited - (state.balance - self.state.balance)
        self.repaid += moved.repaid - self._moved.repaid
        self.dry += moved.dried - self._moved.dried
        self.guarded += moved.guarded - self._moved.guarded
        self.state, self._moved = state, moved
        self._remember()

    def expose(self, exposure: Exposure | None) -> None:
        """Records what the inventory means for the fund from now on; None without an inventory."""
        self.exposure = exposure
        if exposure is None or exposure.equity is None:
            self.equity_low = None
        elif self.equity_low is None:
            self.equity_low = Extreme(min, exposure.equity, time.time())
        else:
            self.equity_low.note(exposure.equity, time.time())

    def set_peak(self, peak: int) -> None:
        """Sets the highest balance of the last eight hours, which may be lower than before."""
        self.peak = max(peak, self.state.balance)
        self.drawdown_high.note(drawdown(self.state.balance, self.peak), time.time())

    def dry_seconds(self, now: float) -> float:
        """Returns for how long the balance has been 0 in all until a time (seconds)."""
        since = self._dry_since
        return self._dry_seconds + (0.0 if since is None else max(0.0, now - since))

    def _remember(self) -> None:
        """Adds the current state to the extremes and to the time without a balance."""
        now = time.time()
        self.peak = max(self.peak, self.state.balance)
        self.drawdown_high.note(drawdown(self.state.balance, self.peak), now)
        self.outstanding_high.note(self.state.outstanding, now)
        if self.state.balance:
            self._dry_seconds, self._dry_since = self.dry_seconds(now), None
        elif self._dry_since is None:
            self._dry_since = now

    def reopen(self, order: AdlOrder) -> None:
        """Records an order that was open when the fund was loaded. It began at the engine's time `ts`."""
        self.open[order.adl] = OpenOrder(order.state_row(), order.ts / 1000)

    def order(self, order: OrderState) -> float | None:
        """Counts the changes of an order since the last call; returns its duration in seconds if it has ended, else None."""
        known = self.open.pop(order.adl, None)
        since = known.since if known else time.time()
        if known is None:
            self.orders["open"] += 1
            self.lots_needed += order.lots
            self.uncovered += order.uncovered
        self.lots_taken += order.executed - (known.order.executed if known else 0)
        self.recovered += order.recovered - (known.order.recovered if known else 0)
        if order.state == "open":
            self.open[order.adl] = OpenOrder(order, since)
            return None
        self.orders[order.state] += 1
        if order.state == "done":
            self.refunded += refund_of(order)
        return max(0.0, time.time() - since)


class FundView:
    """The values of a fund at one moment (`now`, seconds), each computed once. Another thread may change the fund meanwhile."""

    __slots__ = ("balance", "fund", "guard", "money_labels", "now", "peak", "state", "state_name", "symbol_label", "unit")

    def __init__(self, fund: FundMetrics, now: float) -> None:
        self.fund = fund
        self.now = now
        self.state = state = fund.state
        self.balance = state.balance
        self.unit = fund.unit
        self.symbol_label, self.money_labels = fund.symbol_label, fund.money_labels
        self.peak = fund.peak
        self.guard: Guard | None = guard_at(int(now * 1000), fund.policy, fund.decimals, state.guard, state.balance)
        self.state_name: FundStateName = state_of(
            state.balance, state.outstanding, self.guard, fund.target, escalated=bool(fund.open)
        )

    @property
    def payable(self) -> int:
        """The amount that the fund may pay now: its balance minus the guard's reserve line."""
        return payable(self.balance, self.guard)

    @property
    def exposure(self) -> Exposure | None:
        """What the inventory means for the fund; None if the fund holds nothing."""
        return self.fund.exposure if any(self.fund.held.values()) else None

    @property
    def unrealised(self) -> int | None:
        """The worth of the inventory at the mark; None without an inventory or a mark."""
        return self.exposure.unrealised if self.exposure else None

    @property
    def equity(self) -> int | None:
        """The balance plus the worth of the inventory, both of the same moment; None without an inventory or a mark."""
        return self.exposure.equity if self.exposure else None

    @property
    def outstanding_high(self) -> int:
        """The highest outstanding amount of the last minute."""
        return self.fund.outstanding_high.at(self.now)

    @property
    def equity_low(self) -> int | None:
        """The lowest equity of the last minute; None without an inventory or a mark."""
        low = self.fund.equity_low
        return low.at(self.now) if low and self.exposure else None

    @property
    def inventory_orders(self) -> int | None:
        """The open orders that relieve the inventory; None if the fund holds nothing."""
        if not self.exposure:
            return None
        return sum(opened.order.origin == "inventory" for opened in list(self.fund.open.values()))

    @property
    def target(self) -> float | None:
        """The target size in whole units, or None."""
        amount = self.fund.target.amount if self.fund.target else None
        return None if amount is None else amount / self.unit

    @property
    def fullness(self) -> float | None:
        """Balance / target, or None without a target above 0."""
        return self.fund.target.fullness(self.balance) if self.fund.target else None

    @property
    def leverage_cap(self) -> float | None:
        """The recommended highest leverage, or None without a target."""
        return self.fund.target.leverage_cap(self.balance) if self.fund.target else None

    @property
    def oldest_open_seconds(self) -> float:
        """The age of the oldest open ADL order; 0 without one."""
        return max((self.now - opened.since for opened in list(self.fund.open.values())), default=0.0)

    @property
    def drawdown(self) -> float:
        """The largest share of the peak that was lost within the last minute."""
        return self.fund.drawdown_high.at(self.now)
