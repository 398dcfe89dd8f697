"""One side of an ADL book: ranking, allocation, look-up of an account, position updates.

Each is measured in turns with a bare numpy.argsort of as many float64. The fastest of several rounds counts for both, because
other processes can only add time.
"""

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal

import msgspec
import numpy as np
from report import Target, at_least, at_most, target_table
from rich.console import Console
from rich.table import Table

from fundsvc.core.adl.desk import AdlDesk
from fundsvc.core.adl.order import RoundRequest, RoundTerms
from fundsvc.core.adl.side import Side
from fundsvc.core.contracts import Contract
from fundsvc.core.events import Position
from fundsvc.core.fund.settlement import Fund
from fundsvc.core.numbers import format_units
from fundsvc.core.partition import Partition
from fundsvc.core.policy import Policy
from fundsvc.wire.codec import Codec, Message, decode, encode

CONTRACT = Contract(
    symbol="XBTUSDTM",
    settle_currency="USDT",
    settle_decimals=8,
    price_decimals=12,
    multiplier=Decimal("0.001"),
    is_inverse=False,
)
MARK = 40_000 * 10**12
TICK = 10**11
LEVERAGES = (1, 2, 3, 5, 10, 20)
LOTS_MAX = 100

ORDER_ACCOUNTS = 1000
"""Accounts of the order that the targets specify."""

TARGET_POSITIONS = 1_000_000

RANKING_MAX = 1.25
ALLOCATION_MAX = 0.2
LOOKUP_MS_MAX = 1.0
UPDATES_PER_SECOND_MIN = 300_000
BYTES_MAX = 100.0
"""Targets; the first two are multiples of the argsort."""

EVENTS_PER_MESSAGE = 100
UPDATES_MAX = 300_000
UPDATE_ROUNDS = 9
"""Rounds of updates of known accounts; the fastest counts."""


class SideResult(msgspec.Struct, kw_only=True):
    """Results for one number of positions. Times are in milliseconds; `bytes_each` is memory per position without its name.

    `ranking_ms` is for positions with nearly distinct scores, `ties_ms` for positions at a few prices and leverages. `queue_ms`
    and `pro_rata_ms` compute a round over 1,000 accounts with its inputs.
    """

    positions: int
    argsort_ms: float
    ranking_ms: float
    ties_ms: float
    tied: float
    first_ranking_ms: float
    queue_ms: float
    pro_rata_ms: float
    lookup_ms: float
    json_per_second: float
    msgpack_per_second: float
    bytes_each: float


class Results(msgspec.Struct, kw_only=True):
    """The results of one run."""

    numpy: str
    sides: list[SideResult]
    targets: list[Target]


def measure(numbers: Sequence[int], rounds: int, show_progress: Callable[[str], None]) -> Results:
    """Measures sides with the given numbers of positions."""
    sides = [_measure(positions, rounds, show_progress) for positions in numbers]
    return Results(numpy=np.__version__, sides=sides, targets=[target for side in sides for target in _judge(side)])


def _measure(positions: int, rounds: int, show_progress: Callable[[str], None]) -> SideResult:
    show_progress(f"{positions:,} positions: memory")
    events = _events(positions, ties=False)
    bytes_each = _bytes_each(events)
    desk, tied_desk = _desk(events), _desk(_events(positions, ties=True))
    side, tied = desk.book.sides["long"], tied_desk.book.sides["long"]
    show_progress(f"{positions:,} positions: ranking")
    first_ranking_ms = 1000 * min(_seconds(lambda: side.ranking(MARK)), _seconds(lambda: tied.ranking(MARK)))
    accounts = min(ORDER_ACCOUNTS, len(side.leaders(MARK, ORDER_ACCOUNTS).rows))
    lots = int(side.lots_of(side.leaders(MARK, accounts).rows).sum())
    values = np.random.default_rng(1).random(positions)
    marks = iter(range(MARK + TICK, 2 * MARK, TICK))
    policy, pro_rata = Policy(), Policy(allocation="pro_rata")
    argsort, ranking, ties, queue, shared = _fastest(
        rounds,
        lambda: np.argsort(values),
        lambda: side.ranking(next(marks)),
        lambda: tied.ranking(next(marks)),
        lambda: _allocate(desk, next(marks), lots, policy),
        lambda: _allocate(desk, next(marks), accounts, pro_rata),
    )
    names = side.accounts[:: max(1, positions // 100)]
    side.ranking(MARK)
    (lookup,) = _fastest(rounds, lambda: [side.rank_of(name, MARK) for name in names])
    show_progress(f"{positions:,} positions: updates")
    return SideResult(
        positions=positions,
        argsort_ms=argsort,
        ranking_ms=ranking,
        ties_ms=ties,
        tied=_tied(tied),
        first_ranking_ms=first_ranking_ms,
        queue_ms=queue,
        pro_rata_ms=shared,
        lookup_ms=lookup / len(names),
        json_per_second=_updates_per_second(events, "json", rounds),
        msgpack_per_second=_updates_per_second(events, "msgpack", rounds),
        bytes_each=bytes_each,
    )


def _allocate(desk: AdlDesk, mark: int, lots: int, policy: Policy) -> RoundTerms:
    """Computes the first round of an order at a new mark, with the inputs that explain it."""
    desk.book.mark = mark
    return desk.terms(RoundRequest("long", lots, mark, ""), policy)


def _events(positions: int, *, ties: bool) -> list[Position]:
    """Returns longs with entries within 5 % of the mark and margins above their loss; with `ties`, at whole prices and round
    leverages.
    """
    random = np.random.default_rng(7)
    ticks = random.integers(-20_000, 20_000, positions)
    prices = (MARK + (ticks - ticks % 100 if ties else ticks) * TICK).tolist()
    lots = random.integers(1, LOTS_MAX, positions).tolist()
    leverages = random.choice(LEVERAGES, positions).tolist()
    surplus = (np.zeros(positions) if ties else random.random(positions)).tolist()
    names = [f"{number:012x}" for number in random.permutation(positions).tolist()]
    numerator, denominator = CONTRACT.value_factor()
    return [
        Position(
            CONTRACT.symbol,
            name,
            held,
            format_units(price, CONTRACT.price_decimals),
            format_units(int(price * held * numerator / denominator / leverage * (1 + more)), CONTRACT.settle_decimals),
            1_700_000_000_000,
        )
        for name, held, price, leverage, more in zip(names, lots, prices, leverages, surplus, strict=True)
    ]


def _desk(events: Sequence[Position]) -> AdlDesk:
    """Returns a contract's desk with these positions, at the mark."""
    partition = _partition()
    for event in events:
        partition.apply(event)
    market = partition.market(CONTRACT.symbol)
    assert market is not None
    assert market.book is not None
    desk = AdlDesk(CONTRACT, Policy())
    desk.book = market.book
    desk.book.mark = MARK
    return desk


def _partition() -> Partition:
    return Partition(0, 1, [Fund(CONTRACT)], {}, CONTRACT.settle_decimals)


def _bytes_each(events: Sequence[Position]) -> float:
    """Returns the allocated bytes per position of a book and its ranking; the names are shared with the events."""
    gc.collect()
    tracemalloc.start()
    desk = _desk(events)
    desk.book.sides["long"].ranking(MARK)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held / len(events)


def _tied(side: Side) -> float:
    """Returns the share of ranked positions with a score that another position has too."""
    ranking = side.ranking(MARK)
    scores = ranking.keys >> 24
    return 1 - len(np.unique(scores)) / len(scores)


def _updates_per_second(events: Sequence[Position], codec: Codec, rounds: int) -> float:
    """Returns updates per second of known accounts in random order, through decoder and partition like in the pipeline."""
    partition = _partition()
    for event in events:
        partition.apply(event)
    shuffled = np.random.default_rng(3).permutation(max(len(events), EVENTS_PER_MESSAGE)).tolist()
    sent = [events[index % len(events)] for index in shuffled[:UPDATES_MAX]]
    parts = range(0, len(sent), EVENTS_PER_MESSAGE)
    messages = [Message("0-1", codec, encode(sent[first : first + EVENTS_PER_MESSAGE], codec)) for first in parts]
    messages *= max(1, UPDATES_MAX // len(sent))

    def settle() -> None:
        apply = partition.apply
        for message in messages:
            events = decode(message)
            partition.prefetch(events)
            for event in events:
                apply(event)

    gc.collect()
    gc.freeze()
    updates = len(sent) * (len(messages) // len(parts))
    return updates / min(_seconds(settle) for _ in range(min(rounds, UPDATE_ROUNDS)))


def _fastest(rounds: int, *works: Callable[[], object]) -> list[float]:
    """Returns the shortest time of each function in milliseconds; the functions take turns."""
    taken = [[_seconds(work) for work in works] for _ in range(rounds)]
    return [1000 * min(times) for times in zip(*taken, strict=True)]


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _judge(side: SideResult) -> Iterator[Target]:
    """Compares the results for a million positions with the targets."""
    if side.positions != TARGET_POSITIONS:
        return
    for name, milliseconds, most in (
        ("ranking / argsort", side.ranking_ms, RANKING_MAX),
        ("ranking with ties / argsort", side.ties_ms, RANKING_MAX),
        ("allocation over 1,000 accounts / argsort", side.queue_ms, ALLOCATION_MAX),
    ):
        yield at_most(name, milliseconds / side.argsort_ms, most, "{:.2f}")
    yield at_most("one account's rank and lights, ms", side.lookup_ms, LOOKUP_MS_MAX, "{:.3f}")
    for name, measured in (("JSON", side.json_per_second), ("MessagePack", side.msgpack_per_second)):
        yield at_least(f"position updates/s, {name}", measured, UPDATES_PER_SECOND_MIN, "{:,.0f}")
    yield at_most("bytes per ranked position without its name", side.bytes_each, BYTES_MAX, "{:.0f}")


def _relative(name: str) -> Callable[[SideResult], str]:
    """Formats a time and its multiple of the argsort."""
    return lambda side: f"{getattr(side, name):.2f} ({getattr(side, name) / side.argsort_ms:.2f})"


_ROWS: tuple[tuple[str, Callable[[SideResult], str]], ...] = (
    ("numpy.argsort of as many float64", lambda side: f"{side.argsort_ms:.2f}"),
    ("ranking after a new mark", _relative("ranking_ms")),
    ("the same with ties", _relative("ties_ms")),
    ("  share of positions tied", lambda side: f"{side.tied:.0%}"),
    ("first ranking, which sorts names", _relative("first_ranking_ms")),
    ("allocation over 1,000 accounts after a new mark", _relative("queue_ms")),
    ("pro rata over 1,000 accounts after a new mark", _relative("pro_rata_ms")),
    ("one account's rank and lights", lambda side: f"{side.lookup_ms:.4f}"),
    ("position updates/s, JSON", lambda side: f"{side.json_per_second:,.0f}"),
    ("position updates/s, MessagePack", lambda side: f"{side.msgpack_per_second:,.0f}"),
    ("bytes per position without its name", lambda side: f"{side.bytes_each:.1f}"),
)


def show(results: Results, console: Console) -> None:
    """Prints the tables."""
    table = Table("", title=f"One side of a book, ms (numpy {results.numpy})", title_justify="left")
    for side in results.sides:
        table.add_column(f"{side.positions:,}", justify="right")
    for name, cell in _ROWS:
        table.add_row(name, *map(cell, results.sides))
    console.print(table)
    if results.targets:
        console.print(target_table(results.targets))
