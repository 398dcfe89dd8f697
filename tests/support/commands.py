"""Runs the command line in a separate process, with the servers of a test.

A service starts as `python -m fundsvc`. A command that ends by itself is forked from a process that has loaded the modules,
because most commands take less time than that.
"""

import asyncio
import multiprocessing
import os
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from fundsvc.__main__ import main
from fundsvc.cli.commands import COMMANDS

_LOADED = multiprocessing.get_context("forkserver")
_LOADED.set_forkserver_preload(
    ["fundsvc.__main__", "fundsvc.store.migrations", *{f"fundsvc.cli.{one.module}" for one in COMMANDS.values()}]
)


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
        "FUNDSVC_LOG_ACTIONS": os.devnull,
        **overrides,
    }


async def program(*arguments, environment=None, given=b""):
    process = await asyncio.create_subprocess_exec(
        *map(str, arguments),
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, error = await process.communicate(given.encode() if isinstance(given, str) else given)
    return Done(process.returncode, output.decode(), error.decode())


async def fundsvc(config, *arguments, **overrides):
    """Runs a command on the servers of a configuration until it ends."""
    return await command(*arguments, environment=environment_of(config, **overrides))


async def file_of(config, *arguments):
    """Runs a command that writes a file to standard output; returns its bytes."""
    code, data, error = await _ended(arguments, environment_of(config))
    assert (code, error) == (0, "")
    return data


async def command(*arguments, environment):
    """Runs a command until it ends."""
    code, output, error = await _ended(arguments, environment)
    return Done(code, output.decode(), error)


async def _ended(arguments, environment):
    with tempfile.TemporaryDirectory() as directory:
        output, error = Path(directory) / "output", Path(directory) / "error"
        words = [str(argument) for argument in arguments]
        process = _LOADED.Process(target=_run, args=(words, environment, output, error))
        process.start()
        await asyncio.to_thread(process.join)
        return process.exitcode, output.read_bytes(), error.read_text()


def _run(arguments, environment, output, error):
    """Runs in the process of a command."""
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in ((1, output), (2, error)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    sys.argv = ["fundsvc", *arguments]
    main()


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
