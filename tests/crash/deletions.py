"""Messages that leave a stream: settled ones, which nobody misses, and unsettled ones, which halt a partition."""

import asyncio
import json
import random

from fundsvc.store.gaps import KnownGap
from fundsvc.streams.client import Client, open_client, stream_key
from fundsvc.streams.source import id_order
from tests.crash.world import World, eventually

BACKLOG_SECONDS = 0.7
"""For so long nothing is read, so that there is something unsettled; shorter than a lease."""


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


async def lose_unsettled(world: World, chance: random.Random) -> None:
    """Trims or deletes the end of each stream, of which nothing is settled, and acknowledges the gaps as an operator does.

    The exchange sends again from the cursor. It sends nothing between the loss and that: what came after a gap would be
    settled before what was in it.
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


async def _lose(client: Client, chance: random.Random, partition: int, offset: str) -> list[str]:
    """Trims all that is not settled, or deletes all or the second half of it; returns the ids."""
    key = stream_key(partition)
    ids = [stream_id.decode() for stream_id, _ in await client.xrange(key, min=f"({offset}")]
    how = chance.choice(("trim", "delete", "half"))
    lost = ids[len(ids) // 2 :] if how == "half" else ids
    if how == "trim":
        await client.xtrim(key, maxlen=0, approximate=False)
    elif lost:
        await client.xdel(key, *lost)
    return lost


async def _acknowledge(world: World, partition: int, ids: list[str], known: set[KnownGap]) -> None:
    """Waits until the partition is halted, unless it had read all of it before; lets it go on."""

    async def halted_or_past() -> bool:
        (row,) = await world.fetch("SELECT halted, last_id FROM partitions WHERE partition = $1", partition)
        return bool(row["halted"]) or id_order(row["last_id"]) >= id_order(ids[-1])

    seconds = await eventually("a gap is found, or was read before", halted_or_past)
    found = set((await _gaps(world)).get(partition, ())) - known
    if not found:
        world.timeline.note(f"partition {partition} had read them")
        return
    world.timeline.note(f"partition {partition} is halted after {seconds:.2f} s: {found}")
    _check(world, partition, ids, found)
    code, output, error = await world.command("stream", "acknowledge-gap", str(partition), "--json")
    if code or len(json.loads(output)) != 1:
        world.failures.append(f"acknowledge-gap {partition} ended with {code}: {output}{error}")
    await eventually("the partition goes on", lambda: _goes_on(world, partition))
    again = set((await _gaps(world)).get(partition, ())) - known
    if len(again) != 1:
        world.failures.append(f"one gap of partition {partition} is reported as {again}")


def _check(world: World, partition: int, ids: list[str], found: set[KnownGap]) -> None:
    """A gap is reported once, with its ids and not more messages than were lost."""
    (gap,) = found if len(found) == 1 else (None,)
    if gap is None or not 1 <= gap.messages <= len(ids) or id_order(gap.until_id) < id_order(ids[-1]):
        world.failures.append(f"{len(ids)} messages up to {ids[-1]} of partition {partition} are lost, reported as {found}")


async def _goes_on(world: World, partition: int) -> bool:
    (row,) = await world.fetch("SELECT halted FROM partitions WHERE partition = $1", partition)
    return not row["halted"]


async def _gaps(world: World) -> dict[int, list[KnownGap]]:
    """The gaps found so far, as they were found."""
    found: dict[int, list[KnownGap]] = {}
    for row in await world.fetch("SELECT partition, after_id, until_id, messages FROM stream_gaps"):
        partition, *gap = row.values()
        found.setdefault(partition, []).append(KnownGap(*gap, None))
    return found


async def _needed_from(world: World) -> dict[int, str]:
    """The id from which on each partition's stream is still needed, to be settled or for a book."""
    partitions = await world.fetch("SELECT partition, last_id FROM partitions")
    books = await world.fetch("SELECT c.partition, b.last_id FROM contracts c LEFT JOIN books b USING (symbol)")
    needed: dict[int, list[str]] = {row["partition"]: [row["last_id"]] for row in partitions}
    for row in books:
        needed[row["partition"]].append(row["last_id"] or "0-0")
    return {partition: min(ids, key=id_order) for partition, ids in needed.items()}
