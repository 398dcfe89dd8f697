"""Runs the crash test once."""

import asyncio
import random
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from pathlib import Path

from fundsvc.store.database import open_pool
from fundsvc.store.migrations import migrate
from fundsvc.streams.client import open_client
from tests.crash.exchange import write_escalations
from tests.crash.http_sender import HttpSender
from tests.crash.letters import Letter, write_letters
from tests.crash.oracle import Undisturbed, undisturbed
from tests.crash.poison import FORBIDDEN
from tests.crash.pools import PoolSender, pool_differences, pools_setting, write_events
from tests.crash.schedule import ALL, ESCALATING, ESSENTIAL, LOSING, POSTED, STREAM_KEPT, Disturbance, disturb, schedule
from tests.crash.sender import CarefulSender, Sender, SnapshotSender
from tests.crash.verdict import differences
from tests.crash.world import PARTITIONS, World, eventually

RECORDING = Path(__file__).parents[3] / "shared" / "data" / "binance_force_orders_2025-12-11.ndjson"

ENGINES = 2

DIFFERENCES_MAX, DIFFERENCE_LENGTH_MAX = 20, 5000
"""Limits of the output: a difference quotes both values."""

POOL_EVENTS = 3000
"""Events of the pool, sent over about fifteen seconds."""

EVENTS_PER_SECOND = 400
"""Slow enough for many interruptions, fast enough that an owner is often within a transaction."""


async def run_short(seed: int) -> None:
    """Runs one disturbance of each kind; raises AssertionError if the ledger differs from the expected one."""
    chance = random.Random(seed)
    _print_table(await _run(seed, _market(seed, 35), chance.sample(ESSENTIAL, len(ESSENTIAL)), Sender))


async def run_escalations(seed: int) -> None:
    """Runs ADL through kills: open orders continue on unchanged books."""
    chance = random.Random(seed)
    _print_table(await _run(seed, _escalations(seed, 15), chance.sample(ESCALATING, len(ESCALATING)), CarefulSender))


async def run_lost_tails(seed: int) -> None:
    """Runs ADL on streams that lose settled and unsettled messages."""
    chance = random.Random(seed)
    _print_table(await _run(seed, _escalations(seed, 15), chance.sample(LOSING, len(LOSING)), SnapshotSender))


async def run_long(seed: int, minutes: float, parts: Sequence[int] = (1, 2, 3, 4)) -> None:
    """Runs disturbances of all kinds for this time. Each part takes a quarter: liquidations; liquidations over HTTP; ADL on a
    stream that loses nothing; ADL on a stream that loses its tail, after which the exchange sends snapshots of its books.

    Raises an ExceptionGroup with the failures of all parts.
    """
    seconds = minutes * 15
    happened: Counter[str] = Counter()
    failures: list[Exception] = []
    for number in (part - 1 for part in parts):
        write, disturbances, sender = PARTS[number]
        chance = random.Random(seed + number)
        letters = write(seed + number, seconds)
        try:
            # In a separate task: a task group that fails would leave this task cancelled (CPython gh-116720, until 3.13).
            part = _run(seed + number, letters, schedule(chance, disturbances, seconds), sender)
            happened += await asyncio.create_task(part)
        except Exception as failure:  # noqa: BLE001 - the other parts run too, and may fail differently
            traceback.print_exception(failure)
            failures.append(failure)
    _print_table(happened)
    if failures:
        raise ExceptionGroup("parts of the crash test failed", failures)


def _print_table(happened: Counter[str]) -> None:
    """Prints the number of times of each disturbance."""
    print("\n".join(f"{count:6}  {name.replace('_', ' ')}" for name, count in sorted(happened.items())), flush=True)


def _escalations(seed: int, seconds: float) -> list[Letter]:
    return write_escalations(seed, PARTITIONS, int(seconds * EVENTS_PER_SECOND))


def _market(seed: int, seconds: float) -> list[Letter]:
    """Writes liquidations for this time."""
    recording = RECORDING if RECORDING.exists() else None
    fills = int(seconds * EVENTS_PER_SECOND) - (10_000 if recording else 0)
    return write_letters(seed, PARTITIONS, max(fills, 2000), recording)


async def _run(seed: int, letters: list[Letter], disturbances: Iterable[Disturbance], sender: type[Sender]) -> Counter[str]:
    """Returns the number of times of each disturbance."""
    expected = undisturbed(letters, PARTITIONS)
    with tempfile.TemporaryDirectory(prefix="crash-") as directory:
        world = World(Path(directory))
        try:
            world.timeline.note(
                f"seed {seed}: {len(letters)} letters, {sum(map(len, expected.lines.values()))} entries expected"
            )
            await world.start_servers()
            for proxy in world.proxies:
                proxy.start()
            await migrate(world.servers.owner_dsn, PARTITIONS)
            await world.execute(FORBIDDEN)
            await _disturbed(world, random.Random(seed), letters, expected, disturbances, sender)
        except Exception:
            print(await world.describe(), flush=True)
            raise
        finally:
            world.end()
        return world.happened


async def _disturbed(
    world: World,
    chance: random.Random,
    letters: list[Letter],
    expected: Undisturbed,
    disturbances: Iterable[Disturbance],
    sender_type: type[Sender],
) -> None:
    now_ms = time.time_ns() // 1_000_000
    events = write_events(chance.randrange(10**6), POOL_EVENTS, now_ms)
    world.pools = pools_setting(now_ms)
    for _ in range(ENGINES):
        world.start_engine()
    if sender_type is HttpSender:
        await world.start_api()
    await eventually("the engines own all partitions", world.all_owned)
    await eventually("the policies are recorded", world.all_have_policies)
    async with open_pool(world.servers.dsn, 2) as pool, open_client(world.config.stream) as client:
        sender = sender_type(pool, client, letters, EVENTS_PER_SECOND, random.Random(chance.random()), world)
        calm = asyncio.Event()
        async with aclosing(sender), asyncio.TaskGroup() as tasks:
            tasks.create_task(sender.send_all(calm, expected.funds))
            tasks.create_task(PoolSender(world, events).send_all(calm))
            for disturbance in disturbances:
                await disturb(world, chance, disturbance)
            calm.set()
            sender.hurry.set()
            world.note_memory()
            world.timeline.note(
                f"the schedule has ended, {sender.sent} of {len(letters)} letters are sent; no more disturbances"
            )
        world.timeline.note("everything is settled")
        await eventually("the rollups are complete", lambda: _rollups_complete(world))
        await world.stop_engines()
        wrong = [
            *await differences(world, client, letters, expected),
            *await pool_differences(world, events, now_ms),
        ]
    lost = sum(log.read_text().count("lost its tail") for log in world.directory.glob("engine-*.log"))
    world.timeline.note(
        f"{sender.resumptions} resumptions of the sender, {lost} lost tails found by engines, engines use at most"
        f" {world.memory_mb:.0f} MB, {len(wrong)} differences"
    )
    for difference in wrong[:DIFFERENCES_MAX]:
        world.timeline.note(difference[:DIFFERENCE_LENGTH_MAX])
    assert not wrong, "\n".join(difference[:DIFFERENCE_LENGTH_MAX] for difference in wrong[:DIFFERENCES_MAX])


async def _rollups_complete(world: World) -> bool:
    rows = await world.fetch(
        "SELECT 1 FROM funds f LEFT JOIN rollup_progress p USING (symbol) WHERE f.entry > coalesce(p.entry, 0)"
    )
    return not rows


PARTS: Sequence[tuple[Callable[[int, float], list[Letter]], Sequence[Disturbance], type[Sender]]] = (
    (_market, ALL, Sender),
    (_market, (*ALL, *POSTED), HttpSender),
    (_escalations, STREAM_KEPT, CarefulSender),
    (_escalations, ALL, SnapshotSender),
)
"""The letters, the disturbances and the sender of each part."""
