"""The budget of the event loop counts the work of the service only."""

import asyncio
import gc
import subprocess
import sys
import time

import pytest
from watchdog import HOLD_MS_MAX, Watchdog, WatchedLoop, budgeted, watched

LONG_SECONDS = 3 * HOLD_MS_MAX / 1000


def compute(seconds=LONG_SECONDS):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


async def rest():
    """Gives the watchdog time to measure what came before."""
    for _ in range(5):
        await asyncio.sleep(0.002)


def as_service_code(source):
    """A coroutine of code that lies in no file of the tests."""
    names = {"compute": compute, "asyncio": asyncio}
    exec(compile(source, "/fundsvc/service.py", "exec"), names)
    return names["work"]()


SERVICE_WORK = {
    "task": "async def work():\n await asyncio.sleep(0.01)\n compute()",
    "callback": "async def work():\n asyncio.get_running_loop().call_soon(compute)\n await asyncio.sleep(0.01)",
}


@pytest.mark.parametrize("source", SERVICE_WORK.values(), ids=SERVICE_WORK)
async def test_long_work_of_the_service_exceeds_the_budget(source):
    with pytest.raises(AssertionError, match="held the event loop"):
        await run_budgeted(source)


async def run_budgeted(source):
    async with budgeted():
        await rest()
        await asyncio.create_task(as_service_code(source))
        await rest()


async def collect_garbage():
    kept = [[number] for number in range(1_000_000)]
    gc.collect()
    assert kept  # freed before the step ends: freeing takes long, too


async def compute_in_steps():
    for _ in range(3):
        compute()
        await asyncio.sleep(0)


async def wait_for_a_process():
    subprocess.run([sys.executable, "-c", "import time; time.sleep(0.1)"], check=True)  # noqa: ASYNC221 - blocks on purpose


@pytest.mark.parametrize("work", [compute_in_steps, collect_garbage, wait_for_a_process])
async def test_test_code_may_hold_the_loop(work):
    async with budgeted():
        await rest()
        await work()
        await asyncio.create_task(work())
        await rest()


async def test_a_collection_during_service_work_is_excluded():
    kept = [[number] for number in range(3_000_000)]
    async with watched() as watchdog:
        await rest()
        asyncio.get_running_loop().call_soon(gc.collect)
        await rest()
    assert watchdog.longest_ms < HOLD_MS_MAX, len(kept)


def test_the_time_between_two_runs_of_a_loop_is_excluded():
    with asyncio.Runner(loop_factory=WatchedLoop) as runner:
        watchdog = Watchdog()

        async def start():
            return asyncio.create_task(watchdog.run())

        running = runner.run(start())
        compute()
        runner.run(rest())
        running.cancel()
    assert watchdog.longest_ms < HOLD_MS_MAX


async def test_an_exception_passes_through_an_excluded_task():
    async def fail():
        await asyncio.sleep(0)
        raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        await asyncio.create_task(fail())
    task = asyncio.create_task(asyncio.sleep(10))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
