"""Writes every dashboard as JSON to the given directory. The output depends only on this code and the alert rules."""

import sys
from pathlib import Path

import adl
import contract
import engine
import overview
from grafana_foundation_sdk.cog.encoder import JSONEncoder


def write(directory: Path) -> None:
    """Writes one file per dashboard, named by its uid."""
    directory.mkdir(parents=True, exist_ok=True)
    for module in (overview, contract, adl, engine):
        dashboard = module.dashboard().build()
        text = JSONEncoder(sort_keys=True, indent=2).encode(dashboard)
        (directory / f"{dashboard.uid}.json").write_text(text + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
