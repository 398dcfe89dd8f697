"""The process of the background audit: it recomputes ledgers, and sends its results to the engine that started it.

Standard input carries one JSON value per line: the configuration, then the numbers of the engine's partitions each time they
change. The descriptor in the only argument carries one JSON value per line to the engine: the name of a method of
`audit_loop.Metrics`, with its arguments. The process ends with its standard input, so that it never outlives the engine.
"""

import asyncio
import os
import sys
from collections.abc import Iterable
from typing import Any, BinaryIO

import msgspec

from fundsvc.config.settings import Config
from fundsvc.core.contracts import partition_of
from fundsvc.engine.audit_loop import AuditKind, Auditor
from fundsvc.logs import configure_logs
from fundsvc.store.database import open_pool

NICENESS = 10
"""The scheduling priority: settlement goes first."""

POOL_CONNECTIONS_MAX = 2

VERIFIED_SECONDS = 1.0
"""The precision of times of verification, of which only changes are sent."""


class SentMetrics:
    """Sends the results of the audit to the engine, each once."""

    def __init__(self, output: BinaryIO) -> None:
        self._output = output
        self._sent: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def audited(self, symbol: str, walk: AuditKind, *, good: bool, verified_at: float | None) -> None:
        """Sends whether a walk found no difference, and when it last reached the end of a ledger without one, if known.

        Sends every difference, because the engine counts them.
        """
        sent = self._sent.get((symbol, walk))
        if not good or sent is None or sent[0] != good or _differ(sent[1], verified_at):
            self._sent[symbol, walk] = good, verified_at
            self._send("audited", symbol, walk, good, verified_at)

    def recomputed(self, entries: int) -> None:
        """Sends a number of recomputed entries."""
        self._send("recomputed", entries)

    def conserved(self, symbol: str, error: int, lots_error: int) -> None:
        """Sends the conservation errors of a contract, if they changed."""
        if self._sent.get((symbol,)) != (error, lots_error):
            self._sent[symbol,] = error, lots_error
            self._send("conserved", symbol, error, lots_error)

    def remaining(self, seconds: float) -> None:
        """Sends the expected time until the full walk has reached all ends."""
        self._send("remaining", seconds)

    def forget(self) -> None:
        """Sends everything again: the engine dropped the metrics of partitions that it lost."""
        self._sent.clear()

    def _send(self, *call: object) -> None:
        self._output.write(msgspec.json.encode(call) + b"\n")
        self._output.flush()


def _differ(one: float | None, two: float | None) -> bool:
    return two is not None and (one is None or abs(one - two) > VERIFIED_SECONDS)


class Owned:
    """The partitions of the engine."""

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self._numbers: frozenset[int] = frozenset()

    def set(self, numbers: Iterable[int]) -> None:
        """Replaces the partitions."""
        self._numbers = frozenset(numbers)

    def __call__(self, symbol: str) -> bool:
        """Whether the engine owns the partition of a contract."""
        return partition_of(symbol, self._partitions) in self._numbers


async def work(lines: asyncio.StreamReader, output: BinaryIO) -> None:
    """Runs the audit until the input ends."""
    config = msgspec.json.decode(await lines.readline(), type=Config)
    configure_logs(config.log)
    metrics, owned = SentMetrics(output), Owned(config.stream.partitions)
    async with open_pool(config.database.dsn, POOL_CONNECTIONS_MAX) as pool:
        auditor = Auditor(pool, config.audit, metrics, owned, config.policy.of, config.ledger.secrets)
        auditing = asyncio.create_task(auditor.run())
        following = asyncio.create_task(_follow(lines, owned, metrics))
        await asyncio.wait((auditing, following), return_when=asyncio.FIRST_COMPLETED)
        if auditing.done():
            auditing.result()
        auditing.cancel()


async def _follow(lines: asyncio.StreamReader, owned: Owned, metrics: SentMetrics) -> None:
    """Follows the partitions of the engine until the input ends."""
    while line := await lines.readline():
        owned.set(msgspec.json.decode(line, type=list[int]))
        metrics.forget()


async def _main(descriptor: int) -> None:
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    with os.fdopen(descriptor, "wb") as output:
        await work(lines, output)


if __name__ == "__main__":
    os.nice(NICENESS)
    asyncio.run(_main(int(sys.argv[1])))
