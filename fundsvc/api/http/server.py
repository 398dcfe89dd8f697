"""Serves an application on a host and port."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from cryptography.x509 import load_pem_x509_certificates

from fundsvc.api.http.connections import SERVER_NAME, Connection, Connections, Limit
from fundsvc.config.settings import ConfigError, HttpConfig

SHUTDOWN_SECONDS_MAX = 0.3
"""Time for running requests to finish at shutdown, and again after their cancellation. Idle connections are closed at once."""


BACKLOG = 1024
"""Connections that the kernel queues during a burst until the server accepts them."""

_LOGGER = logging.getLogger("fundsvc.api.http.server")
_LOGGER.addFilter(lambda record: not _is_client_error(record))


class ServerError(RuntimeError):
    """The server cannot listen on the address; the message contains the reason and the remedy."""


@asynccontextmanager
async def serve(
    application: web.Application,
    host: str,
    port: int,
    tls: ssl.SSLContext | None = None,
    bounds: HttpConfig = HttpConfig(),  # noqa: B008 - immutable
    refused: Callable[[Limit], object] = lambda _limit: None,
) -> AsyncIterator[str]:
    """Serves an application while the context is open and yields its URL; port 0 selects a free port. Raises ServerError.

    `bounds` limits connections and the time in which requests must arrive. `refused` is called with the limit that refuses a
    connection. Request bodies are never decompressed.
    """
    application.on_response_prepare.append(_name_server)
    runner = web.AppRunner(application, access_log=None, logger=_LOGGER, shutdown_timeout=SHUTDOWN_SECONDS_MAX)
    await runner.setup()
    server = runner.server
    assert server is not None, "setup() creates the server"
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
    """Returns the TLS context of HTTPS, or None without a certificate; raises ConfigError with the name of an invalid file.

    Without `key`, the file of the certificate contains the key too.
    """
    if not certificate:
        if key:
            raise ConfigError("http.certificate_key is set, but http.certificate is not: HTTPS needs both")
        return None
    _check_file("http.certificate", certificate)
    _check_file("http.certificate_key", key or certificate)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key or None, password="")  # prevents a password prompt for an encrypted key
    except ssl.SSLError as error:
        why = (error.reason or "the file is not the expected PEM").replace("_", " ").lower()
        raise ConfigError(
            f"http.certificate {certificate} and its key {key or certificate} do not serve HTTPS: {why}"
        ) from None
    return context


def expiry(certificate: str) -> float:
    """Returns when the certificate in a file expires, in seconds since the epoch; 0 without a file."""
    if not certificate:
        return 0.0
    first = load_pem_x509_certificates(Path(certificate).read_bytes())[0]
    return first.not_valid_after_utc.timestamp()


def _is_client_error(record: logging.LogRecord) -> bool:
    """Returns whether a log record reports a malformed request or body.

    The client receives 400. Logging these would let any client flood the log.
    """
    return record.exc_info is not None and isinstance(record.exc_info[1], HttpProcessingError | web.RequestPayloadError)


def _check_file(name: str, path: str) -> None:
    """Raises ConfigError for an unreadable file. The driver's own error does not name the file."""
    try:
        Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}: cannot read {path}: {error.strerror}") from None


def _url(scheme: str, address: tuple[str, int]) -> str:
    host, port = address[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
