"""Takeovers over HTTP: ingest, funds with inventories, tranches, ADL orders and previews, with a running engine."""

import asyncio
import time

import msgspec
import pytest
from aiohttp import ClientSession
from conftest import with_section
from eventually import eventually
from ledgers import listing, owned
from served import INGEST, served
from tokens import bearer, with_secret

from fundsvc.core.events import Fill, Mark, Position, Takeover, Unwind
from fundsvc.core.fund.settlement import Fund
from fundsvc.readmodel.inventories import Inventories, HeldSide
from fundsvc.metrics import Metrics
from fundsvc.readmodel.ledger_tail import open_tail
from fundsvc.store.database import open_pool
from fundsvc.wire.codec import encode

SYMBOL = "XBTUSDTM"
TS = 1_700_000_000_000
PATH = f"/api/v1/insurance-fund/{SYMBOL}"


@pytest.fixture
def config(config):
    config = with_section(with_secret(config), "http", book_seconds=0.05, tail_seconds=0.005, requests_max=100_000)
    return with_section(config, "engine", lease_seconds=0.6)


@pytest.fixture
async def service(config):
    """A service whose fund has 100 USDT, at mark 45."""
    async with served(config) as service:
        await service.send(*BEGINNING)
        yield service


def mark(price, ts=TS):
    return Mark(SYMBOL, str(price), ts)


def takeover(seq, lots=10, price=50, side="sell", **more):
    return Takeover(SYMBOL, seq, side, lots, str(price), TS, account="secret-takeover", **more)


def unwind(seq, lots, price, side="sell"):
    return Unwind(SYMBOL, seq, side, lots, str(price), TS)


def short(account, lots=100, price=60, margin=1000):
    return Position(SYMBOL, account, -lots, str(price), str(margin), TS)


BEGINNING = [listing(SYMBOL, multiplier=1), Fill(SYMBOL, 1, "sell", 100, "51", "50", TS), mark(45)]


async def valued(service, **expected):
    """Waits until the fund has some fields, and returns it. Marks are shown once a second."""

    async def is_so():
        fund = await service.fund(SYMBOL)
        return fund if {name: fund[name] for name in expected} == expected else None

    return await eventually(is_so, 20)


async def preview(service, body, role="risk", **claims):
    path = f"/api/v1/adl/{SYMBOL}/preview"
    async with service.http.post(path, json=body, headers=bearer(role, **claims)) as answer:
        return answer.status, await answer.json()


async def test_fund_shows_what_the_worked_case_comes_to(service):
    assert (await service.send(takeover(2)))["rejected"] == []
    held = {"side": "long", "lots": 10, "averagePrice": "50", "tranches": 1, "oldestTs": TS}
    fund = await valued(service, balance="100", equity="50", unrealisedPnl="-50", inventory=[held])
    assert fund["state"] == "ok"

    await service.send(short("anna"), mark(38))
    fund = await valued(service, equity="-20", unrealisedPnl="-120")
