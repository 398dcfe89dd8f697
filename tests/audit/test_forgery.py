"""The audit finds forged money although every hash is valid: the owner of the database seals the forged chains again."""

import msgspec
import pytest
from forging import seal, unlock
from test_tampering import SYMBOL, differences, ledger, pool  # noqa: F401 - fixtures

from fundsvc.core.adl.records import OrderBody, Reduced

ENTRIES = {
    "a larger refund": "UPDATE entries SET change = change + 5, balance = balance + 5 WHERE kind = 'refund'",
    "a smaller refund": "UPDATE entries SET change = change - 1, balance = balance - 1 WHERE kind = 'refund'",
    "a refund to another order": "UPDATE entries SET order_id = 'adl/2' WHERE kind = 'refund'",
    "a larger cover": "UPDATE entries SET change = change - 1, balance = balance - 1, repaid = repaid + 1 WHERE kind = 'cover'",
    "a cover that repays nothing": "UPDATE entries SET repaid = 0 WHERE kind = 'cover'",
    "a cover of another order": "UPDATE entries SET order_id = 'adl/1' WHERE kind = 'cover'",
    "a surplus that repays nothing": (
        "UPDATE entries SET change = change + repaid, balance = balance + repaid, repaid = 0"
        " WHERE kind = 'surplus' AND repaid > 0"
    ),
    "a shortfall that pays less": (
        "UPDATE entries SET change = change + 1, uncovered = uncovered + 1, balance = balance + 1"
        " WHERE entry = (SELECT min(entry) FROM entries WHERE kind = 'shortfall' AND change < 0)"
    ),
    "a better price": "UPDATE entries SET price = price * 2 WHERE entry = 1",
}  # fmt: skip

ROWS = {
    "erased outstanding": ["UPDATE funds SET outstanding = 0"],
    "erased outstanding that was recovered": [
        "UPDATE adl_orders SET recovered = uncovered WHERE state = 'uncovered'",
        "UPDATE funds SET outstanding = 0",
    ],
    "outstanding that is repaid": [
        "UPDATE entries SET repaid = repaid + 1 WHERE entry = 1", "UPDATE funds SET outstanding = outstanding - 1"
    ],
    "another currency": ["UPDATE contracts SET settle_currency = 'USDC'"],
    "another currency, listed": [
        "UPDATE contracts SET settle_currency = 'USDC', specification = '{}'::json",
    ],
    "another scale of money": ["UPDATE contracts SET settle_decimals = settle_decimals - 1"],
    "another partition": ["UPDATE contracts SET partition = partition + 1"],
    "another price of an order": ["UPDATE adl_orders SET price = price + 1 WHERE adl = 1"],
    "another deficit of an order": ["UPDATE adl_orders SET deficit = deficit + 1 WHERE adl = 1"],
    "another cause of an order": ["UPDATE adl_orders SET cause = 1 WHERE adl = 1"],
    "a guard that forgot": ["UPDATE funds SET guard = NULL"],
}  # fmt: skip

BODIES = {
    "another price in an order's record": ("order", OrderBody, {"price": 1}),
    "another deficit in an order's record": ("order", OrderBody, {"deficit": 1}),
    "another cause in an order's record": ("order", OrderBody, {"cause": 1}),
    "other lots in an order's record": ("order", OrderBody, {"lots": 1}),
    "another side in an order's record": ("order", OrderBody, {"reduce": "long"}),
}


def of_symbol(statement):
    return f"{statement}{' AND' if ' WHERE ' in statement else ' WHERE'} symbol = '{SYMBOL}'"


@pytest.mark.parametrize("what", ENTRIES)
async def test_audit_finds_a_forged_entry(ledger, pool, owner_connection, what):  # noqa: F811
    await unlock(owner_connection)
    changed = await owner_connection.execute(of_symbol(ENTRIES[what]))
    assert changed != "UPDATE 0"
    await rebalance(owner_connection)
    await seal(owner_connection, SYMBOL)
    found = await differences(pool)
    assert found
    assert not any("hash" in difference for difference in found), found


async def rebalance(connection):
    """Makes every balance the sum of the changes."""
    await connection.execute(
        "UPDATE entries e SET balance = s.balance"
        " FROM (SELECT symbol, entry, sum(change) OVER (PARTITION BY symbol ORDER BY entry) AS balance FROM entries) s"
        " WHERE (s.symbol, s.entry) = (e.symbol, e.entry)"
    )


@pytest.mark.parametrize("what", ROWS)
async def test_audit_finds_a_forged_row(ledger, pool, owner_connection, what):  # noqa: F811
    await unlock(owner_connection)
    for statement in ROWS[what]:
        assert await owner_connection.execute(of_symbol(statement)) != "UPDATE 0"
    await seal(owner_connection, SYMBOL)
    assert await differences(pool)


@pytest.mark.parametrize("what", BODIES)
async def test_audit_finds_a_forged_record_that_agrees_with_its_order(ledger, pool, owner_connection, what):  # noqa: F811
    kind, form, fields = BODIES[what]
    await unlock(owner_connection)
    row = await owner_connection.fetchrow("SELECT record, adl, body FROM adl_records WHERE kind = $1 AND adl = 1", kind)
    forged = msgspec.structs.replace(msgspec.msgpack.decode(row["body"], type=form), **fields)
    body = msgspec.msgpack.encode(forged)
    assert body != row["body"]
    await owner_connection.execute("UPDATE adl_records SET body = $1 WHERE record = $2", body, row["record"])
    for name, value in fields.items():
        await owner_connection.execute(f"UPDATE adl_orders SET {name} = $1 WHERE adl = 1", value)
    await seal(owner_connection, SYMBOL)
    assert await differences(pool)


@pytest.mark.parametrize("lots", [1, 3])
async def test_audit_finds_a_forged_execution(ledger, pool, owner_connection, lots):  # noqa: F811
    """The forged execution has other lots and a consistent body."""
    await unlock(owner_connection)
    row = await owner_connection.fetchrow("SELECT * FROM adl_records WHERE kind = 'execution' ORDER BY record LIMIT 1")
    assert isinstance(msgspec.msgpack.decode(row["body"], type=Reduced), Reduced)
    await owner_connection.execute("UPDATE adl_records SET lots = $1 WHERE record = $2", lots, row["record"])
    await seal(owner_connection, SYMBOL)
    assert await differences(pool)


@pytest.mark.parametrize("requested", [0, 1])
async def test_audit_finds_a_forged_allocation(ledger, pool, owner_connection, requested):  # noqa: F811
    """The forged round requests other lots of the first account."""
    await unlock(owner_connection)
    row = await owner_connection.fetchrow("SELECT record, body FROM adl_records WHERE kind = 'order' AND adl = 1")
    order = msgspec.msgpack.decode(row["body"], type=OrderBody)
    assert order.first.requested[0] != requested
    first = msgspec.structs.replace(order.first, requested=[requested, *order.first.requested[1:]])
    body = msgspec.msgpack.encode(msgspec.structs.replace(order, first=first))
    await owner_connection.execute("UPDATE adl_records SET body = $1 WHERE record = $2", body, row["record"])
    await seal(owner_connection, SYMBOL)
    assert await differences(pool)
