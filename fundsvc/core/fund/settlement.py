"""The waterfall of one fund: how a fill changes its balance, its outstanding amount and its ledger.

    change > 0   surplus    repays the outstanding amount first; the rest raises the balance
    change = 0   flat       the balance does not change; the entry records the fill
    change < 0   shortfall  the fund pays down to its reserve line; the rest is uncovered

A takeover adds a tranche of lots to the fund's inventory, and moves no money. An unwind closes lots of a tranche like a fill of
these lots against the tranche's price.

Invariants after every fill: balance >= 0, outstanding >= 0, covered + uncovered = deficit.
"""

import math
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import msgspec

from fundsvc.core.adl.order import AdlOrder
from fundsvc.core.adl.records import AdlRecord, RecordKind, SealedRecord, link_record
from fundsvc.core.checks import check_fill
from fundsvc.core.commitment import LedgerSecret
from fundsvc.core.contracts import Contract
from fundsvc.core.events import AdlFill, Fill, Reason, Rejection, Takeover
from fundsvc.core.fund.chain import CARRIED, GENESIS, Entry, Kind, link
from fundsvc.core.fund.fullness import exact
from fundsvc.core.fund.inventory import HoldingState, Inventory, Tranche, TrancheState
from fundsvc.core.generations import generation_of
from fundsvc.core.numbers import INT64_MAX, format_units
from fundsvc.core.policy import Guard, Policy, SavedGuard, share_of

WaitsForAdl = Callable[[int, int], bool]
"""Whether ADL comes before the fund for a deficit (atoms) at a bankruptcy price (the contract's units)."""


class FundState(NamedTuple):
    """The stored state of a fund after an entry; the defaults are the state of a new fund.

    `balance` and `outstanding` are atoms of the settlement currency, never negative. `outstanding` is the amount that ADL did
    not recover and no surplus has repaid yet. `entry` is the number of the last ledger entry, `seq` the last applied sequence,
    `adl` the number of the last ADL order, and `head` the hash of the last entry. `guard` is the drawdown guard, None without
    one. `adl_record` and `adl_head` are the number and the hash of the last ADL record.
    """

    symbol: str
    balance: int = 0
    outstanding: int = 0
    entry: int = 0
    seq: int = 0
    adl: int = 0
    head: bytes = GENESIS
    guard: SavedGuard | None = None
    adl_record: int = 0
    adl_head: bytes = GENESIS


class Closing(NamedTuple):
    """The end of a contract: the engine's time (ms), and the sequence and price of its settlement.

    A contract that its listing closed has the time of the stream, and 0 for sequence and price.
    """

    at: int
    seq: int = 0
    price: int = 0


class Fund:
    """The isolated fund of one contract, as of its last entry; see `FundState` for the stored fields.

    `open_in_adl` is the amount that open ADL orders still have to recover. `credited` and `repaid` are the amounts credited
    to the balance and repaid of the outstanding amount since the fund was loaded, `dried` and `guarded` how often it paid its
    last atom and how often its drawdown guard became active. `policy_version` is the version of `policy`,
    and `suspended` whether the contract's terms are in doubt. `secret` seals the accounts of new entries; without a secret,
    entries contain the accounts themselves. `inventory` are the positions that the fund holds; None before the first takeover.
    `closing` is the end of the contract; None while it is open. `successor` is the symbol of the contract that continues it,
    "" if its listing names none.
    """

    __slots__ = (
        "_denominator",
        "_guarded_before",
        "_numerator",
        "adl",
        "adl_head",
        "adl_record",
        "balance",
        "closing",
        "contract",
        "credited",
        "dried",
        "entry",
        "guard",
        "head",
        "inventory",
        "open_in_adl",
        "outstanding",
        "policy",
        "policy_version",
        "repaid",
        "secret",
        "seq",
        "successor",
        "suspended",
    )

    def __init__(
        self,
        contract: Contract,
        state: FundState | None = None,
        policy: Policy = Policy(),  # noqa: B008 - frozen
        *,
        suspended: bool = False,
        closing: Closing | None = None,
        successor: str = "",
    ) -> None:
        state = state or FundState(contract.symbol)
        self.contract = contract
        self.balance = state.balance
        self.outstanding = state.outstanding
        self.entry = state.entry
        self.seq = state.seq
        self.adl = state.adl
        self.head = state.head
        self.guard = _guard(policy, contract, state.guard)
        self.adl_record = state.adl_record
        self.adl_head = state.adl_head
        self.policy = policy
        self.policy_version = 0
        self.suspended = suspended
        self.closing = closing
        self.successor = successor
        self.secret: LedgerSecret | None = None
        self.inventory: Inventory | None = None
        self.open_in_adl = 0
        self.credited = 0
        self.repaid = 0
        self.dried = 0
        self._guarded_before = 0
        self._numerator, self._denominator = contract.value_factor()

    def adopt(self, policy: Policy, version: int) -> None:
        """Applies another policy. The guard of the new policy continues from the peaks of the old one."""
        kept = self.guard.save() if self.guard else None
        self._guarded_before = self.guarded
        self.policy, self.policy_version = policy, version
        self.guard = _guard(policy, self.contract, kept)

    def state(self) -> FundState:
        """Returns the current state, which later events do not change."""
        guard = self.guard.save() if self.guard else None
        return FundState(
            self.contract.symbol,
            self.balance,
            self.outstanding,
            self.entry,
            self.seq,
            self.adl,
            self.head,
            guard,
            self.adl_record,
            self.adl_head,
        )

    def restore_inventory(self, tranches: Iterable[TrancheState], holdings: Iterable[HoldingState]) -> None:
        """Restores the inventory from its stored rows; open orders are reopened afterwards."""
        self.inventory = Inventory(self.contract, self.worth, tranches, holdings)

    def begin_inventory(self, mark: int | None) -> Inventory:
        """Returns the inventory at a mark; creates it before the first takeover."""
        if self.inventory is None:
            self.inventory = Inventory(self.contract, self.worth)
        if mark is not None:
            self.inventory.reprice(mark)
        return self.inventory

    @property
    def guarded(self) -> int:
        """How often the drawdown guard became active since the fund was loaded, also under earlier policies."""
        return self._guarded_before + (self.guard.starts if self.guard else 0)

    @property
    def equity(self) -> int:
        """The balance plus the worth of the inventory at the mark; without a mark, the balance."""
        return self.balance if self.inventory is None else self.balance + self.inventory.unrealised

    @property
    def configured_line(self) -> int:
        """The part of the reserve line that does not depend on the guard."""
        return 0

    def reserve_line(self, ts: int) -> int:
        """Returns the balance below which the fund does not pay at a time (ms)."""
        if self.guard is None:
            return self.configured_line
        self.observe(ts)
        return max(self.configured_line, self.guard.line)

    def payable(self, ts: int) -> int:
        """Returns the amount that the fund may pay at a time (ms): its balance down to the reserve line."""
        return max(0, self.balance - self.reserve_line(ts))

    def capacity(self, ts: int) -> int:
        """Returns the loss that the fund may still promise to bear at a time (ms): what it may pay, less its losing sides."""
        losses = self.inventory.losses if self.inventory else 0
        return max(0, self.balance - self.reserve_line(ts) + losses)

    def relief_lines(self, ts: int) -> tuple[int, int]:
        """Returns the equity below which ADL relieves the inventory at a time (ms), and the equity at which it stops."""
        line, guard = self.configured_line, self.guard
        lines = guard.relief_lines(ts, self._watched(guard)) if guard else None
        if lines is None:
            return line, line + share_of(self.balance, self.policy.takeover.relief)
        lower = max(line, lines[0])
        return lower, max(lower, lines[1])

    def observe(self, ts: int) -> None:
        """Adds the current balance or equity to the guard at a time (ms)."""
        if self.guard:
            self.guard.observe(ts, self._watched(self.guard))

    def _watched(self, guard: Guard) -> int:
        return max(0, self.equity) if guard.watches_equity else self.balance

    def escalate_min(self, price: int) -> int:
        """Returns the smallest uncovered amount that escalates, in atoms; by default one unit of quote at a price."""
        decimals = self.contract.settle_decimals
        if self.policy.escalate_min is not None:
            return math.ceil(exact(self.policy.escalate_min) * int(10**decimals))
        if not self.contract.is_inverse:
            return int(10**decimals)
        return -(-int(10 ** (decimals + self.contract.price_decimals)) // price)

    def worth(self, side: str, lots: int, price: int, bankruptcy_price: int) -> int:
        """Returns the surplus (positive) or deficit (negative) of a fill in atoms; prices are in the contract's units.

        linear:   floor(s x (price - bankruptcyPrice) x lots x multiplier x 10^decimals)
        inverse:  floor(s x lots x |multiplier| x (1/bankruptcyPrice - 1/price) x 10^decimals)

        with s = +1 for sell and -1 for buy. The floor, towards minus infinity, is the only rounding: a credit rounds down,
        and a debit rounds up in size.
        """
        move = price - bankruptcy_price if side == "sell" else bankruptcy_price - price
        denominator = self._denominator * price * bankruptcy_price if self.contract.is_inverse else self._denominator
        return move * lots * self._numerator // denominator

    def settle(
        self, fill: Fill, waits: WaitsForAdl | None = None, closes: int = 0, prices: tuple[int, int] | None = None
    ) -> tuple[Entry, bytes]:
        """Settles a fill that is not a duplicate; returns its entry and the entry's hash.

        `waits` decides whether ADL comes before the fund; None means that the fund pays first. `closes` is the takeover entry
        whose tranche the fill closes lots of. `prices` are its price and bankruptcy price if its fields are known to be legal.
        Raises Rejection, having changed nothing, if a field is illegal, or an amount does not fit 64 bits.
        """
        price, bankruptcy_price = prices or check_fill(fill, self.contract)
        worth = self.worth(fill.side, fill.lots, price, bankruptcy_price)
        if not self.outstanding + self.open_in_adl - INT64_MAX <= worth <= INT64_MAX - self.balance:
            amount = format_units(worth, self.contract.settle_decimals)
            raise Rejection(Reason.OUT_OF_RANGE, f"a change of {amount} does not fit the fund's 64-bit amounts")
        kind, change, uncovered, repaid = self._absorb(worth, fill.ts, bankruptcy_price, waits)
        if repaid:
            self._repay(repaid)
        if closes and self.inventory:
            self.inventory.close(fill.side, closes, fill.lots)
        symbol, number = self.contract.symbol, self.entry + 1
        return self._append(
            Entry(
                symbol,
                number,
                fill.seq,
                kind,
                change,
                self.balance + change,
                uncovered,
                repaid,
                fill.side,
                fill.lots,
                price,
                bankruptcy_price,
                fill.trade_id,
                fill.order_id,
                fill.account,
                fill.ts,
                self.secret.seal(symbol, number, fill.account) if self.secret else b"",
                closes,
            )
        )

    def take_over(self, takeover: Takeover, lots: int, price: int) -> tuple[Entry, bytes]:
        """Adds lots of a takeover to the inventory as a tranche; returns its entry and the entry's hash."""
        symbol, number, account = self.contract.symbol, self.entry + 1, takeover.account
        entry = Entry(
            symbol,
            number,
            takeover.seq,
            "takeover",
            0,
            self.balance,
            0,
            0,
            takeover.side,
            lots,
            price,
            price,
            takeover.trade_id,
            takeover.order_id,
            account,
            takeover.ts,
            self.secret.seal(symbol, number, account) if self.secret else b"",
        )
        return self._take(entry)

    def take_rest(self, order: AdlOrder, seq: int, ts: int) -> tuple[Entry, bytes]:
        """Adds the lots that a takeover order could not deleverage to the inventory, as a forced tranche.

        `seq` is the sequence of the event that ended the order; 0 stands for the fund's last sequence.
        """
        entry = self.adl_entry("takeover", order, 0, 0, order.needed, seq or self.seq, ts)
        return self._take(msgspec.structs.replace(entry, forced=True))

    def deleverage(self, order: AdlOrder, execution: AdlFill) -> tuple[Entry, bytes]:
        """Records an execution of a takeover or inventory order; that of the latter closes lots of its tranche."""
        entry = self.adl_entry("deleverage", order, 0, 0, execution.lots, execution.seq, execution.ts)
        if order.origin == "inventory" and self.inventory:
            self.inventory.close(entry.side, order.cause, entry.lots)
            entry = msgspec.structs.replace(entry, closes=order.cause)
        return self._append(entry)

    def _take(self, entry: Entry) -> tuple[Entry, bytes]:
        """Appends a takeover entry and adds its tranche."""
        assert self.inventory is not None, "begin_inventory comes first"
        tranche = Tranche(entry=entry.entry, lots=entry.lots, price=entry.price, ts=entry.ts, forced=entry.forced)
        self.inventory.take(entry.side, tranche)
        return self._append(entry)

    def check_fits(self, credits_max: int, deficits_max: int) -> None:
        """Raises Rejection if so much, in atoms, might not fit the fund's 64-bit amounts."""
        if self.balance + credits_max > INT64_MAX or self.outstanding + self.open_in_adl + deficits_max > INT64_MAX:
            most = format_units(max(credits_max, deficits_max), self.contract.settle_decimals)
            raise Rejection(Reason.OUT_OF_RANGE, f"changes of up to {most} do not fit the fund's 64-bit amounts")

    def refund(self, order: AdlOrder, last: AdlFill) -> tuple[Entry, bytes]:
        """Credits the amount that a completed order took beyond the uncovered amount; returns the entry and its hash."""
        return self._append(self.adl_entry("refund", order, order.refund, 0, last.lots, last.seq, last.ts))

    def cover(self, order: AdlOrder, seq: int, ts: int) -> tuple[Entry, bytes] | None:
        """Pays what the fund can of an order that ended uncovered; returns the entry and its hash, None if it pays nothing.

        `seq` is the sequence of the event that ended the order; 0 stands for the fund's last sequence.
        """
        paid = min(order.rest, self.payable(ts))
        if not paid:
            return None
        self._repay(paid)
        return self._append(self.adl_entry("cover", order, -paid, paid, order.needed, seq or self.seq, ts))

    def carry_out(self, to: str, ts: int) -> tuple[Entry, bytes]:
        """Moves the whole balance of a closed contract to the contract with a ledger key; returns the entry and its hash."""
        seq = max(self.seq, self.closing.seq if self.closing else 0)
        return self._append(self._carried("carry_out", -self.balance, seq, to, ts))

    def carry_in(self, amount: int, origin: str, ts: int) -> tuple[Entry, bytes]:
        """Receives the balance of the closed contract with a ledger key; returns the entry and its hash.

        The entry has the fund's last sequence: that of the end of the other contract does not belong to this one.
        """
        return self._append(self._carried("carry_in", amount, self.seq, origin, ts))

    def _carried(self, kind: Kind, change: int, seq: int, other: str, ts: int) -> Entry:
        name = CARRIED + generation_of(other).name
        symbol, number, balance = self.contract.symbol, self.entry + 1, self.balance + change
        return Entry(symbol, number, seq, kind, change, balance, 0, 0, "sell", 0, 0, 0, "", name, "", ts)

    def record(
        self,
        kind: RecordKind,
        order: AdlOrder,
        seq: int,
        ts: int,
        account: str = "",
        lots: int = 0,
        body: bytes = b"",
        first_rank: int = 0,
    ) -> SealedRecord:
        """Creates the next ADL record of the fund, linked to the one before."""
        self.adl_record += 1
        symbol = self.contract.symbol
        record = AdlRecord(symbol, self.adl_record, self.entry, kind, order.adl, order.round, seq, ts, account, lots, body)
        self.adl_head = link_record(self.adl_head, record)
        return SealedRecord(record, self.adl_head, first_rank)

    def adl_entry(self, kind: Kind, order: AdlOrder, change: int, repaid: int, lots: int, seq: int, ts: int) -> Entry:
        """Returns an entry that an ADL order causes; its `order_id` identifies the order."""
        side: Literal["sell", "buy"] = "sell" if order.reduce == "short" else "buy"
        symbol, number, balance = order.symbol, self.entry + 1, self.balance + change
        name = f"adl/{order.adl}"
        return Entry(
            symbol, number, seq, kind, change, balance, 0, repaid, side, lots, order.price, order.price, "", name, "", ts
        )

    def _repay(self, amount: int) -> None:
        self.outstanding -= amount
        self.repaid += amount

    def _append(self, entry: Entry) -> tuple[Entry, bytes]:
        if entry.change > 0:
            self.credited += entry.change
        elif entry.change and not entry.balance and entry.kind != "carry_out":
            self.dried += 1
        self.balance = entry.balance
        self.entry = entry.entry
        self.seq = max(self.seq, entry.seq)
        self.head = link(self.head, entry)
        if self.guard:
            self.observe(entry.ts)
        return entry, self.head

    def _absorb(self, worth: int, ts: int, bankruptcy_price: int, waits: WaitsForAdl | None) -> tuple[Kind, int, int, int]:
        """Splits a surplus or deficit: (kind, change of the balance, uncovered, repaid)."""
        if worth > 0:
            repaid = min(worth, self.outstanding)
            return "surplus", worth - repaid, 0, repaid
        if worth == 0:
            return "flat", 0, 0, 0
        deficit = -worth
        covered = 0 if waits and waits(deficit, bankruptcy_price) else min(deficit, self.payable(ts))
        return "shortfall", -covered, deficit - covered, 0


def _guard(policy: Policy, contract: Contract, kept: SavedGuard | None) -> Guard | None:
    """Returns the drawdown guard of a policy; None if the policy has none."""
    terms = policy.drawdown_guard
    return Guard(terms, contract.settle_decimals, kept or SavedGuard()) if terms else None
