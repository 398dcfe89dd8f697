"""Waiting for a result as long as it is wanted."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


async def before(end: asyncio.Future[Any], work: Coroutine[Any, Any, Result]) -> Result | None:
    """Returns the result of `work`; cancels it and returns None if `end` is done first. Raises the errors of `work`."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait((task, end), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
