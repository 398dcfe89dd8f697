"""Funds are encoded once per change, show what the tail has, and never pass for what the ledger may not be any more."""

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
from fundsvc.api.fund_cache import CachedFunds
from fundsvc.api.http.errors import NotFound
from fundsvc.api.http.parameters import Query
from fundsvc.api.valuation import Valuation
from fundsvc.core.policy import Policy
from fundsvc.metrics import Metrics
from fundsvc.readmodel.ledger_tail import open_tail
from fundsvc.store.database import StoreFault
from fundsvc.store.statistics import Past

ASKED = Query()


class Answers:
    """Makes answers of funds, and counts how often."""

    def __init__(self):
        self.made = []
        self.mark = 1

    def __call__(self, fund):
        self.made.append((fund.symbol, fund.entry))
        return fund_answer(fund, Policy(), Valuation(None, "none came", self.mark, 0, Past(0, 0, fund.balance)), 1)


@pytest.fixture
async def world(config):
    """A ledger with two funds, a tail of it, and what is cached of that."""
    answers = Answers()
    async with owned(config) as owner, open_tail(with_section(config, "http", tail_seconds=0.002), Metrics()) as tail:
        await owner.settle([listing("AAA"), listing("BBB")])
        await eventually(lambda: len(tail.funds) == 2)

        async def settle(*events):
            await owner.settle(events)
            await eventually(lambda: tail.funds[events[-1].symbol].seq == events[-1].seq)

        yield SimpleNamespace(tail=tail, answers=answers, cached=CachedFunds(tail, answers), settle=settle)


async def shown(world, symbol):
    body = (await world.cached.fund(ASKED, symbol)).body
    answer = msgspec.json.decode(body)
    assert answer["code"] == "200000"
    msgspec.convert(answer["data"], FundAnswer)
    return answer["data"]


async def test_a_fund_is_encoded_once_until_it_changes(world):
    first = await world.cached.fund(ASKED, "AAA")
    for _ in range(100):
        assert await world.cached.fund(ASKED, "AAA") is first
    assert world.answers.made == [("AAA", 0)]
    await world.settle(fill("AAA", 1, 7))
    assert ((await shown(world, "AAA"))["balance"], (await shown(world, "AAA"))["entry"]) == ("7", 1)
    assert world.answers.made == [("AAA", 0), ("AAA", 1)]


async def test_the_list_is_made_of_funds_that_are_encoded_already(world):
    await shown(world, "BBB")
    first = await world.cached.funds(ASKED)
    assert await world.cached.funds(ASKED) is first
    listed = msgspec.json.decode(first.body)["data"]
    assert listed == [await shown(world, "AAA"), await shown(world, "BBB")]
    await world.settle(fill("BBB", 1, 7))
    assert [fund["balance"] for fund in msgspec.json.decode((await world.cached.funds(ASKED)).body)["data"]] == ["0", "7"]
    assert world.answers.made == [("BBB", 0), ("AAA", 0), ("BBB", 1)]


async def test_what_moves_between_entries_is_shown_anew_within_a_second(world, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(fund_cache.time, "monotonic", lambda: now)
    monkeypatch.setattr(world.tail, "check", lambda: None)
    await shown(world, "AAA")
    await world.cached.funds(ASKED)
    world.answers.mark = None
    now += fund_cache.VALUATION_SECONDS / 2
    await shown(world, "AAA")
    assert len(world.answers.made) == 2
    now += fund_cache.VALUATION_SECONDS / 2
    await shown(world, "AAA")
    await world.cached.funds(ASKED)
    assert len(world.answers.made) == 4


async def test_nothing_is_shown_of_what_is_not_listed(world):
    with pytest.raises(NotFound):
        await world.cached.fund(ASKED, "NONE")


async def test_nothing_is_shown_of_a_ledger_that_was_not_heard_of_lately(config, world, monkeypatch):
    await shown(world, "AAA")
    monkeypatch.setattr("fundsvc.readmodel.ledger_tail.SILENCE_SECONDS_MAX", -1.0)
    for question in (world.cached.fund(ASKED, "AAA"), world.cached.funds(ASKED), world.cached.answers()):
        with pytest.raises(StoreFault):
            await question


async def test_a_long_list_is_gzipped_for_who_takes_it_and_a_short_answer_never(config):
    config = with_section(config, "http", port=0)
    async with owned(config) as owner:
        await owner.settle([listing(f"C{number:03d}") for number in range(60)])
        async with serving(config) as service:
            packed, headers = await asked(service, "/api/v1/insurance-fund", "gzip, deflate")
            plain, plain_headers = await asked(service, "/api/v1/insurance-fund", "identity")
            again, _ = await asked(service, "/api/v1/insurance-fund", "gzip")
            short, _ = await asked(service, "/api/v1/insurance-fund/C001", "gzip")
    assert headers["Content-Encoding"] == "gzip"
    assert headers["Vary"] == plain_headers["Vary"] == "Accept-Encoding"
    assert "Content-Encoding" not in plain_headers
    assert len(packed) < len(plain) / 3
    for found in (gzip.decompress(packed), gzip.decompress(again), plain):
        assert len(msgspec.json.decode(found)["data"]) == 60
    assert msgspec.json.decode(short)["data"]["symbol"] == "C001"


async def asked(service, path, takes):
    """The body as it came, and its headers."""
    async with (
        aiohttp.ClientSession(service.http._base_url, auto_decompress=False) as http,
        http.get(path, headers={"Accept-Encoding": takes}) as answer,
    ):
        assert answer.status == 200
        return await answer.read(), answer.headers
