"""The long form of the crash test."""

import argparse
import asyncio
import random

from tests.crash.run import run_long, run_short

PARTS = (1, 2, 3, 4)


def main() -> None:
    """Runs it; a failure ends with a traceback that names the first differences."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--minutes", type=float, default=0, help="how long to disturb; 0 is the short form")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="repeats messages and schedule")
    parser.add_argument("--part", type=int, choices=PARTS, help="run this part of the long form alone")
    arguments = parser.parse_args()
    parts = [arguments.part] if arguments.part else PARTS
    asyncio.run(run_long(arguments.seed, arguments.minutes, parts) if arguments.minutes else run_short(arguments.seed))


if __name__ == "__main__":
    main()
