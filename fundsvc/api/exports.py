"""Long answers, read from the ledger while they are sent: a bounded number at a time, by database connections of their own."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from fundsvc.api.http.errors import TooManyRequests, Unavailable
from fundsvc.api.http.request_context import CONTEXT
from fundsvc.api.http.slots import Slots
from fundsvc.store.reader import Reader

EXPORTS_MAX = 4
"""As http.exports_max is by default."""

RETRY_SECONDS = 5
"""An export of a hundred thousand entries takes about as long."""

WRITE_SECONDS_MAX = 30.0
"""How long a client may take to read a piece of some 100 kB: one that reads nothing would keep its place for ever."""


class Exports:
    """Grants places to long answers; what they read, they read by `reader`. A client has at most half of the places."""

    def __init__(self, reader: Reader, exports_max: int = EXPORTS_MAX) -> None:
        self.reader = reader
        self._slots = Slots(exports_max, max(1, exports_max // 2))

    @contextmanager
    def place(self, request: web.Request) -> Iterator[None]:
        """A place for the answer to a request, while the context is open; raises TooManyRequests or Unavailable."""
        client = request[CONTEXT].client
        if self._slots.are_full_for(client):
            allowed = self._slots.client_slots
            raise TooManyRequests(f"this client has {allowed} exports running, as many as are allowed", RETRY_SECONDS)
        if self._slots.are_full:
            raise Unavailable("as many exports are running as are allowed at a time: ask again shortly")
        with self._slots.taken(client):
            yield


async def write(response: web.StreamResponse, piece: bytes) -> None:
    """Sends a piece of an answer; raises ConnectionResetError where the client is gone, or does not read it."""
    try:
        async with asyncio.timeout(WRITE_SECONDS_MAX):
            await response.write(piece)
    except TimeoutError:
        raise ConnectionResetError("the client does not read") from None
