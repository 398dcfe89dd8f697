"""Policies: recorded with a version by each partition, and changed by events in its stream."""

import msgspec
import pytest
from commands import fundsvc
from conftest import with_section
from eventually import eventually
from served import contract, fill, now_ms, restarted, served
from structlog.testing import capture_logs

from fundsvc.config.settings import PolicyConfig
from fundsvc.core.policy import DrawdownGuard, Policies, Policy
from fundsvc.store.policies import policies_body, policies_from

SYMBOL = "POLUSDTM"


def configured(config, contracts=None, **policy):
    policies = PolicyConfig(default=Policy(**policy), contracts=contracts or {})
    return with_section(msgspec.structs.replace(config, policy=policies), "engine", lease_seconds=0.6)


async def versions(service):
    rows = await service.pool.fetch("SELECT partition, version, body FROM policies ORDER BY partition, version")
    return [(row["version"], policies_from(row).default.rounds_max) for row in rows]


async def test_the_first_configuration_is_recorded_without_an_event(config):
    async with served(configured(config, rounds_max=5)) as service:
        await service.send(contract(SYMBOL))
        assert await versions(service) == [(1, 5)]
        assert await service.client.xlen("fundsvc:{0}:in") == 1


async def test_a_changed_configuration_becomes_one_event_and_one_version(config):
    async with served(configured(config, rounds_max=5)) as service:
        await service.send(contract(SYMBOL), fill(SYMBOL, 1))
        with capture_logs() as logs:
            async with restarted(service, configured(config, rounds_max=7)) as again:
                await eventually(lambda: is_at(again, [(1, 5), (2, 7)]))
                async with restarted(again, configured(config, rounds_max=7)) as third:
                    await third.send(fill(SYMBOL, 2))
                    assert await versions(third) == [(1, 5), (2, 7)]
                    assert await third.client.xlen("fundsvc:{0}:in") == 3
                    assert await third.reasons() == []
        assert [line["version"] for line in logs if line["event"] == "policies changed"] == [2]


async def is_at(service, expected):
    return await versions(service) == expected


async def test_engines_with_different_configurations_do_not_alternate_policies(config):
    one, other = configured(config, rounds_max=5), configured(config, rounds_max=7)
    async with served(one) as service:
        await service.send(contract(SYMBOL))
        async with served(other) as standby:
            for _ in range(2):
                await service.pool.execute("UPDATE partitions SET lease_until = now() - interval '1 day', owner = NULL")
                await eventually(lambda: is_owned(service))
            await service.send(fill(SYMBOL, 1))
            assert len(await versions(standby)) <= 2


async def is_owned(service):
    return await service.pool.fetchval("SELECT lease_until > now() FROM partitions")


async def test_orders_keep_the_policy_version_of_their_start(config):
    short = {"type": "position", "symbol": SYMBOL, "entryPrice": "150", "lots": -1, "ts": now_ms()}
    positions = [short | {"account": f"a{number}", "margin": str(100 + number)} for number in range(5)]
    mark = {"type": "mark", "symbol": SYMBOL, "price": "80", "ts": now_ms()}
    shortfall = {"lots": 1, "price": "80", "bankruptcyPrice": "100"}
    end = {"type": "adlEnd", "symbol": SYMBOL, "ts": now_ms()}
    async with served(configured(config, allocation="queue")) as service:
        await service.send(contract(SYMBOL, multiplier=1), mark, *positions, fill(SYMBOL, 1, **shortfall))
        async with restarted(service, configured(config, allocation="pro_rata", eligible="all")) as again:
            await eventually(lambda: is_version(again, 2))
            await again.send(fill(SYMBOL, 2, **shortfall), end | {"seq": 3, "adl": 1}, end | {"seq": 4, "adl": 2})
            rows = await again.pool.fetch("SELECT adl, policy_version, round FROM adl_orders ORDER BY adl")
            assert [tuple(row) for row in rows] == [(1, 1, 2), (2, 2, 2)]


async def is_version(service, version):
    return await service.pool.fetchval("SELECT max(version) FROM policies") == version


async def test_a_policy_event_enables_a_guard_for_its_contracts_only(config):
    async with served(configured(config)) as service:
        await service.send(contract(SYMBOL), contract("OTHERUSDTM"))
        guarded = {SYMBOL: Policy(drawdown_guard=DrawdownGuard(start=0.3, stop=0.25))}
        async with restarted(service, configured(config, guarded)) as again:
            await eventually(lambda: is_version(again, 2))
            rise, fall = {"price": "39100"}, {"price": "38950"}
            for symbol in (SYMBOL, "OTHERUSDTM"):
                await again.send(fill(symbol, 1, **rise), fill(symbol, 2, **fall))
            assert [uncovered for *_, uncovered in await again.entries(SYMBOL)] == [0, 20 * 10**8]
            assert [uncovered for *_, uncovered in await again.entries("OTHERUSDTM")] == [0, 0]


async def test_previews_use_the_recorded_policy_instead_of_the_configured_one(config):
    async with served(configured(config, waterfall="adl_then_fund")) as service:
        mark = {"type": "mark", "symbol": SYMBOL, "price": "39000", "ts": now_ms()}
        short = {"type": "position", "symbol": SYMBOL, "account": "a", "lots": -5000, "entryPrice": "45000", "margin": "100"}
        await service.send(contract(SYMBOL), mark, short | {"ts": now_ms()}, fill(SYMBOL, 1))
        options = ("--side", "sell", "--lots", 1000, "--price", 38950, "--bankruptcy-price", 39000, "--json")
        done = await fundsvc(config, "adl", "preview", SYMBOL, *options)
        assert (done.code, done.result["covered"]) == (0, "0")


async def test_a_policy_event_over_http_or_with_a_wrong_version_is_rejected(config):
    change = {"type": "policy", "version": 2, "default": {"rounds_max": 9}, "contracts": {}, "ts": now_ms()}
    async with served(configured(config)) as service:
        status, answer = await service.post(contract(SYMBOL), change)
        assert (status, "has the type policy, which only the service appends" in answer["msg"]) == (400, True)
        await service.append(change | {"version": 7}, change | {"default": {"no_such_key": 1}})
        assert await service.reasons() == ["superseded", "invalid_field"]
        assert await versions(service) == [(1, 3)]
        await service.append(change, change)
        assert await versions(service) == [(1, 3), (2, 9)]
        assert len(await service.reasons()) == 2


def test_policy_keys_of_a_later_version_are_ignored():
    policies = Policies(3, Policy(rounds_max=7, drawdown_guard=DrawdownGuard(hours=2)), {"A": Policy()})
    body = msgspec.json.decode(policies_body(policies))
    body["default"] |= {"later": 1}
    body["default"]["drawdown_guard"]["later"] = 2
    assert policies_from({"version": 3, "body": msgspec.json.encode(body).decode()}) == policies


async def test_an_altered_recorded_policy_is_an_audit_difference(config, owner_connection):
    async with served(configured(config)) as service:
        await service.send(contract(SYMBOL), fill(SYMBOL, 1, price="38900"))
        async with restarted(service, configured(config, rounds_max=9)) as again:
            await eventually(lambda: is_version(again, 2))
            await again.send(fill(SYMBOL, 2, price="38900"))
    assert (await fundsvc(config, "audit")).code == 0
    await owner_connection.execute("SET session_replication_role = replica")
    for version in (2, 1):
        altered = "jsonb_set(body::jsonb, '{default,escalate_min}', '1000000')::json"
        await owner_connection.execute(f"UPDATE policies SET body = {altered} WHERE version = $1", version)
    assert (await fundsvc(config, "audit")).code == 1


@pytest.mark.parametrize("statement", ["UPDATE policies SET version = 9", "DELETE FROM policies"])
async def test_recorded_policies_cannot_be_changed(config, owner_connection, statement):
    await owner_connection.execute("INSERT INTO policies (partition, version, body, stream_id) VALUES (0, 1, '{}', '0-0')")
    with pytest.raises(Exception, match="append-only"):
        await owner_connection.execute(statement)
