"""Pools of the mutual in the database of a test, settled without their stream."""

import time
from contextlib import asynccontextmanager, suppress

import asyncpg
from eventually import eventually

from fundsvc.core.batch import Offset
from fundsvc.core.events import Rejection
from fundsvc.mutual.core.events import Cancel, Disable, Enable, Payout, Tick, TopUp, Trade, Transfer
from fundsvc.mutual.core.terms import DAY_MS, HOUR_MS, Terms
from fundsvc.mutual.store.rows import Totals
from fundsvc.mutual.store.writer import open_pool_writer

POOL = "USDT"
AHEAD = 10**9
TS = 19_675 * DAY_MS + HOUR_MS
"""One o'clock (UTC) of a day; with the preset, cut-offs are at midnight."""

ANNA, BERT, CARL = "secret-anna", "secret-bert", "secret-carl"


class Events:
    """Makes events with rising sequences; `hours` count from `start` (ms)."""

    def __init__(self, pool=POOL, seq=0, start=TS):
        self.pool, self.seq, self.start = pool, seq, start

    def _next(self, hours):
        self.seq += 1
        return self.pool, self.start + int(hours * HOUR_MS), self.seq

    def transfer(self, account, amount, hours=0.0):
        return Transfer(*self._next(hours), account, str(amount), f"transfer-{self.seq}")

    def enable(self, account, hours=0.0):
        return Enable(*self._next(hours), account)

    def disable(self, account, hours=0.0):
        return Disable(*self._next(hours), account)

    def insured(self, account, amount=50, hours=0.0):
        """An account that is funded and enabled."""
        return [self.transfer(account, amount, hours), self.enable(account, hours)]

    def trade(self, account, pnl, hours=1.0, volume=2000, opened=None):
        opened_at = self.start + int((hours if opened is None else opened) * HOUR_MS)
        return Trade(*self._next(hours), account, "XBTUSDTM", f"trade-{self.seq}", opened_at, str(pnl), str(volume))

    def top_up(self, amount, hours=0.0):
        return TopUp(*self._next(hours), str(amount), f"topUp-{self.seq}")

    def cancel(self, account, policy, hours=0.0):
        return Cancel(*self._next(hours), account, policy)

    def payout(self, account, hours=0.0):
        return Payout(*self._next(hours), account)

    def tick(self, hours):
        return Tick(self.pool, self.start + int(hours * HOUR_MS))


def story():
    """Anna has losses, policies and a payout, Bert becomes inactive, and Carl cannot pay his premium."""
    make = Events()
    return [
        *(event for account, amount in ((ANNA, 50), (BERT, 50), (CARL, 12)) for event in make.insured(account, amount)),
        make.top_up(1),
        make.trade(ANNA, -260),
        make.trade(BERT, -120),
        make.trade(BERT, 200, 2),
        make.trade(CARL, 500, 3),
        make.tick(2 * 24),
        make.trade(ANNA, 100, 2 * 24),
        make.tick(5 * 24),
        make.trade(ANNA, -55, 5 * 24),
        make.payout(ANNA, 5 * 24),
        make.tick(9 * 24),
    ]


STORY = story()


class SettledPool:
    """The owner of a pool: settles events and commits them."""

    def __init__(self, writer, loaded):
        self._writer = writer
        self.pool, self._offset, _ = loaded

    async def settle(self, *events):
        """Applies events, without those that the pool refuses, and commits them."""
        for event in events:
            with suppress(Rejection):
                self.pool.apply(event)
        after = Offset(f"{self._offset.messages + 1}-0", self._offset.messages + 1)
        batch, distribution = self.pool.take(), self.pool.register.distribution
        assert batch.identity_error == 0
        totals = Totals(len(self.pool.register.policies), len(distribution), distribution.caps_left)
        await self._writer.commit(batch, totals, (), self._offset, after)
        self._offset = after
        return batch


def some_life(pool=POOL):
    """Returns events of the last days of a pool: a top-up, an active policy, cut-offs until today's, and a refused event."""
    now_ms = time.time_ns() // 1_000_000
    events = Events(pool, start=(now_ms // DAY_MS - 3) * DAY_MS - HOUR_MS)
    return [
        *events.insured(ANNA),
        events.top_up(20),
        events.trade(ANNA, -150),
        *(events.tick(hours) for hours in (1, 25, 49, 73)),
        events.cancel(BERT, 1, 73),
    ]


@asynccontextmanager
async def pool_owner(config, rules=None, pool=POOL):
    """Owns a pool with the epoch that partition 0 has at present, beside an engine if there is one."""
    connection = await asyncpg.connect(config.database.dsn)
    try:
        epoch = await connection.fetchval("SELECT epoch FROM partitions WHERE partition = 0")
    finally:
        await connection.close()
    async with open_pool_writer(config.database.dsn, f"owner of {pool}", pool, 0, epoch) as writer:
        secret = config.ledger.secrets.current
        yield SettledPool(writer, await writer.load(rules or Terms().rules(), secret, AHEAD, lambda: None))


async def settled_pool(config, events, service, rules=None, pool=POOL):
    """Settles events of a pool, and waits until a service shows them."""
    async with pool_owner(config, rules, pool) as owner:
        await owner.settle(*events)
        await shown(service, pool, owner.pool.row().entry)


async def shown(service, pool, entry):
    """Waits until a service shows an entry of a pool."""

    async def is_shown():
        async with service.http.get(f"/api/v1/mutual/pools/{pool}") as answer:
            return answer.status == 200 and (await answer.json())["data"]["entry"] == entry

    await eventually(is_shown)
