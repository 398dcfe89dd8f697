"""A small form of `scripts/bench storm`: hundreds of liquidations in one millisecond on empty funds.

The matching engine reads the rounds after the burst, when all of them are announced.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from watchdog import HOLD_MS_MAX

pytestmark = pytest.mark.alone

BENCHMARKS = Path(__file__).parents[2] / "scripts" / "benchmarks"

FILLS = 400
SIZE = ("--fills", str(FILLS), "--positions", "1200", "--contracts", "2", "--per-message", "100")


@pytest.fixture(scope="module")
def storms(tmp_path_factory):
    """Runs a burst under each allocation policy."""
    command = [sys.executable, BENCHMARKS, "storm", *SIZE, "--funds", "dry", "--answers", "after", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)["storms"]


def test_every_allocation_is_tried(storms):
    assert [storm["load"]["allocation"] for storm in storms] == ["queue", "capped", "pro_rata"]


def test_burst_on_empty_funds_is_durable_and_its_orders_end(storms):
    assert [storm["faults"] for storm in storms] == [[]] * len(storms), "an audit that fails is a fault, too"
    assert {storm["entries"] for storm in storms} == {FILLS}
    assert all(storm["orders"] and not storm["orders_open"] for storm in storms)


def test_matching_engine_that_reads_after_the_burst_receives_every_round(storms):
    assert all(storm["seen"] == storm["announced"] >= storm["orders"] for storm in storms)


def test_burst_on_empty_funds_is_settled_without_a_reload(storms):
    assert [storm["reloads"] for storm in storms] == [0] * len(storms)


def test_burst_on_empty_funds_holds_the_loop_briefly(storms):
    assert max(storm["hold_ms"] for storm in storms) < HOLD_MS_MAX
