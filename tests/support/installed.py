"""Packages and builds that tests need beside their own environment, each installed once per lock file."""

import fcntl
from collections.abc import Callable
from pathlib import Path


def once(directory: Path, lock: Path, install: Callable[[], None]) -> None:
    """Installs or builds into a directory again only when `lock` changes. Test processes that run side by side wait."""
    directory.mkdir(exist_ok=True)
    stamp = directory / "installed.txt"
    with (directory / "installing").open("w") as waiting:
        fcntl.flock(waiting, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_bytes() != lock.read_bytes():
            install()
            stamp.write_bytes(lock.read_bytes())
