"""Rows that no commit wrote halt only their partition, with a reason that names them. No fund is overwritten."""

import pytest
from conftest import with_section
from eventually import eventually
from served import contract, fill, restarted, served

from fundsvc.core.contracts import partition_of

HERE, THERE = (next(f"M{n}USDTM" for n in range(99) if partition_of(f"M{n}USDTM", 2) == number) for number in (0, 1))
LOADS_MAX = 10
"""For narrowing a batch of some hundred events to one."""

STRAY = (
    "INSERT INTO entries SELECT symbol, entry + $2, seq + $2, change, balance + change, uncovered, repaid, lots, price,"
    " bankruptcy_price, ts, recorded_at, kind, side, trade_id, order_id, account, hash FROM entries WHERE symbol = $1"
)


@pytest.fixture
def partitions():
    return 2


@pytest.fixture
async def service(config):
    async with served(config) as service:
        await service.post(contract(HERE), fill(HERE, 1), contract(THERE), fill(THERE, 1))
        await eventually(lambda: has(service, HERE, 1))
        await eventually(lambda: has(service, THERE, 1))
        yield service


async def halted(service, partition):
    return await service.pool.fetchval("SELECT halted FROM partitions WHERE partition = $1", partition)


async def entries(service, symbol):
    return await service.pool.fetchval("SELECT entry FROM funds WHERE symbol = $1", symbol)


async def remove(owner, symbol, entry):
    await owner.execute("SET session_replication_role = replica")
    await owner.execute("DELETE FROM entries WHERE symbol = $1 AND entry = $2", symbol, entry)


async def test_conflicting_entry_halts_only_its_partition_and_loses_no_event(service, owner_connection):
    await owner_connection.execute(STRAY, HERE, 1)
    await service.post(fill(HERE, 2), fill(THERE, 2))
    await eventually(lambda: halted(service, 0))
    reason = await halted(service, 0)
    assert HERE in reason
    assert "beyond entry 1" in reason
    assert await halted(service, 1) == ""
    await eventually(lambda: has(service, THERE, 2))
    assert await service.pool.fetchval("SELECT count(*) FROM rejected") == 0
    await remove(owner_connection, HERE, 2)
    await eventually(lambda: has(service, HERE, 2))
    await eventually(lambda: is_well(service, 0))


async def has(service, symbol, entry):
    return await entries(service, symbol) == entry


async def test_entry_beyond_the_next_number_is_detected_by_the_load(service, config, owner_connection):
    await owner_connection.execute(STRAY, HERE, 7)
    async with restarted(service, config) as again:
        await eventually(lambda: halted(again, 0))
        assert f"{HERE} beyond entry 1" in await halted(again, 0)
        await remove(owner_connection, HERE, 8)
        await eventually(lambda: is_well(again, 0))


async def is_well(service, partition):
    return await halted(service, partition) == ""


@pytest.mark.parametrize("fills", [0, 1, 300])
async def test_contract_in_another_partition_halts_that_partition_and_its_fund_stays(
    service, config, owner_connection, loads, fills
):
    """All events are in one batch, so the fill meets the entry before a check of the contract's partition."""
    before = await owner_connection.fetchrow("SELECT balance, entry, head FROM funds WHERE symbol = $1", HERE)
    await owner_connection.execute("UPDATE contracts SET partition = 1 WHERE symbol = $1", HERE)
    async with restarted(service, with_section(config, "engine", loop_ms_max=1000.0)) as again:
        await eventually(lambda: halted(again, 1))
        assert f"{HERE} in partition 1" in await halted(again, 1)
        loaded = loads.count(0)
        await again.post(contract(HERE), *(fill(HERE, seq) for seq in range(2, fills + 2)))
        await eventually(lambda: refused(again))
        assert loads.count(0) - loaded < LOADS_MAX, "each load brings the partition on"
        assert await owner_connection.fetchrow("SELECT balance, entry, head FROM funds WHERE symbol = $1", HERE) == before
        assert await halted(again, 0) == ""
        await owner_connection.execute("UPDATE contracts SET partition = 0 WHERE symbol = $1", HERE)
        await eventually(lambda: is_well(again, 1))


async def test_entry_of_an_unlisted_contract_halts_the_partition_after_the_listing(service, owner_connection, loads):
    await owner_connection.execute(STRAY.replace("SELECT symbol,", "SELECT 'STRANGER',"), HERE, 0)
    home = partition_of("STRANGER", 2)
    loaded = loads.count(home)
    await service.post(contract("STRANGER"), fill("STRANGER", 1))
    assert "STRANGER beyond entry 0" in await eventually(lambda: halted(service, home))
    assert loads.count(home) - loaded < LOADS_MAX
    await remove(owner_connection, "STRANGER", 1)
    await eventually(lambda: has(service, "STRANGER", 1))
    assert await service.pool.fetchval("SELECT count(*) FROM rejected") == 0


async def refused(service):
    reasons = await service.pool.fetch("SELECT reason, detail FROM rejected ORDER BY rejected_at")
    return [row for row in reasons if row["reason"] == "database_refused" and HERE in row["detail"]]
