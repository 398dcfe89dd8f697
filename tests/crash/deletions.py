"""Disturbances that remove messages: settled ones, which no process needs, and unsettled ones, which halt a partition."""

import asyncio
import json
import random

from fundsvc.store.gaps import KnownGap
from fundsvc.streams.client import StreamClient, open_client, stream_key
from fundsvc.streams.source import id_order
from tests.crash.world import World, eventually

BACKLOG_SECONDS = 0.7
"""Engines pause for this time, so that unsettled messages exist; shorter than a lease."""


async def trim_settled(world: World, chance: random.Random) -> None:
    """Trims settled messages that no book needs, like an operator that frees memory."""
    async with open_client(world.config.stream) as client:
        for partition, settled in (await _needed_from(world)).items():
            dropped = await client.xtrim(stream_key(partition), minid=settled, approximate=False)
            world.timeline.note(f"trimmed {dropped} settled messages of partition {partition}")


async def delete_settled(world: World, chance: random.Random) -> None:
    """Deletes single settled messages at random places."""
    async with open_client(world.config.stream) as client:
        for partition, settled in (await _needed_from(world)).items():
            ids = [stream_id for stream_id, _ in await client.xrange(stream_key(partition), max=settled)]
            chosen = chance.sample(ids, min(len(ids), 20))
            if chosen:
                await client.xdel(stream_key(partition), *chosen)
            world.timeline.note(f"deleted {len(chosen)} settled messages of partition {partition}")


async def lose_unsettled(world: World, chance: random.Random) -> None:
    """Trims or deletes the unsettled end of each stream, and acknowledges the gaps as an operator does.

    The exchange resends from the cursor. Until then it sends nothing: the engine would settle later messages before the lost
    ones.
    """
    known = {gap for gaps in (await _gaps(world)).values() for gap in gaps}
    async with open_client(world.config.stream) as client:
        for engine in world.engines:
            engine.pause()
        await asyncio.sleep(BACKLOG_SECONDS)
        async with world.sending:
            offsets = {
                row["partition"]: row["last_id"] for row in await world.fetch("SELECT partition, last_id FROM partitions")
            }
            lost = {partition: await _lose(client, chance, partition, offset) for partition, offset in offsets.items()}
            world.resend.set()
        for engine in world.engines:
            engine.resume()
    counts = {partition: len(ids) for partition, ids in lost.items()}
    world.timeline.note(f"unsettled messages are lost, by partition: {counts}")
    await asyncio.gather(*(_acknowledge(world, partition, ids, known) for partition, ids in lost.items() if ids))


async def _lose(client: StreamClient, chance: random.Random, partition: int, offset: str) -> list[str]:
    """Trims all unsettled messages, or deletes all or the second half of them; returns the removed ids."""
    key = stream_key(partition)
    ids = [stream_id.decode() for stream_id, _ in await client.xrange(key, min=f"({offset}")]
    method = chance.choice(("trim", "delete", "half"))
    lost = ids[len(ids) // 2 :] if method == "half" else ids
    if method == "trim":
        await client.xtrim(key, maxlen=0, approximate=False)
    elif lost:
        await client.xdel(key, *lost)
    return lost


async def _acknowledge(world: World, partition: int, ids: list[str], known: set[KnownGap]) -> None:
    """Waits until the partition halts, unless the engine had read the messages before; acknowledges the gap."""

    async def halted_or_past() -> bool:
        (row,) = await world.fetch("SELECT halted, last_id FROM partitions WHERE partition = $1", partition)
        return bool(row["halted"]) or id_order(row["last_id"]) >= id_order(ids[-1])

    seconds = await eventually("the engine finds a gap, or had read the messages before", halted_or_past)
    found = set((await _gaps(world)).get(partition, ())) - known
    if not found:
        world.timeline.note(f"the owner of partition {partition} had read them")
        return
    world.timeline.note(f"partition {partition} is halted after {seconds:.2f} s: {found}")
    _check(world, partition, ids, found)
    code, output, error = await world.command("stream", "acknowledge-gap", str(partition), "--json")
    if code or len(json.loads(output)) != 1:
        world.failures.append(f"acknowledge-gap {partition} ended with {code}: {output}{error}")
    await eventually("the partition continues", lambda: _continues(world, partition))
    again = set((await _gaps(world)).get(partition, ())) - known
    if len(again) != 1:
        world.failures.append(f"one gap of partition {partition} is reported as {again}")


def _check(world: World, partition: int, ids: list[str], found: set[KnownGap]) -> None:
    """Checks that one gap is reported, up to the last lost id and with no more messages than were lost."""
    (gap,) = found if len(found) == 1 else (None,)
    if gap is None or not 1 <= gap.messages <= len(ids) or id_order(gap.until_id) < id_order(ids[-1]):
        world.failures.append(f"{len(ids)} messages up to {ids[-1]} of partition {partition} are lost, reported as {found}")


async def _continues(world: World, partition: int) -> bool:
    (row,) = await world.fetch("SELECT halted FROM partitions WHERE partition = $1", partition)
    return not row["halted"]


async def _gaps(world: World) -> dict[int, list[KnownGap]]:
    """Returns the recorded gaps, by partition, without their acknowledgement."""
    found: dict[int, list[KnownGap]] = {}
    for row in await world.fetch("SELECT partition, after_id, until_id, messages FROM stream_gaps"):
        partition, *gap = row.values()
        found.setdefault(partition, []).append(KnownGap(*gap, None))
    return found


async def _needed_from(world: World) -> dict[int, str]:
    """Returns the first id that each partition still needs, for settlement or for a book."""
    partitions = await world.fetch("SELECT partition, last_id FROM partitions")
    books = await world.fetch("SELECT c.partition, b.last_id FROM contracts c LEFT JOIN books b USING (symbol)")
    needed: dict[int, list[str]] = {row["partition"]: [row["last_id"]] for row in partitions}
    for row in books:
        needed[row["partition"]].append(row["last_id"] or "0-0")
    return {partition: min(ids, key=id_order) for partition, ids in needed.items()}
