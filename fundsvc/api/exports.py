"""Streams CSV exports of a ledger. A bounded number runs at a time, on separate database connections."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from urllib.parse import quote

import structlog
from aiohttp import hdrs, web

from fundsvc.api.answers import Answer
from fundsvc.api.csv_rows import CSV, csv_header, csv_rows
from fundsvc.api.http.request_context import CONTEXT
from fundsvc.api.http.slots import Slots
from fundsvc.logs.faults import ThrottledFaults
from fundsvc.store.database import StoreFault

EXPORTS_MAX = 4
"""The default of `http.exports_max`."""

RETRY_SECONDS = 5
"""The usual duration of an export of a hundred thousand entries."""

WRITE_SECONDS_MAX = 30.0
"""The time in which a client must read a piece of about 100 kB. A stalled client would otherwise keep its slot forever."""


STREAMED_ROWS = 500
"""Rows that an export reads and writes at a time: a few milliseconds of the loop, and a bounded amount of memory."""

log = structlog.get_logger()


class Exports:
    """Assigns slots to exports. A client has at most half of the slots."""

    def __init__(self, exports_max: int = EXPORTS_MAX) -> None:
        self._slots = Slots(exports_max, max(1, exports_max // 2))
        self._cut_off = ThrottledFaults(log, "history")

    async def send(
        self, request: web.Request, name: str, kind: type[Answer], pages: AsyncIterator[Sequence[Answer]]
    ) -> web.StreamResponse:
        """Sends pages of answers of one kind as a CSV file, as fast as the client reads.

        Raises TooManyRequests or Unavailable without a free slot. If the database becomes unreachable, it aborts the
        connection. A complete response is therefore a complete export.
        """
        response = web.StreamResponse()
        response.content_type, response.charset = CSV, "utf-8"
        response.headers[hdrs.CONTENT_DISPOSITION] = f"attachment; filename*=UTF-8''{quote(name)}.csv"
        with self._slots.limited(request[CONTEXT].client, "exports", RETRY_SECONDS):
            await response.prepare(request)
            if request.method != hdrs.METH_HEAD:
                await self._stream(request, response, name, kind, pages)
        return response

    async def _stream(
        self,
        request: web.Request,
        response: web.StreamResponse,
        name: str,
        kind: type[Answer],
        pages: AsyncIterator[Sequence[Answer]],
    ) -> None:
        try:
            await write(response, csv_header(kind))
            async for answers in pages:
                await write(response, csv_rows(answers))
        except ConnectionError:
            log.debug("export abandoned", name=name)
            _abort(request)
        except StoreFault as fault:
            self._cut_off.note(fault, name=name)
            _abort(request)


async def write(response: web.StreamResponse, piece: bytes) -> None:
    """Sends a piece of an answer; raises ConnectionResetError if the client is gone or does not read."""
    try:
        async with asyncio.timeout(WRITE_SECONDS_MAX):
            await response.write(piece)
    except TimeoutError:
        raise ConnectionResetError("the client does not read") from None


def _abort(request: web.Request) -> None:
    if request.transport:
        request.transport.abort()
