"""Writes every dashboard as JSON into the directory that is named: the same bytes while code and alerts are the same."""

import sys
from pathlib import Path

import contract
import deleveraging
import engine
import overview
from grafana_foundation_sdk.cog.encoder import JSONEncoder


def write(directory: Path) -> None:
    """Writes a file for each dashboard, named as its address is."""
    directory.mkdir(parents=True, exist_ok=True)
    for module in (overview, contract, deleveraging, engine):
        dashboard = module.dashboard().build()
        text = JSONEncoder(sort_keys=True, indent=2).encode(dashboard)
        (directory / f"{dashboard.uid}.json").write_text(text + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
