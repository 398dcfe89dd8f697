"""Requests to the service over HTTP, with typed answers."""

import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiohttp
import msgspec
from aiohttp import hdrs

from fundsvc.api.adl_answers.orders import OrderAnswer
from fundsvc.api.answers import CursorAnswer, EntryAnswer, Envelope, FundAnswer, Page
from fundsvc.api.http.errors import Failure
from fundsvc.api.ingest import IngestAnswer
from fundsvc.core.events import Event
from fundsvc.wire.codec import encode

T = TypeVar("T")

JSON = "application/json"

SECONDS_MAX = 20.0
"""How long a request may take. The service answers within this time that a server of it is unreachable."""

PAGE = 500
"""The largest page of the API."""

_CONFLICT, _TOO_MANY, _SERVER_ERRORS = 409, 429, 500


class ApiError(Exception):
    """An answer with an error that a retry does not change. `status` is the HTTP status, `code` the code of the answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code


class Unavailable(Exception):
    """The service is unreachable, or a part of it is, or a limit is reached. Repeat the request later."""


class StreamChanged(Exception):
    """The stream server may have lost events. Read the cursor, and send again what is not settled."""


Token = str | Callable[[], str]
"""An access token, or what returns a valid one for the next request; "" for none."""


class Api:
    """The API of a service. Methods raise ApiError or Unavailable."""

    def __init__(self, http: aiohttp.ClientSession, token: Token = "") -> None:
        self.http = http
        self._token = token

    async def get(self, path: str, kind: type[T], **query: str | int) -> T:
        """Returns the answer of a path under `/api/v1/`."""
        return await self.request(hdrs.METH_GET, path, kind, params=query)

    async def request(self, method: str, path: str, kind: type[T], **options: Any) -> T:
        """Returns the answer to a request of a path under `/api/v1/`; `options` are those of aiohttp."""
        token = self._token if isinstance(self._token, str) else self._token()
        headers = options.pop("headers", {}) | ({hdrs.AUTHORIZATION: f"Bearer {token}"} if token else {})
        try:
            async with self.http.request(method, f"/api/v1/{path}", headers=headers, **options) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as fault:
            raise Unavailable(f"{type(fault).__name__}: {fault}") from fault
        if answer.status >= _SERVER_ERRORS or answer.status == _TOO_MANY:
            raise Unavailable(f"{answer.status}: {body.decode(errors='replace')}")
        if answer.ok:
            envelope: Envelope[T] = msgspec.json.decode(body, type=Envelope[kind])  # type: ignore[valid-type]
            return envelope.data
        failure = msgspec.json.decode(body, type=Failure)
        raise ApiError(answer.status, failure.code, failure.msg)

    async def cursor(self) -> CursorAnswer:
        """Returns what is settled. After StreamChanged, this producer may post again."""
        return await self.get("ingest/cursor", CursorAnswer)

    async def post(self, events: Sequence[Event] | bytes, content_type: str = JSON) -> IngestAnswer:
        """Posts events, or a body; also raises StreamChanged. Known events are ignored, so a repeated post is safe."""
        body = events if isinstance(events, bytes) else encode(events)
        try:
            return await self.request(
                hdrs.METH_POST, "ingest/events", IngestAnswer, data=body, headers={hdrs.CONTENT_TYPE: content_type}
            )
        except ApiError as error:
            if error.status == _CONFLICT:
                raise StreamChanged(str(error)) from None
            raise

    async def funds(self) -> list[FundAnswer]:
        """Returns the funds of all open contracts."""
        return await self.get("insurance-fund", list[FundAnswer])

    async def fund(self, symbol: str) -> FundAnswer:
        """Returns the fund of a contract."""
        return await self.get(f"insurance-fund/{symbol}", FundAnswer)

    def entries(self, symbol: str, after: int = 0) -> AsyncIterator[EntryAnswer]:
        """Yields the present entries of a contract after a number, oldest first."""
        return self._rows(f"insurance-fund/{symbol}/history", EntryAnswer, after, lambda entry: entry.entry)

    def orders(self, symbol: str, after: int = 0) -> AsyncIterator[OrderAnswer]:
        """Yields the present ADL orders of a contract after a number, oldest first."""
        return self._rows(f"adl/{symbol}/orders", OrderAnswer, after, lambda order: order.adl)

    async def _rows(self, path: str, kind: type[T], after: int, number_of: Callable[[T], int]) -> AsyncIterator[T]:
        """Yields the rows of all pages after a number, oldest first."""
        has_more = True
        while has_more:
            page: Page[T] = await self.get(path, Page[kind], offset=after, forward="true", maxCount=PAGE)  # type: ignore[valid-type]
            for row in page.data_list:
                yield row
                after = number_of(row)
            has_more = page.has_more


@asynccontextmanager
async def open_api(url: str, token: Token = "", *, tls: ssl.SSLContext | bool = True) -> AsyncIterator[Api]:
    """Opens connections to the service at a URL. `token` is an access token, or a function that renews it before it expires.

    `tls` is a context for https, or False to accept any certificate.
    """
    connector, timeout = aiohttp.TCPConnector(ssl=tls), aiohttp.ClientTimeout(total=SECONDS_MAX)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as http:
        yield Api(http, token)
