"""`scripts/verify-export` accepts the ledgers of a partition under every policy, also with undated ADL records."""

import asyncio
import contextlib
import io
from datetime import UTC, datetime
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
import test_order_replay
from builders import ONE, UNIT, adl_fill, fill, worth
from hypothesis import given, settings
from hypothesis import strategies as st
from retraced import Retraced
from takeover_world import POLICIES as TAKEOVER_POLICIES
from takeover_world import World
from test_order_replay import MARKET, POLICIES, history

from fundsvc.cli.tools.export import export_rows
from fundsvc.core.fund.chain import Entry
from fundsvc.store.exports import Line, RecordLine

SCRIPT = ModuleType("verify_export")
SourceFileLoader(SCRIPT.__name__, str(Path(__file__).parents[2] / "scripts" / "verify-export")).exec_module(SCRIPT)
MOMENT = datetime.fromtimestamp(0, UTC)


class Written:
    """A ledger in memory, with the interface that the export reads."""

    contract = UNIT

    def __init__(self, lines, fund):
        self._lines, self.fund = lines, fund

    async def lines(self):
        for item, digest in self._lines:
            yield (Line if isinstance(item, Entry) else RecordLine)(item, digest, MOMENT)


def verified(lines, fund):
    """The exit code and the error text of the script."""

    async def rows():
        return [row async for row in export_rows(Written(lines, fund))]

    output, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        code = SCRIPT.verify(asyncio.run(rows()), SCRIPT.Ledger())
    return code, error.getvalue()


@pytest.mark.parametrize("policy", POLICIES)
def test_ledger_of_a_partition_verifies(policy):
    for seed in range(8):
        ledger = history(seed, policy)
        assert verified(ledger.lines, ledger.fund) == (0, ""), seed
        lines, adl_head = test_order_replay.TestUndated.migrated(ledger)
        assert verified(lines, ledger.fund._replace(adl_head=adl_head)) == (0, ""), seed


def test_surplus_that_repays_too_little_is_a_difference():
    ledger = Retraced(*MARKET[:1], worth(-300, 1), worth(500, 2))
    assert verified(ledger.lines, ledger.fund) == (0, "")
    *before, (surplus, digest) = ledger.lines
    assert (surplus.repaid, surplus.change) == (300 * ONE, 200 * ONE)
    forged = msgspec.structs.replace(surplus, repaid=0, change=500 * ONE, balance=500 * ONE)
    code, error = verified([*before, (forged, digest)], ledger.fund)
    assert code == 1
    assert "it repays 0 units, 30000000000 are outstanding" in error


def test_missing_refund_is_a_difference():
    ledger = Retraced(*MARKET, worth(4, 1), fill(2, lots=7, price="96.5"))
    for seq, (account, rest) in enumerate(ledger.requested(1).items(), 3):
        ledger.apply(adl_fill(seq, account, rest))
    assert ledger.lines[-1].item.kind == "refund"
    code, error = verified(ledger.lines[:-1], ledger.fund)
    assert code == 1
    assert "the refund of ADL order 1 is missing before it" in error


@given(TAKEOVER_POLICIES, st.sampled_from([0, 30, 100]), st.data())
@settings(deadline=None, max_examples=60)
def test_ledger_with_an_inventory_verifies(policy, balance, data):
    world = World(policy, 0)
    world.apply(
        fill(1, lots=balance, price="101", bankruptcy_price="100", symbol=UNIT.symbol, ts=world.ts)
    ) if balance else None
    for _ in range(data.draw(st.integers(5, 40))):
        world.apply(world.draw(data))
    lines = [line for line in world.stored.lines if line[0].symbol == UNIT.symbol]
    fund = world.stored.funds[UNIT.symbol]
    assert verified(lines, fund) == (0, "")
    for place, (item, digest) in enumerate(lines):
        if isinstance(item, Entry) and (item.kind in ("takeover", "deleverage") or item.closes):
            for change in ({"lots": item.lots + 1}, {"closes": item.closes + 1}, {"forced": not item.forced}):
                forged = msgspec.structs.replace(item, **change)
                assert verified([*lines[:place], (forged, digest), *lines[place + 1 :]], fund)[0] == 1, forged
