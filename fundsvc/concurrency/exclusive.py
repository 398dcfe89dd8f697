"""Exclusive access to data in memory: short work runs on the event loop, long work in a thread."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")


class Exclusive:
    """Runs one function at a time on some data, in the order of the calls.

    While a function runs in a thread, other tasks of the loop continue. They must access the data only through this object.
    The result of a function must not refer to the data. Without `executor`, the default executor of the loop runs long work.
    """

    def __init__(self, executor: Executor | None = None) -> None:
        self._executor = executor
        self._lock = asyncio.Lock()

    async def run(self, work: Callable[[], Result], *, is_long: bool = False) -> Result:
        """Returns the result of `work`, or raises its exception. With `is_long`, a thread runs it.

        Cancelling the caller does not interrupt a running function; the next call waits until it returns.
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
    """Provides an executor with one thread, so that long work competes with the loop as one thread. Exit drops queued work."""
    executor = ThreadPoolExecutor(1, name)
    try:
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
