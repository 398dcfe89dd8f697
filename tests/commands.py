"""Runs the command line in a process, with the servers of a test."""

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from typing import NamedTuple

import msgspec


class Done(NamedTuple):
    code: int
    output: str
    error: str

    @property
    def result(self):
        """The decoded output of a command with --json."""
        return msgspec.json.decode(self.output)


def environment_of(config, **overrides):
    others = {name: value for name, value in os.environ.items() if not name.startswith("FUNDSVC_")}
    return others | {
        "FUNDSVC_DATABASE_DSN": config.database.dsn,
        "FUNDSVC_STREAM_URL": config.stream.url,
        "FUNDSVC_STREAM_PARTITIONS": str(config.stream.partitions),
        "FUNDSVC_LOG_LEVEL": "error",
        **overrides,
    }


async def program(*arguments, environment=None, given=""):
    process = await asyncio.create_subprocess_exec(
        *map(str, arguments),
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, error = await process.communicate(given.encode())
    return Done(process.returncode, output.decode(), error.decode())


async def fundsvc(config, *arguments, **overrides):
    return await program(sys.executable, "-m", "fundsvc", *arguments, environment=environment_of(config, **overrides))


@asynccontextmanager
async def process(config, command, **overrides):
    """Runs a process of the service; stops it by SIGTERM at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fundsvc", command, env=environment_of(config, **overrides), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.terminate()
        assert await process.wait() == 0


def engine_process(config, **overrides):
    return process(config, "engine", **overrides)
