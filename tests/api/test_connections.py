"""Limits of connections: their number and time limits, over real sockets."""

import asyncio
import logging
import socket
import time
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from eventually import eventually
from raw import exchange, raw

from fundsvc.api.http import connections
from fundsvc.api.http.middleware import Middleware
from fundsvc.api.http.server import serve
from fundsvc.config.settings import HttpConfig
from fundsvc.metrics import Metrics

GET = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LONG = 50_000_000
LATE = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\nServer: fundsvc\r\n\r\n"
POST = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"


async def reading(request):
    return web.json_response(len(await request.read()))


async def long(request):
    return web.Response(body=bytes(LONG))


async def streaming(request):
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"a")
    return response


@asynccontextmanager
async def listening(**http):
    """Serves an application with these limits; yields its address."""
    application = web.Application()
    for path, handler in {"/": reading, "/stream": streaming, "/long": long}.items():
        application.router.add_route("*", path, handler)
    Middleware(Metrics()).install(application, {})
    async with serve(application, "127.0.0.1", 0, bounds=HttpConfig(**http)) as url:
        yield url


@pytest.mark.parametrize(
    "sent", ["", "G", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: x\r\nA: ", GET + "GET /", GET + GET[:-2]]
)
async def test_incomplete_head_closes_the_connection(sent):
    async with listening(header_seconds_max=0.3, idle_seconds_max=1) as url, raw(url) as connection:
        await connection.send(sent)
        if sent.startswith(GET):
            assert (await connection.answer())[0] == 200
        started = time.monotonic()
        assert await connection.rest() in (b"", LATE)
        assert time.monotonic() - started < 3


async def test_slow_head_does_not_extend_its_time_limit():
    async with listening(header_seconds_max=0.5) as url, raw(url) as connection:

        async def trickle():
            for byte in GET[:-2] + "A: b\r\n" * 1000:
                await connection.send(byte)
                await asyncio.sleep(0.02)

        trickling = asyncio.create_task(trickle())
        assert (await connection.head())[0] == 408
        trickling.cancel()


@pytest.mark.parametrize(
    "head", [POST, POST.replace("Content-Length: 10", "Transfer-Encoding: chunked"), POST.replace("/ ", "/none ")]
)
async def test_incomplete_body_is_answered_and_closes_the_connection(head, caplog):
    async with listening(body_seconds_max=0.3) as url, raw(url) as connection:
        await connection.send(head + ("4\r\nab" if "chunked" in head else "ab"))
        status, body = await connection.answer()
        assert status == (404 if "/none" in head else 408), body
        assert await connection.rest() == b""
    assert caplog.records == []


@pytest.mark.parametrize("later", ["", "c"])
async def test_body_after_a_declined_upgrade_has_its_time_limit(later):
    declined = GET.replace("\r\n\r\n", "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
    async with listening(body_seconds_max=0.3, header_seconds_max=0.3) as url, raw(url) as connection:
        await connection.send(declined + POST + "ab")
        assert (await connection.answer())[0] == 200
        await connection.send(later)
        assert (await connection.answer())[0] == 408
        assert await connection.rest() == b""


async def test_fragmented_request_in_time_is_answered():
    async with listening(header_seconds_max=0.5, body_seconds_max=0.5) as url, raw(url) as connection:
        for _ in range(3):
            for part in (POST[:7], POST[7:-1], POST[-1], "01234", "56789"):
                await connection.send(part)
                await asyncio.sleep(0.1)
            assert await connection.answer() == (200, b"10")
            await connection.send(GET + GET)
            assert [await connection.answer() for _ in range(2)] == [(200, b"0")] * 2
            await asyncio.sleep(0.6)  # between two requests


async def test_pipelined_requests_have_separate_time_limits():
    async with listening(header_seconds_max=0.5, body_seconds_max=0.5) as url, raw(url) as connection:
        whole = POST + "0123456789"
        await connection.send(whole[:-5])
        for _ in range(15):
            await asyncio.sleep(0.1)
            await connection.send(whole[-5:] + whole[:-5])
            assert await connection.answer() == (200, b"10")


async def test_idle_connection_is_closed():
    async with listening(idle_seconds_max=1) as url, raw(url) as connection:
        await connection.send(GET)
        assert (await connection.answer())[0] == 200
        assert await connection.rest() == b""


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux has TCP_USER_TIMEOUT")
async def test_client_that_does_not_read_is_disconnected(monkeypatch):
    monkeypatch.setattr(connections, "STALLED_SECONDS_MAX", 0.5)
    async with listening(client_connections_max=1) as url, raw(url) as silent:
        await silent.send(GET.replace("/ ", "/long "))
        silent.writer.transport.pause_reading()
        await eventually(lambda: answers(url))
        silent.writer.transport.resume_reading()
        assert len(await silent.rest()) < LONG


async def test_connections_are_limited_by_client():
    async with listening(client_connections_max=2) as url, raw(url) as one, raw(url) as two:
        for connection in (one, two):
            await connection.send(GET)
            assert (await connection.answer())[0] == 200
        async with raw(url) as third:
            status, headers = await third.head()
            assert (status, headers["retry-after"]) == (503, "1")
            assert await third.rest() == b""
        async with raw(url, "127.0.0.2") as other:
            await other.send(GET)
            assert (await other.answer())[0] == 200
        one.abort()
        await eventually(lambda: answers(url))


async def answers(url):
    async with raw(url) as connection:
        await connection.send(GET)
        head = await connection.head()
        return head is not None and head[0] == 200


async def test_connections_are_limited_in_total():
    async with listening(clients_max=2) as url, raw(url, "127.0.0.2") as one, raw(url, "127.0.0.3"):
        async with raw(url) as third:
            assert (await third.head())[0] == 503
        one.abort()
        await eventually(lambda: answers(url))


async def test_proxy_address_has_no_client_limit():
    async with listening(client_connections_max=1, proxies=1) as url, raw(url) as one, raw(url) as two:
        for connection in (one, two):
            await connection.send(GET)
            assert (await connection.answer())[0] == 200


@pytest.mark.parametrize(
    "sent", [POST + "ab", POST, POST.replace("Content-Length: 10", "Transfer-Encoding: chunked") + "4\r\na"]
)
async def test_disconnect_within_a_body_logs_no_error(sent, caplog, capfd):
    caplog.set_level(logging.INFO)
    async with listening() as url:
        for leave in ("abort", "close"):
            async with raw(url) as connection:
                await connection.send(sent)
                await asyncio.sleep(0.05)
                getattr(connection.writer.transport, leave)()
        await asyncio.sleep(0.1)
        assert await exchange(url, GET) == (200, b"0")
    assert caplog.records == []
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (GET, 200),
        (GET.replace("/ ", "/stream "), 200),
        (GET.replace("/ ", "/none "), 404),
        ("no HTTP\r\n\r\n", 400),
        (GET.replace("Host", "Expect: miracles\r\nHost"), 417),
        (GET.replace("\r\n\r\n", "\r\nContent-Encoding: gzip\r\n\r\n"), 415),
    ],
)
async def test_no_answer_shows_versions(request_, status):
    async with listening() as url, raw(url) as connection:
        await connection.send(request_)
        found, headers = await connection.head()
        assert (found, headers["server"]) == (status, "fundsvc")
