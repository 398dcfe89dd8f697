"""The fund cache: funds are encoded once per change, and an outdated tail is never shown."""

import gzip
from types import SimpleNamespace

import aiohttp
import msgspec
import pytest
from conftest import with_section
from eventually import eventually
from ledgers import fill, listing, owned
from live import serving

from fundsvc.api import fund_cache
from fundsvc.api.answers import FundAnswer, fund_answer
from fundsvc.api.fund_cache import FundCache
from fundsvc.api.http.errors import NotFound
from fundsvc.api.http.parameters import FundsQuery
from fundsvc.api.valuation import FundValuation
from fundsvc.core.policy import Policy
from fundsvc.metrics import Metrics
from fundsvc.readmodel.ledger_tail import open_tail
from fundsvc.store.database import StoreFault
from fundsvc.store.statistics import Past

QUERY = FundsQuery()


class Answers:
    """Makes answers for funds and records the calls."""

    def __init__(self):
        self.made = []
        self.mark = 1

    def __call__(self, fund):
        self.made.append((fund.symbol, fund.entry))
        return fund_answer(fund, Policy(), FundValuation(None, "no rate", self.mark, 0, Past(0, 0, fund.balance)), 1)


class Clock:
    """A clock that the test controls."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
async def world(config):
    """A ledger with two funds, its tail, and a fund cache."""
    answers = Answers()
    async with owned(config) as owner, open_tail(with_section(config, "http", tail_seconds=0.002), Metrics()) as tail:
        await owner.settle([listing("AAA"), listing("BBB")])
        await eventually(lambda: len(tail.funds) == 2)

        async def settle(*events):
            await owner.settle(events)
            await eventually(lambda: tail.funds[events[-1].symbol].seq == events[-1].seq)

        clock = Clock()
        yield SimpleNamespace(tail=tail, answers=answers, cached=FundCache(tail, answers, clock), clock=clock, settle=settle)


async def shown(world, symbol):
    body = (await world.cached.fund(QUERY, symbol)).body
    answer = msgspec.json.decode(body)
    assert answer["code"] == "200000"
    msgspec.convert(answer["data"], FundAnswer)
    return answer["data"]


async def test_fund_is_encoded_once_until_it_changes(world):
    first = await world.cached.fund(QUERY, "AAA")
    for _ in range(100):
        assert await world.cached.fund(QUERY, "AAA") is first
    assert world.answers.made == [("AAA", 0)]
    await world.settle(fill("AAA", 1, 7))
    assert ((await shown(world, "AAA"))["balance"], (await shown(world, "AAA"))["entry"]) == ("7", 1)
    assert world.answers.made == [("AAA", 0), ("AAA", 1)]


async def test_list_reuses_encoded_funds(world):
    await shown(world, "BBB")
    first = await world.cached.funds(QUERY)
    assert await world.cached.funds(QUERY) is first
    listed = msgspec.json.decode(first.body)["data"]
    assert listed == [await shown(world, "AAA"), await shown(world, "BBB")]
    await world.settle(fill("BBB", 1, 7))
    assert [fund["balance"] for fund in msgspec.json.decode((await world.cached.funds(QUERY)).body)["data"]] == ["0", "7"]
    assert world.answers.made == [("BBB", 0), ("AAA", 0), ("BBB", 1)]


async def test_valuation_is_refreshed_after_its_maximum_age(world):
    await shown(world, "AAA")
    await world.cached.funds(QUERY)
    world.answers.mark = None
    world.clock.now += fund_cache.VALUATION_SECONDS / 2
    await shown(world, "AAA")
    assert len(world.answers.made) == 2
    world.clock.now += fund_cache.VALUATION_SECONDS / 2
    await shown(world, "AAA")
    await world.cached.funds(QUERY)
    assert len(world.answers.made) == 4


async def test_unlisted_symbol_is_not_found(world):
    with pytest.raises(NotFound):
        await world.cached.fund(QUERY, "NONE")


async def test_outdated_tail_raises_store_fault(config, world, monkeypatch):
    await shown(world, "AAA")
    monkeypatch.setattr("fundsvc.readmodel.ledger_tail.SILENCE_SECONDS_MAX", -1.0)
    for answer in (world.cached.fund(QUERY, "AAA"), world.cached.funds(QUERY), world.cached.answers()):
        with pytest.raises(StoreFault):
            await answer


async def test_only_a_long_answer_is_gzipped(config):
    config = with_section(config, "http", port=0)
    async with owned(config) as owner:
        await owner.settle([listing(f"C{number:03d}") for number in range(60)])
        async with serving(config) as service:
            gzipped, headers = await fetch(service, "/api/v1/insurance-fund", "gzip, deflate")
            plain, plain_headers = await fetch(service, "/api/v1/insurance-fund", "identity")
            again, _ = await fetch(service, "/api/v1/insurance-fund", "gzip")
            short, _ = await fetch(service, "/api/v1/insurance-fund/C001", "gzip")
    assert headers["Content-Encoding"] == "gzip"
    assert headers["Vary"] == plain_headers["Vary"] == "Accept-Encoding"
    assert "Content-Encoding" not in plain_headers
    assert len(gzipped) < len(plain) / 3
    for found in (gzip.decompress(gzipped), gzip.decompress(again), plain):
        assert len(msgspec.json.decode(found)["data"]) == 60
    assert msgspec.json.decode(short)["data"]["symbol"] == "C001"


async def fetch(service, path, encoding):
    """Returns the body as received, and the headers."""
    async with (
        aiohttp.ClientSession(service.url, auto_decompress=False) as http,
        http.get(path, headers={"Accept-Encoding": encoding}) as answer,
    ):
        assert answer.status == 200
        return await answer.read(), answer.headers
