"""Connections below HTTP: how many there may be, how long a request may take to arrive, and what no WebSocket client may send.

aiohttp bounds neither. A connection has `header_seconds_max` for the head of a request, `body_seconds_max` for its body, and
`idle_seconds_max` between two requests. A head that is late is answered 408, a body by the handler that reads it.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Literal

import structlog
from aiohttp import hdrs, web

from fundsvc.api.http.client_address import client_address
from fundsvc.api.http.errors import LateBody
from fundsvc.api.http.slots import Places
from fundsvc.api.websocket.masking import MaskCheck
from fundsvc.config.settings import HttpConfig
from fundsvc.logs.faults import Seldom

SERVER_NAME = "fundsvc"
"""What the header `Server` says: no versions, which would tell what is known to be broken in them."""

STALLED_SECONDS_MAX = 30.0
"""How long a client may read nothing of an answer. The kernel then cuts the connection, which would last for ever otherwise."""

_CLOSING = "Content-Length: 0\r\nConnection: close\r\nServer: {}\r\n\r\n"
_LATE = f"HTTP/1.1 408 Request Timeout\r\n{_CLOSING.format(SERVER_NAME)}".encode()
_FULL = f"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n{_CLOSING.format(SERVER_NAME)}".encode()

_Phase = Literal["", "head", "body"]
"""What a connection is waiting for from its client; nothing while a request is handled, and between requests."""

Limit = Literal["all", "client"]
"""The limit that refuses a connection: `clients_max`, or `client_connections_max`."""

log = structlog.get_logger()


class Connections:
    """Counts the connections of a listener, in all and by client; behind proxies of our own only in all."""

    def __init__(self, http: HttpConfig, refused: Callable[[Limit], object]) -> None:
        self.http = http
        self._count = refused
        self._places = Places(http.clients_max, http.clients_max if http.proxies else http.client_connections_max)
        self._refused = Seldom(log, "connections")

    def enter(self, client: str) -> bool:
        """Whether a client may have one more connection, which then counts until it leaves."""
        if self._places.are_full:
            self._count("all")
            self._refused.note(ConnectionError(f"{self.http.clients_max} connections are open: see http.clients_max"))
            return False
        if self._places.are_full_for(client):
            self._count("client")
            return False
        self._places.take(client)
        return True

    def leave(self, client: str) -> None:
        """Ends that."""
        self._places.leave(client)


class Connection(web.RequestHandler):
    """aiohttp's connection of an HTTP server, with those bounds."""

    __slots__ = ("_body", "_client", "_connections", "_phase", "_timer")

    def __init__(self, manager: web.Server, connections: Connections, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(manager, loop=loop, keepalive_timeout=connections.http.idle_seconds_max, **options)
        self._connections = connections
        self._client: str | None = None
        self._phase: _Phase = ""
        self._timer: asyncio.TimerHandle | None = None
        self._body: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the connection, or closes it where there are as many as are allowed."""
        peer = transport.get_extra_info("peername")
        client = client_address(peer[0] if isinstance(peer, tuple) else None, (), 0)
        if self._connections.enter(client):
            self._client = client
            super().connection_made(transport)
            self._bound_stalls(STALLED_SECONDS_MAX)
            self._expect("head")
        else:
            self.force_close()
            transport.write(_FULL)  # type: ignore[attr-defined] # it is one that writes
            transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forgets the connection."""
        self._expect("")
        if self._client is not None:
            self._connections.leave(self._client)
            self._client = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes what came, and notes what has to come next."""
        requests = self._request_count
        super().data_received(data)
        if self._request_count != requests:
            self._expect_body()
        elif self._phase == "body":
            if self._body.is_eof():
                self._expect("")
        elif data and not self._upgraded:
            self._expect("head")

    def set_parser(self, parser: Any, data_received_cb: Callable[[], None] | None = None) -> None:
        """Has a WebSocket's frames checked on their way to their reader; how much waits for its client is bounded elsewhere."""
        self._bound_stalls(0)
        super().set_parser(MaskCheck(parser), data_received_cb)  # type: ignore[arg-type] # it reads as a reader does

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Names the server in answers that no application prepares, such as those to bytes that are no HTTP.

        What came behind a request for another protocol is read only now, where that was declined.
        """
        if isinstance(resp, web.StreamResponse):
            resp.headers[hdrs.SERVER] = SERVER_NAME
        finished = await super().finish_response(request, resp, start_time)
        if self._messages:
            self._expect_body()
        return finished

    def _expect_body(self) -> None:
        """Waits for the body of the request that came last, unless it is whole; each body has a clock of its own."""
        body = self._messages[-1][1]
        if body is not self._body:
            self._expect("")
        self._body = body
        self._expect("" if body.is_eof() else "body")

    def _bound_stalls(self, seconds: float) -> None:
        if self.transport is not None and hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux has it
            own = self.transport.get_extra_info("socket")
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))

    def _expect(self, phase: _Phase) -> None:
        """Starts the clock of what is waited for, unless it runs."""
        if phase == self._phase:
            return
        self._phase = phase
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if phase:
            self._start_clock()

    def _start_clock(self) -> None:
        http = self._connections.http
        seconds = http.body_seconds_max if self._phase == "body" else http.header_seconds_max
        self._timer = self._loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        self._timer = None
        if self._phase == "body":
            seconds = self._connections.http.body_seconds_max
            self._body.set_exception(LateBody(f"the body did not arrive within {seconds:g} s"))
        elif self._waiter is None:
            self._start_clock()  # The request before is still handled, and its answer must not be cut off.
        elif self.transport is not None:
            self.transport.write(_LATE)
            self.force_close()
