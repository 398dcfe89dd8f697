"""Documents that the first request generates, in a thread.

That takes tenths of a second in Python, during which the event loop waits for the interpreter after each read of a socket. At
the start it reads large books.
"""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Generated(Generic[T]):
    """The result of `generate`, which runs once."""

    def __init__(self, generate: Callable[[], T]) -> None:
        self._generate = generate
        self._running: asyncio.Future[T] | None = None

    async def result(self) -> T:
        """Returns the result; waits for it if it is not generated yet."""
        self._running = self._running or asyncio.ensure_future(asyncio.to_thread(self._generate))
        return await asyncio.shield(self._running)
