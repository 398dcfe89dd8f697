import msgspec
import pytest
from builders import ONE, UNIT, partition, worth

from fundsvc.core.chain import GENESIS, link
from fundsvc.core.partition import Batch
from fundsvc.core.replay import Replay
from fundsvc.core.settlement import Fund


def ledger() -> Batch:
    """A surplus of 10, a shortfall of 15 of which 5 is uncovered, a flat, and a surplus of 3 that repays."""
    settling = partition(Fund(UNIT))
    for seq, amount in enumerate((10, -15, 0, 3), start=1):
        settling.apply(worth(amount, seq))
    return settling.take()


def differences(batch: Batch, *, recovered: int = 0, open_in_adl: int = 0, late=(), **altered) -> list[str]:
    replay = Replay(UNIT, late)
    for entry, digest in zip(batch.entries, batch.hashes, strict=True):
        replay.follow(entry, digest)
    replay.finish(batch.funds[0]._replace(**altered), recovered, open_in_adl)
    return replay.differences


def resealed(batch: Batch, index: int, **fields) -> Batch:
    """The ledger as a forger who knows the rules of the chain would leave it."""
    batch.entries[index] = msgspec.structs.replace(batch.entries[index], **fields)
    head = GENESIS
    for position, entry in enumerate(batch.entries):
        batch.hashes[position] = head = link(head, entry)
    batch.funds[0] = batch.funds[0]._replace(head=head)
    return batch


def test_a_ledger_replays_to_its_fund():
    batch = ledger()
    assert differences(batch) == []
    replay = Replay(UNIT)
    replay.follow(batch.entries[0], batch.hashes[0])
    assert replay.entry == 1


@pytest.mark.parametrize("name", msgspec.structs.asdict(ledger().entries[1]))
def test_an_altered_entry_is_found(name):
    batch = ledger()
    value = getattr(batch.entries[1], name)
    batch.entries[1] = msgspec.structs.replace(batch.entries[1], **{name: value + "x" if isinstance(value, str) else value + 1})
    assert any("entry 2: hash" in difference or "entry 3: hash" in difference for difference in differences(batch))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"symbol": "OTHER"}, "symbol"),
        ({"entry": 7}, "entry number"),
        ({"seq": 1}, "sequence"),
        ({"kind": "surplus"}, "kind"),
        ({"balance": 1}, "balance"),
        ({"change": -10 * ONE + 1, "balance": 1}, "change + repaid - uncovered"),
        ({"uncovered": -5 * ONE}, "negative"),
        ({"repaid": -1}, "negative"),
        ({"balance": -1}, "negative"),
        ({"lots": 16}, "change + repaid - uncovered"),
        ({"price": 100 * 10**12}, "kind"),
    ],
)
def test_a_forged_chain_is_found_by_the_rules(fields, said):
    found = differences(resealed(ledger(), 1, **fields))
    assert any(said in difference for difference in found)
    assert not any("hash" in difference for difference in found)


def test_only_a_late_entry_may_have_a_sequence_that_was_passed():
    batch = resealed(ledger(), 2, seq=1)
    assert len(differences(batch)) == 1
    assert differences(batch, late={3}) == []


def test_a_refund_has_no_fill_of_its_own_to_be_checked_against():
    assert not any("kind" in difference for difference in differences(resealed(ledger(), 0, kind="refund")))


@pytest.mark.parametrize(
    "altered",
    [{"balance": 1}, {"entry": 5}, {"head": GENESIS}, {"outstanding": 1}, {"seq": 3}],
)
def test_a_fund_that_its_entries_do_not_explain_is_found(altered):
    assert len(differences(ledger(), **altered)) == 1


def test_what_was_uncovered_must_be_accounted_for():
    assert differences(ledger(), recovered=1, outstanding=ONE, open_in_adl=ONE - 1) == []
    assert len(differences(ledger(), recovered=1)) == 1


def test_a_truncated_ledger_is_found():
    batch = ledger()
    batch.entries.pop()
    batch.hashes.pop()
    assert differences(batch)


def test_a_fund_without_entries_is_empty():
    state = Fund(UNIT).state()
    assert differences(Batch(funds=[state])) == []
    assert "a fund without entries has a head" in differences(Batch(funds=[state]), head=b"x" * 32)
