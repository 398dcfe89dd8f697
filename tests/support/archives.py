"""Ledgers with a history of many hours, and archives of them in a directory."""

import random
from contextlib import asynccontextmanager, suppress

from ledgers import TS, fill, listing

from fundsvc.cli.tools.archiving import Archiver
from fundsvc.core.commitment import secrets_of
from fundsvc.core.events import AdlEnd, AdlFill, Mark, Position, Rejection, Takeover, Unwind
from fundsvc.core.policy import Policy
from fundsvc.store.archive.files import load_library
from fundsvc.store.archive.moves import open_moves
from fundsvc.store.database import open_pool

HOUR_MS = 3_600_000
load_library()  # as an API does at its start
SYMBOLS = ("AAA", "HELD")
SECRETS = secrets_of("x" * 32, [])
POLICY = Policy(rounds_max=1)
BEGINNING = [
    *(listing(symbol) for symbol in SYMBOLS),
    *(Mark(symbol, "900", 0) for symbol in SYMBOLS),
    *(Position(symbol, f"account-{number}", -9, "1000", "500", 0) for symbol in SYMBOLS for number in range(3)),
]


def history(seed, seqs):
    """Returns events ten minutes apart: fills and ADL of one contract, takeovers and unwinds of another."""
    dice = random.Random(seed)
    for seq in seqs:
        ts, symbol = TS + 600_000 * seq, dice.choice(SYMBOLS)
        yield fill(symbol, 10 * seq, dice.randint(-24, 26) / 2, ts - dice.choice((0, 0, 0, HOUR_MS)))
        if dice.random() < 0.4:
            yield AdlFill(symbol, 10 * seq + 1, dice.randint(1, 8), f"account-{dice.randint(0, 2)}", 1, ts)
            yield from (AdlEnd(symbol, 10 * seq + step, dice.randint(1, 12), ts) for step in range(2, 5))
        if dice.random() < 0.5:
            yield Mark("HELD", str(dice.randint(880, 1010)), ts)
            yield Takeover("HELD", 10 * seq + 5, "sell", dice.randint(1, 6), "1000", ts, account="taken")
            yield Unwind("HELD", 10 * seq + 6, "sell", dice.randint(1, 7), str(dice.randint(995, 1003)), ts)


async def settle(owner, events):
    """Settles what can be, in one transaction."""
    for event in events:
        with suppress(Rejection):  # The order or the lots do not exist.
            owner.partition.apply(event)
    await owner.settle([])


class Mover:
    """Archives and restores entries of a test's ledger."""

    def __init__(self, archiver, moves):
        self.archiver, self.moves = archiver, moves

    async def archive(self, before_ms, symbols=None):
        """Archives what lies before a time; returns what was archived, by contract."""
        due = await self.moves.due(before_ms, symbols)
        return {one.symbol: await self.archiver.archive(one, lambda _: None) for one in due}

    async def stubs(self, symbol):
        return [known.stub for known in await self.moves.stubs([symbol])]

    async def restore(self, symbol):
        """Restores all ranges of a contract."""
        await self.archiver.restore(await self.stubs(symbol), lambda _: None)


@asynccontextmanager
async def mover(config, files, secrets=SECRETS):
    async with open_moves(config.database.owner_dsn) as moves, open_pool(config.database.dsn, 1) as pool:
        yield Mover(Archiver(pool, moves, files, lambda _: POLICY, secrets), moves)
