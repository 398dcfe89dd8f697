"""Requests per second, relative to a bare aiohttp handler that answers with the same bytes, and with shared limits.

All servers are separate processes. The same client sends requests over the same number of persistent connections, one request
at a time on each. The servers take turns several times; the idle ones are stopped (SIGSTOP). The client is a raw asyncio
protocol, which needs less of the machine than any server.
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
from typing import NamedTuple

import msgspec
import psutil
from ground import ServiceProcess, bare_server, url_of

BARE = Path(__file__).with_name("bare.py")

CONNECTIONS = 32
"""Connections: enough to keep a server busy, few enough that a request does not wait for many others."""

STANDARD_HEADERS = 4
"""Headers that aiohttp adds: Content-Type, Content-Length, Date, Server."""

WARM_SECONDS = 0.5

LENGTH = re.compile(rb"Content-Length: (\d+)")


class Reads(msgspec.Struct, kw_only=True):
    """Requests per second, p99 (ms) and CPU per request (us), medians of the rounds; the ratios are medians of their ratios.

    `sharing` is a service with `http.shared_limits`, and `sharing_ratio` relates its CPU to that of one without.
    """

    rounds: int
    service_per_second: float
    bare_per_second: float
    sharing_per_second: float
    ratio: float
    sharing_ratio: float
    service_p99_ms: float
    bare_p99_ms: float
    sharing_p99_ms: float
    service_cpu_us: float
    bare_cpu_us: float
    sharing_cpu_us: float


class Turn(NamedTuple):
    """Requests per second, p99 (ms) and CPU per request (us) of one round."""

    per_second: float
    p99_ms: float
    cpu_us: float


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


async def measure(
    api: ServiceProcess, log: Path, sharing: ServiceProcess, sharing_log: Path, symbol: str, rounds: int, seconds: float
) -> Reads:
    """Alternates between the service, the bare handler, and a service that shares its limits."""
    path = f"/api/v1/insurance-fund/{symbol}"
    host, port = url_of(log)
    head, body = await _answer(host, port, path)
    file = log.with_name("body.json")
    file.write_bytes(body)
    taken: list[tuple[Turn, Turn, Turn]] = []
    with bare_server(BARE, str(file), str(head.count(b"\r\n") - STANDARD_HEADERS)) as (bare_port, bare):
        ports = {api.pid: port, bare.pid: bare_port, sharing.pid: url_of(sharing_log)[1]}
        turns = [(psutil.Process(pid), at) for pid, at in ports.items()]
        for server, _ in turns:
            server.send_signal(signal.SIGSTOP)
        try:
            for _ in range(rounds):
                service, plain, shared = [await _turn(server, host, at, path, seconds) for server, at in turns]
                taken.append((service, plain, shared))
        finally:
            for server, _ in turns:
                server.send_signal(signal.SIGCONT)
    return Reads(
        rounds=rounds,
        service_per_second=statistics.median(service.per_second for service, _, _ in taken),
        bare_per_second=statistics.median(plain.per_second for _, plain, _ in taken),
        sharing_per_second=statistics.median(shared.per_second for _, _, shared in taken),
        ratio=statistics.median(service.per_second / plain.per_second for service, plain, _ in taken),
        sharing_ratio=statistics.median(shared.cpu_us / service.cpu_us for service, _, shared in taken),
        service_p99_ms=statistics.median(service.p99_ms for service, _, _ in taken),
        bare_p99_ms=statistics.median(plain.p99_ms for _, plain, _ in taken),
        sharing_p99_ms=statistics.median(shared.p99_ms for _, _, shared in taken),
        service_cpu_us=statistics.median(service.cpu_us for service, _, _ in taken),
        bare_cpu_us=statistics.median(plain.cpu_us for _, plain, _ in taken),
        sharing_cpu_us=statistics.median(shared.cpu_us for _, _, shared in taken),
    )


async def _turn(server: psutil.Process, host: str, port: int, path: str, seconds: float) -> Turn:
    """Lets one server run, and measures it."""
    server.send_signal(signal.SIGCONT)
    await _until_it_answers(host, port, path)
    turn = await _round(server, host, port, path, seconds)
    server.send_signal(signal.SIGSTOP)
    return turn


async def _round(server: psutil.Process, host: str, port: int, path: str, seconds: float) -> Turn:
    """Measures a server after a warm-up."""
    async with _asking(host, port, path) as askers:
        for asker in askers:
            asker.start()
        await asyncio.sleep(WARM_SECONDS)
        for asker in askers:
            asker.times.clear()
        started, cpu = time.perf_counter(), _cpu_seconds(server)
        await asyncio.sleep(seconds)
        took, cpu = time.perf_counter() - started, _cpu_seconds(server) - cpu
        times = sorted(each for asker in askers for each in asker.times)
    return Turn(len(times) / took, times[len(times) * 99 // 100] * 1000, cpu / len(times) * 1e6)


def _cpu_seconds(server: psutil.Process) -> float:
    times = server.cpu_times()
    return times.user + times.system


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
