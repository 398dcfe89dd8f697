"""Waits for conditions instead of fixed times."""

import asyncio
import inspect
import time

LOOK_SECONDS = 0.001
LOOK_SECONDS_MAX = 0.02
"""The pause between two checks doubles from the first to the second of these, or to another maximum."""


async def eventually(check, seconds=60.0, pause_max=LOOK_SECONDS_MAX):
    """Calls `check`, which may be a coroutine function, until its result is true, and returns that; fails after `seconds`."""
    deadline, pause = time.monotonic() + seconds, LOOK_SECONDS
    while True:
        answer = check()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        assert time.monotonic() < deadline, f"{check} still answers {answer!r} after {seconds} s"
        await asyncio.sleep(pause)
        pause = min(2 * pause, pause_max)
