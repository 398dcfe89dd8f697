"""The policies of a contract's fund, and the drawdown guard, which limits payments before the fund is empty."""

from collections import deque
from typing import Annotated, Literal

import msgspec

from fundsvc.core.generations import public_symbol

MINUTE_MS = 60_000
"""Peaks are stored by the minute, which bounds the state of a guard: at most one number for each minute of its window."""

Eligible = Literal["profitable", "all"]
"""Which positions ADL may reduce."""

Share = Annotated[float, msgspec.Meta(gt=0, le=1)]


class DrawdownGuard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Starts ADL before the fund is empty, as Bybit and OKX do.

    The guard starts when the balance falls by `start` from the highest balance of the last `hours`, and stops when the balance
    is no more than `stop` below it. A fund whose peak is below `minimum_balance` (whole currency units) has no guard. With `on`
    "equity", it watches the equity, but at least 0, in place of the balance.
    """

    start: Share = 0.30
    stop: Share = 0.25
    hours: Annotated[float, msgspec.Meta(gt=0, le=168)] = 8.0
    minimum_balance: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    on: Literal["balance", "equity"] = "balance"

    def __post_init__(self) -> None:
        if self.stop > self.start:
            raise ValueError(
                f"stop {self.stop} is above start {self.start}, so the guard would never start: set stop at most start"
            )


class TakeoverPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which takeovers the fund accepts, and when ADL relieves its inventory.

    By `mode` the fund accepts what its capacity covers, nothing at first ("adl"), or everything ("fund"), but of one takeover
    at most lots worth `value_max` USDT. ADL relieves the inventory until the equity is the share `relief` of the balance above
    the lower line. After an order without candidates, the same positions are not requested for `retry_seconds`. At most
    `orders_max` orders that relieve the inventory are open.
    """

    mode: Literal["capacity", "adl", "fund"] = "capacity"
    value_max: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None
    relief: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.05
    retry_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 60.0
    orders_max: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 16


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The policy of one contract; see section "Policies" of the handbook."""

    waterfall: Literal["fund_then_adl", "adl_then_fund"] = "fund_then_adl"
    eligible: Eligible = "profitable"
    allocation: Literal["queue", "pro_rata", "capped"] = "queue"
    cap_share: Share = 0.5
    rounds_max: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3
    escalate_min: Annotated[float, msgspec.Meta(ge=0)] | None = None
    stale_books: Literal["ask", "skip"] = "ask"
    drawdown_guard: DrawdownGuard | None = None
    takeover: TakeoverPolicy = TakeoverPolicy()
    on_close: Literal["keep", "successor"] = "keep"


class Policies(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The policies of all contracts as a partition records them. The versions of a partition count from 1."""

    version: int
    default: Policy
    contracts: dict[str, Policy]

    def of(self, symbol: str) -> Policy:
        """Returns the policy of a contract."""
        return self.contracts.get(public_symbol(symbol), self.default)

    def same_rules(self, other: "Policies") -> bool:
        """Whether both have the same rules; versions are not compared."""
        return (self.default, self.contracts) == (other.default, other.contracts)


class Peaks:
    """The highest balance of a sliding window, by the minute; balances are atoms.

    Each minute has its highest balance. The minutes form a falling sequence: a minute is dropped once a later minute is as
    high.
    """

    def __init__(self, span_ms: int, kept: list[tuple[int, int]]) -> None:
        self._span = span_ms // MINUTE_MS
        self._minutes = deque(kept)

    def note(self, ts: int, balance: int) -> None:
        """Adds a balance at a time (ms). A time before the last minute counts as the last minute."""
        minute = ts // MINUTE_MS
        minutes = self._minutes
        if minutes:
            minute = max(minute, minutes[-1][0])
        while minutes and minutes[-1][1] <= balance:
            minutes.pop()
        if not minutes or minutes[-1][0] < minute:
            minutes.append((minute, balance))
        while minutes[0][0] < minute - self._span:
            minutes.popleft()

    def forget_after(self, latest_ms: int) -> None:
        """Drops minutes after a time (ms). Older ledgers contain such minutes, from events with a `ts` in the future."""
        while self._minutes and self._minutes[-1][0] > latest_ms // MINUTE_MS:
            self._minutes.pop()

    def peak_at(self, ts: int, balance: int) -> int:
        """Returns what `peak` would be after `note` with these arguments."""
        minutes = self._minutes
        oldest = (max(ts // MINUTE_MS, minutes[-1][0]) if minutes else 0) - self._span
        return max(balance, next((highest for minute, highest in minutes if minute >= oldest), 0))

    @property
    def peak(self) -> int:
        """The highest balance of the window."""
        return self._minutes[0][1] if self._minutes else 0

    def save(self) -> list[tuple[int, int]]:
        """Returns (minute, highest balance) pairs with falling balances, to restore the peaks from."""
        return list(self._minutes)


class Guard:
    """The state of a drawdown guard: it computes the reserve line, below which the fund does not pay, with hysteresis.

    `starts` counts how often the guard became active since it was created or restored.
    """

    def __init__(self, terms: DrawdownGuard, decimals: int, kept: "SavedGuard") -> None:
        self._terms = terms
        self.starts = 0
        self._minimum = int(terms.minimum_balance * 10**decimals)
        self._peaks = Peaks(int(terms.hours * 3_600_000), kept.peaks)
        self.active = kept.active
        self.watches_equity = terms.on == "equity"

    def observe(self, ts: int, balance: int) -> None:
        """Adds the balance at a time (ms). Activates the guard at the start line, and deactivates it above the stop line."""
        self._peaks.note(ts, balance)
        peak = self._peaks.peak
        if peak < self._minimum or balance >= max(1, share_of(peak, 1 - self._terms.stop)):
            self.active = False
        elif not self.active and balance <= share_of(peak, 1 - self._terms.start):
            self.active = True
            self.starts += 1

    def forget_after(self, latest_ms: int) -> None:
        """Drops balances after a time (ms), which later balances could not replace."""
        self._peaks.forget_after(latest_ms)

    @property
    def peak(self) -> int:
        """The highest observed balance or equity of the window."""
        return self._peaks.peak

    @property
    def line(self) -> int:
        """The reserve line: the balance below which the fund does not pay now, in atoms."""
        peak = self._peaks.peak
        if peak < self._minimum:
            return 0
        return share_of(peak, 1 - (self._terms.stop if self.active else self._terms.start))

    def relief_lines(self, ts: int, balance: int) -> tuple[int, int] | None:
        """Returns the start line and the stop line at a time (ms) with a balance; None if the fund is too small for a guard."""
        peak = self._peaks.peak_at(ts, balance)
        if peak < self._minimum:
            return None
        return share_of(peak, 1 - self._terms.start), share_of(peak, 1 - self._terms.stop)

    def near(self, balance: int) -> bool:
        """Whether a balance is below the stop line, so that a further fall may activate the guard."""
        return self._peaks.peak >= self._minimum and balance < share_of(self._peaks.peak, 1 - self._terms.stop)

    def save(self) -> "SavedGuard":
        """Returns the state to restore the guard from."""
        return SavedGuard(self.active, self._peaks.save())


def payable(balance: int, guard: Guard | None) -> int:
    """The amount that a fund may pay now: its balance down to the guard's line."""
    return max(0, balance - guard.line) if guard else balance


class SavedGuard(msgspec.Struct, array_like=True, frozen=True):
    """The stored state of a guard: whether it is active, and its (minute, highest balance) pairs with falling balances."""

    active: bool = False
    peaks: list[tuple[int, int]] = msgspec.field(default_factory=list)


def share_of(amount: int, share: float) -> int:
    """Returns a share of an amount, rounded up. The share is rounded to six decimals."""
    return -(-amount * round(share * 1_000_000) // 1_000_000)
