"""A thousand clients of one topic in one process. Each only counts and sums what it reads, to take little of the machine."""

import asyncio
import base64
import json
import os
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import cast

WELCOME = b'"type":"welcome"'
ACK = b'{"type":"ack","id":"1"}'
"""A client subscribes after WELCOME; changes follow ACK."""

CONNECTING_MAX = 50
"""Subscribers that connect at the same time."""


class Subscriber(asyncio.Protocol):
    """Counts and sums what it reads after its subscription, and records when it had how many bytes."""

    def __init__(self, request: bytes, subscription: bytes) -> None:
        self.ready = asyncio.get_running_loop().create_future()
        self.length = 0
        self.sum = 0
        self.lengths: list[int] = []
        self.times: list[float] = []
        self.first: list[bytes] | None = None
        self._request = request
        self._subscription = subscription
        self._greeting = b""
        self._requested = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the request over a new connection."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Subscribes after the welcome, and records what follows."""
        if not self.ready.done():
            data = self._greeted(data)
            if not data:
                return
        self.length += len(data)
        self.sum = zlib.crc32(data, self.sum)
        self.lengths.append(self.length)
        self.times.append(time.monotonic())
        if self.first is not None:
            self.first.append(data)

    def _greeted(self, data: bytes) -> bytes:
        """Subscribes; returns the bytes behind the acknowledgement."""
        self._greeting += data
        if WELCOME in self._greeting and not self._requested:
            self._requested = True
            self._transport.write(self._subscription)
        _, ack, rest = self._greeting.partition(ACK)
        if ack:
            self.ready.set_result(None)
        return rest


async def http_answer(host: str, port: int, method: str, path: str) -> bytes:
    """Returns the body of an answer."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer.split(b"\r\n\r\n", 1)[1]


async def socket_paths(host: str, port: int, number: int) -> list[str]:
    """Returns paths for the given number of WebSockets, each with a separate token."""
    answers = [await http_answer(host, port, "POST", "/api/v1/bullet-public") for _ in range(number)]
    return [f"/ws?token={json.loads(answer)['data']['token']}" for answer in answers]


@asynccontextmanager
async def subscribed(host: str, port: int, paths: Sequence[str], symbol: str) -> AsyncIterator[list[Subscriber]]:
    """Returns subscribers to the entries of a contract, one per path."""
    key = base64.b64encode(os.urandom(16)).decode()
    headers = (
        f"Host: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    requests = [f"GET {path} HTTP/1.1\r\n{headers}".encode() for path in paths]
    command = {"id": "1", "type": "subscribe", "topic": f"/insuranceFund/entry:{symbol}", "response": True}
    payload = json.dumps(command).encode()
    subscription = bytes((0x81, 0x80 | len(payload))) + bytes(4) + payload
    loop = asyncio.get_running_loop()
    listeners: list[Subscriber] = []
    transports: list[asyncio.Transport] = []
    try:
        while len(listeners) < len(requests):
            next_ones = requests[len(listeners) : len(listeners) + CONNECTING_MAX]
            connecting = (
                loop.create_connection(partial(Subscriber, request, subscription), host, port) for request in next_ones
            )
            connections = await asyncio.gather(*connecting)
            transports += [transport for transport, _ in connections]
            some = [subscriber for _, subscriber in connections]
            await asyncio.wait([each.ready for each in some], timeout=20)
            if not all(each.ready.done() for each in some):
                raise RuntimeError("some clients were not subscribed within 20 s")
            listeners += some
        listeners[0].first = []
        yield listeners
    finally:
        for transport in transports:
            with suppress(RuntimeError):
                transport.abort()
