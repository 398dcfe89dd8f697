"""The balance of a closed contract moves to its successor, in one batch and only if nothing prevents it."""

from contextlib import suppress

import msgspec
import pytest
from builders import ONE, UNIT, a_fund, fill, listing, partition, settle, specification, takeover, worth
from hypothesis import given
from hypothesis import strategies as st

from fundsvc.core.contracts import partition_of
from fundsvc.core.events import Listing, Rejection
from fundsvc.core.fund.chain import GENESIS, link
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.fund.verification import Replay
from fundsvc.core.numbers import INT64_MAX
from fundsvc.core.policy import Policy

HEIR = msgspec.structs.replace(UNIT, symbol="HEIRUSDTM")
POLICY = Policy(escalate_min=0, on_close="successor")
NAMED = listing(successor=HEIR.symbol)
ENDED = listing(successor=HEIR.symbol, status="Closed")


class World:
    """Two contracts of a partition, and the entries and obstacles of their batches."""

    def __init__(self, *events, heir=HEIR, policy=POLICY, partitions=1, balance=0, heir_balance=0):
        self.old = a_fund(UNIT, policy, balance=balance * ONE)
        self.heir = a_fund(heir, policy, balance=heir_balance)
        self.partition = partition(self.old, self.heir, partitions=partitions, number=partition_of(UNIT.symbol, partitions))
        self.entries, self.uncarried = [], []
        self.apply(*events)

    def apply(self, *events):
        for event in events:
            self.partition.apply(event, 5000)
            batch = self.partition.take()
            self.entries += zip(batch.entries, batch.hashes, strict=True)
            self.uncarried += batch.uncarried
        return self

    def moves(self):
        return [(one.symbol, one.kind, one.change // ONE, one.order_id) for one, _ in self.entries if "carry" in one.kind]

    def audit(self, symbol, policy=POLICY):
        contract, closing = self.partition.contract(symbol), self.partition.market(symbol).fund.closing
        replay = Replay(contract, policies={0: policy}, closing=closing)
        for entry, digest in self.entries:
            if entry.symbol == symbol:
                replay.follow(entry, digest)
        return replay.differences


PAIR = [
    (UNIT.symbol, "carry_out", -10, "carry/HEIRUSDTM@1"),
    (HEIR.symbol, "carry_in", 10, "carry/UNITUSDTM@1"),
]


def heirs(seq, amount):
    return worth(amount, seq, symbol=HEIR.symbol)


@pytest.mark.parametrize(
    "events",
    [
        [NAMED, worth(10, 1), settle(5)],
        [worth(10, 1), settle(5), ENDED],
        [worth(10, 1), ENDED],
        [NAMED, takeover(1, 10, "50"), settle(5, "51")],
    ],
    ids=["settlement", "later listing", "listing that closes", "inventory"],
)
def test_balance_moves_at_the_end_or_at_a_later_listing(events):
    world = World(heirs(7, 3), *events)
    assert world.moves() == PAIR
    assert (world.old.balance, world.heir.balance, world.heir.seq) == (0, 13 * ONE, 7)
    assert not world.uncarried
    assert world.audit(UNIT.symbol) == []
    assert world.audit(HEIR.symbol) == []
    for fund in (world.old, world.heir):
        head = GENESIS
        for entry, _ in world.entries:
            head = link(head, entry) if entry.symbol == fund.contract.symbol else head
        assert head == fund.head


def test_both_entries_are_in_one_batch():
    world = World(NAMED, worth(10, 1))
    world.partition.apply(settle(5), 5000)
    batch = world.partition.take()
    assert [one.kind for one in batch.entries] == ["carry_out", "carry_in"]
    assert {state.symbol: state.balance for state in batch.funds} == {UNIT.symbol: 0, HEIR.symbol: 10 * ONE}
    assert [(one.seq, one.ts) for one in batch.entries] == [(5, 1005), (0, 1005)]


def test_balance_moves_once():
    world = World(NAMED, worth(10, 1), settle(5), settle(5), ENDED, ENDED)
    assert world.moves() == PAIR
    assert not world.uncarried


@pytest.mark.parametrize(
    ("policy", "named"),
    [(Policy(), HEIR.symbol), (POLICY, ""), (POLICY, None)],
    ids=["policy keeps", "no name", "null"],
)
def test_balance_stays_without_policy_or_name(policy, named):
    world = World(listing(successor=named), worth(10, 1), settle(5), policy=policy)
    assert (world.moves(), world.uncarried, world.old.balance) == ([], [], 10 * ONE)


@pytest.mark.parametrize("terms", [{"settle_currency": "USDC"}, {"settle_decimals": 6}])
def test_balance_does_not_move_to_another_currency_or_scale(terms):
    world = World(NAMED, worth(10, 1), settle(5), heir=msgspec.structs.replace(HEIR, **terms))
    assert world.moves() == []
    assert [(one.symbol, one.successor) for one in world.uncarried] == [(UNIT.symbol, HEIR.symbol)]
    assert "settles in" in world.uncarried[0].reason


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([settle(1, symbol=HEIR.symbol)], "HEIRUSDTM is closed"),
        ([fill(1, symbol=HEIR.symbol, price="1", bankruptcy_price="2")], "outstanding in HEIRUSDTM"),
        ([heirs(1, 1), Listing(specification(symbol=HEIR.symbol, multiplier=2.0))], "in doubt"),
    ],
)
def test_balance_does_not_move_to_a_contract_that_cannot_take_it(events, reason):
    world = World()
    with suppress(Rejection):  # The listing with other terms
        world.apply(*events)
    world.apply(NAMED, worth(10, 1), settle(5))
    assert (world.moves(), world.old.balance) == ([], 10 * ONE)
    assert reason in world.uncarried[0].reason


def test_balance_does_not_move_while_something_is_outstanding():
    world = World(NAMED, balance=10)
    world.old.outstanding = 5
    world.apply(settle(5))
    assert "outstanding in UNITUSDTM" in world.uncarried[0].reason
    world.old.outstanding = 0
    world.apply(ENDED)
    assert world.moves() == PAIR


def test_balance_that_does_not_fit_does_not_move():
    world = World(NAMED, balance=10, heir_balance=INT64_MAX)
    world.apply(settle(5))
    assert "64-bit" in world.uncarried[0].reason


def test_balance_does_not_move_to_an_unknown_contract_or_another_partition():
    for partitions, reason in ((1, "is not listed"), (2, "belongs to partition")):
        away = next(f"AWAY{n}" for n in range(99) if partition_of(f"AWAY{n}", 2) != partition_of(UNIT.symbol, 2))
        world = World(listing(successor=away), worth(10, 1), settle(5), partitions=partitions)
        assert world.moves() == []
        assert reason in world.uncarried[0].reason


def test_refused_move_happens_at_a_later_listing():
    world = World(listing(successor="LATERUSDTM"), worth(10, 1), settle(5))
    world.apply(Listing(specification(symbol="LATERUSDTM")))
    assert world.moves() == []
    world.apply(listing(successor="LATERUSDTM", status="Settled"))
    assert [(symbol, kind) for symbol, kind, *_ in world.moves()] == [(UNIT.symbol, "carry_out"), ("LATERUSDTM", "carry_in")]


def test_balance_moves_to_the_next_generation_of_the_same_symbol():
    world = World(listing(successor=UNIT.symbol), worth(10, 1), settle(5))
    assert "closed" in world.uncarried[0].reason
    world.apply(listing(successor=UNIT.symbol, status="Open"))
    assert [(symbol, order_id) for symbol, _, _, order_id in world.moves()] == [
        ("UNITUSDTM", "carry/UNITUSDTM@2"),
        ("UNITUSDTM@2", "carry/UNITUSDTM@1"),
    ]
    world.apply(worth(7, 6))
    assert world.partition.market("UNITUSDTM@2").fund.balance == 17 * ONE


def test_late_listing_moves_nothing():
    world = World(worth(10, 1), settle(5))
    world.partition.apply_late(ENDED)
    assert not world.partition.take().entries


def test_duplicate_settlement_does_not_try_again():
    world = World(listing(successor="NONE"), worth(10, 1), settle(5), settle(5))
    assert len(world.uncarried) == 1


def test_restart_before_the_listing_that_names_the_successor():
    world = World(worth(10, 1), settle(5))
    funds = [
        Fund(UNIT, world.old.state(), POLICY, closing=world.old.closing, successor=HEIR.symbol),
        Fund(HEIR, world.heir.state(), POLICY),
    ]
    again = partition(*funds)
    again.apply(ENDED)
    assert [entry.kind for entry in again.take().entries] == ["carry_out", "carry_in"]


ALTERED = [
    ("carry_out", {"change": -9, "balance": 1}),
    ("carry_out", {"order_id": "carry/HEIRUSDTM"}),
    ("carry_out", {"order_id": "HEIRUSDTM@1"}),
    ("carry_out", {"lots": 1}),
    ("carry_out", {"kind": "carry_in"}),
    ("carry_out", {"seq": 3}),
    ("carry_in", {"price": 1}),
    ("carry_in", {"uncovered": 1}),
    ("carry_in", {"repaid": 1}),
    ("carry_in", {"account": "x"}),
    ("carry_in", {"side": "buy"}),
    ("carry_in", {"closes": 1}),
    ("carry_in", {"seq": 3}),
    ("carry_in", {"change": 0, "balance": 3 * ONE}),
]


@pytest.mark.parametrize(("kind", "change"), ALTERED)
def test_audit_finds_altered_moves(kind, change):
    world = World(heirs(7, 3), NAMED, worth(10, 4), settle(5))
    place = next(place for place, (entry, _) in enumerate(world.entries) if entry.kind == kind)
    entry, digest = world.entries[place]
    world.entries[place] = msgspec.structs.replace(entry, **change), digest
    assert any("hash" not in one for one in world.audit(entry.symbol))


def test_audit_finds_a_move_that_no_policy_does():
    world = World(NAMED, worth(10, 1), settle(5))
    assert "no policy does" in " ".join(world.audit(UNIT.symbol, Policy(escalate_min=0)))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=12))
def test_sum_of_balances_is_unchanged_by_the_move(fills):
    world = World(NAMED)
    for seq, (is_old, amount) in enumerate(fills, 1):
        world.apply(worth(amount, seq) if is_old else heirs(seq, amount))
    before = world.old.balance + world.heir.balance
    world.apply(settle(50))
    assert world.old.balance + world.heir.balance == before
    assert world.old.balance == 0
    assert world.audit(UNIT.symbol) == []
    assert world.audit(HEIR.symbol) == []
