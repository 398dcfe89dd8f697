"""The audit of the mutual recomputes every ledger that a pool writes, and finds every change that the rules do not explain."""

import dataclasses
import itertools
import json
import random
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streams import POOL, RULES, START, STREAMS, events_of, small_rules

from fundsvc.cli.tools.vectors import snake_case
from fundsvc.core.commitment import NO_SECRETS, LedgerSecret, Secrets
from fundsvc.core.events import Rejection
from fundsvc.mutual.codec import decode
from fundsvc.mutual.core.chain import GENESIS, Kind, link, seal_domain
from fundsvc.mutual.core.events import Enable, TermsChange, Trade, Transfer
from fundsvc.mutual.core.pool import Pool
from fundsvc.mutual.core.rows import PoolRow, State
from fundsvc.mutual.core.terms import Terms
from fundsvc.mutual.core.verification import Replay, Version

VECTORS = sorted((Path(__file__).parents[1] / "vectors" / "mutual").glob("*.json"))
SEED = 1892
"""A stream with entries of all kinds."""

VALUES = {
    **dict.fromkeys(
        ("entry", "seq", "ts", "policy", "amount", "balance", "profits", "terms"),
        (-(2**63), -1, 0, 1, 2, 3, 8, 2**31 - 1, 2**63 - 1),
    ),
    "kind": get_args(Kind),
    "account": ("", "a", "b", "z"),
}
"""Fields of an entry with values that the columns can have."""

SECRET = LedgerSecret("s" * 32)


def batch_of(rules, events, secret=None):
    """Returns the effects of events on a new pool."""
    pool = Pool(PoolRow(POOL), {1: rules}, secret=secret)
    pool.adopt(1, rules)
    for event in events:
        try:
            pool.apply(event)
        except Rejection:
            continue
    return pool.take()


def terms_of(batch):
    """Returns the terms as the store has them, with the first entry of each."""
    return {
        version: Version(rules, next((one.entry for one in batch.entries if one.terms >= version), batch.pool.entry + 1))
        for version, rules in batch.terms.items()
    }


def replayed(batch, terms=None, secrets=NO_SECRETS):
    """Follows the entries of a batch, up to the first that differs."""
    replay = Replay(POOL, terms or terms_of(batch), secrets)
    for entry, digest in zip(batch.entries, batch.hashes, strict=True):
        if not replay.differences:
            replay.follow(entry, digest)
    return replay


def differences(batch, terms=None, secrets=NO_SECRETS):
    """Returns the differences of all that a batch has stored."""
    replay = Replay(POOL, terms or terms_of(batch), secrets)
    for entry, digest in zip(batch.entries, batch.hashes, strict=True):
        replay.follow(entry, digest)
    recomputed = replay.recomputed()
    cycles, policies = {row.cycle: row for row in batch.cycles}, {row.policy: row for row in batch.policies}
    for cycle in recomputed.cycles:
        replay.compare_cycle(cycles.get(cycle.cycle), cycle)
    for policy in recomputed.ended:
        replay.compare_ended(policies.get(policy.policy), policy)
    for row in batch.policies:
        replay.compare_policy(row)
    for row in batch.accounts:
        replay.compare_account(row)
    replay.compare_pool(batch.pool)
    return replay.differences


@pytest.fixture(scope="module")
def batch():
    rules = small_rules(platform_fee=150_000)
    return batch_of(rules, [event for event, _ in events_of(SEED, 90)])


def changed(batch, **fields):
    """Returns a batch with other rows; its other fields stay."""
    return dataclasses.replace(batch, **fields)


def rechained(batch, entries):
    """Returns a batch with other entries, whose hashes follow from them."""
    head, hashes = GENESIS, []
    for entry in entries:
        head = link(head, entry, batch.terms[entry.terms].digest if entry.terms in batch.terms else bytes(32))
        hashes.append(head)
    return changed(batch, entries=entries, hashes=hashes, pool=batch.pool._replace(head=head, entry=entries[-1].entry))


def with_entry(batch, place, **fields):
    entries = list(batch.entries)
    entries[place] = msgspec.structs.replace(entries[place], **fields)
    return entries


@given(RULES, STREAMS)
def test_ledgers_that_a_pool_writes_have_no_difference(rules, events):
    assert differences(batch_of(rules, [event for event, _ in events])) == []


@given(st.lists(RULES, min_size=2, max_size=4), STREAMS, st.data())
def test_ledgers_under_changing_terms_have_no_difference(versions, events, data):
    fixed = {name: getattr(versions[0], name) for name in ("decimals", "cycle_ms", "anchor_ms")}
    versions = [msgspec.structs.replace(rules, **fixed) for rules in versions]
    events = [event for event, _ in events]
    for version, rules in enumerate(versions[1:], 2):
        place = data.draw(st.integers(0, len(events) - 1))
        events.insert(place, TermsChange(POOL, events[place].ts, version, rules))
    assert differences(batch_of(versions[0], events)) == []


def arrears_after_new_terms(profit, transfers, min_funding=10):
    """Returns a day's ledger: 4 of profit owe nothing under the first terms, then a profit owes more than the balance of 10."""
    rules = small_rules(premium_tiers=((5, 500_000),), min_funding=min_funding)
    changed_rules = msgspec.structs.replace(rules, premium_tiers=((0, 500_000),))
    at = START + 5_000
    events = [
        Transfer(POOL, at, 1, "a", "10", "t"),
        Enable(POOL, at, 2, "a"),
        Trade(POOL, at, 3, "a", "X", "x", at, "4", "1"),
        TermsChange(POOL, at, 2, changed_rules),
        Trade(POOL, at + 1, 4, "a", "X", "y", at, profit, "1"),
        *(Transfer(POOL, at + 1, seq, "a", amount, "u") for seq, amount in enumerate(transfers, 5)),
    ]
    return batch_of(rules, events)


@pytest.mark.parametrize("min_funding", [0, 10])
@pytest.mark.parametrize("transfers", [(), ("1",), ("5",), ("6",), ("7",), ("40",), ("1", "40"), ("3", "2", "1")])
@pytest.mark.parametrize("profit", ["20", "21", "22", "30"])
def test_arrears_of_a_day_with_new_terms_are_no_difference(profit, transfers, min_funding):
    assert differences(arrears_after_new_terms(profit, transfers, min_funding)) == []


@pytest.mark.parametrize(("arrears", "found"), [(3, True), (4, False), (7, False), (8, True)])
def test_arrears_of_such_a_day_beyond_their_bounds_are_found(arrears, found):
    """It owes 14 if profits of 6 owed nothing before, and 17 if there were none; 10 are paid."""
    batch = arrears_after_new_terms("30", ())
    (row,) = batch.accounts
    assert bool(differences(changed(batch, accounts=[row._replace(arrears=arrears)]))) == found


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_vectors_have_no_difference(path):
    vector = json.loads(path.read_bytes())
    terms = msgspec.convert({snake_case(key): value for key, value in vector["pool"].items()}, Terms)
    events = [decode("json", msgspec.json.encode({"pool": POOL} | event))[0] for event in vector["events"]]
    batch = batch_of(terms.rules(), events)
    assert batch.entries
    assert differences(batch) == []


def test_the_tampered_ledger_has_entries_of_all_kinds_and_no_difference(batch):
    assert len({entry.kind for entry in batch.entries}) == 15
    assert any(entry.kind == "premium" and not entry.profits for entry in batch.entries)
    assert differences(batch) == []


class TestEntries:
    """Every altered, missing, added or swapped entry is found at its number."""

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("pool", lambda found: "other"),
            ("entry", lambda found: found + 1),
            ("seq", lambda found: found + 1),
            ("ts", lambda found: found + 1),
            ("ts", lambda found: 2**63 - 1),
            ("kind", lambda found: "topUp" if found != "topUp" else "cycle"),
            ("account", lambda found: "z"),
            ("policy", lambda found: found + 1),
            ("amount", lambda found: found + 1),
            ("balance", lambda found: found + 1),
            ("profits", lambda found: found + 1),
            ("terms", lambda found: found + 1),
        ],
    )
    def test_each_altered_field_is_found(self, batch, field, value):
        for place, entry in enumerate(batch.entries):
            replay = replayed(changed(batch, entries=with_entry(batch, place, **{field: value(getattr(entry, field))})))
            assert replay.differences, entry
            assert replay.differs_at == entry.entry

    @pytest.mark.parametrize("seed", range(40))
    def test_any_values_of_columns_are_differences_and_no_error(self, batch, seed):
        choose = random.Random(seed)
        for _ in range(10):
            entries = list(batch.entries)
            for _ in range(choose.randint(1, 4)):
                place, field = choose.randrange(len(entries)), choose.choice(list(VALUES))
                entries[place] = msgspec.structs.replace(entries[place], **{field: choose.choice(VALUES[field])})
            assert bool(differences(changed(batch, entries=entries))) == (entries != batch.entries)

    def test_an_altered_hash_is_found(self, batch):
        for place, digest in enumerate(batch.hashes):
            hashes = list(batch.hashes)
            hashes[place] = bytes(32)
            found = differences(changed(batch, hashes=hashes))
            assert found[0] == f"P entry {place + 1}: hash is {bytes(32).hex()}, it should be {digest.hex()}"

    def test_a_missing_entry_is_found(self, batch):
        for place in range(1, len(batch.entries) - 1):
            entries, hashes = list(batch.entries), list(batch.hashes)
            del entries[place], hashes[place]
            found = differences(changed(batch, entries=entries, hashes=hashes))
            assert found[0] == f"P entry {place + 2}: entry {place + 1} is missing before it"

    def test_missing_last_entries_are_found(self, batch):
        for count in range(1, 12):
            found = differences(changed(batch, entries=batch.entries[:-count], hashes=batch.hashes[:-count]))
            assert any(f"entry is {batch.pool.entry}, it should be " in one or "missing after" in one for one in found)

    def test_swapped_entries_are_found(self, batch):
        for place in range(len(batch.entries) - 1):
            entries, hashes = list(batch.entries), list(batch.hashes)
            entries[place : place + 2], hashes[place : place + 2] = (
                entries[place + 1 : place - 1 : -1] or entries[1::-1],
                (hashes[place + 1 : place - 1 : -1] or hashes[1::-1]),
            )
            assert replayed(changed(batch, entries=entries, hashes=hashes)).differs_at == place + 1


class TestRechained:
    """With hashes recomputed, the rules find what they determine: all but what an event brings."""

    @pytest.mark.parametrize(
        ("kind", "by"),
        [
            *(
                (kind, 1)
                for kind in ("premium", "issue", "activate", "freeze", "thaw", "expire", "complete", "cancel", "payout")
            ),
            *((kind, -1) for kind in ("cycle", "premium", "issue", "complete", "payout")),
            *((kind, 1) for kind in ("cycle", "covered", "uncovered")),
        ],
    )
    def test_another_amount_is_found(self, batch, kind, by):
        for place, entry in enumerate(batch.entries):
            if entry.kind != kind:
                continue
            entries = with_entry(batch, place, amount=entry.amount + by)
            if kind in ("premium", "cycle"):
                moved = by if kind == "premium" else -by
                entries[place:] = [msgspec.structs.replace(one, balance=one.balance + moved) for one in entries[place:]]
            replay = replayed(rechained(batch, entries))
            assert replay.differs_at == entry.entry
            assert f"amount is {entry.amount + by}, it should be {entry.amount}" in replay.differences[0]

    def test_an_entry_that_its_rules_require_cannot_be_left_out(self, batch):
        required = ("issue", "premium", "uncovered", "expire", "cycle", "complete")
        for place, entry in enumerate(batch.entries[:-1]):
            follows = place and batch.entries[place - 1].seq == entry.seq
            if entry.kind not in required or not (follows or entry.kind in ("expire", "cycle", "complete")):
                continue
            rest = [msgspec.structs.replace(one, entry=one.entry - 1) for one in batch.entries[place + 1 :]]
            assert replayed(rechained(batch, [*batch.entries[:place], *rest])).differences, entry

    def test_an_added_entry_of_a_derived_kind_is_found(self, batch):
        for added in batch.entries:
            if added.kind in ("transfer", "topUp", "loss", "covered", "uncovered"):
                continue
            for place in (added.entry, len(batch.entries)):
                entries = [*batch.entries[:place], added, *batch.entries[place:]]
                entries = [msgspec.structs.replace(one, entry=number) for number, one in enumerate(entries, 1)]
                assert replayed(rechained(batch, entries)).differences, (added, place)

    @pytest.mark.parametrize(
        ("kind", "fields", "sentence"),
        [
            ("premium", {"profits": 1}, "no rule requires the premium of "),
            ("premium", {"profits": 1_000}, "amount is "),
            ("premium", {"profits": 0}, "profits of the day are 0"),
            ("covered", {"account": "z"}, "z has 0 and owes 0"),
            ("loss", {"amount": 1}, "a loss of 1 does not qualify, the least is 2"),
            ("loss", {"account": "z"}, "the account z was never covered"),
            ("transfer", {"amount": -1_000}, "is not possible"),
            ("cancel", {"policy": 99}, "policy 99 is not live"),
            ("cancel", {"account": "z"}, "z has no policy "),
            ("freeze", {"policy": 99}, "policy 99 is not live"),
            ("activate", {"policy": 99}, "policy 99 is not live"),
            ("thaw", {"kind": "freeze"}, "is FROZEN, only one that is ACTIVE can have a freeze"),
            ("freeze", {"kind": "activate"}, "is ACTIVE, only one that is WAITING can have a activate"),
            ("payout", {"account": "z"}, "no rule requires the payout of z"),
            ("uncovered", {"account": "z"}, "the uncovered of z"),
            ("cycle", {"ts": 1}, "the next cut-off is at "),
            ("topUp", {"seq": 1}, "seq 1 is not above "),
            ("topUp", {"ts": 1}, "ts 1 is before "),
            ("topUp", {"ts": 2 * 10**12}, "the cut-off at "),
            ("transfer", {"terms": 2}, "terms is 2, it should be 1"),
        ],
    )
    def test_an_entry_that_breaks_a_rule_is_named(self, batch, kind, fields, sentence):
        place = [one.kind for one in batch.entries].index(kind, 9)
        found = replayed(rechained(batch, with_entry(batch, place, **fields))).differences
        assert any(one.startswith(f"P entry {place + 1}: ") and sentence in one for one in found), found

    def test_policies_frozen_only_in_part_are_found(self, batch):
        froze = [one for one in batch.entries if one.kind == "freeze"]
        pairs = [(one, other) for one, other in itertools.pairwise(froze) if one.account == other.account]
        alone = [other for one, other in pairs if one.ts == other.ts]
        assert alone
        for entry in alone:
            entries = [one for one in batch.entries if one is not entry]
            entries = [msgspec.structs.replace(one, entry=number) for number, one in enumerate(entries, 1)]
            assert any("has active policies, but " in one for one in replayed(rechained(batch, entries)).differences)


class TestStates:
    """Every altered stored state is found by name."""

    @pytest.mark.parametrize(
        ("field", "by"),
        [
            *((name, 1) for name in PoolRow._fields[1:] if name not in ("head", "seq", "time")),
            *(("seq", -99), ("time", -9_999), ("time", 9_999)),
        ],
    )
    def test_an_altered_pool_is_found(self, batch, field, by):
        row = batch.pool._replace(**{field: getattr(batch.pool, field) + by})
        (found, *_) = differences(changed(batch, pool=row))
        assert found.startswith(f"P: {field} is {getattr(row, field)}, ")

    @pytest.mark.parametrize("field", ["balance", "arrears", "payable", "paid_out", "accumulated", "day"])
    def test_an_altered_account_is_found(self, batch, field):
        for place, row in enumerate(batch.accounts):
            by = -1 if field == "day" else 1
            accounts = [
                *batch.accounts[:place],
                row._replace(**{field: getattr(row, field) + by}),
                *batch.accounts[place + 1 :],
            ]
            (found,) = differences(changed(batch, accounts=accounts))
            assert found.startswith(f"P account {row.account}: {field} ")

    def test_an_altered_cover_is_found(self, batch):
        for place, row in enumerate(batch.accounts):
            for fields in ({"cover": (*row.cover, 1)}, {"unfunded": not row.unfunded}, {"enabled": not row.enabled}):
                if "enabled" in fields and row.unfunded:
                    continue  # An account that is not funded may be disabled without an entry.
                accounts = [*batch.accounts[:place], row._replace(**fields), *batch.accounts[place + 1 :]]
                assert differences(changed(batch, accounts=accounts))[0].startswith(f"P account {row.account}: ")

    def test_profits_that_owe_a_premium_without_entry_are_found(self, batch):
        accounts = [row._replace(profits=row.profits + 1_000) for row in batch.accounts]
        found = differences(changed(batch, accounts=accounts))
        assert found
        assert all("owe no more" in one for one in found)

    def test_profits_below_those_of_an_entry_are_found(self, batch):
        last = [entry for entry in batch.entries if entry.profits][-1]
        accounts = [row._replace(profits=last.profits - 1) for row in batch.accounts if row.account == last.account]
        assert differences(changed(batch, accounts=accounts)) == [
            f"P account {last.account}: profits are {last.profits - 1}, its entries give {last.profits} or more"
        ]

    @pytest.mark.parametrize(
        "field",
        ["account", "state", "terms", "face", "cap", "issued_at", "active_at", "expires_at", "paid", "moved", "entered"],
    )
    def test_an_altered_policy_is_found(self, batch, field):
        for place, row in enumerate(batch.policies):
            value = getattr(row, field)
            other = "z" if field == "account" else State((value + 1) % 6) if field == "state" else value + 1
            policies = [*batch.policies[:place], row._replace(**{field: other}), *batch.policies[place + 1 :]]
            assert any(
                one.startswith(f"P policy {row.policy}: {field} is ") for one in differences(changed(batch, policies=policies))
            ), row

    @pytest.mark.parametrize(
        "field", ["at", "pool", "caps_left", "rate", "budget", "returned", "weight", "completed", "share_index", "rem", "entry"]
    )
    def test_an_altered_cycle_is_found(self, batch, field):
        for place, row in enumerate(batch.cycles):
            other = row._replace(**{field: getattr(row, field) + 1})
            cycles = [*batch.cycles[:place], other, *batch.cycles[place + 1 :]]
            wanted = f"P cycle {row.cycle}: {field} is {getattr(other, field)}, it should be {getattr(row, field)}"
            assert differences(changed(batch, cycles=cycles)) == [wanted]

    def test_missing_rows_are_found(self, batch):
        ended = next(row for row in batch.policies if row.state > State.FROZEN)
        policies = [row for row in batch.policies if row is not ended]
        assert differences(changed(batch, policies=policies)) == [f"P policy {ended.policy}: is missing"]
        assert differences(changed(batch, cycles=batch.cycles[1:])) == ["P cycle 1: is missing"]

    def test_a_policy_beyond_the_issued_ones_is_found(self, batch):
        added = batch.policies[0]._replace(policy=99)
        found = differences(changed(batch, policies=[*batch.policies, added]))
        assert found == [f"P policy 99: is stored, but only {batch.pool.policies} are issued"]


class TestTerms:
    def test_altered_terms_are_found(self, batch):
        for name, value in (("threshold", 8), ("face", 11), ("cap_rate", 100_000), ("platform_fee", 0), ("min_loss", 1)):
            rules = msgspec.structs.replace(batch.terms[1], **{name: value})
            assert any("hash is " in one for one in differences(batch, {1: Version(rules, 1)}))

    def test_altered_terms_with_hashes_recomputed_are_found(self, batch):
        for name, value in (("threshold", 8), ("face", 11), ("cap_rate", 400_000), ("platform_fee", 0), ("release", ((0, 1),))):
            altered = changed(batch, terms={1: msgspec.structs.replace(batch.terms[1], **{name: value})})
            found = differences(rechained(altered, batch.entries))
            assert found
            assert not any("hash is " in one for one in found)

    def test_a_version_that_begins_elsewhere_is_found(self, batch):
        rules = batch.terms[1]
        terms = {1: Version(rules, 1), 2: Version(msgspec.structs.replace(rules, min_loss=3), 20)}
        assert any("P entry 20: terms is 1, it should be 2" in one for one in differences(batch, terms))

    def test_versions_out_of_order_and_other_units_are_found(self, batch):
        rules = batch.terms[1]
        other = msgspec.structs.replace(rules, decimals=1)
        replay = Replay(POOL, {1: Version(rules, 5), 2: Version(other, 4), 4: Version(other, 9)})
        assert [one.partition(": ")[2] for one in replay.differences] == [
            "version 1 of the terms begins at entry 5, the one before at none",
            "version 2 of the terms begins at entry 4, the one before at 5",
            "version 2 of the terms has other decimals or other cut-offs than the one before",
            "version 4 of the terms begins at entry 9, the one before at none",
        ]


class TestCommitments:
    def test_commitments_are_opened_with_the_secret(self):
        batch = batch_of(small_rules(), [event for event, _ in events_of(SEED, 90)], SECRET)
        assert differences(batch, secrets=Secrets(SECRET)) == []
        sealed = sum(1 for entry in batch.entries if entry.account)
        assert replayed(batch, secrets=Secrets(SECRET)).unopened == 0
        assert replayed(batch).unopened == sealed

    def test_a_commitment_to_another_account_is_found(self):
        batch = batch_of(small_rules(), [event for event, _ in events_of(SEED, 90)], SECRET)
        entry = batch.entries[0]
        seal = SECRET.seal(seal_domain(POOL), 1, "z")
        other = rechained(batch, with_entry(batch, 0, seal=seal))
        assert replayed(other, secrets=Secrets(SECRET)).differences == [
            "P entry 1: its commitment does not belong to its account"
        ]
        short = rechained(batch, with_entry(batch, 0, seal=entry.seal[:-1]))
        assert replayed(short).differences == ["P entry 1: it has a seal without an account, or of the wrong length"]
