"""The pipeline of a pool in a fake world, where every await may fail before or after its effect."""

import asyncio
import os
import random

from streams import POOL, START, events_of, small_rules

from fundsvc.concurrency.exclusive import Exclusive
from fundsvc.core.batch import Offset
from fundsvc.core.checkpoints import Checkpoints
from fundsvc.core.events import Rejection
from fundsvc.engine.batch_bound import BatchBound
from fundsvc.engine.settling import Reading, SettlingContext
from fundsvc.mutual.codec import encode
from fundsvc.mutual.core.events import Enable, Tick, Transfer
from fundsvc.mutual.core.pool import Pool
from fundsvc.mutual.core.rows import PoolRow, State
from fundsvc.mutual.engine.pipeline import PoolPipeline
from fundsvc.wire.codec import Message

SEEDS = int(os.environ.get("SEEDS", "120"))
ROWS_MAX = 7
MESSAGES_PER_READ = 10


class Crash(Exception):
    """The process, the network or a server failed."""


class Weather:
    """Decides which awaits fail. Without dice none fails."""

    def __init__(self, dice=None, chance=0.0):
        self._dice = dice
        self._chance = chance

    async def through(self, effect):
        """Calls `effect` between two suspensions, each of which may fail."""
        await self._suspend()
        result = effect()
        await self._suspend()
        return result

    async def _suspend(self):
        for _ in range(self._dice.randrange(4) if self._dice else 1):
            await asyncio.sleep(0)
        if self._dice and self._dice.random() < self._chance:
            raise Crash


class FakeSource:
    """A stream that holds all its messages."""

    def __init__(self, messages, weather):
        self._messages = messages
        self._weather = weather

    async def read(self, after, block_ms):
        return await self._weather.through(lambda: self._after(order(after.last_id)))

    def _after(self, last):
        messages = [one for one in self._messages if order(one.stream_id) > last]
        return Reading(messages[:MESSAGES_PER_READ], len(self._messages) if len(messages) <= MESSAGES_PER_READ else None)


class FakeLedger:
    """The promises of the pool's writer: a batch is written completely or not at all, and only if it continues the offset."""

    def __init__(self, rules, last_id, weather):
        self.complete = asyncio.Event()
        self.offset = Offset("0-0", 0)
        self.row, self.versions = PoolRow(POOL), {1: rules}
        self.entries, self.hashes, self.cycles = [], [], []
        self.accounts, self.policies, self.rejected, self.settled = {}, {}, {}, {}
        self.duplicates = self.inside = 0
        self._last_id = last_id
        self._weather = weather

    def load(self):
        pool = Pool(self.row, self.versions)
        policies = sorted(self.policies.values())
        live = [row for row in policies if row.state <= State.FROZEN]
        for _ in pool.restore(self.accounts.values(), live, [row.account for row in policies]):
            pass
        assert pool.identity_error() == 0
        return pool

    def open(self):
        """The sequences of rejected events that a later event may have."""
        kept = {key: one for key, one in self.rejected.items() if key not in self.settled}
        return {one.identity[1] for one in kept.values() if one.identity and one.identity[1] > self.row.seq}

    def contents(self):
        """All that is stored. The `unfit_since` of an account without live policies means nothing and depends on restarts."""
        names = "offset row versions entries hashes cycles policies rejected settled"
        live = {row.account for row in self.policies.values() if row.state <= State.FROZEN}
        accounts = [row if name in live else row._replace(unfit_since=0) for name, row in self.accounts.items()]
        return {name: getattr(self, name) for name in names.split()} | {"accounts": accounts}

    async def is_open(self, stream_id, position):
        return await self._weather.through(lambda: self._is_open((stream_id, position)))

    def _is_open(self, key):
        return key in self.rejected and key not in self.settled and self.rejected[key].reason != "conflict"

    async def commit(self, batch, totals, applied, before, after, saving):
        await self._weather.through(lambda: self._write(batch, totals, applied, before, after))

    def _write(self, batch, totals, applied, before, after):
        assert before == self.offset, "another owner moved the offset"
        assert batch.identity_error == 0
        self.row, self.offset = batch.pool, after
        self.entries += batch.entries
        self.hashes += batch.hashes
        self.cycles += batch.cycles
        self.versions |= batch.terms
        assert {row.account for row in batch.accounts} - self.accounts.keys() == batch.opened
        self.accounts |= {row.account: row for row in batch.accounts}
        assert all((row.policy > batch.issued_before) == (row.policy not in self.policies) for row in batch.policies)
        self.policies |= {row.policy: row for row in batch.policies}
        self.rejected |= {(one.stream_id, one.position): one for one in batch.rejected}
        for stream_id, position, seq, settled_by in applied:
            for key, one in self.rejected.items():
                has_seq = seq is not None and one.identity is not None and one.identity[1] == seq
                if self._is_open(key) and (key == (stream_id, position) or has_seq):
                    self.settled[key] = settled_by
        live = [row for row in self.policies.values() if row.state <= State.FROZEN]
        assert totals[:2] == (len(live), sum(row.state == State.ACTIVE for row in live))
        self.inside += after.events > 0
        self.duplicates += batch.duplicates
        if after.last_id == self._last_id:
            self.complete.set()


def order(stream_id):
    milliseconds, sequence = stream_id.split("-")
    return int(milliseconds), int(sequence)


async def nowhere(committed):
    pass


async def settle(rules, messages, weather, slice_seconds=0.0025):
    """The ledger after all messages, after any number of crashes."""
    ledger, bound = FakeLedger(rules, messages[-1].stream_id, weather), BatchBound(ROWS_MAX)
    while not ledger.complete.is_set():
        pipeline = PoolPipeline(
            ledger.load(),
            FakeSource(messages, weather),
            ledger,
            nowhere,
            SettlingContext(Exclusive(), ledger.offset, ledger.offset, bound, slice_seconds, {}, Checkpoints()),
            ledger.open(),
        )
        try:
            await pipeline.run(ledger.complete)
        except* Crash:
            if pipeline.writing:
                bound.shrink(pipeline.writing)
    return ledger


def story(seed):
    """Messages as an exchange and operators send them: events of several accounts, repeated ones, garbage, replays."""
    dice = random.Random(seed)
    events = [event for event, _ in events_of(seed, 90)]
    messages, sent, refused, number, shadow = [], [], [], START, Pool(PoolRow(POOL), {1: small_rules()})

    def append(body, replay_of=""):
        nonlocal number
        number += dice.randint(1, 900)
        messages.append(Message(f"{number}-0", "json", body, replay_of))

    while events:
        chance = dice.random()
        if chance < 0.06:
            append(dice.choice([b"[", b"{}", b"[]", b'[1,{"type":"tick"}]']))
        elif chance < 0.12 and sent:
            append(encode(dice.sample(sent, 1)))
        elif chance < 0.25 and refused:
            append(*dice.choice(refused))
        else:
            run, events = events[: dice.randint(1, 4)], events[4:]
            append(encode(run))
            sent += run
            for position, event in enumerate(run):
                try:
                    shadow.apply(event, number)
                except Rejection:
                    refused.append((encode([event]), f"{number}-0/{position}"))
    append(encode([Tick(POOL, number)]))
    return messages


async def test_any_schedule_of_crashes_gives_the_undisturbed_ledger():
    seen = dict.fromkeys(("inside", "cycles", "rejected", "settled", "issued", "ended", "paid"), 0)
    for seed in range(SEEDS):
        rules, messages, dice = small_rules(), story(seed), random.Random(-seed)
        undisturbed = await settle(rules, messages, Weather())
        weather = Weather(dice, dice.choice([0.01, 0.05, 0.2]))
        disturbed = await settle(rules, messages, weather, dice.choice([0.0025, 0.0]))
        assert disturbed.contents() == undisturbed.contents(), f"seed {seed}"
        assert [entry.entry for entry in disturbed.entries] == list(range(1, len(disturbed.entries) + 1))
        seen["inside"] += disturbed.inside
        seen["cycles"] += len(disturbed.cycles)
        seen["rejected"] += len(disturbed.rejected)
        seen["settled"] += len(disturbed.settled)
        seen["issued"] += len(disturbed.policies)
        seen["ended"] += sum(row.state > State.FROZEN for row in disturbed.policies.values())
        seen["paid"] += disturbed.row.paid_out > 0
    assert min(seen.values()) > SEEDS / 10, seen


async def test_batches_do_not_change_the_ledger_but_for_their_size():
    messages, rules = story(1), small_rules()
    whole = b"".join((b"[", b",".join(one.body[1:-1] for one in messages if one.body[:2] == b"[{" and not one.replay_of), b"]"))
    ledger = await settle(rules, [Message("1-0", "json", whole)], Weather())
    assert ledger.inside > 0
    again = await settle(rules, [Message("1-0", "json", whole)], Weather(random.Random(2), 0.1), 0.0)
    assert again.contents() == ledger.contents()


async def test_two_rejected_events_with_one_sequence_are_applied_once_by_replays():
    enable, funding = Enable(POOL, START, 1, "a"), Transfer(POOL, START, 2, "a", "40", "x")
    bodies = [(encode([enable]), ""), (encode([enable]), ""), (encode([funding]), "")]
    bodies += [(encode([enable]), "1-0/0"), (encode([enable]), "2-0/0"), (encode([enable]), "nonsense")]
    messages = [Message(f"{number}-0", "json", body, key) for number, (body, key) in enumerate(bodies, 1)]
    ledger = await settle(small_rules(), messages, Weather())
    assert [entry.kind for entry in ledger.entries] == ["transfer", "covered"]
    assert ledger.settled == {("1-0", 0): "4-0", ("2-0", 0): "4-0"}
    assert ledger.rejected["6-0", 0].reason == "undecodable"
    assert ledger.row.seq == 2
