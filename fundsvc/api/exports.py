"""Limits streamed exports of the ledger: a bounded number runs at a time, on separate database connections."""

import asyncio
from contextlib import AbstractContextManager

from aiohttp import web

from fundsvc.api.http.request_context import CONTEXT
from fundsvc.api.http.slots import Slots
from fundsvc.store.reader import Reader

EXPORTS_MAX = 4
"""The default of `http.exports_max`."""

RETRY_SECONDS = 5
"""The usual duration of an export of a hundred thousand entries."""

WRITE_SECONDS_MAX = 30.0
"""The time in which a client must read a piece of about 100 kB. A stalled client would otherwise keep its slot forever."""


class Exports:
    """Assigns slots to exports, which read with `reader`. A client has at most half of the slots."""

    def __init__(self, reader: Reader, exports_max: int = EXPORTS_MAX) -> None:
        self.reader = reader
        self._slots = Slots(exports_max, max(1, exports_max // 2))

    def slot(self, request: web.Request) -> AbstractContextManager[None]:
        """Holds a slot for an export while the context is open; raises TooManyRequests or Unavailable without a free slot."""
        return self._slots.limited(request[CONTEXT].client, "exports", RETRY_SECONDS)


async def write(response: web.StreamResponse, piece: bytes) -> None:
    """Sends a piece of an answer; raises ConnectionResetError if the client is gone or does not read."""
    try:
        async with asyncio.timeout(WRITE_SECONDS_MAX):
            await response.write(piece)
    except TimeoutError:
        raise ConnectionResetError("the client does not read") from None
