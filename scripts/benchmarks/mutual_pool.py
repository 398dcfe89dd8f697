"""The core of the mutual with many live policies: cut-offs, memory, trades, restart.

A cut-off that completes none is measured in turns with a plain loop over the same policies; the fastest of several rounds
counts for both. All times are CPU times of the thread, because the core only computes: other processes do not count. The
longest slice is the longest time between two pauses of a cut-off, for which it would hold the event loop.
"""

import gc
import time
import tracemalloc
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import msgspec
from report import Target, at_least, at_most, table_of, target_table
from rich.console import Console

from fundsvc.mutual.codec import decode, encode
from fundsvc.mutual.core.events import Event, Tick, Trade
from fundsvc.mutual.core.pool import Pool
from fundsvc.mutual.core.rows import AccountRow, PolicyRow, PoolRow, State
from fundsvc.mutual.core.terms import DAY_MS, Terms
from fundsvc.wire.codec import Codec

NAME = "USDT"
RULES = Terms().rules()
START_MS = 20_454 * DAY_MS
UNIT = 10**RULES.decimals

POLICIES_EACH = 10
"""Live policies of an account."""

COMPLETIONS = 10_000
"""Policies that complete in one cut-off."""

TRADES_PER_MESSAGE = 100
TRADERS = 1_000
TRADES_PER_BATCH = 5_000
"""Trades of one commit, about as many as the engine commits under load."""

CUTOFF_MS_MAX = 20.0
COMPLETING_MS_MAX = 1_000.0
HOLD_MS_MAX = 10.0
BYTES_MAX = 400.0
TRADES_PER_SECOND_MIN = 50_000
RESTORE_SECONDS_MAX = 15.0
TARGET_POLICIES = 1_000_000
"""Targets, with this number of live policies."""


class Results(msgspec.Struct, kw_only=True):
    """Results with a number of live policies; `hold` times are those of the longest slices.

    `cutoff` completes none; `checking` completes none, but determines for all accounts whether they are fit; `completing`
    completes COMPLETIONS. `loop` is the plain loop. `rows` builds the rows that a completing cut-off writes.
    """

    policies: int
    restore_seconds: float
    bytes_each: float
    loop_ms: float
    cutoff_ms: float
    cutoff_hold_ms: float
    checking_ms: float
    checking_hold_ms: float
    completing_ms: float
    completing_hold_ms: float
    rows_ms: float
    trades_per_second: dict[Codec, float]
    targets: list[Target] = []

    def show(self, console: Console) -> None:
        """Prints the tables."""
        table = table_of(f"The core with {self.policies:,} live policies", "", "measured", "longest slice, ms")
        table.columns[0].justify = "left"
        for name, measured, hold in (
            ("plain loop over all policies, ms", f"{self.loop_ms:.1f}", ""),
            ("cut-off that completes none, ms", f"{self.cutoff_ms:.2f}", f"{self.cutoff_hold_ms:.2f}"),
            ("the same, all accounts to check, ms", f"{self.checking_ms:.0f}", f"{self.checking_hold_ms:.2f}"),
            (f"with {COMPLETIONS:,} completions, ms", f"{self.completing_ms:.0f}", f"{self.completing_hold_ms:.2f}"),
            ("  rows of its commit, ms", f"{self.rows_ms:.0f}", ""),
            ("restart from rows, s", f"{self.restore_seconds:.1f}", ""),
            ("bytes per live policy", f"{self.bytes_each:.0f}", ""),
            *((f"trades/s, {codec}", f"{speed:,.0f}", "") for codec, speed in self.trades_per_second.items()),
        ):
            table.add_row(name, measured, hold)
        console.print(table)
        if self.targets:
            console.print(target_table(self.targets))


def measure(policies: int, rounds: int, trades: int, show_progress: Callable[[str], None]) -> Results:
    """Measures a pool with a number of live policies, and the speed of a number of trades."""
    show_progress(f"{policies:,} policies: memory")
    bytes_each = _bytes_each(policies)
    show_progress(f"{policies:,} policies: restart")
    pool, restore = timed(lambda: restored(policies, 0))
    gc.collect()
    gc.freeze()
    show_progress(f"{policies:,} policies: cut-offs")
    faces = array("q", [RULES.face]) * policies
    loops, quiet = zip(*((_seconds(lambda: _plain_loop(faces)), cut_off(pool)) for _ in range(rounds)), strict=True)
    checking = cut_off(_to_check(policies))
    completing_pool = restored(policies, COMPLETIONS)
    completing = cut_off(completing_pool)
    rows = _seconds(completing_pool.take)
    gc.unfreeze()
    show_progress("trades")
    results = Results(
        policies=policies,
        restore_seconds=restore,
        bytes_each=bytes_each,
        loop_ms=1000 * min(loops),
        cutoff_ms=min(total for total, _ in quiet),
        cutoff_hold_ms=min(hold for _, hold in quiet),
        checking_ms=checking[0],
        checking_hold_ms=checking[1],
        completing_ms=completing[0],
        completing_hold_ms=completing[1],
        rows_ms=1000 * rows,
        trades_per_second={codec: _trades_per_second(codec, trades) for codec in ("json", "msgpack")},
    )
    results.targets = list(_judge(results))
    return results


def restored(policies: int, completing: int, cutoffs_active: int = 1_000) -> Pool:
    """Returns a pool with active policies, restored from rows. The next cut-off completes the first `completing` of them.

    The trades of all accounts count at the next `cutoffs_active` cut-offs.
    """
    rooms = [number + 1 if number < completing else RULES.cap for number in range(policies)]
    pool = Pool(pool_row(policies, 10 * policies * (completing + 1), sum(RULES.cap - room for room in rooms)), {1: RULES})
    last_cutoff = START_MS + cutoffs_active * DAY_MS
    accounts = (account_row(number, last_cutoff) for number in range(accounts_of(policies)))
    rows = (policy_row(number, room) for number, room in enumerate(rooms))
    deque(pool.restore(accounts, rows, (owner_of(number) for number in range(policies))), maxlen=0)
    if pool.identity_error():
        raise RuntimeError("the money of the restored pool does not add up")
    return pool


def _to_check(policies: int) -> Pool:
    """Returns a pool in which the next cut-off determines for all accounts whether they are fit: they are, by later trades."""
    pool = restored(policies, 0, cutoffs_active=1)
    cut_off(pool)
    register = pool.register
    for account in register.by_number:
        account.note_trade(register.next_cutoff + 5 * DAY_MS, RULES.activity_volume, register.next_cutoff)
    return pool


def cut_off(pool: Pool) -> tuple[float, float]:
    """Lets the next cut-off happen; returns its time and that of its longest slice, in milliseconds."""
    tick = Tick(NAME, pool.register.next_cutoff)
    times = [time.thread_time(), *(time.thread_time() for _ in pool.steps(tick)), time.thread_time()]
    return 1000 * (times[-1] - times[0]), 1000 * max(end - start for start, end in pairwise(times))


def pool_row(policies: int, balance: int, paid: int) -> PoolRow:
    """Returns the state of a pool with active policies, of which `paid` was paid out; amounts are in atoms."""
    return PoolRow(
        NAME,
        balance=balance,
        inflow=balance + paid,
        released=paid,
        settled=paid,
        paid_out=paid,
        weight=policies * RULES.face,
        time=START_MS,
        next_cutoff=START_MS + DAY_MS,
        policies=policies,
    )


def accounts_of(policies: int) -> int:
    """Returns the number of accounts of a number of policies."""
    return -(-policies // POLICIES_EACH)


def owner_of(policy: int) -> str:
    """Returns the account of a policy; both count from 0."""
    return account_name(policy // POLICIES_EACH)


def account_name(number: int) -> str:
    """Returns the name of an account."""
    return f"{number:012x}"


def account_row(number: int, last_cutoff: int) -> AccountRow:
    """Returns a covered account, whose trades count up to a cut-off."""
    return AccountRow(
        account_name(number),
        balance=1_000 * UNIT,
        arrears=0,
        payable=0,
        paid_out=0,
        accumulated=0,
        enabled=True,
        unfunded=False,
        cover=(START_MS,),
        day=0,
        profits=0,
        activity=(last_cutoff, RULES.activity_volume),
        unfit_since=0,
    )


def policy_row(number: int, room: int) -> PolicyRow:
    """Returns an active policy, from 0, that can be paid `room` more."""
    times = (START_MS - DAY_MS, START_MS, START_MS + 1_000 * DAY_MS)
    return PolicyRow(
        number + 1, owner_of(number), State.ACTIVE, 1, RULES.face, RULES.cap, *times, RULES.cap - room, moved=0, entered=0
    )


def _plain_loop(faces: Sequence[int]) -> int:
    """Shares a budget by a loop over all policies, as simply as possible."""
    budget, weight = 1_000 * UNIT, RULES.face * len(faces)
    paid = array("q", bytes(8 * len(faces)))
    for place, face in enumerate(faces):
        paid[place] += budget * face // weight
    return sum(paid)


def _bytes_each(policies: int) -> float:
    """Returns the allocated bytes per live policy, with its share of its account."""
    gc.collect()
    tracemalloc.start()
    pool = restored(policies, 0)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del pool
    return held / policies


def _trades_per_second(codec: Codec, trades: int) -> float:
    """Returns trades per second from messages through decoder and pool to the rows of commits."""
    pool = restored(TRADERS * POLICIES_EACH, 0)
    bodies = list(message_bodies(events_of(trades), codec))
    gc.collect()
    started = time.thread_time()
    for number, body in enumerate(bodies, 1):
        for event in decode(codec, body):
            pool.apply(event)
        if not number * TRADES_PER_MESSAGE % TRADES_PER_BATCH:
            batch = pool.take()
            if batch.identity_error or batch.rejected:
                raise RuntimeError("the trades of the benchmark were not applied")
    return trades / (time.thread_time() - started)


def events_of(trades: int) -> Iterator[Trade]:
    """Yields insured trades within a day, a loss and a profit in turn; every tenth trade of an account issues a policy."""
    for number in range(trades):
        ts = START_MS + number * (DAY_MS - 1) // trades
        pnl = "-21.5" if number % 2 else "12.345678"
        account = account_name(number // 2 * 7919 % TRADERS)
        yield Trade(NAME, ts, number + 1, account, "XBTUSDTM", f"t{number}", START_MS, pnl, "1500.25")


def message_bodies(events: Iterable[Event], codec: Codec) -> Iterator[bytes]:
    """Yields message bodies with TRADES_PER_MESSAGE events each."""
    run: list[Event] = []
    for event in events:
        run.append(event)
        if len(run) == TRADES_PER_MESSAGE:
            yield encode(run, codec)
            run = []


def timed(work: Callable[[], Pool]) -> tuple[Pool, float]:
    """Returns the result of a function, and its time in seconds."""
    started = time.thread_time()
    result = work()
    return result, time.thread_time() - started


def _seconds(work: Callable[[], object]) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started


def _judge(results: Results) -> Iterator[Target]:
    if results.policies != TARGET_POLICIES:
        return
    yield at_most("cut-off that completes none, ms", results.cutoff_ms, CUTOFF_MS_MAX, "{:.2f}")
    yield at_most(f"cut-off with {COMPLETIONS:,} completions, ms", results.completing_ms, COMPLETING_MS_MAX, "{:.0f}")
    longest = max(results.cutoff_hold_ms, results.checking_hold_ms, results.completing_hold_ms)
    yield at_most("longest hold of the loop in a cut-off, ms", longest, HOLD_MS_MAX, "{:.1f}")
    yield at_most("bytes per live policy", results.bytes_each, BYTES_MAX, "{:.0f}")
    yield at_most("restart from rows, s", results.restore_seconds, RESTORE_SECONDS_MAX, "{:.1f}")
    for codec, measured in results.trades_per_second.items():
        yield at_least(f"trades/s through the core, {codec}", measured, TRADES_PER_SECOND_MIN, "{:,.0f}")
