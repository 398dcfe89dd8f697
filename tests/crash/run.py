"""One run of the crash test."""

import asyncio
import random
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fundsvc.store.database import open_pool
from fundsvc.store.migrations import migrate
from fundsvc.streams.client import open_client
from tests.crash.disturbances import ALL, ESCALATING, ESSENTIAL, STREAM_KEPT, Disturbance, disturb
from tests.crash.exchange import write_escalations
from tests.crash.letters import Letter, write_letters
from tests.crash.oracle import Undisturbed, undisturbed
from tests.crash.sender import CarefulSender, Sender, SnapshotSender
from tests.crash.verdict import differences
from tests.crash.world import PARTITIONS, World, eventually

RECORDING = Path(__file__).parents[3] / "shared" / "data" / "binance_force_orders_2025-12-11.ndjson"

ENGINES = 2

EVENTS_PER_SECOND = 400
"""Slow enough to be interrupted many times, fast enough that an owner is often within a transaction."""


async def run_short(seed: int) -> None:
    """One disturbance of each kind; AssertionError when the ledger does not end as it should."""
    chance = random.Random(seed)
    await _run(seed, _market(seed, 35), chance.sample(ESSENTIAL, len(ESSENTIAL)), Sender)


async def run_escalations(seed: int) -> None:
    """Deleveraging through kills: orders that are open then go on, on books that are what they would have been."""
    chance = random.Random(seed)
    await _run(seed, _escalations(seed, 15), chance.sample(ESCALATING, len(ESCALATING)), CarefulSender)


async def run_long(seed: int, minutes: float) -> None:
    """Disturbances of all kinds until the time is over, a third of it each: liquidations; deleveraging on a stream that keeps
    what it has; deleveraging on one that loses its tail, after which the exchange sends its books whole.
    """
    chance, seconds = random.Random(seed), minutes * 20
    await _run(seed, _market(seed, seconds), _schedule(chance, ALL, seconds), Sender)
    await _run(seed, _escalations(seed, seconds), _schedule(chance, STREAM_KEPT, seconds), CarefulSender)
    await _run(seed, _escalations(seed + 1, seconds), _schedule(chance, ALL, seconds), SnapshotSender)


def _schedule(chance: random.Random, disturbances: Sequence[Disturbance], seconds: float) -> Iterator[Disturbance]:
    """Disturbances for so long, each as often as the others."""
    end = time.monotonic() + seconds
    while True:
        for disturbance in chance.sample(disturbances, len(disturbances)):
            if time.monotonic() > end:
                return
            yield disturbance


def _escalations(seed: int, seconds: float) -> list[Letter]:
    return write_escalations(seed, PARTITIONS, int(seconds * EVENTS_PER_SECOND))


def _market(seed: int, seconds: float) -> list[Letter]:
    """Liquidations for so long."""
    recording = RECORDING if RECORDING.exists() else None
    fills = int(seconds * EVENTS_PER_SECOND) - (10_000 if recording else 0)
    return write_letters(seed, PARTITIONS, max(fills, 2000), recording)


async def _run(seed: int, letters: list[Letter], schedule: Iterable[Disturbance], sender: type[Sender]) -> None:
    expected = undisturbed(letters, PARTITIONS)
    with tempfile.TemporaryDirectory(prefix="crash-") as directory:
        world = World(Path(directory))
        try:
            world.timeline.note(
                f"seed {seed}: {len(letters)} letters, {sum(map(len, expected.lines.values()))} entries expected"
            )
            await world.start_servers()
            world.proxy.start()
            await migrate(world.servers.owner_dsn, PARTITIONS)
            await _disturbed(world, random.Random(seed), letters, expected, schedule, sender)
        finally:
            world.end()


async def _disturbed(
    world: World,
    chance: random.Random,
    letters: list[Letter],
    expected: Undisturbed,
    schedule: Iterable[Disturbance],
    sends: type[Sender],
) -> None:
    for _ in range(ENGINES):
        world.start_engine()
    await eventually("the engines own all partitions", world.all_owned)
    await eventually("the policies are recorded", world.all_have_policies)
    async with open_pool(world.servers.dsn, 2) as pool, open_client(world.config.stream) as client:
        sender = sends(pool, client, letters, EVENTS_PER_SECOND, random.Random(chance.random()), world.timeline)
        calm = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(sender.send_all(calm, expected.funds))
            for disturbance in schedule:
                await disturb(world, chance, disturbance)
            calm.set()
            sender.hurry.set()
            world.timeline.note(f"the schedule is over, {sender.sent} of {len(letters)} letters are sent; no more disturbances")
        world.timeline.note("everything is settled")
        await eventually("the rollups are kept up", lambda: _condensed(world))
        await world.stop_engines()
        wrong = await differences(world, client, letters, expected)
    lost = sum(log.read_text().count("lost its tail") for log in world.directory.glob("engine-*.log"))
    world.timeline.note(
        f"{sender.resumptions} resumptions of the sender, {lost} lost tails seen by engines, {len(wrong)} differences"
    )
    assert not wrong, "\n".join(wrong[:20])


async def _condensed(world: World) -> bool:
    rows = await world.fetch(
        "SELECT 1 FROM funds f LEFT JOIN rollup_progress p USING (symbol) WHERE f.entry > coalesce(p.entry, 0)"
    )
    return not rows
