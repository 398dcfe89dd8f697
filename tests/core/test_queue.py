from builders import ONE, UNIT
from hypothesis import given
from hypothesis import strategies as st

from fundsvc.core.book import Side
from fundsvc.core.queue import Section, sections
from fundsvc.core.valuation import Rank

PRICE = 10**12
POSITIONS = st.lists(st.tuples(st.integers(1, 9), st.integers(60, 140), st.integers(0, 50)), max_size=30)


@given(POSITIONS)
def test_a_section_holds_the_positions_with_its_lights(positions):
    side = Side(UNIT, "long")
    for number, (lots, price, margin) in enumerate(positions):
        side.set(f"a{number:02d}", lots, price * PRICE, margin * ONE)
    mark = 100 * PRICE
    rows = side.ranking(mark).rows
    standings = [side.standing(int(row), mark) for row in rows]
    expected = []
    for lights in range(5, 0, -1):
        lit = [one for rank, one in enumerate(standings, 1) if Rank(rank, len(standings)).lights == lights]
        scores = (lit[0].score, lit[-1].score) if lit else (None, None)
        profit = sum(one.unrealised_pnl for one in lit)
        expected.append(Section(lights, lights, len(lit), sum(one.lots for one in lit), *scores, profit))
    assert sections(side, mark) == expected
