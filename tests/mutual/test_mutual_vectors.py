"""The vectors of the mutual, through the decoder and the pool."""

from pathlib import Path

import pytest

from fundsvc.cli.tools.mutual_vectors import run_any_vector
from fundsvc.cli.tools.vectors import Outcome, read_vector

DIRECTORY = Path(__file__).parents[1] / "vectors" / "mutual"
SHARED = Path(__file__).parents[3] / "shared" / "vectors" / "mutual"
FILES = sorted(DIRECTORY.glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_vector_passes(path):
    assert run_any_vector(read_vector(path)) == Outcome("passed")
