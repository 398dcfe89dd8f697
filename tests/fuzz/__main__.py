"""The long form of the fuzz test."""

import argparse
import asyncio
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import uvloop

from fundsvc.config.settings import Config, DatabaseConfig, StreamConfig
from fundsvc.local.servers import EmbeddedServers
from fundsvc.store.migrations import migrate
from tests.fuzz.run import Figures, any_messages, fuzz

PROGRESS_SECONDS = 10.0
"""The interval between two lines of progress."""


async def run(directory: Path, seed: int, count: int) -> Figures:
    """Runs the fuzz test on separate servers."""
    servers = EmbeddedServers(directory)
    await asyncio.to_thread(servers.start)
    try:
        await migrate(servers.owner_dsn, 1)
        database = DatabaseConfig(dsn=servers.dsn, owner_dsn=servers.owner_dsn)
        config = Config(database=database, stream=StreamConfig(url=servers.stream_url))
        return await fuzz(config, directory, seed, any_messages(count), progress_printer())
    finally:
        servers.stop()


def progress_printer() -> Callable[[Figures], None]:
    """Returns a function that prints the progress, at most every `PROGRESS_SECONDS`."""
    printed = 0.0

    def print_progress(figures: Figures) -> None:
        nonlocal printed
        if figures.seconds >= printed + PROGRESS_SECONDS:
            printed = figures.seconds
            print(f"{figures.seconds:7.1f} s  {figures.messages:,} messages, {figures.events:,} events", flush=True)

    return print_progress


def main() -> None:
    """Runs the fuzz test; prints the differences and exits with 1 if there are any."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000, help="number of messages")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="seed of the messages")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        figures = uvloop.run(run(Path(directory), arguments.seed, arguments.messages))
    print(f"seed {figures.seed}: {figures.messages:,} messages, {figures.events:,} events in {figures.seconds:.0f} s")
    print(f"outcomes: {dict(figures.outcomes)}")
    print(f"reasons: {dict(figures.reasons)}")
    print(
        f"longest hold {figures.hold_ms:.0f} ms, {figures.engines} engines, {figures.loads} loads, {figures.memory_mb:.0f} MB"
    )
    print("\n".join(figures.wrong))
    sys.exit(1 if figures.wrong else 0)


if __name__ == "__main__":
    main()
