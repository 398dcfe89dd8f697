"""The limit of open files, and a service with a low limit."""

import asyncio
import contextlib
import sys

import aiohttp
import pytest
from commands import environment_of, program
from eventually import eventually
from raw import raw

SCRIPT = """
import resource, sys
from fundsvc.local.open_files import files_for
soft, hard, clients, own = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(files_for(clients, own), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("limits", "arguments", "expected"),
    [
        ((1024, 4096), (500, 100), (500, 1024, 4096)),
        ((64, 4096), (500, 100), (500, 600, 4096)),
        ((64, 300), (12_000, 144), (156, 300, 300)),
        ((300, 300), (12_000, 144), (156, 300, 300)),
        ((64, 100), (12_000, 144), (1, 100, 100)),
        ((64, 600), (500, 100), (500, 600, 600)),
    ],
)
async def test_file_limit_is_raised_as_far_as_allowed(limits, arguments, expected):
    done = await program(sys.executable, "-c", SCRIPT, *limits, *arguments)
    assert done.output.split() == [str(number) for number in expected], done.error


@contextlib.asynccontextmanager
async def limited(config, files, **overrides):
    """Runs the HTTP side in a process that may open `files` files; yields its URL and log."""
    command = f"ulimit -n {files}; exec {sys.executable} -m fundsvc api"
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", command, env=environment_of(config, **overrides), stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.terminate()
        await process.communicate()


async def test_service_with_few_files_stays_healthy_with_more_clients(config, unused_tcp_port_factory):
    port, health = unused_tcp_port_factory(), unused_tcp_port_factory()
    settings = {"FUNDSVC_HTTP_PORT": str(port), "FUNDSVC_HTTP_HEALTH_PORT": str(health), "FUNDSVC_LOG_LEVEL": "info"}
    async with limited(config, 300, FUNDSVC_LOG_FORMAT="json", **settings) as process, aiohttp.ClientSession() as probe:

        async def is_healthy(path="/healthz"):
            try:
                async with probe.get(f"http://127.0.0.1:{health}{path}") as answer:
                    return answer.status == 200
            except aiohttp.ClientConnectionError:
                return False

        await eventually(is_healthy)
        (line,) = [line async for line in starting(process.stderr) if b'"few files"' in line]
        assert b'"clients": 156' in line
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(raw(f"http://127.0.0.1:{port}")) for _ in range(400)]
            refused = 0
            for client in clients:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.02):
                        head = await client.head()
                        refused += head is None or head[0] == 503
            assert refused >= 400 - 156
            for _ in range(5):
                assert await is_healthy()
                assert await is_healthy("/metrics")


async def starting(stream):
    """Yields the lines of a log until the service has started."""
    while line := await asyncio.wait_for(stream.readline(), 20):
        yield line
        if b'"started"' in line:
            return
