"""The service behind the real PgBouncer: session mode serves everything, the other modes are refused at the start."""

import asyncio
import itertools

import pytest
from commands import fundsvc
from conftest import connected, with_section
from eventually import eventually
from pgbouncer import pgbouncer
from served import contract, served
from served import fill as fill_event

from fundsvc.app import prepared
from fundsvc.store.database import StoreFault, connect, faults, open_pool
from fundsvc.store.leases import open_leases
from fundsvc.store.server_checks import check_sessions
from fundsvc.store.writer import session_name

REFUSED = "gives each transaction another session, which would lose settings and locks: set pool_mode = session"


@pytest.fixture
async def pooled(servers, config, tmp_path):
    """The configuration of a service whose connections all go through PgBouncer in session mode."""
    async with pgbouncer(servers, config, tmp_path, "session") as through:
        yield through


async def test_service_settles_and_reads_in_session_mode(pooled):
    async with prepared(pooled), served(pooled) as service:
        await service.send(contract("AAA"), fill_event("AAA", 1), fill_event("AAA", 2, price="38900"))
        fund = await service.fund("AAA")
        assert fund["entry"] == 2
        assert [row["entry"] for row in (await service.get("/api/v1/insurance-fund/AAA/history"))["dataList"]] == [2, 1]


async def test_sessions_in_session_mode_have_their_parameters(pooled):
    async with connect(pooled.database.dsn, "fundsvc me") as connection:
        shown = {
            name: await connection.fetchval(f"SHOW {name}")
            for name in ("application_name", "synchronous_commit", "idle_in_transaction_session_timeout")
        }
    assert shown == {
        "application_name": "fundsvc me",
        "synchronous_commit": "on",
        "idle_in_transaction_session_timeout": "3s",
    }
    async with open_pool(pooled.database.dsn, 1) as pool:
        for name, value in {"enable_sort": "off", "plan_cache_mode": "force_custom_plan"}.items():
            assert await pool.fetchval(f"SHOW {name}") == value


async def test_takeover_disconnects_the_previous_owner_in_session_mode(pooled, owner_connection):
    async with connect(pooled.database.dsn, session_name("old")) as old:
        await old.execute("BEGIN")
        async with open_leases(pooled.database.dsn, "old", 0.5) as leases:
            assert await leases.keep() == {0: 1}
        async with open_leases(pooled.database.dsn, "new", 0.5) as leases:
            assert await eventually(leases.keep) == {0: 2}
        with pytest.raises(StoreFault), faults():
            await old.fetchval("SELECT 1")


async def test_locks_and_notifications_pass_in_session_mode(pooled):
    async with connect(pooled.database.dsn, "one") as one, connect(pooled.database.dsn, "two") as two:
        received = []
        await one.add_listener("news", lambda *arguments: received.append(arguments[-1]))
        await two.execute("NOTIFY news, 'hello'")
        await eventually(lambda: received == ["hello"], seconds=5)
        assert await one.fetchval("SELECT pg_try_advisory_lock(7)")
        assert not await two.fetchval("SELECT pg_try_advisory_lock(7)")


@pytest.mark.parametrize(
    ("mode", "more"),
    [
        ("transaction", ""),
        ("transaction", "server_round_robin = 1\nmin_pool_size = 3"),
        ("transaction", "default_pool_size = 1"),
        ("statement", ""),
    ],
)
async def test_modes_without_sessions_are_refused_at_the_start(servers, config, tmp_path, mode, more):
    async with pgbouncer(servers, config, tmp_path, mode, more) as through:
        for settling, migrating, reading in itertools.product((config, through), repeat=3):
            dsns = {"owner_dsn": migrating.database.owner_dsn, "reader_dsn": reading.database.dsn}
            if through in (settling, migrating, reading):
                with pytest.raises(ValueError, match=REFUSED):
                    async with prepared(with_section(settling, "database", **dsns)):
                        pass


async def test_busy_pooler_in_transaction_mode_is_recognised(servers, config, tmp_path):
    async with pgbouncer(servers, config, tmp_path, "transaction") as through, asyncio.TaskGroup() as tasks:

        async def work():
            async with connected(through.database.dsn) as connection:
                while True:
                    await connection.execute("SELECT pg_sleep(random() / 1000)")

        busy = [tasks.create_task(work()) for _ in range(8)]
        for _ in range(20):
            with pytest.raises(ValueError, match=REFUSED):
                await check_sessions(through.database.dsn)
        for task in busy:
            task.cancel()


async def test_commands_name_the_pooler(servers, config, tmp_path):
    async with pgbouncer(servers, config, tmp_path, "transaction") as through:
        owner_dsn = {"FUNDSVC_DATABASE_OWNER_DSN": through.database.owner_dsn}
        migrated = await fundsvc(through, "migrate", **owner_dsn)
        assert migrated.code == 2
        assert REFUSED in migrated.error
        checked = await fundsvc(through, "config", "check", "--reachable", "--json")
        assert checked.code == 1
        assert REFUSED in checked.result["parts"]["database"]["found"]
