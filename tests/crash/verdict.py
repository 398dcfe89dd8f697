"""Compares the ledger with the expected one after all disturbances."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from fundsvc.core.adl.order import OrderState
from fundsvc.core.adl.records import AdlRecord
from fundsvc.core.events import Reason
from fundsvc.core.fund.chain import Entry
from fundsvc.core.fund.inventory import HoldingState, TrancheState
from fundsvc.core.fund.settlement import Closing
from fundsvc.metrics import Metrics
from fundsvc.readmodel.adl_books import AdlBooks
from fundsvc.store.database import SQL, open_pool
from fundsvc.store.exports import fund_state_from
from fundsvc.store.writer import holding_from
from fundsvc.streams.client import StreamClient
from fundsvc.streams.source import Source
from fundsvc.wire.codec import Contents, Message
from tests.crash.letters import UNREADABLE, Element, Letter
from tests.crash.oracle import Undisturbed, ranks, without_times
from tests.crash.world import PARTITIONS, World

EventId = tuple[int, str, int]
"""Partition, id of the message, and position in the message."""

_ROLLUPS = "SELECT * FROM rollups ORDER BY symbol, hour"


async def differences(world: World, client: StreamClient, letters: Sequence[Letter], expected: Undisturbed) -> list[str]:
    """Returns a description of each difference and failure."""
    return [
        *world.failures,
        *await _entries(world, expected),
        *await _funds(world, expected),
        *await _orders(world, expected),
        *await _records(world, expected),
        *await _inventories(world, expected),
        *await _closings(world, expected),
        *await _ranks(world, client, expected),
        *await _rejected(world, client, letters),
        *await _audit(world, expected),
        *await _rollups(world),
    ]


async def _entries(world: World, expected: Undisturbed) -> list[str]:
    """Compares all entries and hashes."""
    columns = ", ".join((*Entry.__struct_fields__, "hash"))
    found: dict[str, list[Any]] = {}
    for row in await world.fetch(f"SELECT {columns} FROM entries ORDER BY symbol, entry"):
        found.setdefault(row["symbol"], []).append((Entry(*list(row.values())[:-1]), row["hash"]))
    wrong = []
    for symbol in sorted({*found, *expected.lines}):
        ours, theirs = found.get(symbol, []), expected.lines.get(symbol, [])
        if ours != theirs:
            wrong += _difference(f"entries of {symbol}", ours, theirs)
    return wrong


async def _funds(world: World, expected: Undisturbed) -> list[str]:
    rows = await world.fetch(SQL["funds"], None)
    found = {row["symbol"]: fund_state_from(row) for row in rows}
    return [
        f"fund {symbol}: {found.get(symbol)}, expected {expected.funds.get(symbol)}"
        for symbol in sorted({*found, *expected.funds})
        if found.get(symbol) != expected.funds.get(symbol)
    ]


async def _orders(world: World, expected: Undisturbed) -> list[str]:
    rows = await world.fetch(f"SELECT {', '.join(OrderState._fields)} FROM adl_orders ORDER BY symbol, adl")
    theirs = [order for _, orders in sorted(expected.orders.items()) for order in orders]
    return _difference("ADL orders", [without_times(OrderState(*row)) for row in rows], theirs)


async def _records(world: World, expected: Undisturbed) -> list[str]:
    """Compares all ADL records and hashes: the lots and ranks of each round, and the executions."""
    columns = ", ".join((*AdlRecord.__struct_fields__, "hash"))
    found: dict[str, list[tuple[AdlRecord, bytes]]] = {}
    for row in await world.fetch(f"SELECT {columns} FROM adl_records ORDER BY symbol, record"):
        *values, digest = row.values()
        found.setdefault(row["symbol"], []).append((AdlRecord(*values), digest))
    symbols = sorted({*found, *expected.records})
    return [
        difference
        for symbol in symbols
        for difference in _difference(f"ADL records of {symbol}", found.get(symbol, []), expected.records.get(symbol, []))
    ]


async def _inventories(world: World, expected: Undisturbed) -> list[str]:
    """Compares all tranches and sides of inventories."""
    tranches = await world.fetch(f"SELECT {', '.join(TrancheState._fields)} FROM tranches")
    holdings = await world.fetch(f"SELECT {', '.join(HoldingState._fields)} FROM holdings ORDER BY symbol, side")
    return [
        *_difference("tranches", sorted(TrancheState(*row) for row in tranches), expected.tranches),
        *_difference("sides of inventories", [holding_from(row) for row in holdings], expected.holdings),
    ]


async def _closings(world: World, expected: Undisturbed) -> list[str]:
    """Compares which contracts are closed, and by which settlement."""
    rows = await world.fetch("SELECT symbol, closed_at, closed_seq, closed_price FROM contracts WHERE closed_at IS NOT NULL")
    found = {symbol: Closing(*closing) for symbol, *closing in rows}
    return [] if found == expected.closings else [f"closed contracts: {found}, expected {expected.closings}"]


async def _ranks(world: World, client: StreamClient, expected: Undisturbed) -> list[str]:
    """Compares the books as a read-only process builds them: from the saved books and the later messages."""
    async with open_pool(world.servers.dsn, 2) as pool:
        books = AdlBooks(world.config, pool, client, Metrics())
        await books.step()
    found = {view.contract.symbol: ranks(view.book) for view in books.views()}
    return [
        difference
        for symbol, theirs in expected.ranks.items()
        for side, ours in enumerate(found.get(symbol, [[]] * len(theirs)))
        for difference in _difference(f"ranks of {symbol}, {('longs', 'shorts')[side]}", ours, theirs[side])
    ]


def _difference(what: str, ours: Sequence[Any], theirs: Sequence[Any]) -> list[str]:
    if ours == theirs:
        return []
    first = next(pair for pair in zip_longest(ours, theirs) if pair[0] != pair[1])
    return [f"{what}: {len(ours)}, expected {len(theirs)}; first difference {first}"]


async def _rejected(world: World, client: StreamClient, letters: Sequence[Letter]) -> list[str]:
    """Checks the rejected events: all garbage in the streams is kept once, with an expected reason.

    All other rejected events were sent, and are no longer in the stream.
    """
    rows = await world.fetch("SELECT partition, stream_id, position, reason, body, settled_at FROM rejected")
    kept = {(row["partition"], row["stream_id"], row["position"]): row["body"] for row in rows}
    garbage = reasons_of(letters)
    provisional = _sent(letters, lambda element: element.provisional)
    kept_once = _sent(letters, lambda element: element.rejected_by_seq) & set(kept.values())
    surviving: dict[EventId, bytes] = {}
    rejectable: set[EventId] = set()
    ids: set[tuple[int, str]] = set()
    for partition in range(PARTITIONS):
        async for message in _stream(client, partition):
            ids.add((partition, message.stream_id))
            bodies = {(partition, message.stream_id, position): body for position, body in _bodies(message)}
            surviving |= {event_id: body for event_id, body in bodies.items() if reasons_for(body, garbage)}
            rejectable |= {event_id for event_id, body in bodies.items() if body in provisional}
    counts = dict(Counter(row["reason"] for row in rows))
    world.timeline.note(f"{len(kept)} events rejected, {len(surviving)} of them still in the streams: {counts}")
    known = surviving.keys() | rejectable
    wrong = [
        f"garbage {event_id} is not kept with its bytes: {body[:500]!r}"
        for event_id, body in surviving.items()
        if kept.get(event_id) != body and body not in kept_once
    ]
    wrong += [
        f"{event_id} is rejected, but is not garbage: {kept[event_id][:500]!r}"
        for event_id in kept
        if event_id[:2] in ids and event_id not in known
    ]
    wrong += [
        f"{event_id} is rejected, but was never sent"
        for event_id, body in kept.items()
        if event_id[:2] not in ids and not reasons_for(body, garbage) and body not in provisional
    ]
    wrong += [f"garbage {row['stream_id']} was settled" for row in rows if row["settled_at"]]
    wrong += [
        f"{row['body'][:500]!r} is rejected with {row['reason']}, expected one of {sorted(reasons)}"
        for row in rows
        if (reasons := reasons_for(row["body"], garbage)) and row["reason"] not in reasons
    ]
    return wrong


async def _stream(client: StreamClient, partition: int) -> Any:
    source, last = Source(client, partition), "0-0"
    while messages := await source.read(last, 1000, 1):
        for message in messages:
            yield message
        last = messages[-1].stream_id


def _bodies(message: Message) -> Iterable[tuple[int, bytes]]:
    """Yields the events of a message with their positions; none for a replay, whose event has an id already."""
    if not message.replay_of:
        contents = Contents(message)
        for position in range(contents.size):
            yield position, contents.raw(position)


def reasons_for(body: bytes, garbage: Mapping[bytes, frozenset[Reason]]) -> frozenset[Reason]:
    """Returns the reasons with which bytes may be kept; none if they are not garbage.

    The API appends the invalid lines of a body as one message, which is kept whole.
    """
    if body in garbage:
        return garbage[body]
    return UNREADABLE if all(line in garbage for line in body.split(b"\n")) else frozenset()


def reasons_of(letters: Sequence[Letter]) -> dict[bytes, frozenset[Reason]]:
    """Returns the bytes of all garbage as they may be kept, with the reasons."""
    found: dict[bytes, frozenset[Reason]] = {}
    for letter in letters:
        for element in letter.elements:
            for raw in _forms(letter, element) if element.garbage else ():
                found[raw] = found.get(raw, frozenset()) | element.reasons
    return found


def _sent(letters: Sequence[Letter], chosen: Callable[[Element], bool]) -> set[bytes]:
    """Returns the bytes of the chosen elements as they may be kept."""
    return {raw for letter in letters for element in letter.elements if chosen(element) for raw in _forms(letter, element)}


def _forms(letter: Letter, element: Element) -> Iterable[bytes]:
    """Returns an element's bytes, and for a message without a codec also its fields."""
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
    """Compares the rollups of the engines with those rebuilt from the entries."""
    kept = await world.fetch(_ROLLUPS)
    code, _, error = await world.command("rebuild-rollups")
    rebuilt = await world.fetch(_ROLLUPS)
    if code or not kept:
        return [f"rebuild-rollups ended with {code}, {len(kept)} rollups before it: {error[-1000:]}"]
    return [] if kept == rebuilt else [f"{len(kept)} rollups differ from the {len(rebuilt)} rebuilt ones"]
