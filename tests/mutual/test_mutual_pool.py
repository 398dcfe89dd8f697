"""Properties of a pool: it agrees with a plain loop over policies, and no split, restart or duplicate changes anything."""

from collections import Counter
from typing import get_args

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from plain_pool import SCALE, PlainPool, Refused
from streams import POOL, RULES, STREAMS, events_of, small_rules

from fundsvc.core.events import Rejection
from fundsvc.mutual.core.chain import Kind
from fundsvc.mutual.core.events import Cancel, Enable, Tick, TopUp, Trade, Transfer
from fundsvc.mutual.core.pool import Pool
from fundsvc.mutual.core.rows import PoolRow, State


def pool_of(rules):
    return Pool(PoolRow(POOL), {1: rules})


def apply(pool, event):
    """Applies an event; returns the reason if it is rejected."""
    try:
        pool.apply(event)
    except Rejection as rejection:
        return rejection.reason.value
    return None


def step(pool, event):
    """Applies an event in steps; returns the number of pauses, and the reason if it is rejected."""
    pauses = 0
    try:
        for _ in pool.steps(event):
            pauses += 1
    except Rejection as rejection:
        return pauses, rejection.reason.value
    return pauses, None


def apply_plainly(pool, event, amounts):
    try:
        pool.apply(event, *amounts)
    except Refused as refusal:
        return str(refusal)
    return None


def restored(pool):
    """Returns a new pool from the stored state of another one."""
    register = pool.register
    accounts = [account.row() for account in register.by_number]
    owners = [register.by_number[number].name for number in register.owners]
    policies = sorted(register.save_policies())
    new = Pool(pool.row(), pool.versions)
    for _ in new.restore(accounts, policies, owners):
        pass
    return new


def state(pool):
    register = pool.register
    accounts = [account.row() for account in register.by_number]
    return pool.row(), accounts, sorted((row, pool.standing(row)) for row in register.save_policies())


def plain_state(pool):
    accounts = [
        (name, one.balance, one.arrears, one.payable, one.paid_out, one.accumulated, one.enabled, one.unfunded)
        for name, one in pool.accounts.items()
    ]
    money = pool.balance, pool.fees, pool.inflow, pool.released, pool.settled, pool.paid_out, pool.index, pool.rem, pool.time
    policies = [
        (one.number, one.account, one.state, one.active_at, one.expires_at, one.paid, pool.accrued(one) - one.moved)
        if one.state == "ACTIVE"
        else (one.number, one.account, one.state, one.active_at, one.expires_at, one.paid, 0)
        for one in pool.policies
        if one.state in ("WAITING", "ACTIVE", "FROZEN")
    ]
    return accounts, money, policies


def heap_state(pool):
    row = pool.row()
    accounts = [account.row()[:8] for account in pool.register.by_number]
    money = row.balance, row.fees, row.inflow, row.released, row.settled, row.paid_out, row.share_index, row.rem, row.time
    policies = []
    for one in sorted(pool.register.save_policies()):
        standing = pool.standing(one)
        policies.append((one.policy, one.account, one.state.name, standing.active_at, one.expires_at, one.paid, standing.due))
    return accounts, money, policies


def plain_entries(entries):
    return [(e.seq, e.ts, e.kind, e.account, e.policy, e.amount, e.balance) for e in entries]


@given(RULES, STREAMS)
def test_the_heap_and_a_plain_loop_over_all_policies_agree_to_the_last_unit(rules, events):
    pool, plain = pool_of(rules), PlainPool(rules)
    for event, amounts in events:
        assert apply(pool, event) == apply_plainly(plain, event, amounts)
        assert heap_state(pool) == plain_state(plain)
    batch = pool.take()
    assert plain_entries(batch.entries) == plain.entries
    assert [cycle[:11] for cycle in batch.cycles] == plain.cycles


@given(RULES, STREAMS)
def test_the_money_adds_up_after_every_event_and_no_policy_exceeds_its_cap(rules, events):
    pool, time = pool_of(rules), 0
    for event, _ in events:
        apply(pool, event)
        row, policies = pool.row(), list(pool.register.save_policies())
        active = [policy for policy in policies if policy.state == State.ACTIVE]
        shared = sum(policy.face * (row.share_index - policy.entered) for policy in active)
        moved = row.settled - sum(policy.moved for policy in active)
        assert row.inflow == row.released + row.balance
        assert row.released * SCALE == moved * SCALE + row.rem + shared
        assert row.settled == row.paid_out + sum(account.payable for account in pool.register.by_number)
        assert row.weight == sum(policy.face for policy in active)
        assert pool.identity_error() == 0
        assert all(pool.standing(policy).accrued <= policy.cap for policy in policies)
        assert row.time >= time
        time = row.time
    batch = pool.take()
    assert batch.identity_error == 0
    assert all(policy.paid <= policy.cap for policy in batch.policies)


@given(RULES, STREAMS, st.integers(0, 96))
def test_a_restart_anywhere_changes_nothing(rules, events, cut):
    straight, restarted = pool_of(rules), pool_of(rules)
    entries = []
    for position, (event, _) in enumerate(events):
        if position == cut:
            entries += restarted.take().entries
            restarted = restored(restarted)
        assert apply(straight, event) == apply(restarted, event)
    assert state(straight) == state(restarted)
    assert straight.take().entries == entries + list(restarted.take().entries)


@given(RULES, STREAMS, st.sets(st.integers(0, 96)))
def test_any_split_into_batches_stores_the_same(rules, events, cuts):
    whole, split, rows, batches = pool_of(rules), pool_of(rules), {}, []
    for position, (event, _) in enumerate(events):
        apply(whole, event)
        apply(split, event)
        if position in cuts:
            batches.append(split.take())
    batches.append(split.take())
    for batch in batches:
        rows |= {row.account: row for row in batch.accounts} | {row.policy: row for row in batch.policies}
        assert all(row.policy <= batch.issued_before or row.policy <= batch.pool.policies for row in batch.policies)
    once = whole.take()
    assert {row.account: row for row in once.accounts} | {row.policy: row for row in once.policies} == rows
    for part in ("entries", "hashes", "cycles"):
        assert list(getattr(once, part)) == [one for batch in batches for one in getattr(batch, part)]
    assert once.opened == set().union(*(batch.opened for batch in batches))
    assert {row.policy for row in rows.values() if hasattr(row, "policy")} == set(range(1, once.pool.policies + 1))


@given(RULES, STREAMS, st.data())
def test_duplicates_change_nothing(rules, events, data):
    once, often, sent = pool_of(rules), pool_of(rules), 0
    for event, _ in events:
        refused = apply(once, event)
        assert apply(often, event) == refused
        if hasattr(event, "seq") and not refused and data.draw(st.booleans()):
            assert apply(often, event) is None
            sent += 1
    assert state(once) == state(often)
    batch = often.take()
    assert (batch.entries, batch.duplicates) == (once.take().entries, sent)


@given(RULES, STREAMS)
def test_steps_and_apply_give_the_same(rules, events):
    whole, sliced = pool_of(rules), pool_of(rules)
    for event, _ in events:
        due = sliced.is_cutoff_due(event)
        pauses, refused = step(sliced, event)
        assert due or not pauses
        assert refused == apply(whole, event)
    assert state(whole) == state(sliced)


@given(RULES, STREAMS, st.integers(1, 500))
def test_more_budget_never_pays_any_policy_less(rules, events, more):
    """A policy's accrual does not fall when the same cut-off distributes more."""
    less, richer = pool_of(rules), pool_of(rules)
    for event, _ in events:
        apply(less, event)
        apply(richer, event)
    row = less.row()
    if not row.next_cutoff:
        return
    apply(richer, TopUp(POOL, row.time, 10**6, str(more), "u"))
    for pool in (less, richer):
        pool.take()
        apply(pool, Tick(POOL, row.next_cutoff))
    paid = [accrued_by_policy(pool) for pool in (less, richer)]
    assert paid[0].keys() == paid[1].keys()
    assert all(paid[1][policy] >= accrued for policy, accrued in paid[0].items())


def accrued_by_policy(pool):
    rows = [*pool.take().policies, *pool.register.save_policies()]
    return {row.policy: pool.standing(row).accrued for row in rows}


@given(RULES, st.lists(st.integers(1, 100), min_size=1, max_size=8), st.integers(0, 500))
def test_splitting_a_trade_changes_no_premium(rules, parts, held):
    rules = msgspec.structs.replace(rules, symbols=None, min_funding=0)
    whole, split = funded(rules, held), funded(rules, held)
    trade(whole, 10, sum(parts))
    for seq, part in enumerate(parts, 10):
        trade(split, seq, part)
    one, other = (pool.register.accounts["a"] for pool in (whole, split))
    assert (one.balance, one.arrears, one.profits) == (other.balance, other.arrears, other.profits)
    fees = whole.row().fees - split.row().fees
    assert 0 <= fees <= len(parts)
    assert whole.row().balance + fees == split.row().balance


def funded(rules, balance):
    pool = pool_of(rules)
    if balance:
        pool.apply(Transfer(POOL, 1_000, 1, "a", str(balance), "t"))
    pool.apply(Enable(POOL, 1_000, 2, "a"))
    return pool


def trade(pool, seq, pnl):
    pool.apply(Trade(POOL, 1_001, seq, "a", "X", f"x{seq}", 1_000, str(pnl), "1"))


def pool_with_policies(count, **changes):
    """Returns a pool whose policies become active at the second cut-off, and the time of that cut-off."""
    changes = {"waiting_ms": 1_500, "live_max": 10_000, "activity_ms": 10**6, "expiry_ms": 10**6, "cap_rate": 10**6} | changes
    pool = funded(small_rules(**changes), 50)
    pool.apply(Trade(POOL, 1_001, 3, "a", "X", "x", 1_001, str(-7 * count), "5"))
    pool.apply(TopUp(POOL, 1_001, 4, str(30 * count), "u"))
    return pool, 3_000


def test_a_cut_off_that_changes_no_policy_looks_at_none():
    pool, active = pool_with_policies(10_000, release=((0, 100_000),))
    assert sum(1 for _ in pool.steps(Tick(POOL, active))) >= 100
    assert list(pool.steps(Tick(POOL, active + 1_000))) == []
    assert pool.take().cycles[-1].budget > 0


def test_many_completions_in_one_cut_off_come_with_pauses():
    pool, active = pool_with_policies(10_000, release=((0, 10**6),))
    pauses = sum(1 for _ in pool.steps(Tick(POOL, active)))
    batch = pool.take()
    assert (batch.cycles[-1].completed, batch.pool.balance, len(pool.register.policies)) == (10_000, 200_000, 0)
    assert pauses >= 300
    assert pool.identity_error() == 0


def test_places_of_ended_policies_are_used_again():
    pool, active = pool_with_policies(100, release=((0, 10**6),))
    pool.apply(Tick(POOL, active))
    columns = len(pool.register.policies.number)
    pool.apply(Trade(POOL, active, 5, "a", "X", "x", active, "-700", "5"))
    assert len(pool.register.policies) == len(pool.register.policies.number) == columns
    assert [row.policy for row in sorted(pool.register.save_policies())] == list(range(101, 201))


def test_the_streams_of_these_properties_meet_all_rules():
    kinds, returned = Counter(), 0
    for seed in range(30):
        pool = pool_of(small_rules(cap_rate=400_000 if seed % 2 else 10**6))
        for event, _ in events_of(seed, 120):
            apply(pool, event)
        batch = pool.take()
        kinds.update(entry.kind for entry in batch.entries)
        returned += sum(cycle.returned > 0 for cycle in batch.cycles)
    assert kinds.keys() == set(get_args(Kind))
    assert min(kinds.values()) >= 10, kinds
    assert returned


def test_a_restart_changes_nothing_of_an_account_whose_policies_have_ended():
    """The straight pool has listed the account for a check, the restarted one has not."""
    straight, active = pool_with_policies(1, activity_ms=2_500)
    straight.apply(Cancel(POOL, 1_002, 5, "a", 1))
    again = restored(straight)
    for pool in (straight, again):
        pool.apply(Tick(POOL, active + 2_000))
    assert state(straight) == state(again)
