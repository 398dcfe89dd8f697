"""Extreme prices of contracts, and the valuation of funds at them, in a complete service."""

import pytest
from commands import fundsvc
from served import contract, fill, served


@pytest.fixture
async def service(config):
    async with served(config) as service:
        yield service


async def test_a_fully_margined_long_is_settled_at_bankruptcy_price_zero(service, config):
    await service.send(contract("ZEROUSDTM"), fill("ZEROUSDTM", 1, price="0.5", bankruptcyPrice="0"))
    assert (await service.fund("ZEROUSDTM"))["balance"] == "0.5"
    (entry,) = (await service.get("/api/v1/insurance-fund/ZEROUSDTM/history"))["dataList"]
    assert (entry["price"], entry["bankruptcyPrice"]) == ("0.5", "0")
    assert (await fundsvc(config, "audit")).code == 0


async def test_a_shortfall_at_price_zero_escalates(service):
    await service.send(contract("ZEROUSDTM"), fill("ZEROUSDTM", 1, side="buy", price="0.5", bankruptcyPrice="0.0"))
    assert await service.entries("ZEROUSDTM") == [(1, 0, 50_000_000)]
    assert await service.reasons() == []


async def test_an_inverse_contract_has_no_price_zero(service):
    inverse = contract("ZEROUSDM", isInverse=True, multiplier=-1, settleCurrency="XBT")
    answer = await service.send(inverse, fill("ZEROUSDM", 1, bankruptcyPrice="0"), fill("ZEROUSDM", 2, price="0"))
    assert [refused["reason"] for refused in answer["rejected"]] == ["out_of_range", "out_of_range"]
    assert await service.reasons() == ["out_of_range", "out_of_range"]


@pytest.mark.parametrize(
    ("terms", "is_quanto"),
    [
        ({"settleCurrency": "USDT", "baseCurrency": "XBT", "quoteCurrency": "USDT"}, False),
        ({"settleCurrency": "USDT", "baseCurrency": "XBT", "quoteCurrency": "USDT", "isQuanto": True}, False),
        ({"settleCurrency": "USDT", "baseCurrency": "XBT"}, False),
        ({"settleCurrency": "XBT", "baseCurrency": "XBT", "quoteCurrency": "USD"}, False),
        ({"settleCurrency": "XBT", "baseCurrency": "XBT", "quoteCurrency": "USD", "isInverse": True}, False),
        ({"settleCurrency": "ETH", "baseCurrency": "XBT", "quoteCurrency": "USD"}, True),
        ({"settleCurrency": "XBT", "baseCurrency": "ETH", "quoteCurrency": "USD", "isQuanto": True}, True),
        ({"settleCurrency": "XBT", "baseCurrency": "ETH", "isQuanto": True}, True),
    ],
)
async def test_a_quanto_contract_has_no_value_in_its_base_currency(service, terms, is_quanto):
    await service.send(contract("QUANTOM", **terms), fill("QUANTOM", 1))
    fund = await service.fund("QUANTOM")
    assert ("quanto" in fund.get("balanceBaseReason", "")) == is_quanto
    if terms["settleCurrency"] == terms["baseCurrency"]:
        assert fund["balanceBase"] == fund["balance"]
