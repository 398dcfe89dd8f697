"""What must be true in the end, whatever has happened in between."""

import json
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

from fundsvc.core.adl import AllocationState, OrderState
from fundsvc.core.chain import Entry
from fundsvc.core.events import Fill, Rejection
from fundsvc.core.settlement import FundState
from fundsvc.follower import Follower
from fundsvc.metrics import Metrics
from fundsvc.store.database import SQL, open_pool
from fundsvc.streams.client import Client
from fundsvc.streams.source import Source
from fundsvc.wire import Contents, Message, decode
from tests.crash.letters import NEVER_SETTLED, Letter
from tests.crash.oracle import Undisturbed, ranks
from tests.crash.world import PARTITIONS, World

_ROLLUPS = "SELECT * FROM rollups ORDER BY symbol, hour"


async def differences(world: World, client: Client, letters: Sequence[Letter], expected: Undisturbed) -> list[str]:
    """Everything that is not as it should be, in sentences."""
    return [
        *world.failures,
        *await _entries(world, expected),
        *await _funds(world, expected),
        *await _orders(world, expected),
        *await _allocations(world, expected),
        *await _ranks(world, client, expected),
        *await _rejected(world, client, letters),
        *await _audit(world, expected),
        *await _rollups(world),
    ]


async def _entries(world: World, expected: Undisturbed) -> list[str]:
    """Entry for entry and hash for hash: nothing lost, nothing twice, nothing else."""
    columns = ", ".join((*Entry.__struct_fields__, "hash"))
    found: dict[str, list[Any]] = {}
    for row in await world.fetch(f"SELECT {columns} FROM entries ORDER BY symbol, entry"):
        found.setdefault(row["symbol"], []).append((Entry(*list(row.values())[:-1]), row["hash"]))
    wrong = []
    for symbol in sorted({*found, *expected.lines}):
        ours, theirs = found.get(symbol, []), expected.lines.get(symbol, [])
        if ours != theirs:
            wrong += _unlike(f"entries of {symbol}", ours, theirs)
    return wrong


async def _funds(world: World, expected: Undisturbed) -> list[str]:
    rows = await world.fetch(SQL["funds"], None)
    found = {row["symbol"]: FundState(*(row[name] for name in FundState._fields)) for row in rows}
    return [
        f"fund {symbol}: {found.get(symbol)}, expected {expected.funds.get(symbol)}"
        for symbol in sorted({*found, *expected.funds})
        if found.get(symbol) != expected.funds.get(symbol)
    ]


async def _orders(world: World, expected: Undisturbed) -> list[str]:
    rows = await world.fetch(f"SELECT {', '.join(OrderState._fields)} FROM adl_orders ORDER BY symbol, adl")
    theirs = [order for _, orders in sorted(expected.orders.items()) for order in orders]
    return _unlike("ADL orders", [OrderState(*row) for row in rows], theirs)


async def _allocations(world: World, expected: Undisturbed) -> list[str]:
    """Whom each round asked for how much and why, and what was executed of it."""
    rows = await world.fetch(f"SELECT {', '.join(AllocationState._fields)} FROM adl_allocations")
    return _unlike("allocations", sorted(AllocationState(*row) for row in rows), sorted(expected.allocations))


async def _ranks(world: World, client: Client, expected: Undisturbed) -> list[str]:
    """The books as another process shows them: as they were kept, and what the streams hold since."""
    async with open_pool(world.servers.dsn, 2) as pool:
        follower = Follower(world.config, pool, client, Metrics())
        await follower.step()
    found = {view.contract.symbol: ranks(view.book) for view in follower.views()}
    return [
        difference
        for symbol, theirs in expected.ranks.items()
        for side, ours in enumerate(found.get(symbol, [[]] * len(theirs)))
        for difference in _unlike(f"ranks of {symbol}, {('longs', 'shorts')[side]}", ours, theirs[side])
    ]


def _unlike(what: str, ours: Sequence[Any], theirs: Sequence[Any]) -> list[str]:
    if ours == theirs:
        return []
    first = next(pair for pair in zip_longest(ours, theirs) if pair[0] != pair[1])
    return [f"{what}: {len(ours)}, expected {len(theirs)}; first difference {first}"]


async def _rejected(world: World, client: Client, letters: Sequence[Letter]) -> list[str]:
    """All garbage that a stream still has is kept, once; what is kept beyond that was sent and lost with a tail."""
    rows = await world.fetch("SELECT partition, stream_id, position, body, settled_at FROM rejected")
    kept = {(row["partition"], row["stream_id"], row["position"]): row["body"] for row in rows}
    surviving: dict[tuple[int, str, int], bytes] = {}
    ids: set[tuple[int, str]] = set()
    for partition in range(PARTITIONS):
        async for message in _stream(client, partition):
            ids.add((partition, message.stream_id))
            surviving |= {(partition, message.stream_id, position): body for position, body in _garbage(message)}
    world.timeline.note(f"{len(kept)} events rejected, {len(surviving)} of them still in the streams")
    sent = {raw for letter in letters for element in letter.elements if element.garbage for raw in _forms(letter, element)}
    wrong = [f"garbage {key} is not kept as it was sent" for key, body in surviving.items() if kept.get(key) != body]
    wrong += [f"{key} is rejected, but it was no garbage" for key in kept if key[:2] in ids and key not in surviving]
    wrong += [f"{key} is rejected, but was never sent" for key, body in kept.items() if key[:2] not in ids and body not in sent]
    wrong += [f"garbage {row['stream_id']} was settled" for row in rows if row["settled_at"]]
    return wrong


async def _stream(client: Client, partition: int) -> Any:
    source, last = Source(client, partition), "0-0"
    while messages := await source.read(last, 1000, 1):
        for message in messages:
            yield message
        last = messages[-1].stream_id


def _garbage(message: Message) -> Iterable[tuple[int, bytes]]:
    for position, event in enumerate(decode(message)):
        if isinstance(event, Rejection) or (isinstance(event, Fill) and event.seq == NEVER_SETTLED):
            yield position, Contents(message).raw(position)


def _forms(letter: Letter, element: Any) -> Iterable[bytes]:
    """The bytes under which a piece of garbage may be kept: its own, or the fields of a message that has no codec."""
    raw = element.raw(letter.field)
    return (raw, b"\x92" + b"\xc4\x03xml" + b"\xc4" + bytes([len(raw)]) + raw) if letter.field == "xml" else (raw,)


async def _audit(world: World, expected: Undisturbed) -> list[str]:
    code, output, error = await world.command("audit", "--json")
    if code:
        return [f"the audit ended with {code}: {output[-1500:]}{error[-1500:]}"]
    entries = sum(contract["entries"] for contract in json.loads(output)["contracts"])
    total = sum(map(len, expected.lines.values()))
    return [] if entries == total else [f"the audit recomputed {entries} entries of {total}"]


async def _rollups(world: World) -> list[str]:
    """The rollups that engines kept up through it all equal those made anew from the entries."""
    kept = await world.fetch(_ROLLUPS)
    code, _, error = await world.command("rebuild-rollups")
    rebuilt = await world.fetch(_ROLLUPS)
    if code or not kept:
        return [f"rebuild-rollups ended with {code}, {len(kept)} rollups before it: {error[-1000:]}"]
    return [] if kept == rebuilt else [f"{len(kept)} rollups differ from the {len(rebuilt)} rebuilt ones"]
