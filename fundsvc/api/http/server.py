"""Listening: an application on a host and port, for as long as a context is open."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from fundsvc.api.http.connections import SERVER_NAME, Connection, Connections, Limit
from fundsvc.api.http.fast_path import Shortcut
from fundsvc.config.settings import ConfigError, HttpConfig

SHUTDOWN_SECONDS_MAX = 0.3
"""What a request in hand may still take, and again what it may take once cancelled; idle connections are closed at once."""


BACKLOG = 1024
"""Connections that the system keeps until they are accepted: those of a burst."""

_LOGGER = logging.getLogger("fundsvc.api.http.server")
_LOGGER.addFilter(lambda record: not _is_senders_mistake(record))


class ServerError(RuntimeError):
    """The address cannot be listened on; the message says why and what to do."""


@asynccontextmanager
async def serve(
    application: web.Application,
    host: str,
    port: int,
    tls: ssl.SSLContext | None = None,
    shortcut: Shortcut | None = None,
    bounds: HttpConfig = HttpConfig(),  # noqa: B008 - it is frozen
    refused: Callable[[Limit], object] = lambda _limit: None,
) -> AsyncIterator[str]:
    """Serves an application and yields its URL (port 0 takes a free one); raises ServerError. On leaving it stops.

    `bounds` says how many connections there may be and how long requests may take to arrive. `refused` is called with the limit
    that refuses a connection. Bodies are never inflated.
    """
    application.on_response_prepare.append(_name_server)
    runner = web.AppRunner(application, access_log=None, logger=_LOGGER, shutdown_timeout=SHUTDOWN_SECONDS_MAX)
    await runner.setup()
    server = runner.server
    assert server is not None, "it is set up"
    if shortcut:
        server.request_handler = shortcut.before(server.request_handler)  # type: ignore[assignment] # it makes web.Requests
    loop, connections = asyncio.get_running_loop(), Connections(bounds, refused)

    def connect() -> Connection:
        return Connection(server, connections, loop, access_log=None, logger=_LOGGER, auto_decompress=False)

    handshake_seconds = bounds.header_seconds_max if tls else None
    listening: asyncio.Server | None = None
    try:
        try:
            listening = await loop.create_server(
                connect, host, port, ssl=tls, backlog=BACKLOG, ssl_handshake_timeout=handshake_seconds
            )
        except OSError as error:
            why = error.strerror or error
            raise ServerError(f"cannot listen on {host}:{port}: {why}; see http.host, http.port and engine.port") from error
        yield _url("https" if tls else "http", listening.sockets[0].getsockname())
    finally:
        if listening:
            listening.close()
        await runner.cleanup()


async def _name_server(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers[hdrs.SERVER] = SERVER_NAME


def tls_context(certificate: str, key: str) -> ssl.SSLContext | None:
    """What to serve HTTPS with, or None where no certificate is named; raises ConfigError, saying which file is wrong.

    Without a key's file, the certificate's holds both.
    """
    if not certificate:
        if key:
            raise ConfigError("http.certificate_key is set, but http.certificate is not: HTTPS needs both")
        return None
    _check_file("http.certificate", certificate)
    _check_file("http.certificate_key", key or certificate)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key or None, password="")  # an encrypted key must not ask the terminal
    except ssl.SSLError as error:
        why = (error.reason or "no PEM of what it should be").replace("_", " ").lower()
        raise ConfigError(
            f"http.certificate {certificate} and its key {key or certificate} do not serve HTTPS: {why}"
        ) from None
    return context


def _is_senders_mistake(record: logging.LogRecord) -> bool:
    """Whether a line is about bytes that are no HTTP, or not of the encoding that they say they are of.

    They are answered 400, may be any, and come as often as one likes.
    """
    return record.exc_info is not None and isinstance(record.exc_info[1], HttpProcessingError | web.RequestPayloadError)


def _check_file(name: str, path: str) -> None:
    """Reads a file in vain, because the driver would not say which one it could not read."""
    try:
        Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}: cannot read {path}: {error.strerror}") from None


def _url(scheme: str, address: tuple[str, int]) -> str:
    host, port = address[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
