"""Owns pools in tests as an engine does: leases of their partition, and a writer."""

from contextlib import asynccontextmanager

from fundsvc.core.batch import Offset
from fundsvc.mutual.core.terms import Terms
from fundsvc.mutual.store.rows import Totals
from fundsvc.mutual.store.writer import open_pool_writer
from fundsvc.store.leases import open_leases

POOL = "USDT"
AHEAD = 300.0


class PoolOwner:
    """The owner of a pool, which commits what a test applies, and loads the pool again."""

    def __init__(self, writer, epoch, loaded):
        self.writer = writer
        self.epoch = epoch
        self.pool, self.offset, self.open = loaded

    async def commit(self, applied=()):
        after = Offset(f"{self.offset.messages + 1}-0", self.offset.messages + 1)
        batch, distribution = self.pool.take(), self.pool.register.distribution
        totals = Totals(len(self.pool.register.policies), len(distribution), distribution.caps_left)
        await self.writer.commit(batch, totals, applied, self.offset, after)
        self.offset = after
        return batch

    async def load(self, rules=None):
        self.pool, self.offset, self.open = await load(self.writer, rules or self.pool.rules)


async def load(writer, rules, secret=None):
    return await writer.load(rules, secret, AHEAD, lambda: None)


@asynccontextmanager
async def owned_pool(config, rules=None, name=POOL, engine="owner"):
    async with open_leases(config.database.dsn, engine, 30) as leases:
        epochs = await leases.keep()
        # Another name than that of the leases: claiming them ends the sessions of the engine before, and tests need those.
        async with open_pool_writer(config.database.dsn, f"{engine} pools", name, 0, epochs[0]) as writer:
            yield PoolOwner(writer, epochs[0], await load(writer, rules or Terms().rules(), config.ledger.secrets.current))
