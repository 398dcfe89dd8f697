import math
from decimal import Decimal
from fractions import Fraction

import msgspec
import pytest
from builders import INVERSE, LINEAR, ONE, UNIT, a_fund, fill, partition, worth
from hypothesis import assume, given
from hypothesis import strategies as st

from fundsvc.core.contracts import Contract
from fundsvc.core.events import Fill, Reason, Rejection
from fundsvc.core.fund.chain import GENESIS, link
from fundsvc.core.fund.settlement import Fund, FundState
from fundsvc.core.numbers import INT64_MAX, format_units

AMOUNTS = st.integers(-500, 500)
BALANCES = st.integers(0, 1000).map(lambda amount: amount * ONE)
SIDES = st.sampled_from(["sell", "buy"])
PRICES = st.integers(1, INT64_MAX) | st.integers(1, 10**15)
MULTIPLIERS = st.decimals("0.000000000000000001", "999999999999999999", places=18) | st.sampled_from(
    [Decimal(1), Decimal("0.001"), Decimal(100)]
)


def settled(fund: Fund, event: Fill) -> tuple[str, int, int, int]:
    entry, _ = fund.settle(event)
    return entry.kind, entry.change, entry.uncovered, entry.repaid


@pytest.mark.parametrize(
    ("contract", "side", "lots", "price", "bankruptcy_price", "change"),
    [
        (LINEAR, "sell", 1000, "39100", "39000", 100 * ONE),
        (LINEAR, "sell", 1000, "38850", "39000", -150 * ONE),
        (LINEAR, "buy", 5, "28250.5", "28280", 14_750_000),
        (LINEAR, "buy", 5, "28290.1", "28280", -5_050_000),
        (LINEAR, "sell", 1, "39000.000000000001", "39000", 0),
        (LINEAR, "sell", 1, "39000", "39000.000000000001", -1),
        (INVERSE, "sell", 1000, "30000", "29000", 11_494_252),
        (INVERSE, "sell", 1000, "29000", "30000", -11_494_253),
        (INVERSE, "buy", 700, "61300.5", "61000", -562_534),
        (INVERSE, "buy", 1, "1", "1", 0),
    ],
)
def test_worth_of_a_fill_equals_the_formula(contract, side, lots, price, bankruptcy_price, change):
    fund = a_fund(contract, balance=1000 * ONE)
    event = fill(symbol=contract.symbol, side=side, lots=lots, price=price, bankruptcy_price=bankruptcy_price)
    entry, _ = fund.settle(event)
    assert entry.change == change
    assert entry.kind == ("surplus" if change > 0 else "shortfall" if change else "flat")
    assert fund.balance == entry.balance == 1000 * ONE + change


@pytest.mark.parametrize(
    ("balance", "outstanding", "reserve_line", "amount", "outcome"),
    [
        (0, 0, 0, 10, ("surplus", 10, 0, 0)),
        (0, 4, 0, 10, ("surplus", 6, 0, 4)),
        (0, 10, 0, 10, ("surplus", 0, 0, 10)),
        (5, 30, 0, 10, ("surplus", 0, 0, 10)),
        (5, 3, 0, 0, ("flat", 0, 0, 0)),
        (30, 0, 0, -10, ("shortfall", -10, 0, 0)),
        (10, 0, 0, -10, ("shortfall", -10, 0, 0)),
        (4, 7, 0, -10, ("shortfall", -4, 6, 0)),
        (0, 0, 0, -10, ("shortfall", 0, 10, 0)),
        (30, 0, 25, -10, ("shortfall", -5, 5, 0)),
        (30, 0, 20, -10, ("shortfall", -10, 0, 0)),
        (30, 0, 40, -10, ("shortfall", 0, 10, 0)),
    ],
)
def test_waterfall_splits_surplus_and_deficit(balance, outstanding, reserve_line, amount, outcome):
    fund = a_fund(UNIT, balance=balance * ONE, outstanding=outstanding * ONE, reserve_line=reserve_line * ONE)
    kind, change, uncovered, repaid = outcome
    assert settled(fund, worth(amount)) == (kind, change * ONE, uncovered * ONE, repaid * ONE)
    assert (fund.balance, fund.outstanding) == ((balance + change) * ONE, (outstanding - repaid) * ONE)


def test_entry_contains_its_fill_and_is_hashed():
    fund = a_fund(UNIT, balance=3 * ONE, entry=4, seq=8, head=b"h" * 32)
    event = fill(9, lots=2, price="101.5", bankruptcy_price="100", side="buy", trade_id="t", order_id="o", account="a")
    entry, digest = fund.settle(event)
    assert msgspec.structs.asdict(entry) == {
        "symbol": "UNITUSDTM",
        "entry": 5,
        "seq": 9,
        "kind": "shortfall",
        "change": -3 * ONE,
        "balance": 0,
        "uncovered": 0,
        "repaid": 0,
        "side": "buy",
        "lots": 2,
        "price": 1015 * 10**11,
        "bankruptcy_price": 10**14,
        "trade_id": "t",
        "order_id": "o",
        "account": "a",
        "ts": 1009,
        "seal": b"",
        "closes": 0,
        "forced": False,
    }
    assert digest == link(b"h" * 32, entry)
    assert fund.state() == FundState("UNITUSDTM", 0, 0, 5, 9, 0, digest, None, 0, GENESIS)


@given(st.sampled_from([LINEAR, INVERSE]), MULTIPLIERS, st.integers(0, 18), st.integers(0, 12), SIDES, st.data())
def test_worth_is_rounded_down(base, multiplier, settle_decimals, price_decimals, side, data):
    contract = msgspec.structs.replace(
        base, multiplier=multiplier, settle_decimals=settle_decimals, price_decimals=price_decimals
    )
    lots, price, bankruptcy_price = data.draw(st.integers(1, INT64_MAX)), data.draw(PRICES), data.draw(PRICES)
    exact = exact_worth(contract, side, lots, price, bankruptcy_price)
    assert Fund(contract).worth(side, lots, price, bankruptcy_price) == math.floor(exact)


def exact_worth(contract: Contract, side: str, lots: int, price: int, bankruptcy_price: int) -> Fraction:
    """The documented formula in fractions; atoms."""
    unit = Fraction(1, 10**contract.price_decimals)
    closed, bankrupt = price * unit, bankruptcy_price * unit
    move = 1 / bankrupt - 1 / closed if contract.is_inverse else closed - bankrupt
    sign = 1 if side == "sell" else -1
    return sign * move * lots * Fraction(contract.multiplier) * 10**contract.settle_decimals


@given(MULTIPLIERS, SIDES, st.integers(1, 10**6), PRICES, PRICES)
def test_both_directions_of_a_fill_sum_to_at_most_zero(multiplier, side, lots, price, bankruptcy_price):
    fund = Fund(msgspec.structs.replace(LINEAR, multiplier=multiplier))
    there = fund.worth(side, lots, price, bankruptcy_price)
    back = fund.worth(side, lots, bankruptcy_price, price)
    assert -1 <= there + back <= 0


@given(BALANCES, BALANCES, BALANCES, AMOUNTS)
def test_settlement_conserves_value(balance, outstanding, reserve_line, amount):
    fund = a_fund(UNIT, balance=balance, outstanding=outstanding, reserve_line=reserve_line)
    _, change, uncovered, repaid = settled(fund, worth(amount))
    assert change + repaid - uncovered == amount * ONE
    assert min(fund.balance, fund.outstanding, uncovered, repaid) >= 0
    assert (fund.balance - balance, outstanding - fund.outstanding) == (change, repaid)
    if amount < 0:
        covered = -change
        assert covered + uncovered == -amount * ONE
        assert covered == 0 or fund.balance >= reserve_line
        assert uncovered == 0 or fund.balance <= reserve_line


@given(BALANCES, BALANCES, st.integers(0, 100), st.lists(AMOUNTS, max_size=20))
def test_higher_balance_never_increases_the_uncovered_amount(balance, more, reserve_line, amounts):
    def uncovered(start: int) -> int:
        settling = partition(a_fund(UNIT, balance=start, reserve_line=reserve_line * ONE))
        for seq, amount in enumerate(amounts, start=1):
            settling.apply(worth(amount, seq))
        return sum(entry.uncovered for entry in settling.take().entries)

    assert uncovered(balance + more) <= uncovered(balance)


@given(st.lists(AMOUNTS, max_size=20), st.lists(st.booleans(), min_size=20, max_size=20))
def test_every_split_of_a_batch_settles_equally(amounts, taken):
    whole, split = partition(Fund(UNIT)), partition(Fund(UNIT))
    entries, orders, states = [], {}, []
    for seq, amount in enumerate(amounts, start=1):
        whole.apply(worth(amount, seq))
        split.apply(worth(amount, seq))
        if taken[seq - 1]:
            part = split.take()
            entries += zip(part.entries, part.hashes, strict=True)
            orders |= part.orders
            states += part.funds
    rest, everything = split.take(), whole.take()
    assert entries + list(zip(rest.entries, rest.hashes, strict=True)) == list(
        zip(everything.entries, everything.hashes, strict=True)
    )
    assert orders | rest.orders == everything.orders
    assert (states + rest.funds)[-1:] == everything.funds


@given(st.lists(AMOUNTS, min_size=1, max_size=10), st.data())
def test_duplicates_change_nothing(amounts, data):
    once, resent = partition(Fund(UNIT)), partition(Fund(UNIT))
    fills = [worth(amount, seq) for seq, amount in enumerate(amounts, start=1)]
    again = 0
    for index, event in enumerate(fills):
        once.apply(event)
        resent.apply(event)
        for known in data.draw(st.lists(st.sampled_from(fills[: index + 1]), max_size=3)):
            resent.apply(known)
            again += 1
    one, other = once.take(), resent.take()
    assert (one.entries, one.hashes, one.orders, one.funds) == (other.entries, other.hashes, other.orders, other.funds)
    assert other.duplicates.total() == again
    assert one.duplicates.total() == 0


@given(st.lists(st.tuples(st.sampled_from(["A", "B", "C"]), AMOUNTS), max_size=20))
def test_contracts_are_independent(moves):
    contracts = {symbol: msgspec.structs.replace(UNIT, symbol=symbol) for symbol in "ABC"}
    together = partition(*map(Fund, contracts.values()))
    alone = {symbol: partition(Fund(contract)) for symbol, contract in contracts.items()}
    for seq, (symbol, amount) in enumerate(moves, start=1):
        together.apply(worth(amount, seq, symbol=symbol))
        alone[symbol].apply(worth(amount, seq, symbol=symbol))
    batch = together.take()
    for symbol, only in alone.items():
        own = only.take()
        assert [entry for entry in batch.entries if entry.symbol == symbol] == own.entries
        assert {key: order for key, order in batch.orders.items() if order.symbol == symbol} == own.orders
        assert [state for state in batch.funds if state.symbol == symbol] == own.funds


@given(BALANCES, st.lists(AMOUNTS, max_size=20))
def test_sum_of_entries_is_the_balance(balance, amounts):
    settling = partition(a_fund(UNIT, balance=balance))
    for seq, amount in enumerate(amounts, start=1):
        settling.apply(worth(amount, seq))
    batch = settling.take()
    assert [entry.entry for entry in batch.entries] == list(range(1, len(amounts) + 1))
    running = balance
    head = GENESIS
    for entry, digest in zip(batch.entries, batch.hashes, strict=True):
        running += entry.change
        head = link(head, entry)
        assert (entry.balance, digest) == (running, head)
    for state in batch.funds:
        assert (state.balance, state.head, state.entry) == (running, head, len(amounts))
        assert state.outstanding == sum(entry.uncovered - entry.repaid for entry in batch.entries)


HUGE = 2**63 - 1


@pytest.mark.parametrize(
    ("start", "event"),
    [
        ({}, fill(lots=HUGE, price="2", bankruptcy_price="1")),
        ({}, fill(lots=HUGE, price="1", bankruptcy_price="2")),
        ({"balance": HUGE}, worth(1)),
        ({"balance": HUGE - ONE + 1}, worth(1)),
        ({"outstanding": HUGE}, worth(-1)),
        ({"outstanding": HUGE - ONE + 1, "balance": 5}, worth(-1)),
        ({}, fill(price="9223373")),
        ({}, fill(price="0")),
        ({}, fill(price="1.0000000000001")),
        ({}, fill(bankruptcy_price="-1")),
    ],
)
def test_amount_out_of_range_is_rejected_and_changes_nothing(start, event):
    fund = a_fund(UNIT, **start)
    before = fund.state()
    with pytest.raises(Rejection):
        fund.settle(event)
    assert fund.state() == before


def test_amounts_at_the_bound_are_settled():
    assert settled(a_fund(UNIT, balance=HUGE - ONE), worth(1)) == ("surplus", ONE, 0, 0)
    assert settled(a_fund(UNIT, outstanding=HUGE - ONE), worth(-1)) == ("shortfall", 0, ONE, 0)
    assert settled(a_fund(UNIT, balance=HUGE), worth(-1)) == ("shortfall", -ONE, 0, 0)


@given(
    st.sampled_from([LINEAR, INVERSE]),
    MULTIPLIERS,
    st.integers(0, HUGE),
    st.integers(0, HUGE),
    SIDES,
    st.integers(1, HUGE),
    PRICES,
    PRICES,
)
def test_every_settled_amount_fits_64_bits(base, multiplier, balance, outstanding, side, lots, price, bankrupt):
    fund = a_fund(msgspec.structs.replace(base, multiplier=multiplier), balance=balance, outstanding=outstanding)
    before = fund.state()
    texts = {"price": format_units(price, 12), "bankruptcy_price": format_units(bankrupt, 12)}
    settling = partition(fund)
    try:
        settling.apply(fill(symbol=base.symbol, side=side, lots=lots, **texts))
    except Rejection:
        assert fund.state() == before
        return
    assert 0 <= fund.balance <= HUGE
    assert 0 <= fund.outstanding <= HUGE
    batch = settling.take()
    for number in _integers(batch):
        assert -(2**63) <= number <= HUGE


def _integers(batch) -> list[int]:
    records = [*map(msgspec.structs.astuple, batch.entries), *batch.orders.values(), *batch.funds]
    return [field for record in records for field in record if isinstance(field, int)]


@given(st.integers(1, 10**6), AMOUNTS, st.integers(0, 600))
def test_order_needs_less_than_one_lot_too_much(lots, move, balance):
    assume(move < 0)
    settling = partition(a_fund(UNIT, balance=balance * ONE))
    settling.apply(fill(lots=lots, price=str(1000 + move), bankruptcy_price="1000"))
    batch = settling.take()
    deficit = lots * -move * ONE
    assert batch.entries[0].uncovered == max(0, deficit - balance * ONE)
    for order in batch.orders.values():
        assert (order.lots - 1) * deficit < order.uncovered * lots <= order.lots * deficit
        assert (order.cause, order.price, order.reduce) == (1, 1000 * 10**12, "short")


def test_fund_sums_credited_and_repaid_amounts_since_loading():
    fund = a_fund(UNIT, balance=10 * ONE, outstanding=4 * ONE)
    for seq, amount in enumerate((3, 2, -5, 7), 1):
        fund.settle(worth(amount, seq))
    assert (fund.repaid, fund.credited, fund.balance) == (4 * ONE, 8 * ONE, 13 * ONE)


@pytest.mark.parametrize("text", ["0", "0.0", "0.000000000000"])
def test_linear_contract_allows_a_bankruptcy_price_of_zero(text):
    entry, _ = Fund(LINEAR).settle(a_fill(LINEAR, price="0.5", bankruptcy_price=text, lots=1000))
    assert (entry.kind, entry.change, entry.bankruptcy_price) == ("surplus", 50_000_000, 0)


@pytest.mark.parametrize(
    ("contract", "price", "bankruptcy_price"),
    [(INVERSE, "0.5", "0"), (INVERSE, "0", "1"), (LINEAR, "0", "0"), (LINEAR, "0", "1")],
)
def test_other_prices_of_zero_are_rejected(contract, price, bankruptcy_price):
    with pytest.raises(Rejection) as rejection:
        Fund(contract).settle(a_fill(contract, price=price, bankruptcy_price=bankruptcy_price))
    assert rejection.value.reason == Reason.OUT_OF_RANGE


def a_fill(contract, **fields):
    return Fill(**({"symbol": contract.symbol, "seq": 1, "side": "sell", "lots": 1, "ts": 1} | fields))
