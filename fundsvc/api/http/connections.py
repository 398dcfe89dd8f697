"""Limits connections: their number, the time in which a request must arrive, and the frames of WebSocket clients.

aiohttp has no such limits. The head of a request must arrive within `header_seconds_max`, its body within `body_seconds_max`,
and the next request within `idle_seconds_max`. The connection answers a late head with 408. For a late body, the handler that
reads it raises `LateBody`.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Literal

import structlog
from aiohttp import hdrs, web

from fundsvc.api.http.client_address import client_address
from fundsvc.api.http.errors import LateBody
from fundsvc.api.http.slots import Slots
from fundsvc.api.websocket.masking import MaskCheck
from fundsvc.config.settings import HttpConfig
from fundsvc.logs.faults import ThrottledFaults

SERVER_NAME = "fundsvc"
"""The value of the header `Server`. It names no versions, which would reveal known vulnerabilities."""

STALLED_SECONDS_MAX = 30.0
"""The time without progress after which the kernel closes the connection of a client that does not read its answer."""

_CLOSING = "Content-Length: 0\r\nConnection: close\r\nServer: {}\r\n\r\n"
_LATE = f"HTTP/1.1 408 Request Timeout\r\n{_CLOSING.format(SERVER_NAME)}".encode()
_FULL = f"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n{_CLOSING.format(SERVER_NAME)}".encode()

_Phase = Literal["", "head", "body"]
"""The part of a request that a connection waits for; "" while a request is handled and between requests."""

Limit = Literal["all", "client"]
"""The limit that refuses a connection: `clients_max`, or `client_connections_max`."""

log = structlog.get_logger()


class Connections:
    """Counts the connections of a listener in total and, without trusted proxies, by client."""

    def __init__(self, http: HttpConfig, refused: Callable[[Limit], object]) -> None:
        self.http = http
        self._count = refused
        self._slots = Slots(http.clients_max, http.clients_max if http.proxies else http.client_connections_max)
        self._refused = ThrottledFaults(log, "connections")

    def enter(self, client: str) -> bool:
        """Counts a further connection of a client until `leave`; returns False if a limit does not permit it."""
        if self._slots.are_full:
            self._count("all")
            self._refused.note(ConnectionError(f"the limit http.clients_max of {self.http.clients_max} connections is reached"))
            return False
        if self._slots.are_full_for(client):
            self._count("client")
            return False
        self._slots.take(client)
        return True

    def leave(self, client: str) -> None:
        """Stops counting a connection of a client."""
        self._slots.leave(client)


class Connection(web.RequestHandler):
    """aiohttp's server connection with these limits."""

    __slots__ = ("_body", "_client", "_connections", "_phase", "_timer")

    def __init__(self, manager: web.Server, connections: Connections, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(manager, loop=loop, keepalive_timeout=connections.http.idle_seconds_max, **options)
        self._connections = connections
        self._client: str | None = None
        self._phase: _Phase = ""
        self._timer: asyncio.TimerHandle | None = None
        self._body: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accepts the connection, or answers 503 and closes it if a limit is reached."""
        peer = transport.get_extra_info("peername")
        client = client_address(peer[0] if isinstance(peer, tuple) else None, (), 0)
        if self._connections.enter(client):
            self._client = client
            super().connection_made(transport)
            self._bound_stalls(STALLED_SECONDS_MAX)
            self._expect("head")
        else:
            self.force_close()
            transport.write(_FULL)  # type: ignore[attr-defined] # TCP and TLS transports write
            transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stops the timer and the count of the connection."""
        self._expect("")
        if self._client is not None:
            self._connections.leave(self._client)
            self._client = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parses received bytes and starts the timer of the part that must arrive next."""
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
        """Checks the frames of a WebSocket before aiohttp parses them.

        Also ends the limit of `STALLED_SECONDS_MAX`: the WebSocket's own queue limits a client that does not read.
        """
        self._bound_stalls(0)
        super().set_parser(MaskCheck(parser), data_received_cb)  # type: ignore[arg-type] # has the interface of a reader

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Sets the header `Server` also in answers that no application prepares, such as those to malformed requests.

        If the handler declines an upgrade, aiohttp parses the bytes after the upgrade request only now.
        """
        if isinstance(resp, web.StreamResponse):
            resp.headers[hdrs.SERVER] = SERVER_NAME
        finished = await super().finish_response(request, resp, start_time)
        if self._messages:
            self._expect_body()
        return finished

    def _expect_body(self) -> None:
        """Starts a new timer for the body of the latest request, unless the body is complete."""
        body = self._messages[-1][1]
        if body is not self._body:
            self._expect("")
        self._body = body
        self._expect("" if body.is_eof() else "body")

    def _bound_stalls(self, seconds: float) -> None:
        if self.transport is not None and hasattr(socket, "TCP_USER_TIMEOUT"):  # only Linux has it
            endpoint = self.transport.get_extra_info("socket")
            endpoint.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))

    def _expect(self, phase: _Phase) -> None:
        """Starts the timer of a phase, unless the connection is in that phase."""
        if phase == self._phase:
            return
        self._phase = phase
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if phase:
            self._start_timer()

    def _start_timer(self) -> None:
        http = self._connections.http
        seconds = http.body_seconds_max if self._phase == "body" else http.header_seconds_max
        self._timer = self._loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        self._timer = None
        if self._phase == "body":
            seconds = self._connections.http.body_seconds_max
            self._body.set_exception(LateBody(f"the body did not arrive within {seconds:g} s"))
        elif self._waiter is None:
            self._start_timer()  # The previous request is still handled; its answer must be sent completely.
        elif self.transport is not None:
            self.transport.write(_LATE)
            self.force_close()
