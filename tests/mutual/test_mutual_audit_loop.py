"""A running engine audits its pools: it shows a changed row, and when the change is gone."""

import pytest
from conftest import with_section
from eventually import eventually
from pools import POOL, VECTORS, read_vector, running, send, with_pools
from structlog.testing import capture_logs

from fundsvc.core.events import Rejection
from fundsvc.mutual.core.events import TopUp
from fundsvc.mutual.engine import audit
from fundsvc.streams.producer import Producer

PATH = next(path for path in VECTORS if path.stem == "frozen-and-thawed")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(audit, "CHECK_SECONDS", 0.02)
    monkeypatch.setattr(audit, "RECHECK_SECONDS", 0.1)


@pytest.fixture
async def engine(config, client):
    """An engine that has settled and audited a pool."""
    terms, events, _ = read_vector(PATH)
    await send(Producer(client, config.stream.partitions), [one for one in events if not isinstance(one, Rejection)])
    async with running(with_section(with_pools(config, USDT=terms), "audit", share=0.5)) as engine:
        await eventually(lambda: engine.count("fundsvc_mutual_audit_entries_total") > 0 and good(engine))
        yield engine


def good(engine):
    return (
        engine.count("fundsvc_mutual_audit_success", pool=POOL) == 1
        and engine.count("fundsvc_mutual_audit_last_timestamp_seconds", pool=POOL) > 0
    )


def bad(engine):
    return f'fundsvc_mutual_audit_success{{pool="{POOL}"}} 0.0' in engine.metrics.render().decode()


async def test_a_changed_row_is_shown_until_it_is_put_back(engine, owner_connection):
    with capture_logs() as logs:
        await owner_connection.execute("UPDATE mutual_accounts SET payable = payable + 1 WHERE number = 0")
        await eventually(lambda: bad(engine))
        await owner_connection.execute("UPDATE mutual_accounts SET payable = payable - 1 WHERE number = 0")
        await eventually(lambda: good(engine))
    found = [line for line in logs if line["event"] == "audit difference"]
    assert all(line["pool"] == POOL and ": payable is " in line["difference"] for line in found)
    assert len(found) == 1
    assert [line["event"] for line in logs].count("audit difference gone") == 1


async def test_a_changed_entry_is_shown(engine, owner_connection):
    await owner_connection.execute("SET session_replication_role = replica")
    with capture_logs() as logs:
        await owner_connection.execute("UPDATE mutual_entries SET seq = seq + 1 WHERE entry = 3")
        await owner_connection.execute("UPDATE mutual_pools SET fees = fees + 1")
        await eventually(lambda: bad(engine))
        await eventually(lambda: any(line.get("entry") == 3 for line in logs))


async def test_new_entries_are_followed(engine, config, client, owner_connection):
    last, seq, time = await owner_connection.fetchrow("SELECT entry, seq, time FROM mutual_pools")
    before = engine.count("fundsvc_mutual_audit_entries_total")
    more = [TopUp(POOL, time, seq + number, "1", f"u{number}") for number in range(1, 4)]
    await send(Producer(client, config.stream.partitions), more)
    await eventually(lambda: engine.count("fundsvc_mutual_audit_entries_total") >= before + 3)
    assert await owner_connection.fetchval("SELECT entry FROM mutual_pools") == last + 3
    assert good(engine)
