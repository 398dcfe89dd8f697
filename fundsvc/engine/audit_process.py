"""Runs the background audit beside the engine in a process of its own, so that it takes no time from settlement."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import IO, Any

import msgspec
import structlog

from fundsvc.config.settings import Config
from fundsvc.core.contracts import partition_of
from fundsvc.engine.audit_loop import Metrics

START_SECONDS = 5.0
"""How long an engine owns a partition before the audit starts: a short-lived engine does without."""

OWNED_SECONDS = 0.5
"""How often the partitions of the engine are compared with those that the audit knows."""

LINE_BYTES_MAX = 1 << 20

WORKER = "fundsvc.engine.audit_worker"

log = structlog.get_logger()


class AuditProcess:
    """Keeps a process that audits the ledgers of the `owned` partitions; sets the `metrics` that it sends."""

    def __init__(self, config: Config, metrics: Metrics, owned: Callable[[], Collection[int]]) -> None:
        self._config = config
        self._metrics = metrics
        self._owned = owned
        self._calls: dict[str, Callable[..., None]] = {
            "audited": self._audited,
            "recomputed": metrics.recomputed,
            "conserved": self._conserved,
            "remaining": metrics.remaining,
        }

    async def run(self) -> None:
        """Runs the process until cancelled; starts it again if it ends."""
        while True:
            if self._owned():
                await asyncio.sleep(START_SECONDS)
                log.error("audit ended", code=await self._run_once())
            await asyncio.sleep(OWNED_SECONDS)

    async def _run_once(self) -> int:
        """Runs the process once; returns its exit code."""
        receiving, sending = os.pipe()
        with os.fdopen(receiving, "rb") as source:
            # uvloop would copy the page tables of the engine, which holds the loop for tens of milliseconds. In a group of its
            # own, the process is not interrupted by the terminal, which would print its traceback: it ends with the engine.
            with os.fdopen(sending, "wb"):
                process = subprocess.Popen(  # noqa: ASYNC220 - it returns in half a millisecond
                    (sys.executable, "-m", WORKER, str(sending)), stdin=subprocess.PIPE, pass_fds=(sending,), process_group=0
                )
            following = asyncio.create_task(self._send_partitions(process))
            try:
                await self._receive(source)
                return await asyncio.to_thread(process.wait)
            finally:
                following.cancel()
                process.kill()
                process.wait()

    async def _send_partitions(self, process: subprocess.Popen[bytes]) -> None:
        """Sends the configuration, then the partitions whenever they change, until the process ends."""
        assert process.stdin is not None, "the input is a pipe"
        lines = msgspec.json.encode(self._config) + b"\n"
        known: Collection[int] | None = None
        with suppress(BrokenPipeError), process.stdin:
            while True:
                owned = sorted(self._owned())
                if owned != known:
                    known = owned
                    process.stdin.write(lines + msgspec.json.encode(owned) + b"\n")
                    process.stdin.flush()
                    lines = b""
                await asyncio.sleep(OWNED_SECONDS)

    async def _receive(self, source: IO[bytes]) -> None:
        """Sets the metrics that the process sends, until it ends."""
        lines = asyncio.StreamReader(LINE_BYTES_MAX)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), source)
        try:
            while line := await lines.readline():
                name, *arguments = msgspec.json.decode(line)
                self._calls[name](*arguments)
        finally:
            transport.close()

    def _audited(self, symbol: str, walk: Any, good: bool, verified_at: float | None) -> None:
        if self._owns(symbol):
            self._metrics.audited(symbol, walk, good=good, verified_at=verified_at)

    def _conserved(self, symbol: str, error: int, lots_error: int) -> None:
        if self._owns(symbol):
            self._metrics.conserved(symbol, error, lots_error)

    def _owns(self, symbol: str) -> bool:
        return partition_of(symbol, self._config.stream.partitions) in self._owned()
