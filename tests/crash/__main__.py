"""The long form of the crash test."""

import argparse
import asyncio
import random

from tests.crash.run import run_long, run_short

PARTS = (1, 2, 3, 4)


def main() -> None:
    """Runs the crash test. A failure raises an exception that names the first differences."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--minutes", type=float, default=0, help="duration of the disturbances; 0 runs the short form")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="seed of the messages and the schedule")
    parser.add_argument("--part", type=int, choices=PARTS, help="run only this part of the long form")
    arguments = parser.parse_args()
    parts = [arguments.part] if arguments.part else PARTS
    asyncio.run(run_long(arguments.seed, arguments.minutes, parts) if arguments.minutes else run_short(arguments.seed))


if __name__ == "__main__":
    main()
