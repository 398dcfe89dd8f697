"""Listings with terms that differ from those of a contract's entries, in a complete service."""

import pytest
from commands import fundsvc
from conftest import with_section
from eventually import eventually
from served import contract, fill, now_ms, restarted, served
from structlog.testing import capture_logs

SYMBOL = "LUNAUSDTM"
TERMS = {"multiplier": 0.1}
OTHERS = [{"multiplier": 1000}, {"multiplier": 0.1, "settleCurrency": "USDC"}, {"multiplier": -0.1, "isInverse": True}]


@pytest.fixture
async def service(config):
    async with served(config) as service:
        await service.send(contract(SYMBOL, **TERMS), f(1))
        yield service


def f(seq, **fields):
    return fill(SYMBOL, seq, **({"lots": 10, "price": "80", "bankruptcyPrice": "79"} | fields))


async def suspended(service):
    """Returns whether the contract is suspended according to the contracts route, the fund, the metric and the database."""
    return (
        (await service.get(f"/api/v1/contracts/{SYMBOL}"))["suspended"],
        (await service.fund(SYMBOL))["suspended"],
        service.count("fundsvc_contract_suspended", symbol=SYMBOL) == 1,
        await service.pool.fetchval("SELECT suspended FROM contracts"),
    )


async def is_suspended(service):
    return await suspended(service) == (True, True, True, True)


async def is_resumed(service):
    return await suspended(service) == (False, False, False, False)


@pytest.mark.parametrize("terms", OTHERS)
async def test_other_terms_suspend_a_contract_until_a_listing_with_its_own_terms(service, terms):
    with capture_logs() as logs:
        answer = await service.send(contract(SYMBOL, **terms), f(2))
    assert [refused["reason"] for refused in answer["rejected"]] == ["contract_fixed", "terms_in_doubt"]
    mark = {"type": "mark", "symbol": SYMBOL, "price": "80", "ts": now_ms()}
    answer = await service.send(f(3), mark)
    assert [refused["reason"] for refused in answer["rejected"]] == ["terms_in_doubt"] * 2
    await service.append(f(4))
    assert await service.reasons() == ["contract_fixed"] + ["terms_in_doubt"] * 4
    assert [seq for seq, *_ in await service.entries(SYMBOL)] == [1]
    await eventually(lambda: is_suspended(service))
    assert "contract suspended" in [line["event"] for line in logs]
    answer = await service.send(contract(SYMBOL, **TERMS), f(5))
    assert answer["rejected"] == []
    await eventually(lambda: is_resumed(service))
    assert [seq for seq, *_ in await service.entries(SYMBOL)] == [1, 5]


@pytest.mark.parametrize("partitions", [4])
@pytest.mark.parametrize("symbol", ["AAA", "BBB", "CCC", "DDD", "EEE", "FFF"])
async def test_posted_other_terms_suspend_a_contract_of_any_partition(config, symbol):
    async with served(config) as service:
        await service.post(contract(symbol, **TERMS), fill(symbol, 1))
        await eventually(lambda: service.entries(symbol))
        await service.fund(symbol)
        _, answer = await service.post(contract(symbol, multiplier=7))
        assert [refused["reason"] for refused in answer["data"]["rejected"]] == ["contract_fixed"]
        assert await eventually(service.reasons) == ["contract_fixed"]
        assert await service.pool.fetchval("SELECT suspended FROM contracts WHERE symbol = $1", symbol)


async def test_other_contracts_continue(service):
    await service.send(contract("OTHERUSDTM"), contract(SYMBOL, multiplier=7), fill("OTHERUSDTM", 1), f(2))
    assert [seq for seq, *_ in await service.entries("OTHERUSDTM")] == [1]


async def test_a_suspension_survives_a_restart_and_ends_by_a_command(service, config):
    await service.send(contract(SYMBOL, multiplier=7), f(2))
    async with restarted(service, config) as again:
        await again.append(f(3))
        assert await again.reasons() == ["contract_fixed", "terms_in_doubt", "terms_in_doubt"]
        await eventually(lambda: is_suspended(again))
        assert (await fundsvc(config, "contracts", "resume", SYMBOL)).code == 0
        await eventually(lambda: is_resumed(again))
        assert (await fundsvc(config, "rejected", "replay")).code == 0
        await again.settled()
        assert await again.entries(SYMBOL) == [(seq, 100_000_000, 0) for seq in (1, 2, 3)]
        assert await again.reasons() == ["contract_fixed"]
        assert await is_resumed(again)
    assert (await fundsvc(config, "contracts", "resume", SYMBOL)).code == 1
    assert (await fundsvc(config, "contracts", "resume", "NONEUSDTM")).code == 1


async def test_terms_may_change_before_the_first_entry(service):
    await service.send(contract("NEWUSDTM"), contract("NEWUSDTM", multiplier=1))
    answer = await service.send(fill("NEWUSDTM", 1, lots=1))
    assert answer["rejected"] == []
    assert await service.entries("NEWUSDTM") == [(1, 100 * 10**8, 0)]


WON = {"settleCurrency": "KRW", "multiplier": 1}


async def test_a_price_beyond_the_scale_is_rejected_with_a_remedy_over_http_and_in_the_ledger(service):
    listing = contract("XBTKRWM", **WON)
    del listing["contract"]["maxPrice"]
    low, high = {"price": "9000000", "bankruptcyPrice": "8900000"}, {"price": "160000000", "bankruptcyPrice": "159000000"}
    await service.send(listing, fill("XBTKRWM", 1, **low))
    answer = await service.send(fill("XBTKRWM", 2, **high))
    assert [refused["reason"] for refused in answer["rejected"]] == ["out_of_range"]
    answer = await service.send(contract("XBTKRWM", **WON, maxPrice=1_000_000_000), fill("XBTKRWM", 3, **high))
    assert [refused["reason"] for refused in answer["rejected"]] == ["contract_fixed", "out_of_range"]
    assert "another symbol" in answer["rejected"][0]["detail"]
    answer = await service.send(fill("XBTKRWM", 4, **high), fill("XBTKRWM", 5, **low))
    assert [refused["index"] for refused in answer["rejected"]] == [0]
    assert [seq for seq, *_ in await service.entries("XBTKRWM")] == [1, 5]
    assert await service.reasons() == ["out_of_range", "contract_fixed", "out_of_range", "out_of_range"]


async def test_the_price_scale_may_change_before_the_first_entry(service):
    listing = contract("XBTKRWM", **WON)
    del listing["contract"]["maxPrice"]
    await service.send(listing, contract("XBTKRWM", **WON, maxPrice=1_000_000_000))
    answer = await service.send(fill("XBTKRWM", 1, lots=1, price="160000000", bankruptcyPrice="159000000"))
    assert answer["rejected"] == []
    assert len(await service.entries("XBTKRWM")) == 1


async def test_a_listing_beyond_contracts_max_is_kept_and_can_be_replayed(config):
    async with served(with_section(config, "stream", contracts_max=1)) as service:
        await service.append(contract("FIRSTUSDTM"), contract("SECONDUSDTM"), fill("FIRSTUSDTM", 1))
        assert await service.reasons() == ["too_many_contracts"]
        assert [seq for seq, *_ in await service.entries("FIRSTUSDTM")] == [1]
    async with served(config) as service:
        await fundsvc(config, "rejected", "replay", "--reason", "too_many_contracts")
        await service.append(fill("SECONDUSDTM", 1))
        assert [seq for seq, *_ in await service.entries("SECONDUSDTM")] == [1]
