"""The disturbances, their order, and the recovery of the engines."""

import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence

from fundsvc.core.events import Reason
from tests.crash.deletions import delete_settled, lose_unsettled, trim_settled
from tests.crash.network import (
    drop_commit_response,
    leave_postgres_half_open,
    leave_valkey_half_open,
    slow_the_network,
    slowed_network,
)
from tests.crash.processes import (
    kill_engine,
    kill_engine_without_postgres,
    kill_everything,
    kill_postgres,
    kill_valkey,
    pause_owner,
    pause_owner_within_a_transaction,
    stop_postgres,
    stop_postgres_immediately,
    stop_valkey,
    truncate_valkey,
    truncate_valkey_under_a_paused_owner,
)
from tests.crash.shortages import (
    fill_the_disk,
    fill_valkey,
    kill_engine_while_valkey_is_full,
    make_postgres_read_only,
)
from tests.crash.world import World, eventually

Disturbance = Callable[[World, random.Random], Awaitable[None]]

SLOW_SHARE = 0.15
"""The share of disturbances with a slow network."""


async def replay_rejected(world: World, chance: random.Random) -> None:
    """Replays rejected events with some reasons, as an operator does; settlement rejects them again.

    Late events are left out, because a replay settles them.
    """
    rows = await world.fetch("SELECT DISTINCT reason FROM rejected WHERE reason <> $1 ORDER BY reason", Reason.LATE)
    reasons = [row["reason"] for row in rows]
    for reason in chance.sample(reasons, min(len(reasons), 3)):
        code, output, error = await world.command("rejected", "replay", "--reason", reason)
        world.timeline.note(f"replayed events rejected with {reason}: {code}, {(output or error).strip()[-100:]}")


async def kill_api(world: World, chance: random.Random) -> None:
    """Kills the API and starts it again. The stream may contain or lack the events of its last request."""
    world.kill_api()
    world.timeline.note("killed the API")
    await world.start_api()


ESSENTIAL: tuple[Disturbance, ...] = (
    kill_engine,
    kill_postgres,
    truncate_valkey,
    pause_owner_within_a_transaction,
    lose_unsettled,
    leave_postgres_half_open,
)
"""One disturbance of each kind, for the short form."""

ESCALATING: tuple[Disturbance, ...] = (
    kill_engine,
    kill_postgres,
    drop_commit_response,
    kill_engine_while_valkey_is_full,
)
"""Disturbances while ADL orders are open, for the short form."""

LOSING: tuple[Disturbance, ...] = (truncate_valkey, lose_unsettled, truncate_valkey_under_a_paused_owner)
"""Disturbances in which streams lose messages while ADL orders are open, for the short form."""

STREAM_KEPT: tuple[Disturbance, ...] = (
    kill_engine,
    stop_postgres,
    stop_postgres_immediately,
    kill_postgres,
    stop_valkey,
    pause_owner,
    pause_owner_within_a_transaction,
    kill_engine_without_postgres,
    drop_commit_response,
    leave_postgres_half_open,
    leave_valkey_half_open,
    slow_the_network,
    make_postgres_read_only,
    fill_the_disk,
    fill_valkey,
    kill_engine_while_valkey_is_full,
    trim_settled,
    delete_settled,
    replay_rejected,
)
"""Disturbances in which the stream keeps every acknowledged message."""

ALL: tuple[Disturbance, ...] = (
    *STREAM_KEPT,
    kill_valkey,
    truncate_valkey,
    truncate_valkey_under_a_paused_owner,
    kill_everything,
    lose_unsettled,
)

POSTED: tuple[Disturbance, ...] = (kill_api,)
"""Further disturbances of an exchange that posts its events."""


def schedule(chance: random.Random, disturbances: Sequence[Disturbance], seconds: float) -> Iterator[Disturbance]:
    """Yields disturbances for this time, all equally often."""
    end = time.monotonic() + seconds
    while True:
        for disturbance in chance.sample(disturbances, len(disturbances)):
            if time.monotonic() > end:
                return
            yield disturbance


async def disturb(world: World, chance: random.Random, disturbance: Disturbance) -> None:
    """Runs a disturbance after all partitions are owned, sometimes with a slow network; waits for recovery."""
    await eventually("all partitions are owned", world.all_owned)
    world.note_memory()
    world.timeline.note(f"--- {disturbance.__name__}, with {await world.open_orders()} ADL orders open")
    world.happened[disturbance.__name__] += 1
    if chance.random() < SLOW_SHARE:
        world.happened["on a slow network"] += 1
        async with slowed_network(world, chance):
            await disturbance(world, chance)
    else:
        await disturbance(world, chance)
    world.replace_ended()
    before = 0

    async def settling() -> bool:
        nonlocal before
        world.replace_ended()
        before = before or await world.messages()
        return await world.messages() > before and await world.all_owned()

    seconds = await eventually("all partitions are owned and settle again", settling)
    world.timeline.note(f"settles again after {seconds:.2f} s")
