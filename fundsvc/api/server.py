"""Listening: an application on a host and port, for as long as a context is open."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

SHUTDOWN_SECONDS_MAX = 0.3
"""What a request in hand may still take, and again what it may take once cancelled; idle connections are closed at once."""


class ServerError(RuntimeError):
    """The address cannot be listened on; the message says why and what to do."""


@asynccontextmanager
async def serve(application: web.Application, host: str, port: int) -> AsyncIterator[str]:
    """Serves an application and yields its URL (port 0 takes a free one); raises ServerError. On leaving it stops."""
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS_MAX)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ServerError(f"cannot listen on {host}:{port}: {error.strerror or error}; set another port") from error
        yield _url(runner.addresses[0])
    finally:
        await runner.cleanup()


def _url(address: tuple[str, int]) -> str:
    host, port = address[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
