"""A pool of the mutual beside the contracts: its events, their sender, and the comparison with an undisturbed pool.

The engines append ticks at times of their own. So no cut-off is due but one, which comes right after the opening; entries are
compared without their times, and their hash chain is verified.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec

from fundsvc.core.contracts import partition_of
from fundsvc.mutual.codec import encode
from fundsvc.mutual.core.chain import GENESIS, link
from fundsvc.mutual.core.events import Disable, Enable, Event, Payout, TopUp, Trade, Transfer
from fundsvc.mutual.core.pool import Pool
from fundsvc.mutual.core.rows import PoolRow
from fundsvc.mutual.core.terms import Terms
from fundsvc.mutual.store.reader import MutualReader
from fundsvc.store.database import StoreFault, open_pool
from fundsvc.streams.client import StreamFault, open_client, pool_stream_key
from fundsvc.streams.producer import Producer
from tests.crash.world import PARTITIONS, World
from tests.support.stored_rows import stored_accounts, stored_policies

POOL = "CRASH"
ACCOUNTS = [f"account-{number}" for number in range(10)]
OPENED_AGE_MS, CUTOFF_AGE_MS = 7_200_000, 1_800_000

EVENTS_PER_MESSAGE = 20
PAUSE_SECONDS = 0.1
STALLED_SECONDS = 10.0
"""Events that are not applied for this time are sent again: a message may be lost without a lost connection."""

PAGE = 1_000


def pools_setting(now_ms: int) -> str:
    """Returns the value of FUNDSVC_MUTUAL_POOLS."""
    return msgspec.json.encode({POOL: _terms(now_ms)}).decode()


def _terms(now_ms: int) -> Terms:
    """Terms with one cut-off, half an hour ago."""
    anchor = (now_ms - CUTOFF_AGE_MS) // 1_000
    return Terms(cycle_seconds=31_622_400, cycle_anchor=anchor, waiting_hours=1, cap=200_000, release=((0, 300_000),))


def write_events(seed: int, count: int, now_ms: int) -> list[Event]:
    """Returns events that a pool accepts, with sequences from 1 on. The opening is before the cut-off."""
    chance, ts = random.Random(seed), now_ms - OPENED_AGE_MS
    events: list[Event] = [TopUp(POOL, ts, 1, "3000", "x")]
    for account in ACCOUNTS:
        seq = len(events)
        events.append(Transfer(POOL, ts, seq + 1, account, "100000", "x"))
        events.append(Enable(POOL, ts, seq + 2, account))
        events.append(Trade(POOL, ts, seq + 3, account, "XBTUSDTM", "x", ts, "-450", "5000"))
    while len(events) < count:
        events.append(_event(chance, len(events) + 1, now_ms))
    return events


def _event(chance: random.Random, seq: int, ts: int) -> Event:
    account = chance.choice(ACCOUNTS)
    match chance.choices(range(5), (70, 10, 8, 6, 6))[0]:
        case 0:
            # Opened with the pool, when all accounts were covered: a tick moves the times at which cover ends and begins.
            opened_at, pnl = ts - OPENED_AGE_MS, chance.choice(("-130", "-20", "55", "400"))
            return Trade(POOL, ts, seq, account, "XBTUSDTM", f"t{seq}", opened_at, pnl, "9")
        case 1:
            return Transfer(POOL, ts, seq, account, "3.5", f"m{seq}")
        case 2:
            return (Enable if chance.random() < 0.7 else Disable)(POOL, ts, seq, account)
        case 3:
            return Payout(POOL, ts, seq, account)
        case _:
            return TopUp(POOL, ts, seq, "40", f"u{seq}")


class PoolSender:
    """Sends the events of a pool in order, and again from the ledger's last sequence after a lost connection."""

    def __init__(self, world: World, events: Sequence[Event]) -> None:
        self._world = world
        self._events = events
        self._sent = self._applied = 0
        self._moved_at = time.monotonic()

    async def send_all(self, calm: asyncio.Event) -> None:
        """Sends until `calm` is set and all events are applied."""
        config = self._world.config
        async with open_client(config.stream) as client, open_pool(config.database.dsn, 1) as pool:
            producer, reader = Producer(client, PARTITIONS), MutualReader(pool)
            while not (calm.is_set() and self._applied == len(self._events)):
                try:
                    await self._step(producer, reader)
                except StreamFault:
                    await self._resume(reader)
                except StoreFault:
                    pass
                await asyncio.sleep(PAUSE_SECONDS)

    async def _step(self, producer: Producer, reader: MutualReader) -> None:
        size = 1 + 3 * len(ACCOUNTS) if not self._sent else EVENTS_PER_MESSAGE
        # The next message waits until this one is applied: a stream that lost it would take the next one, and the pool would
        # count the lost events as duplicates when they are resent.
        run = self._events[self._sent : self._sent + size] if self._applied == self._sent else []
        if run:
            async with self._world.sending:
                await producer.append_to(pool_stream_key(POOL), "msgpack", [encode(run, "msgpack")])
            self._sent += len(run)
        await self._read(reader)
        if time.monotonic() - self._moved_at > STALLED_SECONDS:
            await self._resume(reader)

    async def _resume(self, reader: MutualReader) -> None:
        """Continues after the last applied event, once the database is reachable."""
        while True:
            with suppress(StoreFault):
                await self._read(reader)
                break
            await asyncio.sleep(PAUSE_SECONDS)
        self._sent, self._moved_at = self._applied, time.monotonic()

    async def _read(self, reader: MutualReader) -> None:
        state = await reader.pool(POOL)
        applied = state.row.seq if state else 0
        if applied != self._applied or applied == self._sent:
            self._moved_at = time.monotonic()
        self._applied = applied


async def pool_differences(world: World, events: Sequence[Event], now_ms: int) -> list[str]:
    """Returns how the ledger of the pool differs from that of an undisturbed one."""
    expected = Pool(PoolRow(POOL), {1: _terms(now_ms).rules()})
    for event in events:
        expected.apply(event)
    row, batch = expected.row(), expected.take()
    async with open_pool(world.servers.dsn, 1) as pool:
        reader = MutualReader(pool)
        rows = [one async for one in _entries(reader)]
        state = await reader.pool(POOL)
        accounts, policies = await stored_accounts(pool, POOL), await stored_policies(pool, POOL)
    head, rules = GENESIS, expected.rules
    for one in rows:
        head = link(head, one.entry, rules.digest)
    found = state.row if state else None
    pairs = {
        "head": (found and found.head, head),
        "home": (state and state.home, partition_of(POOL, PARTITIONS)),
        "entries": ([_without_time(one.entry) for one in rows], list(map(_without_time, batch.entries))),
        "state": (found and _money(found), _money(row)),
        "accounts": ([account[:8] for account in accounts], [account[:8] for account in batch.accounts]),
        "policies": (list(map(_shares, policies)), sorted(map(_shares, batch.policies))),
    }
    world.timeline.note(f"pool {POOL}: {len(rows)} entries, {len(policies)} policies, {row.paid_out} atoms paid out")
    return [f"{what} of pool {POOL}: {ours}, expected {theirs}" for what, (ours, theirs) in pairs.items() if ours != theirs]


async def _entries(reader: MutualReader) -> Any:
    after = 0
    while page := await reader.entries_after(POOL, after, PAGE):
        for one in page:
            yield one
        after = page[-1].entry.entry


def _without_time(entry: Any) -> tuple[Any, ...]:
    return entry.entry, entry.seq, entry.kind, entry.account, entry.policy, entry.amount, entry.balance, entry.profits


def _money(row: PoolRow) -> PoolRow:
    """The state without times, and without the head, which depends on them."""
    return row._replace(time=0, head=b"")


def _shares(policy: Any) -> tuple[Any, ...]:
    return policy.policy, policy.account, policy.state, policy.face, policy.paid, policy.moved, policy.entered
