"""A contract whose fund is exhausted: its market events, and the book of a service that never stopped."""

import random
from typing import NamedTuple

from ledgers import listing

from fundsvc.core.adl.records import AdlRecord, terms_of
from fundsvc.core.events import AdlEnd, AdlFill, Fill, Mark, Position, Rejection
from fundsvc.core.partition import Partition

SYMBOL = "XBTUSDTM"
LISTING = listing(SYMBOL, multiplier=0.001)
TS = 1_700_000_000_000


def mark(price, symbol=SYMBOL):
    return Mark(symbol, str(price), TS)


def position(account, lots, entry=40000, margin=100, symbol=SYMBOL):
    return Position(symbol, account, lots, str(entry), str(margin), TS)


def shortfall(seq, lots=100, price=38900, bankruptcy_price=39000, symbol=SYMBOL):
    """A long is closed at a price worse than its bankruptcy price: shorts are deleveraged."""
    return Fill(symbol, seq, "sell", lots, str(price), str(bankruptcy_price), TS, f"trade-{seq}")


def executed(seq, adl, account, lots):
    return AdlFill(SYMBOL, seq, adl, account, lots, TS)


def ended(seq, adl):
    return AdlEnd(SYMBOL, seq, adl, TS)


SHORTS = [
    position("secret-anna", -50, 41000, 10),
    position("secret-bert", -30, 40500, 10),
    position("secret-carl", -200, 39500, 100),
    position("secret-dora", -70, 38000, 100),
    position("secret-emil", -5, 39200, 1),
]
"""At the mark, dora has a loss."""

BEGINNING = [LISTING, mark(39000), position("secret-long", 300, 39500, 500), *SHORTS]


def crowd(seed, accounts=80, changes=400):
    """Positions that open, change and close, marks that move, and rejected events, which must have no effect."""
    chance = random.Random(seed)
    for _ in range(changes):
        name = f"account-{chance.randrange(accounts)}"
        lots = chance.choice((0, 1, -1)) * chance.randrange(1, 100)
        price = chance.randrange(38000, 42000)
        match chance.randrange(10):
            case 0:
                yield mark(price)
            case 1:
                yield position(name, 7, price, "1.123456789")
            case 2:
                yield position(name, 7, price, symbol="UNKNOWN")
            case _:
                yield position(name, lots, price, chance.randrange(1, 50))


def undisturbed(events):
    """Returns a partition that applied all events in order."""
    partition = Partition(0, 1, [], {"USDT": 8}, 10)
    for event in events:
        try:
            partition.apply(event)
        except Rejection:
            continue
    return partition


def ranks(book):
    """Returns each side in the order of rank, with all numbers of each rank."""
    return {
        name: [side.valued(int(row), book.mark) for row in side.ranking(book.mark).rows] for name, side in book.sides.items()
    }


class Allocated(NamedTuple):
    """The lots that a round requests of an account, and the account's rank."""

    adl: int
    round: int
    account: str
    rank: int
    ranked: int
    lots: int
    requested: int


def allocated(records):
    """Returns all allocations of rounds, from ADL records in their order."""
    rounds = (record for record in records if record.kind in ("order", "round", "part"))
    terms = ((record, terms_of(record.kind, record.body)) for record in rounds)
    return [
        Allocated(record.adl, record.round, account, rank, one.ranked, lots, requested)
        for record, one in terms
        for account, rank, lots, requested in zip(one.accounts, one.ranks, one.lots, one.requested, strict=True)
    ]


def records_of(batch):
    """Returns the ADL records of a batch."""
    return [sealed.record for sealed in batch.records]


async def written_records(connection):
    """Returns the ADL records in the database, by contract and number."""
    rows = await connection.fetch("SELECT * FROM adl_records ORDER BY symbol, record")
    return [AdlRecord(**{name: row[name] for name in AdlRecord.__struct_fields__}) for row in rows]
