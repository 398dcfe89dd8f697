"""Disturbances of the processes: kills, stops and pauses; and a truncated file."""

import asyncio
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.crash.world import EngineProcess, Owner, World, eventually

TAKEOVER_SECONDS_MAX = 5.0
"""The promise: the partitions of a killed owner have a new owner within this time."""

CATCHES_MAX = 400
"""Attempts to pause an owner within a transaction. About one in five succeeds, one in twenty within a COPY."""

TAIL_BYTES_MAX = 60_000
"""The most that a power failure loses: more than a second of messages."""


async def kill_engine(world: World, chance: random.Random) -> None:
    """Kills an owner and starts another engine, which must own the partitions within five seconds."""
    began = time.monotonic()
    victim, held = await kill_owner(world, chance)
    await eventually("the killed owner's partitions have a new owner", lambda: _moved(world, victim.name, held))
    seconds = time.monotonic() - began
    world.timeline.note(f"its partitions moved within {seconds:.2f} s of the kill")
    if seconds > TAKEOVER_SECONDS_MAX:
        world.failures.append(f"the partitions of a killed owner took {seconds:.2f} s to move")


async def kill_owner(world: World, chance: random.Random) -> tuple[EngineProcess, dict[int, Owner]]:
    """Kills an owner and starts another engine; returns the killed engine and the partitions that it owned."""
    victim, held = await _owner(world, chance)
    world.engines.remove(victim)
    victim.kill()
    world.timeline.note(f"killed {victim}, owner of {sorted(held)}; started {world.start_engine()}")
    return victim, held


async def stop_postgres(world: World, chance: random.Random) -> None:
    """Stops PostgreSQL in the mode fast, and starts it again."""
    await _restart_postgres(world, chance, "stopped (fast)", world.servers.postgres.stop)


async def stop_postgres_immediately(world: World, chance: random.Random) -> None:
    """Stops PostgreSQL in the mode immediate, without a checkpoint."""

    def stop() -> None:
        postgres = world.servers.postgres.process
        postgres.send_signal(signal.SIGQUIT)
        postgres.wait(10)

    await _restart_postgres(world, chance, "stopped (immediate)", stop)


async def kill_postgres(world: World, chance: random.Random) -> None:
    """Kills all processes of PostgreSQL, and starts it again."""
    await _restart_postgres(world, chance, "killed", world.servers.postgres.kill)


async def kill_valkey(world: World, chance: random.Random) -> None:
    """Kills Valkey, and starts it again. The kernel keeps what Valkey wrote."""
    await _restart_valkey(world, chance, lost_bytes_max=0)


async def truncate_valkey(world: World, chance: random.Random) -> None:
    """Kills Valkey and truncates its file, as a power failure loses data that was not synchronised."""
    await _restart_valkey(world, chance, lost_bytes_max=TAIL_BYTES_MAX)


async def stop_valkey(world: World, chance: random.Random) -> None:
    """Shuts Valkey down, and starts it again."""
    await asyncio.to_thread(world.servers.valkey.stop)
    world.timeline.note("stopped Valkey")
    await asyncio.sleep(chance.uniform(0, 1))
    await world.start_servers(postgres=False)


async def pause_owner(world: World, chance: random.Random) -> None:
    """Pauses an owner until other engines own its partitions, then resumes it."""
    paused, held = await _owner(world, chance)
    paused.pause()
    world.timeline.note(f"paused {paused}, owner of {sorted(held)}")
    await _resume_once_lost(world, chance, paused, held)


async def pause_owner_within_a_transaction(world: World, chance: random.Random) -> None:
    """Pauses an owner that writes rows, or has written them, and has not committed; resumes it after the takeover."""
    paused, held = await _owner(world, chance)
    wanted = chance.choice(("active", "idle in transaction"))
    for attempt in range(1, CATCHES_MAX + 1):
        paused.pause()
        doing = await _within_a_transaction(world, paused)
        if wanted in doing or (doing and attempt > CATCHES_MAX / 2):
            world.timeline.note(f"paused {paused}, owner of {sorted(held)}, at attempt {attempt}: {doing}")
            break
        paused.resume()
        await asyncio.sleep(chance.uniform(0, 0.01))
    else:
        raise AssertionError(f"{paused} was never found within a transaction")
    await _resume_once_lost(world, chance, paused, held)


async def kill_engine_without_postgres(world: World, chance: random.Random) -> None:
    """Kills an owner while PostgreSQL is down, so that the owner cannot release its partitions."""
    victim, held = await _owner(world, chance)
    await asyncio.to_thread(world.servers.postgres.kill)
    world.engines.remove(victim)
    victim.kill()
    world.timeline.note(f"killed PostgreSQL and {victim}, owner of {sorted(held)}; started {world.start_engine()}")
    await asyncio.sleep(chance.uniform(0, 3))
    await world.start_servers(valkey=False)


async def truncate_valkey_under_a_paused_owner(world: World, chance: random.Random) -> None:
    """Truncates Valkey's file while an owner is paused; the owner's lease may expire meanwhile."""
    paused, held = await _owner(world, chance)
    paused.pause()
    world.timeline.note(f"paused {paused}, owner of {sorted(held)}")
    await truncate_valkey(world, chance)
    await asyncio.sleep(chance.uniform(0, 4))
    paused.resume()
    world.timeline.note(f"resumed {paused}")


async def kill_everything(world: World, chance: random.Random) -> None:
    """Kills all engines and both servers at once."""
    for engine in world.engines:
        engine.kill()
    number = len(world.engines)
    world.engines.clear()
    await asyncio.to_thread(world.servers.postgres.kill)
    world.timeline.note("killed all engines and PostgreSQL")
    await truncate_valkey(world, chance)
    await world.start_servers()
    for _ in range(number):
        world.start_engine()


async def _owner(world: World, chance: random.Random) -> tuple[EngineProcess, dict[int, Owner]]:
    """Returns a running engine that owns partitions, and these partitions."""
    owners = await world.owners()
    owning = {owner.engine for owner in owners.values()}
    engine = chance.choice([engine for engine in world.engines if engine.name in owning - {""}])
    return engine, {partition: owner for partition, owner in owners.items() if owner.engine == engine.name}


async def _moved(world: World, from_engine: str, held: dict[int, Owner]) -> bool:
    owners = await world.owners()
    return all(
        owners[partition].epoch > owner.epoch and owners[partition].engine != from_engine and owners[partition].live
        for partition, owner in held.items()
    )


async def _resume_once_lost(world: World, chance: random.Random, paused: EngineProcess, held: dict[int, Owner]) -> None:
    seconds = await eventually("the paused owner's partitions have a new owner", lambda: _moved(world, paused.name, held))
    world.timeline.note(f"its partitions moved within {seconds:.2f} s")
    await asyncio.sleep(chance.uniform(0, 1))
    paused.resume()
    world.timeline.note(f"resumed {paused}")


async def _within_a_transaction(world: World, engine: EngineProcess) -> str:
    """Describes the transaction of the paused engine that only the engine can end; "" if there is none."""
    rows = await world.fetch(
        "SELECT state, query FROM pg_stat_activity WHERE application_name = $1 AND xact_start IS NOT NULL"
        " AND (state = 'idle in transaction' OR state = 'active' AND wait_event = 'ClientRead' AND query LIKE 'COPY%')",
        f"fundsvc engine {engine.name}",
    )
    return ", ".join(f"{row['state']} ({' '.join(row['query'].split())[:40]})" for row in rows)


async def _restart_postgres(world: World, chance: random.Random, how: str, stop: Callable[[], None]) -> None:
    await asyncio.to_thread(stop)
    world.timeline.note(f"PostgreSQL {how}")
    await asyncio.sleep(chance.uniform(0, 2))
    await world.start_servers(valkey=False)
    world.timeline.note("PostgreSQL started")


async def _restart_valkey(world: World, chance: random.Random, lost_bytes_max: int) -> None:
    await asyncio.to_thread(world.servers.valkey.kill)
    lost = _truncate(world.directory / "valkey", chance.randint(lost_bytes_max // 2, lost_bytes_max))
    world.timeline.note(f"killed Valkey; the last {lost} bytes of its file are lost")
    await asyncio.sleep(chance.uniform(0, 1))
    await world.start_servers(postgres=False)
    world.timeline.note("Valkey started")


def _truncate(directory: Path, lost: int) -> int:
    """Truncates the newest append-only file; returns the number of bytes lost."""
    files = directory.glob("appendonlydir/*.incr.aof")
    newest = max(files, key=lambda path: int(re.search(r"\.(\d+)\.incr", path.name)[1]))
    size = newest.stat().st_size
    left = max(size // 2, size - lost)
    with newest.open("r+b") as file:
        file.truncate(left)
    return size - left
