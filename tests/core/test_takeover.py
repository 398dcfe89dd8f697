"""Takeovers, unwinds and the relief of an inventory through a partition."""

from hypothesis import given, settings
from hypothesis import strategies as st
from takeover_world import POLICIES, World


@given(POLICIES, st.sampled_from([0, 30, 100, 1000]), st.data())
@settings(deadline=None)
def test_no_lot_is_lost_and_entries_give_the_inventory(policy, balance, data):
    world = World(policy, balance)
    for _ in range(data.draw(st.integers(5, 40))):
        world.apply(world.draw(data))
        world.check()


@given(POLICIES, st.sampled_from([30, 100]), st.data())
@settings(deadline=None)
def test_a_partition_restored_from_its_rows_continues_identically(policy, balance, data):
    world, other = World(policy, balance), World(policy, balance)
    for _ in range(data.draw(st.integers(5, 30))):
        event = world.draw(data, resends=False)
        if data.draw(st.integers(0, 4)) == 0:
            other.restart()
            assert funds_of(other) == funds_of(world)
        assert world.apply(event) == other.apply(event)
        assert other.stored.orders == world.stored.orders
        assert other.stored.entries == world.stored.entries
        assert funds_of(other) == funds_of(world)
        assert other.stored.holdings == world.stored.holdings
        assert other.stored.tranches == world.stored.tranches


@given(POLICIES, st.sampled_from([0, 30, 100]), st.data())
@settings(deadline=None)
def test_the_audit_finds_no_difference(policy, balance, data):
    world = World(policy, balance)
    for _ in range(data.draw(st.integers(5, 40))):
        world.apply(world.draw(data))
    assert world.audit() == []
    assert world.audit(parts=3) == []


def funds_of(world):
    """The funds but their guards, which a partition stores with their next change."""
    return [fund.state() for fund in world.partition.funds()]
