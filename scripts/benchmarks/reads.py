"""Requests per second, relative to a bare aiohttp handler that answers with the same bytes.

Both servers are separate processes. The same client sends requests over the same number of persistent connections, one request
at a time on each. The servers take turns several times; the idle one is stopped (SIGSTOP). The client is a raw asyncio
protocol, which needs less of the machine than either server.
"""

import asyncio
import re
import signal
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import msgspec
from ground import ServiceProcess, bare_server, url_of

BARE = Path(__file__).with_name("bare.py")

CONNECTIONS = 32
"""Connections: enough to keep a server busy, few enough that a request does not wait for many others."""

STANDARD_HEADERS = 4
"""Headers that aiohttp adds: Content-Type, Content-Length, Date, Server."""

WARM_SECONDS = 0.5

LENGTH = re.compile(rb"Content-Length: (\d+)")


class Reads(msgspec.Struct, kw_only=True):
    """Requests per second and p99 (ms), medians of the rounds; `ratio` is the median of the rounds' ratios."""

    rounds: int
    service_per_second: float
    bare_per_second: float
    ratio: float
    service_p99_ms: float
    bare_p99_ms: float


class Asker(asyncio.Protocol):
    """A connection that sends the next request when it has an answer."""

    def __init__(self, request: bytes) -> None:
        self.times: list[float] = []
        self._request = request
        self._received = b""
        self._sent_at = 0.0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self._transport = transport  # type: ignore[assignment]

    def start(self) -> None:
        """Sends the first request."""
        self._ask()

    def data_received(self, data: bytes) -> None:
        """Finds the end of the headers and checks that the body is complete; the length of a fund may change."""
        self._received = self._received + data if self._received else data
        head = self._received.find(b"\r\n\r\n")
        if head < 0 or len(self._received) < head + 4 + _body_length(self._received):
            return
        if not self._received.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"the answer is {self._received[:200]!r}")
        self._received = b""
        self.times.append(time.perf_counter() - self._sent_at)
        self._ask()

    def _ask(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)


async def measure(api: ServiceProcess, log: Path, symbol: str, rounds: int, seconds: float) -> Reads:
    """Alternates between the service and the bare handler."""
    path = f"/api/v1/insurance-fund/{symbol}"
    host, port = url_of(log)
    head, body = await _answer(host, port, path)
    file = log.with_name("body.json")
    file.write_bytes(body)
    taken: list[tuple[tuple[float, float], tuple[float, float]]] = []
    with bare_server(BARE, str(file), str(head.count(b"\r\n") - STANDARD_HEADERS)) as (bare_port, bare):
        for _ in range(rounds):
            bare.send_signal(signal.SIGSTOP)
            service = await _round(host, port, path, seconds)
            bare.send_signal(signal.SIGCONT)
            api.send_signal(signal.SIGSTOP)
            taken.append((service, await _round(host, bare_port, path, seconds)))
            api.send_signal(signal.SIGCONT)
            await _until_it_answers(host, port, path)
    return Reads(
        rounds=rounds,
        service_per_second=statistics.median(service[0] for service, _ in taken),
        bare_per_second=statistics.median(bare[0] for _, bare in taken),
        ratio=statistics.median(service[0] / bare[0] for service, bare in taken),
        service_p99_ms=statistics.median(service[1] for service, _ in taken),
        bare_p99_ms=statistics.median(bare[1] for _, bare in taken),
    )


async def _round(host: str, port: int, path: str, seconds: float) -> tuple[float, float]:
    """Returns requests per second and p99 in ms, after a warm-up."""
    async with _asking(host, port, path) as askers:
        for asker in askers:
            asker.start()
        await asyncio.sleep(WARM_SECONDS)
        for asker in askers:
            asker.times.clear()
        started = time.perf_counter()
        await asyncio.sleep(seconds)
        took = time.perf_counter() - started
        times = sorted(each for asker in askers for each in asker.times)
    return len(times) / took, times[len(times) * 99 // 100] * 1000


async def _until_it_answers(host: str, port: int, path: str) -> None:
    """Waits until a service that was stopped has polled its ledger again and answers 200."""
    while True:
        with suppress(RuntimeError):
            await _answer(host, port, path)
            return
        await asyncio.sleep(WARM_SECONDS)


def _body_length(head: bytes) -> int:
    found = LENGTH.search(head)
    assert found, head
    return int(found[1])


def _request(host: str, port: int, path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()


async def _answer(host: str, port: int, path: str) -> tuple[bytes, bytes]:
    """Returns head and body of the service's answer."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(_request(host, port, path))
    head = await reader.readuntil(b"\r\n\r\n")
    body = await reader.readexactly(_body_length(head))
    writer.close()
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"{path} answers {head!r} {body!r}")
    return head.removesuffix(b"\r\n\r\n"), body


@asynccontextmanager
async def _asking(host: str, port: int, path: str) -> AsyncIterator[list[Asker]]:
    loop = asyncio.get_running_loop()
    askers, transports = [], []
    for _ in range(CONNECTIONS):
        transport, asker = await loop.create_connection(partial(Asker, _request(host, port, path)), host, port)
        askers.append(asker)
        transports.append(transport)
    try:
        yield askers
    finally:
        for transport in transports:
            transport.abort()
