"""Exclusive access to data in memory, for short work on the event loop and for long work in a thread."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")


class Exclusive:
    """Runs one piece of work on some data at a time, in the order of the calls.

    Work in a thread leaves the loop to other tasks, which must not touch the data meanwhile: they run their own work here. What
    the work returns must not refer to the data. Without an executor the loop's own one is used.
    """

    def __init__(self, executor: Executor | None = None) -> None:
        self._executor = executor
        self._lock = asyncio.Lock()

    async def run(self, work: Callable[[], Result], *, is_long: bool = False) -> Result:
        """Returns what the work returns, and raises what it raises; runs it in a thread where it is long.

        Work that has begun is not cancelled with the task that awaits it: the next work waits for its end.
        """
        await self._lock.acquire()
        if not is_long:
            try:
                return work()
            finally:
                self._lock.release()
        try:
            running = asyncio.get_running_loop().run_in_executor(self._executor, work)
        except BaseException:
            self._lock.release()
            raise
        running.add_done_callback(lambda _: self._lock.release())
        return await asyncio.shield(running)


@contextmanager
def single_thread_executor(name: str) -> Iterator[Executor]:
    """An executor with one thread, so that long work slows the loop as one thread does. At the end, what waits is dropped."""
    executor = ThreadPoolExecutor(1, name)
    try:
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
