"""Contracts with unusual valid symbols: their paths in all encodings, with and without a query."""

import string
from urllib.parse import quote

import pytest
from conftest import with_section
from eventually import eventually
from ledgers import listing, owned
from live import BALANCE, serving
from yarl import URL

from fundsvc.core.contracts import contract_of
from fundsvc.core.events import Rejection

SYMBOLS = (
    *("{}", "{symbol}", "}{", "ABT", "A%42T", "%7B%7D", "%", "%25", "A?B", "A#B", "A;B", "A&B", "A+B", "A'B", 'A"B', "A\\B"),
    *("..A", "A..", "...", "<b>", "é", "日本", "A!B", "A*B", "A~B", "A$B", "(A)", "[A]", "A|B", "A^B", "A`B", "history", "*"),
)
ROUTES = (
    "insurance-fund/{}",
    "insurance-fund/{}/history",
    "insurance-fund/{}/entries/1",
    "insurance-fund/{}/candles",
    "insurance-fund/{}/chart",
    "insurance-fund/{}/target",
    "contracts/{}",
    "adl/{}/orders",
    "adl/{}/queue",
)


@pytest.fixture
async def service(config):
    config = with_section(config, "http", port=0, requests_max=100_000)
    async with owned(config) as owner:
        await owner.settle([listing(symbol) for symbol in SYMBOLS])
        async with serving(config) as service:
            await eventually(lambda: are_shown(service))
            yield service


async def are_shown(service):
    async with service.http.get("/api/v1/insurance-fund") as answer:
        return answer.status == 200 and {fund["symbol"] for fund in (await answer.json())["data"]} == set(SYMBOLS)


async def named(service, path):
    """Returns the symbol of the fund at an encoded path, or None."""
    async with service.http.get(URL(path, encoded=True)) as answer:
        body = await answer.json()
        return body["data"]["symbol"] if answer.status == 200 else None


def spellings(symbol):
    """Yields the encodings of a symbol in a path."""
    yield quote(symbol, safe="")
    yield "".join(f"%{byte:02x}" for byte in symbol.encode())
    yield "".join(f"%{byte:02X}" for byte in symbol.encode())
    if set(symbol) <= {*string.ascii_letters, *string.digits, *"-._~!$&'()*+;=@"}:
        yield symbol


async def test_path_selects_the_same_fund_with_and_without_query(service, subtests):
    for symbol in SYMBOLS:
        for spelled in spellings(symbol):
            for query in ("", "?", "?numbers=number", "?numbers=string"):
                with subtests.test(symbol=symbol, spelled=spelled, query=query):
                    assert await named(service, f"/api/v1/insurance-fund/{spelled}{query}") == symbol


async def test_every_route_finds_the_contract(service, subtests):
    for symbol in SYMBOLS:
        for route in ROUTES:
            with subtests.test(symbol=symbol, route=route):
                path = f"/api/v1/{route.replace('{}', quote(symbol, safe=''))}"
                async with service.http.get(URL(path, encoded=True)) as answer:
                    body = await answer.json()
                    assert "is listed" not in body.get("msg", ""), body
                    assert not body.get("msg", "").endswith("does not exist"), body


async def test_every_contract_has_a_topic(service):
    async with service.connected() as client:
        for symbol in SYMBOLS:
            await client.subscribe(f"{BALANCE}:{symbol}")
            assert (await client.data(f"{BALANCE}:{symbol}", "balance.change"))["symbol"] == symbol


@pytest.mark.parametrize(
    "symbol", [".", "..", "active", "summary", "all", "", "A/B", "A,B", "A B", "A:B", "=A", "\u202eA", "A\x00"]
)
def test_symbol_that_no_path_or_topic_can_name_is_rejected(symbol):
    given = {"symbol": symbol, "settleCurrency": "USDT", "multiplier": 0.001, "isInverse": False}
    with pytest.raises(Rejection):
        contract_of(given, {}, 8)
