"""What befalls the processes, and how long they take to recover."""

import asyncio
import random
import re
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from fundsvc.streams.client import open_client, stream_key
from fundsvc.streams.source import id_order
from tests.crash.world import EngineProcess, Owner, World, eventually

TAKEOVER_SECONDS_MAX = 5.0
"""What is promised: a killed owner's partitions have a new owner within this time."""

CATCHES_MAX = 400
"""Attempts at stopping an owner within a transaction: about one in five hits one, one in twenty a COPY."""

TAIL_BYTES_MAX = 60_000
"""What a power failure may cost: more than a second of what is sent."""


async def kill_engine(world: World, chance: random.Random) -> None:
    """Kills an owner and starts another engine; its partitions must move within five seconds."""
    victim, held = await _owner(world, chance)
    began = time.monotonic()
    world.engines.remove(victim)
    victim.kill()
    world.timeline.note(f"killed {victim}, owner of {sorted(held)}; started {world.start_engine()}")
    await eventually("the killed owner's partitions have another", lambda: _moved(world, victim.name, held))
    seconds = time.monotonic() - began
    world.timeline.note(f"its partitions moved within {seconds:.2f} s of the kill")
    if seconds > TAKEOVER_SECONDS_MAX:
        world.failures.append(f"the partitions of a killed owner took {seconds:.2f} s to move")


async def stop_postgres(world: World, chance: random.Random) -> None:
    """Stops PostgreSQL as an operator does, and starts it again."""
    await _restart_postgres(world, chance, "stopped (fast)", world.servers.postgres.stop)


async def stop_postgres_at_once(world: World, chance: random.Random) -> None:
    """Stops PostgreSQL without a checkpoint."""

    def stop() -> None:
        postgres = world.servers.postgres.process
        postgres.send_signal(signal.SIGQUIT)
        postgres.wait(10)

    await _restart_postgres(world, chance, "stopped (immediate)", stop)


async def kill_postgres(world: World, chance: random.Random) -> None:
    """Kills all processes of PostgreSQL."""
    await _restart_postgres(world, chance, "killed", world.servers.postgres.kill)


async def kill_valkey(world: World, chance: random.Random) -> None:
    """Kills Valkey; the kernel still writes what it had handed over."""
    await _restart_valkey(world, chance, lost_bytes_max=0)


async def cut_valkey(world: World, chance: random.Random) -> None:
    """Kills Valkey and cuts the end of its file off, as a power failure does with what was not synchronised."""
    await _restart_valkey(world, chance, lost_bytes_max=TAIL_BYTES_MAX)


async def stop_valkey(world: World, chance: random.Random) -> None:
    """Stops Valkey as an operator does."""
    await asyncio.to_thread(world.servers.valkey.stop)
    world.timeline.note("stopped Valkey")
    await asyncio.sleep(chance.uniform(0, 1))
    await world.start_servers(postgres=False)


async def pause_owner(world: World, chance: random.Random) -> None:
    """Pauses an owner until others own its partitions, then lets it go on."""
    paused, held = await _owner(world, chance)
    paused.pause()
    world.timeline.note(f"paused {paused}, owner of {sorted(held)}")
    await _resume_once_lost(world, chance, paused, held)


async def pause_owner_within_a_transaction(world: World, chance: random.Random) -> None:
    """The same with an owner that is writing rows, or has written them, and has not committed."""
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
    """Kills an owner while PostgreSQL is away, so that only its end tells the others."""
    victim, held = await _owner(world, chance)
    await asyncio.to_thread(world.servers.postgres.kill)
    world.engines.remove(victim)
    victim.kill()
    world.timeline.note(f"killed PostgreSQL and {victim}, owner of {sorted(held)}; started {world.start_engine()}")
    await asyncio.sleep(chance.uniform(0, 3))
    await world.start_servers(valkey=False)


async def cut_valkey_under_a_paused_owner(world: World, chance: random.Random) -> None:
    """An owner that sleeps through the loss of the stream's tail, and of its lease or not."""
    paused, held = await _owner(world, chance)
    paused.pause()
    world.timeline.note(f"paused {paused}, owner of {sorted(held)}")
    await cut_valkey(world, chance)
    await asyncio.sleep(chance.uniform(0, 4))
    paused.resume()
    world.timeline.note(f"resumed {paused}")


async def everything_dies(world: World, chance: random.Random) -> None:
    """All engines and both servers at once."""
    for engine in world.engines:
        engine.kill()
    number = len(world.engines)
    world.engines.clear()
    await asyncio.to_thread(world.servers.postgres.kill)
    world.timeline.note("killed all engines and PostgreSQL")
    await cut_valkey(world, chance)
    await world.start_servers()
    for _ in range(number):
        world.start_engine()


async def lose_the_answer_to_a_commit(world: World, chance: random.Random) -> None:
    """Cuts an owner off between its COMMIT and the answer: the transaction is committed, and the owner cannot know."""
    for _ in range(chance.randint(1, 3)):
        world.proxy.lose_next_answer()
        seconds = await eventually("the answer to a COMMIT is lost", world.proxy.has_lost_it)
        world.timeline.note(f"lost the answer to a COMMIT after {seconds:.2f} s")


async def make_postgres_read_only(world: World, chance: random.Random) -> None:
    """Refuses all writes for some seconds, as a server does that an operator has fenced, or a standby that was promoted."""
    await _set_postgres(world, "default_transaction_read_only = on")
    world.timeline.note("PostgreSQL is read-only")
    await asyncio.sleep(chance.uniform(1, 5))
    await _set_postgres(world, "default_transaction_read_only = off")
    world.timeline.note("PostgreSQL may be written again")


async def fill_valkey(world: World, chance: random.Random) -> None:
    """Leaves Valkey no memory for some seconds: it refuses every message and every announcement."""
    async with open_client(world.config.stream) as client:
        await client.config_set("maxmemory", "1")
        world.timeline.note("Valkey is full")
        await asyncio.sleep(chance.uniform(1, 5))
        await client.config_set("maxmemory", "0")
    world.timeline.note("Valkey has room again")


async def kill_engine_while_valkey_is_full(world: World, chance: random.Random) -> None:
    """The new owner tries to announce open orders again and fails."""
    async with open_client(world.config.stream) as client:
        await client.config_set("maxmemory", "1")
        world.timeline.note("Valkey is full")
        victim, held = await _owner(world, chance)
        world.engines.remove(victim)
        victim.kill()
        world.timeline.note(f"killed {victim}, owner of {sorted(held)}; started {world.start_engine()}")
        await asyncio.sleep(chance.uniform(3, 6))
        await client.config_set("maxmemory", "0")
    world.timeline.note("Valkey has room again")


async def trim_settled(world: World, chance: random.Random) -> None:
    """Drops messages that are settled and that no book needs any more, as an operator does who makes room."""
    async with open_client(world.config.stream) as client:
        for partition, settled in (await _needed_from(world)).items():
            dropped = await client.xtrim(stream_key(partition), minid=settled, approximate=False)
            world.timeline.note(f"trimmed {dropped} settled messages of partition {partition}")


async def delete_settled(world: World, chance: random.Random) -> None:
    """Deletes single messages that are settled, anywhere among the others."""
    async with open_client(world.config.stream) as client:
        for partition, settled in (await _needed_from(world)).items():
            ids = [stream_id for stream_id, _ in await client.xrange(stream_key(partition), max=settled)]
            chosen = chance.sample(ids, min(len(ids), 20))
            if chosen:
                await client.xdel(stream_key(partition), *chosen)
            world.timeline.note(f"deleted {len(chosen)} settled messages of partition {partition}")


async def replay_rejected(world: World, chance: random.Random) -> None:
    """Sends again what was rejected for some reason, as an operator does: it is rejected again."""
    reasons = [row["reason"] for row in await world.fetch("SELECT DISTINCT reason FROM rejected ORDER BY reason")]
    for reason in chance.sample(reasons, min(len(reasons), 3)):
        code, output, error = await world.command("rejected", "replay", "--reason", reason)
        world.timeline.note(f"replayed what was rejected as {reason}: {code}, {(output or error).strip()[-100:]}")


async def _needed_from(world: World) -> dict[int, str]:
    """The id from which on each partition's stream is still needed, to be settled or for a book."""
    partitions = await world.fetch("SELECT partition, last_id FROM partitions")
    books = await world.fetch("SELECT c.partition, b.last_id FROM contracts c LEFT JOIN books b USING (symbol)")
    needed: dict[int, list[str]] = {row["partition"]: [row["last_id"]] for row in partitions}
    for row in books:
        needed[row["partition"]].append(row["last_id"] or "0-0")
    return {partition: min(ids, key=id_order) for partition, ids in needed.items()}


async def _set_postgres(world: World, setting: str) -> None:
    await world.execute(f"ALTER SYSTEM SET {setting}")
    await world.execute("SELECT pg_reload_conf()")


Disturbance = Callable[[World, random.Random], Awaitable[None]]

ESSENTIAL: tuple[Disturbance, ...] = (
    kill_engine,
    stop_postgres,
    kill_postgres,
    cut_valkey,
    pause_owner_within_a_transaction,
)
"""One of each kind, for the short form."""

ESCALATING: tuple[Disturbance, ...] = (
    kill_engine,
    kill_postgres,
    lose_the_answer_to_a_commit,
    kill_engine_while_valkey_is_full,
)
"""While ADL orders are open, for the short form."""

STREAM_KEPT: tuple[Disturbance, ...] = (
    kill_engine,
    stop_postgres,
    stop_postgres_at_once,
    kill_postgres,
    stop_valkey,
    pause_owner,
    pause_owner_within_a_transaction,
    kill_engine_without_postgres,
    lose_the_answer_to_a_commit,
    make_postgres_read_only,
    fill_valkey,
    kill_engine_while_valkey_is_full,
    trim_settled,
    delete_settled,
    replay_rejected,
)
"""What leaves the stream everything that was acknowledged."""

ALL: tuple[Disturbance, ...] = (
    *STREAM_KEPT,
    kill_valkey,
    cut_valkey,
    cut_valkey_under_a_paused_owner,
    everything_dies,
)


async def disturb(world: World, chance: random.Random, disturbance: Disturbance) -> None:
    """Lets something happen once all is well, and waits until all is well again."""
    await eventually("every partition is owned", world.all_owned)
    world.timeline.note(f"--- {disturbance.__name__}, with {await world.open_orders()} ADL orders open")
    await disturbance(world, chance)
    world.replace_ended()
    before = 0

    async def consuming() -> bool:
        nonlocal before
        world.replace_ended()
        before = before or await world.messages()
        return await world.messages() > before and await world.all_owned()

    seconds = await eventually("all partitions are owned and consumed again", consuming)
    world.timeline.note(f"consuming again after {seconds:.2f} s")


async def _owner(world: World, chance: random.Random) -> tuple[EngineProcess, dict[int, Owner]]:
    """A running engine that owns partitions, and these."""
    owners = await world.owners()
    by_name = {engine.name: engine for engine in world.engines}
    name = chance.choice(sorted({owner.engine for owner in owners.values()}, key=lambda name: by_name[name].number))
    return by_name[name], {partition: owner for partition, owner in owners.items() if owner.engine == name}


async def _moved(world: World, from_engine: str, held: dict[int, Owner]) -> bool:
    owners = await world.owners()
    return all(
        owners[partition].epoch > owner.epoch and owners[partition].engine != from_engine and owners[partition].live
        for partition, owner in held.items()
    )


async def _resume_once_lost(world: World, chance: random.Random, paused: EngineProcess, held: dict[int, Owner]) -> None:
    seconds = await eventually("a paused owner's partitions have another", lambda: _moved(world, paused.name, held))
    world.timeline.note(f"its partitions moved within {seconds:.2f} s")
    await asyncio.sleep(chance.uniform(0, 1))
    paused.resume()
    world.timeline.note(f"resumed {paused}")


async def _within_a_transaction(world: World, engine: EngineProcess) -> str:
    """What the paused engine's session was doing in a transaction that only the engine can end; "" if nothing."""
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
    lost = _cut(world.directory / "valkey", chance.randint(lost_bytes_max // 2, lost_bytes_max))
    world.timeline.note(f"killed Valkey; the last {lost} bytes of its file are lost")
    await asyncio.sleep(chance.uniform(0, 1))
    await world.start_servers(postgres=False)
    world.timeline.note("Valkey started")


def _cut(directory: Path, lost: int) -> int:
    """Cuts bytes off the newest append-only file; returns how many."""
    files = directory.glob("appendonlydir/*.incr.aof")
    newest = max(files, key=lambda path: int(re.search(r"\.(\d+)\.incr", path.name)[1]))
    size = newest.stat().st_size
    left = max(size // 2, size - lost)
    with newest.open("r+b") as file:
        file.truncate(left)
    return size - left
