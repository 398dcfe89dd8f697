"""The example of takeovers in the handbook, settled in memory."""

import re
from pathlib import Path

import takeovers
from ledgers import fill

from fundsvc.core.partition import Partition

CONCEPTS = (Path(__file__).parents[2] / "fundsvc" / "handbook" / "concepts.md").read_text()
SECTION = CONCEPTS[CONCEPTS.index("**Example.** A linear contract") : CONCEPTS.index("## Policies")].replace(
    "\N{MINUS SIGN}", "-"
)
ROWS = re.findall(r"^\| [^|]+ \| [^|]+ \| (\d+) \| (\d+) \| (-?\d+) \| (-?\d+) \|$", SECTION, re.MULTILINE)
ATOMS = 10**8


def partition_of(*events):
    partition = Partition(0, 1, [], {"USDT": 8}, 10)
    for event in events:
        partition.apply(event)
    return partition


def shown(partition):
    """Returns balance, held lots, unrealised P&L and equity."""
    fund = partition.market(takeovers.SYMBOL).fund
    return fund.balance / ATOMS, fund.inventory.lots, fund.inventory.unrealised / ATOMS, fund.equity / ATOMS


def test_example_of_the_handbook_gives_its_numbers():
    partition = partition_of(takeovers.LISTING, takeovers.FUNDED, takeovers.SHORT, takeovers.mark(45))
    steps = (
        takeovers.takeover(2, 10),
        takeovers.mark(38),
        takeovers.executed(3, 1, 3),
        takeovers.unwind(4, 5, 40),
        takeovers.unwind(5, 2, 55),
    )
    assert len(ROWS) == len(steps)
    for event, row in zip(steps, ROWS, strict=True):
        partition.apply(event)
        assert shown(partition) == tuple(map(int, row))
    (order,) = partition.take().orders.values()
    assert (order.lots, order.origin, order.state) == (3, "inventory", "done")


def test_takeover_beyond_the_capacity_of_the_example_is_forced():
    beginning = takeovers.LISTING, fill(takeovers.SYMBOL, 1, 30), takeovers.mark(45)
    partition = partition_of(*beginning, takeovers.takeover(2, 10))
    assert "= 6 of the 10 lots" in SECTION
    taken = [(entry.lots, entry.forced) for entry in partition.take().entries if entry.kind == "takeover"]
    assert taken == [(6, False), (4, True)]
    assert shown(partition)[-1] == -20
