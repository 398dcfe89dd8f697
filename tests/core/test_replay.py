"""The replay of a ledger finds no difference in a settled ledger, and finds every alteration."""

import msgspec
import pytest
from builders import INVERSE, ONE, UNIT, adl_end, fill, mark, position, worth
from hypothesis import given
from hypothesis import strategies as st
from retraced import Retraced

from fundsvc.core.fund.chain import Entry, link
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.fund.verification import OrderTotals, Replay

AMOUNTS = [5, -3, 0, -10, 4, 20]
"""In USDT: 8 of the fourth are uncovered; the fifth and part of the sixth repay them."""


def settled(fills, contract=UNIT):
    """A fund that has settled fills, with its uncovered amounts outstanding, and its ledger."""
    fund = Fund(contract)
    lines = []
    for event in fills:
        entry, digest = fund.settle(event)
        fund.outstanding += entry.uncovered
        lines.append((entry, digest))
    return fund, lines


def differences(fund, lines, *, late=(), **changes):
    """The differences that a replay without known policies finds, so that shortfalls need not escalate."""
    replay = Replay(fund.contract, late)
    for entry, digest in lines:
        replay.follow(entry, digest)
    replay.finish(fund.state()._replace(**changes), OrderTotals(0, 0, 0, 0))
    return replay.differences


@pytest.fixture
def ledger():
    return settled(worth(amount, seq) for seq, amount in enumerate(AMOUNTS, 1))


def altered(lines, number, **fields):
    """The lines with one entry altered and its hash unchanged."""
    entry, digest = lines[number - 1]
    return [*lines[: number - 1], (msgspec.structs.replace(entry, **fields), digest), *lines[number:]]


def resealed(lines):
    """The lines with all hashes recomputed, as in a forged ledger."""
    head, result = bytes(32), []
    for entry, _ in lines:
        head = link(head, entry)
        result.append((entry, head))
    return result


def test_unchanged_ledger_has_no_differences(ledger):
    fund, lines = ledger
    assert [entry.kind for entry, _ in lines] == ["surplus", "shortfall", "flat", "shortfall", "surplus", "surplus"]
    assert differences(fund, lines) == []
    replay = Replay(UNIT)
    replay.follow(*lines[0])
    assert replay.entry == 1


def test_empty_ledger_has_no_differences():
    assert differences(Fund(UNIT), []) == []


def test_empty_ledger_with_a_head_differs():
    assert differences(Fund(UNIT), [], head=b"x" * 32) != []


def test_ledger_of_an_inverse_contract_has_no_differences():
    prices = ("100", "90", "120.5", "99.999")
    fund, lines = settled(
        (fill(seq, symbol=INVERSE.symbol, lots=1000, price=price) for seq, price in enumerate(prices, 1)), INVERSE
    )
    assert differences(fund, lines) == []


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"entry": 7}, "UNITUSDTM entry 7: entry number is 7, it should be 2"),
        ({"symbol": "OTHER"}, "OTHER entry 2: symbol is OTHER, it should be UNITUSDTM"),
        ({"balance": 3 * ONE}, f"UNITUSDTM entry 2: balance is {3 * ONE}, it should be {2 * ONE}"),
        ({"seq": 1}, "UNITUSDTM entry 2: sequence 1 is not above 1"),
        ({"kind": "surplus"}, "UNITUSDTM entry 2: kind is surplus, it should be shortfall"),
        ({"lots": 4}, f"change + repaid - uncovered is {-3 * ONE}, it should be {-4 * ONE}"),
        ({"price": 98 * 10**12}, f"change + repaid - uncovered is {-3 * ONE}, it should be {-6 * ONE}"),
        ({"bankruptcy_price": 101 * 10**12}, f"change + repaid - uncovered is {-3 * ONE}, it should be {-6 * ONE}"),
        ({"side": "buy"}, "UNITUSDTM entry 2: kind is shortfall, it should be surplus"),
        ({"uncovered": ONE}, f"change + repaid - uncovered is {-4 * ONE}, it should be {-3 * ONE}"),
        ({"repaid": -ONE}, "UNITUSDTM entry 2: has a negative amount"),
        ({"account": "other"}, "UNITUSDTM entry 2: hash is "),
    ],
)
def test_difference_of_an_altered_entry_describes_the_error(ledger, fields, sentence):
    fund, lines = ledger
    found = differences(fund, altered(lines, 2, **fields))
    assert any(sentence in difference for difference in found), found
    assert any("hash is" in difference for difference in found)


@given(st.sampled_from(range(1, 7)), st.sampled_from(Entry.__struct_fields__), st.integers(1, 1000))
def test_every_altered_field_is_a_difference(number, name, by):
    fund, lines = settled(worth(amount, seq, account="a") for seq, amount in enumerate(AMOUNTS, 1))
    value = getattr(lines[number - 1][0], name)
    changed = value + by if isinstance(value, int) else f"{value}{by}"
    assert differences(fund, altered(lines, number, **{name: changed})) != []


@given(st.lists(st.integers(-20, 20), max_size=20))
def test_every_settled_ledger_has_no_differences(amounts):
    assert differences(*settled(worth(amount, seq) for seq, amount in enumerate(amounts, 1))) == []


def test_resealed_chain_does_not_hide_altered_amounts(ledger):
    fund, lines = ledger
    found = differences(fund, resealed(altered(lines, 5, change=ONE, balance=ONE)))
    assert any("change + repaid - uncovered" in difference for difference in found)
    undetected = differences(fund, resealed(altered(lines, 2, account="other")))
    assert len(undetected) == 1
    assert undetected[0].startswith("the fund has (entry, balance, head)")


@pytest.mark.parametrize("left", [5, 1, 0])
def test_missing_last_entries_are_a_difference(ledger, left):
    fund, lines = ledger
    assert any(difference.startswith("the fund has") for difference in differences(fund, lines[:left]))


@pytest.mark.parametrize("missing", [1, 3])
def test_missing_middle_entry_is_a_difference(ledger, missing):
    fund, lines = ledger
    found = differences(fund, [*lines[: missing - 1], *lines[missing:]])
    assert found[0] == f"UNITUSDTM entry {missing + 1}: entry number is {missing + 1}, it should be {missing}"


def test_swapped_entries_are_a_difference(ledger):
    fund, lines = ledger
    found = differences(fund, [lines[1], lines[0], *lines[2:]])
    assert found[0] == "UNITUSDTM entry 2: entry number is 2, it should be 1"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"balance": 1}, "the fund has"),
        ({"entry": 5}, "the fund has"),
        ({"head": b"x" * 32}, "the fund has"),
        ({"seq": 99}, "the fund's sequence is 99, the highest of its entries and orders 6"),
        ({"seq": 5}, "the fund's sequence is 5, the highest of its entries and orders 6"),
        ({"outstanding": 1}, f"uncovered {8 * ONE} is not recovered 0 + repaid {8 * ONE} + outstanding 1 + open in ADL 0"),
    ],
)
def test_altered_fund_is_a_difference(ledger, changes, sentence):
    found = differences(*ledger, **changes)
    assert len(found) == 1
    assert found[0].startswith(sentence)


def test_event_of_an_order_raises_the_sequence_without_an_entry():
    ledger = Retraced(mark("80"), position("anna", -5), position("bert", -9), worth(-10, 1), adl_end(7))
    assert (ledger.fund.seq, ledger.differences()) == (7, [])
    found = ledger.differences(seq=6)
    assert found == ["the fund's sequence is 6, the highest of its entries and orders 7"]


def test_uncovered_amount_is_outstanding_until_repaid():
    fund, lines = settled([worth(-10, 1), worth(3, 2)])
    assert fund.outstanding == 7 * ONE
    assert differences(fund, lines) == []
    for other in (0, 6 * ONE, 8 * ONE):
        assert len(differences(fund, lines, outstanding=other)) == 1


def test_only_a_late_entry_may_have_a_lower_sequence():
    fund, lines = settled([worth(1, 5), worth(2, 3), worth(1, 6)])
    assert differences(fund, lines, late={2}) == []
    assert differences(fund, lines) == ["UNITUSDTM entry 2: sequence 3 is not above 5"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kind": "refund", "change": 2}, "is a refund of 2 that no ADL order requires"),
        ({"kind": "refund", "change": 2, "repaid": 1}, "has amounts that a refund cannot have"),
        ({"kind": "refund", "change": 2, "uncovered": 1}, "has amounts that a refund cannot have"),
        ({"kind": "refund", "change": 0}, "has amounts that a refund cannot have"),
        ({"kind": "refund", "change": -2}, "has amounts that a refund cannot have"),
        ({"kind": "cover", "change": -2, "repaid": 2}, "is a cover of 2 that no ADL order requires"),
        ({"kind": "cover", "change": -2, "repaid": 1}, "has amounts that a cover cannot have"),
        ({"kind": "cover", "change": -2, "repaid": 2, "uncovered": 1}, "has amounts that a cover cannot have"),
        ({"kind": "cover", "change": 0, "repaid": 0}, "has amounts that a cover cannot have"),
        ({"kind": "cover", "change": 2, "repaid": -2}, "has amounts that a cover cannot have"),
    ],
)
def test_entry_of_an_order_has_the_amounts_of_its_kind(fields, sentence):
    fund, lines = settled([worth(5, 1)])
    balance = 5 * ONE + fields["change"]
    entry = msgspec.structs.replace(lines[0][0], entry=2, seq=2, balance=balance, **fields)
    head = link(fund.head, entry)
    found = differences(fund, [*lines, (entry, head)], entry=2, seq=2, balance=balance, head=head)
    assert any(sentence in difference for difference in found), found


def test_ledger_with_a_late_entry_has_no_differences():
    ledger = Retraced(*(worth(amount, seq) for seq, amount in enumerate(AMOUNTS, 1)))
    ledger.apply_late(worth(1, 2))
    assert ledger.differences() == ["UNITUSDTM entry 7: sequence 2 is not above 6"]
    assert ledger.differences(late={7}) == []


@pytest.mark.parametrize("cut", range(len(AMOUNTS) + 1))
def test_replay_continues_from_a_checkpoint(ledger, cut):
    fund, lines = ledger
    first = Replay(UNIT)
    for line in lines[:cut]:
        first.follow(*line)
    second = Replay(UNIT, since=first.checkpoint)
    for line in lines[cut:]:
        second.follow(*line)
    second.finish(fund.state(), OrderTotals(0, 0, 0, 0))
    assert second.differences == []
    assert second.conservation_error(fund.state()._replace(outstanding=fund.outstanding + 3), OrderTotals(4, 5, 0, 2)) == -12


def test_differs_at_is_the_first_entry_that_differs(ledger):
    replay = Replay(UNIT)
    for line in altered(altered(ledger[1], 3, account="mine"), 5, lots=2):
        replay.follow(*line)
    assert replay.differs_at == 3
    assert Replay(UNIT).differs_at is None
