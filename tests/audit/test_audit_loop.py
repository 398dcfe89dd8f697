"""The background audit finds changes made by a superuser, by the walk that is responsible, and reports nothing else."""

import asyncio
import time
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest
from escalations import BEGINNING, SYMBOL, ended, executed, mark, position, shortfall
from eventually import eventually
from exposed import sample_sum
from ledgers import fill, listing, owned
from structlog.testing import capture_logs

from fundsvc.cli.tools.audit import audit_contract
from fundsvc.config.settings import AuditConfig
from fundsvc.engine.audit_loop import PART_ENTRIES, Auditor, Pace
from fundsvc.metrics import Metrics
from fundsvc.store.audits import audit_progress
from fundsvc.store.database import open_pool
from fundsvc.store.rollups import condense

AMOUNTS = [5, -3, 0, -10, 4, 20]
"""The fund cannot pay 8 of the fourth fill; the fifth and a part of the sixth repay them."""

BUSY = AuditConfig(share=0.5)
"""The largest share allowed, for the shortest pauses."""

ALWAYS = AuditConfig(share=0.5, full_hours=1e-9)
"""A full walk is always due."""


class Auditing:
    """A running audit and its metrics."""

    def __init__(self, pool, metrics):
        self.pool = pool
        self._metrics = metrics

    def shows(self, name, symbol):
        return sample_sum(self._metrics, name, symbol=symbol)

    def recomputed(self):
        return sample_sum(self._metrics, "fundsvc_audit_entries_total")

    def good(self, symbol):
        return (
            self.shows("fundsvc_audit_success", symbol) == 1 and self.shows("fundsvc_audit_last_timestamp_seconds", symbol) > 0
        )

    def bad(self, symbol):
        return f'fundsvc_audit_success{{symbol="{symbol}"}} 0' in self._metrics.render().decode()

    async def entries(self, walk):
        return {one.symbol: one.entry for one in await audit_progress(self.pool, walk)}


@asynccontextmanager
async def auditing(config, audit=BUSY, owns=lambda symbol: True):
    """Runs an audit until the end of the block."""
    metrics = Metrics()
    async with open_pool(config.database.dsn, 2) as pool:
        task = asyncio.create_task(Auditor(pool, audit, metrics, owns).run())
        try:
            yield Auditing(pool, metrics)
        finally:
            task.cancel()
            await asyncio.wait([task])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Parts of a few entries, and no waiting between looks for work."""
    monkeypatch.setattr("fundsvc.engine.audit_loop.PART_ENTRIES", 4)
    monkeypatch.setattr("fundsvc.engine.audit_loop.CHECK_SECONDS", 0.02)


@pytest.fixture
async def owner(config):
    """An owner that has settled two contracts with the same history."""
    async with owned(config) as owner:
        for symbol in ("ABC", "XYZ"):
            await owner.settle([listing(symbol), *(fill(symbol, seq, amount) for seq, amount in enumerate(AMOUNTS, 1))])
        yield owner


@pytest.fixture
async def tamper(config, owner_connection):
    """Runs a statement with triggers and foreign keys disabled."""
    await owner_connection.execute("SET session_replication_role = replica")
    return owner_connection.execute


async def verified(config):
    """Waits until both ledgers were walked through once and have checkpoints."""
    async with auditing(config) as audit:
        await eventually(lambda: audit.good("ABC") and audit.good("XYZ"))


async def test_intact_ledger_has_no_differences_while_fills_arrive(config, owner):
    async with auditing(config, ALWAYS) as audit:
        for first in range(7, 407, 20):
            await owner.settle(fill(symbol, seq, seq % 9 - 4) for seq in range(first, first + 20) for symbol in ("ABC", "XYZ"))
            assert not audit.bad("ABC")
        await eventually(lambda: reached(audit, 406))
        await eventually(lambda: audit.good("ABC") and audit.good("XYZ"))
        assert audit.shows("fundsvc_conservation_error_atoms", "ABC") == 0


async def reached(audit, entry):
    return await audit.entries("newest") == {"ABC": entry, "XYZ": entry}


async def test_newest_walk_finds_changes_after_the_checkpoint(config, owner, tamper):
    await verified(config)
    await owner.settle(fill("ABC", seq, 1) for seq in range(7, 12))
    await tamper("UPDATE entries SET lots = 2 WHERE symbol = 'ABC' AND entry = 9")
    with capture_logs() as logs:
        async with auditing(config) as audit:
            await eventually(lambda: audit.bad("ABC"))
            assert not audit.bad("XYZ")
            assert (await audit.entries("newest"))["ABC"] == 6
            await tamper("UPDATE entries SET lots = 1 WHERE symbol = 'ABC' AND entry = 9")
            await eventually(lambda: audit.good("ABC"))
    logged = [(line["log_level"], line["symbol"], line.get("entry"), line["walk"]) for line in logs]
    assert logged[0] == ("error", "ABC", 9, "newest")
    assert logged[-1] == ("info", "ABC", None, "newest")
    assert "entry 9: change + repaid - uncovered is " in logs[0]["difference"]


async def test_full_walk_finds_changes_before_the_checkpoint(config, owner, tamper):
    await verified(config)
    await tamper("UPDATE entries SET account = 'mine' WHERE symbol = 'ABC' AND entry = 2")
    async with auditing(config) as audit:
        await owner.settle([fill("ABC", 7, 1)])
        await eventually(lambda: follows(audit, 7))
        assert audit.good("ABC")
    with capture_logs() as logs:
        async with auditing(config, ALWAYS) as audit:
            await eventually(lambda: audit.bad("ABC"))
    assert {(line["symbol"], line["entry"], line["walk"]) for line in logs} == {("ABC", 2, "full")}


async def follows(audit, entry):
    return (await audit.entries("newest"))["ABC"] == entry


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_progress SET balance = balance + 1 WHERE symbol = 'ABC' AND walk = 'newest'",
        "UPDATE audit_progress SET head = sha256('x') WHERE symbol = 'ABC' AND walk = 'newest'",
        "UPDATE audit_progress SET uncovered = uncovered + 1 WHERE symbol = 'ABC' AND walk = 'newest'",
        "UPDATE audit_progress SET entry = 5 WHERE symbol = 'ABC' AND walk = 'newest'",
    ],
)
async def test_full_walk_finds_and_replaces_an_altered_checkpoint(config, owner, tamper, statement):
    await verified(config)
    await tamper(statement)
    await owner.settle([fill("ABC", 7, 1)])
    async with auditing(config) as audit:
        await eventually(lambda: audit.bad("ABC"))
    async with auditing(config, ALWAYS) as audit:
        await eventually(lambda: audit.good("ABC"))


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        (
            "UPDATE funds SET balance = balance + 1 WHERE symbol = 'ABC'",
            "the fund has (entry, balance, head) (6, 1600000001, ",
        ),
        ("UPDATE funds SET outstanding = 1 WHERE symbol = 'ABC'", "uncovered 800000000 is not recovered 0 + repaid 800000000"),
        ("DELETE FROM entries WHERE symbol = 'ABC' AND entry = 6", "the fund has (entry, balance, head) (6, "),
        ("DELETE FROM funds WHERE symbol = 'ABC'", "ABC: its contract or its fund is missing"),
        ("DELETE FROM contracts WHERE symbol = 'ABC'", "ABC: its contract or its fund is missing"),
    ],
)
async def test_background_audit_finds_the_same_differences_as_the_command(config, owner, tamper, statement, sentence):
    await tamper(statement)
    with capture_logs() as logs:
        async with auditing(config) as audit:
            await eventually(lambda: audit.bad("ABC") and audit.good("XYZ"))
    assert any(sentence in line["difference"] for line in logs)


async def test_idle_fund_is_rechecked(config, owner, tamper, monkeypatch):
    monkeypatch.setattr("fundsvc.engine.audit_loop.RECHECK_SECONDS", 0.05)
    async with auditing(config) as audit:
        await eventually(lambda: audit.good("ABC"))
        await tamper("UPDATE funds SET outstanding = 7 WHERE symbol = 'ABC'")
        await eventually(lambda: audit.bad("ABC"))
        assert audit.shows("fundsvc_conservation_error_atoms", "ABC") == -7


async def test_full_walk_continues_after_an_interruption(config, owner):
    await owner.settle(fill("ABC", seq, 1) for seq in range(7, 507))
    async with auditing(config, AuditConfig(share=0.02)) as audit:
        stopped = await eventually(lambda: under_way(audit))
    async with auditing(config) as audit:
        await eventually(lambda: follows_anew(audit))
        assert 0 < audit.recomputed() <= 506 + 6 - stopped


async def under_way(audit):
    return (await audit.entries("full")).get("ABC", 0)


async def follows_anew(audit):
    return (await audit.entries("newest")).get("ABC") == 506


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5])
async def test_full_walk_stays_within_its_share(monkeypatch, share):
    now, rested = 0.0, []

    async def work():
        nonlocal now
        now += 0.02

    async def rest(seconds):
        rested.append(seconds)

    pace = Pace(share)
    with monkeypatch.context() as patch:
        patch.setattr("fundsvc.engine.audit_loop.time.perf_counter", lambda: now)
        patch.setattr("fundsvc.engine.audit_loop.asyncio.sleep", rest)
        for _ in range(3):
            await pace.walk(work)
    assert now / (now + sum(rested)) == pytest.approx(share)


async def test_newest_walk_does_not_pause(monkeypatch):
    rested = []

    async def rest(seconds):
        rested.append(seconds)

    with monkeypatch.context() as patch:
        patch.setattr("fundsvc.engine.audit_loop.asyncio.sleep", rest)
        await Pace(0.001).follow(lambda: rest(0))
    assert rested == [0, 0]


async def test_only_owned_contracts_are_audited(config, owner):
    async with auditing(config, owns=lambda symbol: symbol == "ABC") as audit:
        await eventually(lambda: audit.good("ABC"))
        assert await audit.entries("newest") == {"ABC": 6}


DAMAGED = """
ALTER TABLE adl_orders RENAME TO undamaged;
CREATE FUNCTION damaged() RETURNS boolean LANGUAGE plpgsql AS
    $$BEGIN RAISE 'invalid page in block 7' USING ERRCODE = 'data_corrupted'; END$$;
CREATE VIEW adl_orders AS SELECT * FROM undamaged WHERE damaged();
GRANT SELECT ON adl_orders TO fundsvc_service;
"""
"""Makes data unreadable that only the walks read."""

DAMAGED_IN_PART = """
ALTER TABLE adl_orders RENAME TO undamaged;
CREATE FUNCTION damaged(symbol text) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN
    IF symbol = 'MNO' THEN RAISE 'invalid page in block 7' USING ERRCODE = 'data_corrupted'; END IF;
    RETURN true;
END$$;
CREATE VIEW adl_orders AS SELECT * FROM undamaged WHERE damaged(symbol);
GRANT SELECT ON adl_orders TO fundsvc_service;
"""
"""Makes the orders of one contract unreadable."""


async def test_read_failure_is_logged_once_and_its_end_once(config, owner, owner_connection, monkeypatch):
    monkeypatch.setattr("fundsvc.engine.audit_loop.RECHECK_SECONDS", 0.0)
    await verified(config)
    looks = 0

    def owns(symbol):
        nonlocal looks
        looks += 1
        return True

    await owner_connection.execute(DAMAGED)
    with capture_logs() as logs:
        async with auditing(config, ALWAYS, owns):
            await eventually(lambda: looks > 100)
            assert sorted((line["event"], line["walk"]) for line in logs) == [("fault", "full"), ("fault", "newest")]
            await owner_connection.execute("DROP VIEW adl_orders; ALTER TABLE undamaged RENAME TO adl_orders")
            await eventually(lambda: len(logs) == 4)
    assert sorted((line["event"], line["walk"]) for line in logs[2:]) == [("recovered", "full"), ("recovered", "newest")]


async def test_unreadable_ledger_does_not_block_the_rest_of_its_group(config, owner, owner_connection):
    await owner.settle([listing("MNO"), fill("MNO", 1, -5)])
    await owner_connection.execute(DAMAGED_IN_PART)
    async with auditing(config) as audit:
        await eventually(lambda: audit.good("ABC") and audit.good("XYZ"))
        assert await audit.entries("newest") == {"ABC": 6, "XYZ": 6}


class TestAdl:
    """Walks through ADL records continue where they stopped, too."""

    @pytest.fixture(autouse=True)
    def in_small_parts(self, monkeypatch):
        monkeypatch.setattr("fundsvc.store.audits.RECORDS_MAX", 3)

    async def test_an_untouched_ledger_is_good_while_orders_are_executed_and_end(self, config, owner):
        await owner.settle(BEGINNING)
        async with auditing(config, ALWAYS) as audit:
            for first in range(1, 200, 10):
                await deleverage(owner, first)
                assert not audit.bad(SYMBOL)
            entries = owner.entries(SYMBOL)
            await eventually(lambda: followed(audit, entries))
            await eventually(lambda: audit.good(SYMBOL))

    @pytest.mark.parametrize(
        ("statement", "sentence"),
        [
            (
                "UPDATE adl_orders SET executed = 9, recovered = 9 WHERE adl = 1",
                "executed is 9, by its records it should be 100",
            ),
            ("UPDATE adl_records SET lots = lots + 1 WHERE kind = 'execution'", "ADL record "),
            ("UPDATE adl_records SET seq = seq + 1 WHERE kind = 'end'", "ADL record "),
            ("DELETE FROM adl_records WHERE kind = 'round'", "record number is "),
            ("DELETE FROM adl_orders WHERE adl = 1", "ADL order 1 is missing"),
        ],
    )
    async def test_what_is_altered_of_orders_is_found(self, config, owner, owner_connection, tamper, statement, sentence):
        await owner.settle(BEGINNING)
        for first in range(1, 30, 10):
            await deleverage(owner, first)
        await owner_connection.execute(
            "DO $$ DECLARE c text; BEGIN FOR c IN SELECT conname FROM pg_constraint WHERE conrelid = 'adl_orders'::regclass"
            " AND contype = 'c' LOOP EXECUTE 'ALTER TABLE adl_orders DROP CONSTRAINT ' || c; END LOOP; END $$"
        )
        await tamper(f"{statement} AND symbol = '{SYMBOL}'")
        with capture_logs() as logs:
            async with auditing(config) as audit:
                await eventually(lambda: audit.bad(SYMBOL) and audit.good("ABC"))
        assert any(sentence in line["difference"] for line in logs if line["event"] == "audit difference"), logs


async def followed(audit, entries):
    return (await audit.entries("newest")).get(SYMBOL) == entries


async def deleverage(owner, seq):
    """A shortfall with an order executed in two rounds, one without candidates, and a surplus that repays a part."""
    await owner.settle([*BEGINNING[1:], shortfall(seq)])
    adl = owner.orders(SYMBOL)
    account, rest = owner.requested(SYMBOL, adl)[0]
    await owner.settle([executed(seq + 1, adl, account, rest - 1), ended(seq + 2, adl)])
    await owner.settle(executed(seq + 3 + place, adl, *asked) for place, asked in enumerate(owner.requested(SYMBOL, adl)))
    await owner.settle([mark(50000), shortfall(seq + 8), shortfall(seq + 9, price=39020)])


class TestCost:
    """The cost of an audit depends on entries, not on contracts."""

    @pytest.fixture(autouse=True)
    def as_it_is(self, monkeypatch):
        monkeypatch.setattr("fundsvc.engine.audit_loop.PART_ENTRIES", PART_ENTRIES)

    async def test_many_small_ledgers_cost_little_more_than_a_large_one(self, config, monkeypatch):
        async with owned(config) as owner:
            await owner.settle([listing("LARGE"), *(fill("LARGE", seq, 1) for seq in range(1, 1801))])
            large = await audited(config, monkeypatch, ["LARGE"])
            small = [f"SMALL{number}" for number in range(300)]
            await owner.settle(map(listing, small))
            await owner.settle(fill(symbol, seq, 1) for symbol in small for seq in range(1, 7))
            many = await audited(config, monkeypatch, small)
        assert many.reads <= 2 * large.reads + 4, (many, large)
        assert many.seconds < 20 * large.seconds, (many, large)

    async def test_ledgers_of_unequal_size_are_all_read_to_their_end(self, config, monkeypatch):
        sizes = {f"S{size}": size for size in (1, 3, 900, 1, 40, 2500, 7)}
        async with owned(config) as owner:
            await owner.settle(map(listing, sizes))
            await owner.settle(fill(symbol, seq, 1) for symbol, size in sizes.items() for seq in range(1, size + 1))
        async with auditing(config) as audit:
            await eventually(lambda: all(map(audit.good, sizes)))
            assert await audit.entries("newest") == sizes


OPEN_ORDERS = 100
READ = """
SELECT relname, coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) AS rows
FROM pg_stat_user_tables WHERE relname IN ('adl_records', 'adl_orders')
"""
"""Rows that PostgreSQL read of the ADL tables. The rows of a session count at the latest when it has ended."""

SESSIONS_OVER = """
SELECT NOT EXISTS (
    SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'fundsvc reader'
)
"""


class TestCostOfOpenOrders:
    """The cost of an audit depends on entries and records, not on the number of open orders."""

    @pytest.fixture(autouse=True)
    def in_parts(self, monkeypatch):
        monkeypatch.setattr("fundsvc.engine.audit_loop.PART_ENTRIES", 20)
        monkeypatch.setattr("fundsvc.store.audits.KEYS_PER_QUERY", 7)

    @pytest.fixture
    async def owner(self, config):
        """Settles many orders of one position each that stay open, and as many entries after them."""
        async with owned(config) as owner:
            shorts = (position(f"account-{number:03}", -10, 41000) for number in range(OPEN_ORDERS + 10))
            await owner.settle([BEGINNING[0], mark(39000), *shorts])
            await owner.settle(shortfall(seq, lots=10) for seq in range(1, OPEN_ORDERS + 1))
            await owner.settle(surplus(seq) for seq in range(OPEN_ORDERS + 1, 2 * OPEN_ORDERS + 1))
            yield owner

    @pytest.fixture
    async def rows(self, owner_connection):
        """Counts the rows that ended sessions read. Sequential scans are disabled, as small tables would be read whole."""
        database = await owner_connection.fetchval("SELECT current_database()")
        await owner_connection.execute(f'ALTER DATABASE "{database}" SET enable_seqscan = off')

        async def count():
            await eventually(lambda: owner_connection.fetchval(SESSIONS_OVER))
            await owner_connection.execute("SELECT pg_stat_clear_snapshot()")
            return dict(await owner_connection.fetch(READ))

        return count

    async def test_the_command_reads_each_record_once(self, config, owner, rows, monkeypatch):
        monkeypatch.setattr("fundsvc.cli.tools.audit.PART_ENTRIES", 10)
        before = await rows()
        async with open_pool(config.database.dsn, 1) as pool:
            assert not (await audit_contract(pool, SYMBOL, lambda _: None)).differences
        after = await rows()
        assert 0 < after["adl_records"] - before["adl_records"] <= 2 * OPEN_ORDERS
        assert 0 < after["adl_orders"] - before["adl_orders"] <= 4 * OPEN_ORDERS

    async def test_a_full_walk_reads_each_record_once(self, config, owner, rows):
        before = await rows()
        async with auditing(config) as audit:
            await eventually(lambda: audit.good(SYMBOL))
        after = await rows()
        assert 0 < after["adl_records"] - before["adl_records"] <= 2 * OPEN_ORDERS
        assert 0 < after["adl_orders"] - before["adl_orders"] <= 6 * OPEN_ORDERS

    async def test_the_newest_walk_reads_what_is_new_alone(self, config, owner, rows):
        looks = 15
        before = await rows()
        async with auditing(config) as audit:
            await eventually(lambda: audit.good(SYMBOL))
            first = owner.entries(SYMBOL) + 1
            for seq in range(first, first + looks):
                await owner.settle([surplus(seq)])
                await eventually(lambda entry=seq: reached_entry(audit, entry))
        after = await rows()
        assert after["adl_records"] - before["adl_records"] <= 2 * OPEN_ORDERS

    async def test_a_walk_that_continues_after_a_restart_reads_open_orders_again(self, config, owner):
        for first in (1, 3):
            async with auditing(config) as audit:
                await eventually(lambda: audit.good(SYMBOL))
                await owner.settle([executed(2 * OPEN_ORDERS + first, first, *owner.requested(SYMBOL, first)[0])])
                await owner.settle([surplus(2 * OPEN_ORDERS + first + 1)])
                entries = owner.entries(SYMBOL)
                await eventually(lambda entries=entries: reached_entry(audit, entries))
                assert audit.good(SYMBOL)

    @pytest.mark.parametrize("moved", [True, False])
    async def test_the_row_of_an_open_order_is_compared_though_its_records_are_not_read_again(
        self, config, owner, tamper, monkeypatch, moved
    ):
        monkeypatch.setattr("fundsvc.engine.audit_loop.RECHECK_SECONDS", 0.05)
        async with auditing(config) as audit:
            await eventually(lambda: audit.good(SYMBOL))
            await tamper("UPDATE adl_orders SET account = 'mine' WHERE adl = 7")
            if moved:
                await owner.settle([executed(2 * OPEN_ORDERS + 1, 7, *owner.requested(SYMBOL, 7)[0])])
            await eventually(lambda: audit.bad(SYMBOL))


def surplus(seq):
    return shortfall(seq, lots=1, price=39001)


async def reached_entry(audit, entry):
    return (await audit.entries("newest")).get(SYMBOL) == entry


class Cost(NamedTuple):
    reads: int
    seconds: float


async def audited(config, monkeypatch, symbols):
    """Measures a full walk through some ledgers: the number of reads, and their duration with processing."""
    costs = []
    paced = Pace.walk

    async def measured(self, work):
        started = time.perf_counter()

        async def timed():
            result = await work()
            costs.append(time.perf_counter() - started)
            return result

        return await paced(self, timed)

    names = set(symbols)
    with monkeypatch.context() as patch:
        patch.setattr(Pace, "walk", measured)
        async with auditing(config, owns=names.__contains__) as audit:
            await eventually(lambda: all(map(audit.good, symbols)), 60)
    return Cost(len(costs), sum(costs))


async def test_audit_survives_an_outage_of_the_database(config, owner, owner_connection):
    with capture_logs() as logs:
        async with auditing(config, ALWAYS) as audit:
            await eventually(lambda: audit.good("ABC"))
            await owner_connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'fundsvc reader' AND datname = current_database()"
            )
            before = audit.recomputed()
            await eventually(lambda: audit.recomputed() > before + 24)
            assert audit.good("ABC")
    assert {line["log_level"] for line in logs} <= {"warning", "info"}


async def test_altered_rollup_is_reported_until_corrected(config, monkeypatch, owner, owner_connection):
    monkeypatch.setattr("fundsvc.engine.audit_loop.ROLLUPS_PACE", 1.0)
    async with open_pool(config.database.dsn, 1) as pool:
        await condense(pool, 0)
    with capture_logs() as logs:
        async with auditing(config, ALWAYS) as audit:
            await eventually(lambda: audit.good("ABC"))
            await owner_connection.execute("UPDATE rollups SET credited = credited + 1 WHERE symbol = 'ABC'")
            await eventually(lambda: audit.bad("ABC"))
            await owner_connection.execute("UPDATE rollups SET credited = credited - 1 WHERE symbol = 'ABC'")
            await eventually(lambda: audit.good("ABC"))
    logged = [(line["event"], line["walk"], line["symbol"]) for line in logs if line.get("walk") == "rollups"]
    assert logged[:2] == [("audit difference", "rollups", "ABC"), ("audit difference gone", "rollups", "ABC")]
