"""A partition of two contracts whose effects are kept as a store keeps them, and compared with the entries after each event."""

from collections import Counter

import msgspec
from builders import INVERSE, UNIT, a_fund, adl_end, adl_fill, fill, mark, position, settle, takeover, unwind
from hypothesis import strategies as st

from fundsvc.core.adl.book import BookPart
from fundsvc.core.adl.records import AdlRecord
from fundsvc.core.batch import StoredBook
from fundsvc.core.events import AdlTimeout, Event, Rate, Rejection
from fundsvc.core.fund.chain import Entry
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.fund.verification import Checkpoint, OrderTotals, Replay
from fundsvc.core.partition import Partition
from fundsvc.core.policy import DrawdownGuard, Policy, TakeoverPolicy
from fundsvc.store.writer import orders_from

CONTRACTS = (UNIT, INVERSE)

SYMBOLS = st.sampled_from([UNIT.symbol, UNIT.symbol, UNIT.symbol, INVERSE.symbol])
PRICES = st.sampled_from(["30", "40", "45", "48.3", "50", "51.000000000001", "55", "60", "80"])
LOTS = st.integers(1, 12)
SIDES = st.sampled_from(["sell", "sell", "buy"])
ACCOUNTS = st.sampled_from(["a", "b", "c"])
KINDS = st.sampled_from(
    [
        *(4 * ["mark", "mark", "mark", "position", "position", "takeover", "takeover", "unwind", "fill", "execution", "end"]),
        "settle",
    ]
)
STEPS = st.integers(-2000, 40_000)

TERMS = st.builds(
    TakeoverPolicy,
    st.sampled_from(["capacity", "capacity", "adl", "fund"]),
    st.sampled_from([None, None, 200, 0]),
    st.sampled_from([0, 0.05, 1]),
    st.sampled_from([0, 1, 60]),
    st.sampled_from([0, 1, 2, 16]),
)
GUARDS = st.sampled_from(
    [
        None,
        None,
        DrawdownGuard(),
        DrawdownGuard(on="equity"),
        DrawdownGuard(hours=0.02, on="equity"),
        DrawdownGuard(hours=0.02),
        DrawdownGuard(minimum_balance=60),
    ]
)
POLICIES = st.builds(
    Policy,
    waterfall=st.sampled_from(["fund_then_adl", "fund_then_adl", "adl_then_fund"]),
    eligible=st.sampled_from(["profitable", "all"]),
    allocation=st.sampled_from(["queue", "pro_rata", "capped"]),
    rounds_max=st.integers(1, 2),
    escalate_min=st.sampled_from([0, 20]),
    drawdown_guard=GUARDS,
    takeover=TERMS,
)


class Stored:
    """The rows that the store would have."""

    def __init__(self) -> None:
        self.entries: dict[str, list[Entry]] = {contract.symbol: [] for contract in CONTRACTS}
        self.records: list[AdlRecord] = []
        self.lines: list[tuple[Entry | AdlRecord, bytes]] = []
        self.funds = {}
        self.tranches = {}
        self.holdings = {}
        self.orders = {}
        self.rates = {}
        self.books = {}
        self.closings = {}

    def keep(self, batch) -> None:
        entries = zip(batch.entries, batch.hashes, strict=True)
        self.lines += sorted([*entries, *(sealed[:2] for sealed in batch.records)], key=place)
        for entry in batch.entries:
            self.entries[entry.symbol].append(entry)
        self.records += [sealed.record for sealed in batch.records]
        self.funds |= {state.symbol: state for state in batch.funds}
        for row in batch.tranches:
            self.tranches[row.symbol, row.entry] = row
            if not row.lots:
                del self.tranches[row.symbol, row.entry]
        self.holdings |= {(row.symbol, row.side): row for row in batch.holdings}
        self.orders |= batch.orders
        self.rates |= batch.rates
        self.closings |= batch.closings
        for book in batch.books:
            known = self.books.get(book.symbol)
            before = known.parts or [] if known and (book.first or book.parts is None) else []
            self.books[book.symbol] = book._replace(parts=[*before, *(book.parts or ())])


class World:
    """A partition with two contracts under one policy."""

    def __init__(self, policy: Policy, balance: int) -> None:
        self.policy, self.balance = policy, balance
        self.stored = Stored()
        self.rejected: Counter[str] = Counter()
        self.seq = 0
        self.ts = 1_000_000
        self.events: list[Event] = []
        funds = [a_fund(contract, policy, balance=balance * 10**contract.settle_decimals) for contract in CONTRACTS]
        self.stored.funds = {fund.contract.symbol: fund.state() for fund in funds}
        self.partition = partition_of(funds)

    def draw(self, data, *, resends: bool = True) -> Event:
        """An event that may be legal, of any type that matters; with `resends`, its sequence may have passed."""
        self.ts += data.draw(STEPS)
        seq = self.seq + (data.draw(st.sampled_from([1, 1, 1, 1, 0])) if resends else 1)
        given = {"symbol": data.draw(SYMBOLS), "ts": self.ts}
        kind = data.draw(KINDS)
        match kind:
            case "mark":
                event = mark(data.draw(PRICES), **given)
            case "position":
                event = position(data.draw(ACCOUNTS), data.draw(st.integers(-20, 20)), data.draw(PRICES), "300", **given)
            case "takeover":
                event = takeover(
                    seq, data.draw(LOTS), data.draw(PRICES), data.draw(SIDES), account=data.draw(ACCOUNTS), **given
                )
            case "unwind":
                event = unwind(seq, data.draw(LOTS), data.draw(PRICES), data.draw(SIDES), **given)
            case "settle":
                event = settle(seq, data.draw(PRICES), **given)
            case "fill":
                prices = {"price": data.draw(PRICES), "bankruptcy_price": data.draw(PRICES)}
                event = fill(seq, lots=data.draw(LOTS), side=data.draw(SIDES), **prices, **given)
            case _:
                return self._draw_answer(data, seq, kind, given)
        return event

    def _draw_answer(self, data, seq, kind, given) -> Event:
        """An answer of the engine to an open order, a time-out, or a rate."""
        orders = self.partition.market(given["symbol"]).orders
        if not orders:
            return Rate("XBT", data.draw(PRICES), self.ts)
        order = orders[data.draw(st.sampled_from(sorted(orders)))]
        if kind == "end":
            timeout = AdlTimeout(order.symbol, order.adl, order.round, self.ts)
            return data.draw(st.sampled_from([timeout, adl_end(seq, order.adl, **given)]))
        account = data.draw(st.sampled_from(order.progress.accounts))
        return adl_fill(seq, account, data.draw(st.integers(1, 8)), order.adl, **given)

    def apply(self, event: Event) -> bool:
        """Applies an event and keeps its effects; returns whether it was accepted."""
        before = self.complete_state()
        try:
            self.partition.apply(event)
        except Rejection as rejection:
            self.rejected[rejection.reason] += 1
            assert self.complete_state() == before, "a rejected event changes nothing"
            return False
        self.events.append(event)
        self.seq = max(self.seq, getattr(event, "seq", None) or 0)
        self.stored.keep(self.partition.take())
        return True

    def restart(self) -> None:
        """Loads the partition from the stored rows, as an engine does."""
        self.partition.request_books()
        while self.partition.owes_books:
            self.stored.keep(self.partition.take())
        stored = self.stored
        funds = []
        for contract in CONTRACTS:
            symbol = contract.symbol
            fund = Fund(contract, stored.funds[symbol], self.policy, closing=stored.closings.get(symbol))
            tranches = [row for row in stored.tranches.values() if row.symbol == symbol]
            holdings = [row for row in stored.holdings.values() if row.symbol == symbol]
            if holdings:
                fund.restore_inventory(tranches, holdings)
            funds.append(fund)
        self.partition = partition_of(funds, stored.rates.values())
        for state in stored.books.values():
            book = [msgspec.msgpack.decode(part, type=BookPart) for part in state.parts or ()]
            for _ in self.partition.restore(
                StoredBook(
                    *(state.symbol, "0-0", state.seq, state.mark, state.mark_ts, state.mark_seq, book, state.mark_ts_max),
                    len(book),
                )
            ):
                pass
        opened = [order._asdict() for order in stored.orders.values() if order.state == "open"]
        numbers = {(row["symbol"], row["adl"]) for row in opened}
        records = [msgspec.structs.asdict(record) for record in stored.records if (record.symbol, record.adl) in numbers]
        for order in orders_from(opened, records):
            self.partition.reopen(order)

    def complete_state(self) -> list:
        """Everything that an event may change, for comparison."""
        return [self._state_of(contract.symbol) for contract in CONTRACTS] + [len(self.partition.batch.entries)]

    def _state_of(self, symbol: str) -> tuple:
        market = self.partition.market(symbol)
        inventory, orders = market.fund.inventory, market.orders.values()
        return (
            market.fund.state(),
            market.fund.closing,
            inventory
            and (inventory.states(), [[*map(msgspec.structs.asdict, side.tranches.values())] for side in inventory.sides()]),
            [(order.state_row(), [*order.progress.rests()], {**order.failures}, {**order.times_requested}) for order in orders],
            market.book and (market.book.mark, market.book.mark_ts_max, [*market.book.save()]),
        )

    def audit(self, lines=None, *, parts: int = 1) -> list[str]:
        """The differences that an audit finds in the first contract, followed in some parts."""
        symbol = UNIT.symbol
        lines = [line for line in self.stored.lines if line[0].symbol == symbol] if lines is None else lines
        since, opened, inventory = Checkpoint(balance=self.balance * 10**UNIT.settle_decimals), None, None
        size = len(lines) // parts + 1
        differences = []
        for first in range(0, max(1, len(lines)), size):
            closing = self.stored.closings.get(symbol)
            again = Replay(UNIT, (), since, {0: self.policy}, opened, inventory=inventory, closing=closing)
            for item, digest in lines[first : first + size]:
                if isinstance(item, Entry):
                    again.follow(item, digest)
                else:
                    again.follow_record(item, digest)
            since, opened, inventory = again.checkpoint, again.orders.opened, again.held.inventory
            differences += again.differences
        rows = [row for row in self.stored.orders.values() if row.symbol == symbol]
        again.compare({row.adl: row for row in rows}, ended=True)
        again.held.compare(
            [row for row in self.stored.tranches.values() if row.symbol == symbol],
            [row for row in self.stored.holdings.values() if row.symbol == symbol],
        )
        rest = sum(row.uncovered - row.recovered for row in rows if row.state == "open")
        totals = OrderTotals(sum(row.recovered for row in rows), rest, max((row.seq for row in rows), default=0), len(rows))
        again.finish(self.stored.funds[symbol], totals)
        return differences + [one for one in again.differences if one not in differences]

    def check(self) -> None:
        """Compares the inventories with the entries and the orders."""
        for contract in CONTRACTS:
            self._check_lots(contract.symbol)

    def _check_lots(self, symbol: str) -> None:
        market = self.partition.market(symbol)
        inventory, orders = market.fund.inventory, market.orders.values()
        if inventory is None:
            return
        replayed = replay(self.stored.entries[symbol])
        for holding in inventory.sides():
            tranches = holding.tranches.values()
            open_lots = sum(o.needed for o in orders if o.origin == "takeover" and inventory.against(o.reduce) is holding)
            assert holding.in_orders == open_lots
            assert holding.lots == sum(tranche.lots for tranche in tranches)
            assert holding.taken == holding.unwound + holding.deleveraged + holding.lots + holding.in_orders
            assert {tranche.entry: tranche.lots for tranche in tranches} == {
                entry: lots for (side, entry), lots in replayed.items() if side == holding.side and lots
            }
            for tranche in tranches:
                promised = sum(o.needed for o in orders if o.origin == "inventory" and o.cause == tranche.entry)
                assert tranche.promised == promised <= tranche.lots


def place(line):
    """The sort key of an entry or a record: a record follows the entry that it contains."""
    item = line[0]
    return (item.entry, 0, 0) if isinstance(item, Entry) else (item.entry, 1, item.record)


def replay(entries) -> dict:
    """The lots of each tranche by the entries alone."""
    lots: Counter = Counter()
    for entry in entries:
        if entry.kind == "takeover":
            lots[entry.side, entry.entry] += entry.lots
        elif entry.closes:
            lots[entry.side, entry.closes] -= entry.lots
            assert lots[entry.side, entry.closes] >= 0
    return lots


def partition_of(funds, rates=()) -> Partition:
    return Partition(0, 1, funds, {"USDT": 8, "USDC": 8}, 10, lambda _: funds[0].policy, rates=rates)
