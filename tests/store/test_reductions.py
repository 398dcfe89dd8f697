"""The reductions of an account in their order: pages by number, and walks by place."""

import random
from datetime import UTC, datetime, timedelta
from itertools import groupby

import pytest
from ledgers import listing, owned

from fundsvc.core.adl.order import Reduced
from fundsvc.core.adl.records import reduced_body
from fundsvc.store.adl import FIRST_PLACE, LAST_PLACE, AdlReader
from fundsvc.store.database import open_pool

SYMBOLS, ORDERS = ("AAA", "BBB"), 8
BODY = reduced_body(Reduced(1, 1, 1, 1, 1, 1, 1))
TIMES = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=second) for second in range(20)]

INSERT_ORDER = """
    INSERT INTO adl_orders (symbol, adl, cause, reduce, lots, price, deficit, deficit_lots, uncovered, recovered, executed,
                            state, round, ts, seq, account, acknowledged, round_ms, policy_version, origin, unwound)
    VALUES ($1, $2, $2, 'long', 1, 1, 1, 1, 1, 0, 0, 'open', 1, 1, 1, '', true, 1, 1, 'shortfall', 0)
"""
INSERT_RECORD = """
    INSERT INTO adl_records (symbol, record, recorded_at, adl, round, account, lots, entry, kind, seq, ts, body, hash)
    VALUES ($1, $2, $3, $4, $5, $6, $7, 1, 'execution', 1, 1, $8, decode(repeat('00', 32), 'hex'))
"""


def executions(dice):
    """Returns rows of executions of two accounts. The contracts share times, and the clock of one goes back once."""
    for symbol in SYMBOLS:
        times = sorted(dice.choices(TIMES, k=60))
        times[30:] = [times[30] - timedelta(seconds=5), *times[31:]]
        for record, recorded_at in enumerate(times, 1):
            yield (
                symbol,
                record,
                recorded_at,
                dice.randint(1, ORDERS),
                dice.randint(1, 2),
                dice.choice("ab"),
                dice.randint(1, 5),
            )


def reduced(rows, account):
    """Returns the contract, order, round and lots of an account's reductions, in the order of their first executions."""
    own = sorted((row[0], *row[3:5], row[1], row[2], row[6]) for row in rows if row[5] == account)
    groups = [(key, list(group)) for key, group in groupby(own, lambda row: row[:3])]
    groups.sort(key=lambda item: (item[1][0][4], item[0][0], item[1][0][3]))
    return [(*key, sum(row[5] for row in group)) for key, group in groups]


def shown(row):
    return row.symbol, row.adl, row.round, row.executed


@pytest.mark.parametrize("seed", range(3))
async def test_pages_and_walks_have_the_same_reductions_in_the_order_of_their_first_executions(config, owner_connection, seed):
    rows = list(executions(random.Random(seed)))
    async with owned(config) as owner:
        await owner.settle(listing(symbol) for symbol in SYMBOLS)
    await owner_connection.executemany(INSERT_ORDER, [(symbol, adl) for symbol in SYMBOLS for adl in range(1, ORDERS + 1)])
    await owner_connection.executemany(INSERT_RECORD, [(*row, BODY) for row in rows])
    async with open_pool(config.database.dsn, 1) as pool:
        reader = AdlReader(pool)
        for account in "ab":
            expected = list(enumerate(reduced(rows, account), 1))
            for offset in range(len(expected) + 2):
                page = await reader.reductions_page(account, count=4, offset=offset, forward=True)
                assert [(number, shown(row)) for number, row in page] == expected[offset : offset + 4]
                page = await reader.reductions_page(account, count=4, offset=offset)
                assert [(number, shown(row)) for number, row in page] == expected[max(0, offset - 5) : max(0, offset - 1)][::-1]
            page = await reader.reductions_page(account, count=4)
            assert [(number, shown(row)) for number, row in page] == expected[-4:][::-1]
            upwards = await walked(lambda place, account=account: reader.reductions_after(account, place, 4), FIRST_PLACE)
            assert list(enumerate(upwards, 1)) == expected
            downwards = await walked(lambda place, account=account: reader.reductions_before(account, place, 4), LAST_PLACE)
            assert downwards == upwards[::-1]
            assert [shown(row) for row in await reader.latest_reductions(account, 6)] == downwards[:6]


async def walked(read, place):
    found = []
    while part := await read(place):
        found += [shown(each.row) for each in part]
        place = part[-1].place
    return found
