from builders import ONE, UNIT
from hypothesis import given
from hypothesis import strategies as st

from fundsvc.core.adl.queue import Section, joined_sections, merge_small_groups, sections
from fundsvc.core.adl.side import Side
from fundsvc.core.adl.valuation import Rank

PRICE = 10**12
POSITIONS = st.lists(st.tuples(st.integers(1, 9), st.integers(60, 140), st.integers(0, 50)), max_size=30)


@given(POSITIONS)
def test_section_contains_the_positions_with_its_lights(positions):
    side = Side(UNIT, "long")
    for number, (lots, price, margin) in enumerate(positions):
        side.set(f"a{number:02d}", lots, price * PRICE, margin * ONE)
    mark = 100 * PRICE
    rows = side.ranking(mark).rows
    standings = [side.valued(int(row), mark) for row in rows]
    expected = []
    for lights in range(5, 0, -1):
        lit = [one for rank, one in enumerate(standings, 1) if Rank(rank, len(standings)).lights == lights]
        scores = (lit[0].score, lit[-1].score) if lit else (None, None)
        profit = sum(one.unrealised_pnl for one in lit)
        expected.append(Section(lights, lights, len(lit), sum(one.lots for one in lit), *scores, profit))
    assert sections(side, mark) == expected


def split(counts):
    """Returns sections with these numbers of positions, five lights first; each position has `lights` lots."""
    return [
        Section(lights, lights, count, count * lights, float(lights), lights - 0.5, count)
        if count
        else Section(lights, lights, 0, 0, None, None, 0)
        for lights, count in zip(range(5, 0, -1), counts, strict=True)
    ]


@given(st.lists(st.integers(0, 9), min_size=5, max_size=5), st.integers(1, 12))
def test_merged_groups_have_at_least_k_min_positions_and_omit_none(counts, k_min):
    found = merge_small_groups(split(counts), k_min, joined_sections)
    if sum(counts) < k_min:
        assert found == []
        return
    assert all(pool.positions >= k_min for pool in found)
    assert sum(pool.positions for pool in found) == sum(counts)
    assert sum(pool.lots for pool in found) == sum(section.lots for section in split(counts))
    assert [lights for pool in found for lights in range(pool.lights, pool.to_lights - 1, -1)] == [5, 4, 3, 2, 1]
    assert all(pool.highest >= pool.lowest for pool in found)


def test_merged_groups_join_lower_sections_until_they_have_k_min_positions():
    found = merge_small_groups(split([2, 2, 1, 7, 3]), 5, joined_sections)
    assert [(pool.lights, pool.to_lights, pool.positions) for pool in found] == [(5, 3, 5), (2, 1, 10)]
    assert (found[0].highest, found[0].lowest) == (5.0, 2.5)
