"""HTTPS and wss with generated certificates."""

import ssl
import time

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from certificates import make_certificate
from commands import fundsvc

from fundsvc.api.http.server import expiry, serve, tls_context
from fundsvc.config.settings import ConfigError


async def echo(request):
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        await socket.send_str(message.data)
    return socket


async def hello(_request):
    return web.Response(text="hello")


@pytest.mark.parametrize("in_one_file", [False, True])
async def test_certificate_enables_https_and_wss(tmp_path, in_one_file):
    certificate, key = make_certificate(tmp_path)
    if in_one_file:
        certificate.write_bytes(certificate.read_bytes() + key.read_bytes())
    application = web.Application()
    application.router.add_get("/", hello)
    application.router.add_get("/ws", echo)
    tls = tls_context(str(certificate), "" if in_one_file else str(key))
    client = ssl.create_default_context(cafile=str(certificate))
    async with (
        serve(application, "127.0.0.1", 0, tls) as url,
        aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(ssl=client)) as session,
    ):
        assert url.startswith("https://127.0.0.1:")
        async with session.get("/") as answer:
            assert await answer.text() == "hello"
        async with session.ws_connect(url.replace("https", "wss") + "/ws") as socket:
            await socket.send_str("over TLS")
            message = await socket.receive(timeout=5)
            assert (message.type, message.data) == (WSMsgType.TEXT, "over TLS")
        async with aiohttp.ClientSession() as plain:
            with pytest.raises(aiohttp.ClientError):
                await plain.get(url.replace("https", "http"))


def test_without_certificate_http_is_plain():
    assert tls_context("", "") is None
    assert expiry("") == 0


def test_expiry_is_that_of_the_first_certificate(tmp_path):
    certificate, _ = make_certificate(tmp_path)
    (found,) = ssl.create_default_context(cafile=str(certificate)).get_ca_certs()
    assert expiry(str(certificate)) == ssl.cert_time_to_seconds(found["notAfter"]) > time.time()


def test_unusable_certificate_files_are_named(tmp_path):
    certificate, key = map(str, make_certificate(tmp_path))
    _, other_key = map(str, make_certificate(tmp_path, "other"))
    _, locked = map(str, make_certificate(tmp_path, "locked", b"password"))
    text = tmp_path / "text"
    text.write_text("no certificate")
    for given, expected in (
        (("", key), "http.certificate is not"),
        ((certificate, str(tmp_path / "none")), f"http.certificate_key: cannot read {tmp_path / 'none'}"),
        ((str(tmp_path), key), f"http.certificate: cannot read {tmp_path}"),
        ((certificate, other_key), "mismatch"),
        ((certificate, locked), "do not serve HTTPS"),
        ((certificate, ""), "do not serve HTTPS"),
        ((str(text), key), "do not serve HTTPS"),
    ):
        with pytest.raises(ConfigError) as error:
            tls_context(*given)
        assert expected in str(error.value)


async def test_unusable_certificate_prevents_the_start(config, tmp_path):
    done = await fundsvc(config, "api", FUNDSVC_HTTP_PORT="0", FUNDSVC_HTTP_CERTIFICATE=str(tmp_path / "none.pem"))
    assert done.code == 2
    assert "http.certificate: cannot read" in done.error
