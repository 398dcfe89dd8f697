"""Every benchmark but the storm, which has its own tests, in a small form: it ends, and prints its results.

Sizes this small say nothing about speed, so no target is checked.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = {
    "ingest": "--fills 2000 --contracts 2 --per-message 100 --peer-seconds 0.2 --rate 200 --latency-seconds 1",
    "ingest against": "--fills 2000 --contracts 2 --per-message 100 --parts= --against HEAD",
    "adl": "--positions 1000 --rounds 1",
    "audit": "--entries 3000 --contracts 2",
    "takeover": "--tranches 100 --rounds 1",
    "mutual": "--policies 2000 --rounds 1 --trades 5000",
    "http": "--rounds 1 --seconds 0.1 --subscribers 5 --changes 100 --topic-rounds 1 --topic-seconds 1",
    "client": "--contracts 2 --fills 2000 --rounds 1",
    "idle": "--partitions 3 --settle-seconds 0.5 --seconds 1",
    "restart": "--contracts 5 --positions 2000 --changed 100",
    "metrics": "--contracts 5 --rate 50 --turns 1",
    "scale": "--fills 2000 --contracts 8 --partitions 4 --engines 1,2 --rounds 1",
    "reads": "--entries 2e3,4e3 --contracts 2 --rounds 3",
}


@pytest.mark.parametrize("name", SMALL)
def test_benchmark_prints_its_results(name: str) -> None:
    if "--against" in SMALL[name] and not (ROOT / ".git").exists():
        pytest.skip("the sources are not a clone, so they have no earlier revision")
    command = (sys.executable, "scripts/benchmarks", name.split(maxsplit=1)[0], *SMALL[name].split(), "--json")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    # Exit code 1 without results is an error; with results it means that a target is missed.
    assert ended.returncode in {0, 1}, ended.stderr
    assert ended.stdout, ended.stderr
    assert json.loads(ended.stdout)
