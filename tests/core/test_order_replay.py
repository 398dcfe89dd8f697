"""Verification of waterfall and ADL: accepts ledgers of a partition, in any number of parts, and finds every alteration."""

import random

import msgspec
import pytest
from builders import ONE, UNIT, adl_end, adl_fill, fill, mark, position, worth
from hypothesis import given, settings
from hypothesis import strategies as st
from retraced import Line, Retraced, resealed

from fundsvc.cli.tools.vectors import FundWithReserve
from fundsvc.core.adl.records import AdlRecord
from fundsvc.core.adl.verification import OpenOrders
from fundsvc.core.events import AdlAck, AdlTimeout
from fundsvc.core.fund.chain import Entry
from fundsvc.core.policy import DrawdownGuard, Policy

MARKET = [mark("80"), position("anna", -10), position("bert", -6, "95"), position("carl", -30, "90"), position("long", 40)]
"""A market whose shorts have a profit at the mark."""

POLICIES = [
    Policy(waterfall=waterfall, allocation=allocation, drawdown_guard=guard, escalate_min=least)
    for waterfall in ("fund_then_adl", "adl_then_fund")
    for allocation in ("queue", "pro_rata")
    for guard in (None, DrawdownGuard())
    for least in (0, 3)
]


def history(seed, policy, length=60):
    """Returns a ledger of random surpluses, shortfalls, executions, ends, timeouts and positions."""
    chance = random.Random(seed)
    ledger = Retraced(*MARKET, policy=policy)
    for seq in range(1, length):
        ledger.apply(*_step(chance, ledger, seq))
    return ledger


def _step(chance, ledger, seq):
    """Returns a few events of the market, or of an open order if there is one."""
    ts = 1000 + seq * chance.choice((1, 60_000, 600_000))
    steps = [
        [fill(seq, ts=ts)],
        [fill(seq, lots=chance.randint(1, 9), price="103.5", ts=ts)],
        [fill(seq, lots=chance.randint(1, 20), price="96.7", ts=ts, account=chance.choice(("", "long", "anna")))],
        [mark(str(chance.randint(60, 110))), position(chance.choice(("anna", "bert", "carl")), -chance.randint(0, 30))],
    ]
    if not ledger.open or chance.random() < 0.4:
        return chance.choice(steps)
    adl = chance.choice(ledger.open)
    of_round = UNIT.symbol, adl, ledger.orders[adl].round, ts
    account, rest = chance.choice(list(ledger.requested(adl).items()) or [("nobody", 1)])
    executed = [adl_fill(seq, account, chance.randint(1, rest), adl)]
    return chance.choice([executed, executed, executed, [adl_end(seq, adl)], [AdlTimeout(*of_round)], [AdlAck(*of_round)]])


@pytest.mark.parametrize("policy", POLICIES)
def test_verification_accepts_ledgers_of_a_partition(policy):
    kinds = set()
    for seed in range(12):
        ledger = history(seed, policy)
        assert ledger.differences() == [], seed
        kinds |= {line.item.kind for line in ledger.lines}
    kinds.add("refund" if policy.waterfall == "adl_then_fund" else "")  # an order for the whole deficit takes no excess
    assert kinds >= {"surplus", "shortfall", "order", "round", "execution", "end", "refund", "cover"}


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from(POLICIES), st.lists(st.tuples(st.integers(0, 10**6), st.booleans()), max_size=4))
def test_verification_resumes_anywhere_with_open_orders_or_their_records(seed, policy, cuts):
    ledger = history(seed, policy)
    replay, done = ledger.replay([]), 0
    whole = len(ledger.lines)
    for cut, reads in [*sorted((cut % (whole + 1), reads) for cut, reads in cuts), (whole, False)]:
        since = replay.checkpoint
        records = (line.item for line in ledger.lines[:done] if isinstance(line.item, AdlRecord))
        read = OpenOrders(record for record in records if record.adl in since.orders.open)
        assert orders_of(read) == orders_of(replay.orders.opened)
        replay = ledger.replay(ledger.lines[done:cut], since, read if reads else replay.orders.opened)
        assert replay.differences == []
        done = cut
    assert replay.checkpoint == ledger.replay().checkpoint
    replay.compare(ledger.orders, ended=True)
    replay.finish(ledger.fund, ledger.totals())
    assert replay.differences == []


def orders_of(opened):
    """Returns the rows of open orders, with the lots that their rounds still request."""
    return {adl: (order.state_row(), dict(order.progress.rests()), order.failures) for adl, order in opened.orders.items()}


@pytest.fixture(scope="module")
def ledger():
    """A ledger with a paid surplus, two rounds, a refund, a cover, an open order and a repaid rest."""
    ledger = Retraced(*MARKET)
    ledger.apply(worth(4, 1), fill(2, lots=7, price="96.5", account="long", order_id="o"))
    assert ledger.requested(1) == {"carl": 6}
    ledger.apply(adl_fill(3, "carl", 2), adl_end(4))
    assert ledger.requested(1) == {"anna": 4}
    ledger.apply(adl_fill(5, "anna", 4), worth(2, 6), mark("120"), fill(7, lots=5, price="97"), mark("80"))
    ledger.apply(worth(20, 8), fill(9, lots=20, price="97"), adl_fill(10, "carl", 3, 3), worth(5, 11))
    ledger.apply(fill(12, lots=3, price="99.99"), *(adl_end(seq, 3) for seq in range(13, 30)))
    ledger.apply(fill(40, lots=12, price="90"), adl_fill(41, "anna", 1, 4))
    return ledger


def test_test_ledger_contains_every_kind_and_state(ledger):
    assert ledger.differences() == []
    kinds = [line.item.kind for line in ledger.lines]
    assert set(kinds) == {"surplus", "shortfall", "refund", "cover", "order", "round", "execution", "end"}
    assert {order.state for order in ledger.orders.values()} == {"done", "uncovered", "open"}


def every_field(ledger):
    for number, (item, _) in enumerate(ledger.lines):
        for name in item.__struct_fields__:
            yield number, name, getattr(item, name)


def another(value):
    """Returns a different value; for a price, whose unit is 10^-12, a value that is 1 higher."""
    if isinstance(value, int):
        return value + (10**12 if value > 10**12 else 1)
    return value + b"x" if isinstance(value, bytes) else f"{value}x"


def test_every_altered_field_of_an_entry_or_record_is_found(ledger):
    unnoticed = [
        (number, name)
        for number, name, value in every_field(ledger)
        if not ledger.differences(ledger.altered(number, **{name: another(value)}))
    ]
    assert unnoticed == [], unnoticed


SEALED_ALONE = {
    Entry: {"ts", "trade_id", "order_id", "account", "seq"},
    AdlRecord: {"ts", "seq"},
}
"""Fields of events on which nothing else depends: only the published head reveals that they were altered and resealed."""


def test_altered_amounts_are_found_in_resealed_chains(ledger):
    unnoticed = []
    for number, name, value in every_field(ledger):
        if name in SEALED_ALONE[type(ledger.lines[number].item)]:
            continue
        lines, head, adl_head = resealed(ledger.altered(number, **{name: another(value)}))
        if not ledger.differences(lines, head=head, adl_head=adl_head):
            unnoticed.append((number, name))
    assert unnoticed == [], unnoticed


def test_removed_or_moved_lines_are_found_in_resealed_chains(ledger):
    for number in range(len(ledger.lines) - 1):
        shorter = [*ledger.lines[:number], *ledger.lines[number + 1 :]]
        moved = [*ledger.lines[:number], ledger.lines[number + 1], ledger.lines[number], *ledger.lines[number + 2 :]]
        for lines in (shorter, moved):
            sealed, head, adl_head = resealed(lines)
            assert ledger.differences(sealed, head=head, adl_head=adl_head), number


def test_altered_columns_of_an_order_are_found(ledger):
    unnoticed = []
    for adl, row in ledger.orders.items():
        for name, value in row._asdict().items():
            changed = ledger.orders | {adl: row._replace(**{name: not value if isinstance(value, bool) else another(value)})}
            if not ledger.differences(orders=changed):
                unnoticed.append(name)
    assert set(unnoticed) == {"acknowledged", "round_ms"}


@pytest.mark.parametrize("name", ["balance", "outstanding", "entry", "seq", "adl", "head", "adl_record", "adl_head"])
def test_altered_columns_of_a_fund_are_found(ledger, name):
    value = getattr(ledger.fund, name)
    changed = value[::-1] if isinstance(value, bytes) else value + 1
    assert ledger.differences(**{name: changed})


def test_altered_guard_of_a_fund_is_found():
    ledger = history(1, Policy(drawdown_guard=DrawdownGuard()))
    assert ledger.differences() == []
    guard = ledger.fund.guard
    for changed in (None, msgspec.structs.replace(guard, active=not guard.active), msgspec.structs.replace(guard, peaks=[])):
        assert ledger.differences(guard=changed)


class TestWaterfall:
    """Alterations that keep all sums: earlier versions of the audit did not find them."""

    def test_order_that_executed_more_than_its_records_is_found(self):
        ledger = Retraced(*MARKET[:1], position("anna", -3), fill(1, lots=10, price="0.01"), adl_fill(2, "anna", 3), adl_end(3))
        order, outstanding = ledger.orders[1], ledger.fund.outstanding
        assert (order.state, order.executed, ledger.differences()) == ("uncovered", 3, [])
        recovered = order.deficit * 9 // order.deficit_lots
        forged = {1: order._replace(executed=9, recovered=recovered)}
        found = ledger.differences(orders=forged, outstanding=outstanding - (recovered - order.recovered))
        assert any("ADL order 1: executed is 9, by its records it should be 3" in difference for difference in found)
        assert any("outstanding" in difference for difference in found)

    @pytest.mark.parametrize("market", [MARKET, []])
    def test_fund_that_pays_less_than_it_can_is_found(self, market):
        paid = Retraced(*market, worth(500, 1), worth(-300, 2))
        assert paid.differences() == []
        for covered in (0, 1, 299):
            forged = Retraced(worth(500, 1))
            fund = forged.partition.market(UNIT.symbol).fund
            forged.partition.admit(FundWithReserve(UNIT, fund.state(), fund.policy, (500 - covered) * ONE))
            for event in (*market, worth(-300, 2)):
                forged.apply(event)
            assert forged.fund.balance == (500 - covered) * ONE or not market
            found = forged.differences()
            assert any("no policy in force does" in difference for difference in found), found

    def test_fund_that_pays_after_adl_against_its_policy_is_found(self):
        ledger = Retraced(*MARKET, worth(500, 1), worth(-300, 2), policy=Policy(waterfall="adl_then_fund"))
        assert ledger.differences() == []
        ledger.policy = Policy()
        assert any("pays 0 of a deficit of" in difference for difference in ledger.differences())

    def test_fund_that_pays_before_adl_against_its_policy_is_found(self):
        ledger = Retraced(*MARKET, worth(200, 1), worth(-300, 2))
        ledger.policy = Policy(waterfall="adl_then_fund")
        assert any("no policy in force does" in difference for difference in ledger.differences())

    def test_surplus_that_repays_too_little_is_found(self):
        ledger = Retraced(worth(-300, 1))
        assert (ledger.fund.outstanding, ledger.differences()) == (300 * ONE, [])
        fund = ledger.partition.market(UNIT.symbol).fund
        for repaid in (0, 1, 299):
            forged = Retraced(worth(-300, 1))
            fund = forged.partition.market(UNIT.symbol).fund
            fund.outstanding = repaid * ONE
            forged.apply(worth(1000, 2))
            found = forged.differences(outstanding=(300 - repaid) * ONE)
            assert f"UNITUSDTM entry 2: repaid is {repaid * ONE}, it should be {300 * ONE}" in found

    @pytest.mark.parametrize(("kind", "change", "repaid"), [("refund", 10**6 * ONE, 0), ("cover", -ONE, ONE), ("refund", 1, 0)])
    @pytest.mark.parametrize("order_id", ["adl/1", "adl/2", "adl/0", "", "x"])
    def test_entry_of_an_order_that_does_not_exist_is_found(self, ledger, kind, change, repaid, order_id):
        forged = Retraced(worth(500, 1), worth(-1, 2))
        last = forged.lines[-1].item
        entry = msgspec.structs.replace(
            last, entry=3, seq=3, kind=kind, change=change, balance=last.balance + change, repaid=repaid, order_id=order_id
        )
        lines, head, _ = resealed([*forged.lines, Line(entry, b"")])
        found = forged.differences(lines, entry=3, seq=3, balance=entry.balance, head=head, outstanding=-repaid)
        assert any("no ADL order requires" in difference for difference in found), found

    def test_shortfall_whose_order_was_removed_is_found(self):
        ledger = Retraced(*MARKET, worth(-300, 1))
        lines = [line for line in ledger.lines if isinstance(line.item, Entry)]
        found = ledger.differences(lines, {}, adl=0, adl_record=0, adl_head=bytes(32), outstanding=300 * ONE)
        assert any("with no ADL order: no policy in force does" in difference for difference in found)

    def test_missing_cover_is_found(self):
        ledger = Retraced(*MARKET, worth(500, 1), worth(-300, 2), adl_end(3), adl_end(4), adl_end(5), policy=POLICIES[8])
        assert ledger.lines[-1].item.kind == "cover"
        cover = ledger.lines[-1].item
        fund = {"entry": 2, "balance": cover.balance + cover.repaid, "outstanding": cover.repaid, "head": ledger.lines[1].hash}
        found = ledger.differences(ledger.lines[:-1], **fund)
        assert any("the cover of adl/1 with seq 5" in difference and "is missing" in difference for difference in found), found


class TestUndated:
    """Orders from before the ADL records: their migrated records lack the entry that they follow, and their sequence."""

    @staticmethod
    def migrated(ledger):
        """Returns the lines of a ledger as the migration writes them, and the head of the ADL records."""
        of_order = {}
        for item, _ in ledger.lines:
            if isinstance(item, AdlRecord):
                undated = {} if item.kind == "order" else {"entry": 0, "seq": 0}
                of_order.setdefault(item.adl, []).append(msgspec.structs.replace(item, **undated))
        records = [record for adl in sorted(of_order) for record in of_order[adl]]
        numbered = [msgspec.structs.replace(record, record=number) for number, record in enumerate(records, 1)]
        lines = []
        for item, digest in ledger.lines:
            if isinstance(item, Entry):
                lines.append(Line(item, digest))
                adl = next((order.adl for order in ledger.orders.values() if order.cause == item.entry), 0)
                lines += [Line(record, b"") for record in numbered if record.adl == adl]
        lines, _, adl_head = resealed(lines)
        return lines, adl_head

    @pytest.mark.parametrize("policy", POLICIES)
    def test_their_ledgers_are_accepted(self, policy):
        for seed in range(8):
            ledger = history(seed, policy)
            lines, adl_head = self.migrated(ledger)
            assert ledger.differences(lines, adl_head=adl_head) == [], seed

    def test_excessive_repayments_and_refunds_are_found(self, ledger):
        lines, adl_head = self.migrated(ledger)
        assert ledger.differences(lines, adl_head=adl_head) == []
        for number, (item, _) in enumerate(lines):
            if isinstance(item, Entry) and item.kind in ("refund", "cover", "surplus"):
                more = {"repaid": item.repaid + 1} | ({"change": item.change - 1} if item.kind == "cover" else {})
                forged = [*lines[:number], Line(msgspec.structs.replace(item, **more), b""), *lines[number + 1 :]]
                sealed, head, adl_head = resealed(forged)
                assert ledger.differences(sealed, head=head, adl_head=adl_head), item
