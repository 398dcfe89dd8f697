"""The vectors of the mutual, through the decoder and the pool."""

import copy
import json
from pathlib import Path

import pytest

from fundsvc.cli.tools.mutual_vectors import run_any_vector
from fundsvc.cli.tools.vectors import Difference, Outcome, VectorError, read_vector

DIRECTORY = Path(__file__).parents[1] / "vectors" / "mutual"
SHARED = Path(__file__).parents[3] / "shared" / "vectors" / "mutual"
FILES = sorted(DIRECTORY.glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_vector_passes(path):
    assert run_any_vector(read_vector(path)) == Outcome("passed")


@pytest.mark.skipif(not SHARED.exists(), reason="the originals are not here")
def test_the_vectors_of_the_mutual_equal_the_published_ones():
    originals = {path.name: path.read_bytes() for path in SHARED.iterdir()}
    assert {path.name: path.read_bytes() for path in DIRECTORY.iterdir()} == originals


def altered(path, value):
    """Returns a vector with another expectation."""
    vector = copy.deepcopy(json.loads((DIRECTORY / "cancelled-and-expired.json").read_text()))
    place = vector["expect"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return vector


@pytest.mark.parametrize(
    ("path", "value", "got"),
    [
        (("entries", 18, "amount"), "2.000001", "2"),
        (("entries", 0, "kind"), "topUp", "transfer"),
        (("accounts", 0, "payable"), "3", "2"),
        (("policies", 1, "state"), "ACTIVE", "EXPIRED"),
        (("policies", 1, "activeAt"), 1, 1728090000000),
        (("pool", "rem"), "1", "0"),
        (("cycles", 4, "rate"), 1, 0),
        (("duplicates",), 1, 0),
        (("rejected", 0, "reason"), "policy_over", "unknown_policy"),
    ],
)
def test_an_altered_expectation_of_the_mutual_fails_with_its_difference(path, value, got):
    name = "expect" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    assert run_any_vector(altered(path, value)) == Outcome("failed", (Difference(name, value, got),))


def test_a_missing_expectation_fails():
    vector = altered(("duplicates",), 0)
    del vector["expect"]["cycles"]
    assert [difference.path for difference in run_any_vector(vector).differences] == ["expect.cycles"]


@pytest.mark.parametrize(
    ("part", "value"),
    [("pool", {"payouts": 1}), ("pool", {"cap": -1}), ("expect", {"pool": {"balance": "x"}}), ("rest", 1)],
)
def test_a_file_that_is_no_vector_of_the_mutual_is_an_error(part, value):
    with pytest.raises(VectorError, match="not a vector"):
        run_any_vector(altered(("duplicates",), 0) | {part: value})
