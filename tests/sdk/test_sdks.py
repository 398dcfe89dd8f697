"""Published client libraries of other venues, unmodified except for their base URL, installed in a separate environment."""

import asyncio
import itertools
import os
import ssl
import time
from pathlib import Path

import msgspec
import pytest
from certificates import make_certificate
from commands import program
from conftest import with_section
from environments import BIN, python_environment
from escalations import SYMBOL, TS, executed, shortfall
from test_adl_api import world_of
from test_openapi import HISTORY
from tokens import signed, with_secret

from fundsvc.core.events import Listing
from fundsvc.core.policy import DrawdownGuard, Policy
from fundsvc.demo.instruments import INSTRUMENTS

MORE = [
    msgspec.structs.replace(event, ts=TS + second * 1000)
    for second, event in enumerate(
        (
            executed(5, 1, "secret-bert", 30),
            executed(6, 1, "secret-emil", 5),
            shortfall(7, 10, 39100),
            shortfall(8, 10, 38990),
            shortfall(9, 10, 39000),
        ),
        start=10,
    )
]
"""Executions of the order, a surplus, a shortfall that the fund pays, and a flat fill."""


@pytest.fixture(scope="session")
def environment():
    """Installs the clients."""
    python_environment()


@pytest.fixture
def config(config):
    config = with_section(with_secret(config), "policy", default=Policy(drawdown_guard=DrawdownGuard(hours=168)))
    return with_section(config, "http", port=0, book_seconds=0.05, venues=("binance", "bybit", "gate", "okx"))


@pytest.fixture
async def world(config, environment):
    async with world_of(config) as world:
        await world.send(*HISTORY, *MORE)
        yield world


def script(name, url):
    return BIN / "python", Path(__file__).parent / f"read_{name}.py", url, SYMBOL


async def answers_of(name, world):
    """Runs a client against the service and returns what it prints."""
    trader = signed("trader", account="secret-anna")
    done = await program(*script(name, world.url), environment={**os.environ, "TRADER": trader})
    assert done.code == 0, done.error
    return msgspec.json.decode(done.output)


async def fund_of(world):
    return await world.data(f"/api/v1/insurance-fund/{SYMBOL}")


async def test_pybit_reads_pools_and_alerts(world):
    answers, fund = await answers_of("pybit", world), await fund_of(world)
    pools = answers["insurance"]["result"]
    assert pools["updatedTime"] == str(fund["updatedAt"])
    assert pools["list"] == [{"coin": "USDT", "symbols": SYMBOL, "balance": fund["balance"], "value": fund["balanceUsdt"]}]
    assert answers["alert"]["result"]["list"] == [
        {
            "coin": "USDT",
            "symbol": SYMBOL,
            "balance": fund["balance"],
            "maxBalance": fund["peak8h"],
            "insurancePnlRatio": "-0.3",
            "pnlRatio": "0",
            "adlTriggerThreshold": "0",
            "adlStopRatio": "-0.25",
        }
    ]
    assert answers["error"] == {"code": 10001, "message": "no contract 'NONE' is listed"}


async def test_pybit_waits_for_the_end_of_a_rate_limit(config, environment):
    async with world_of(with_section(config, "http", requests_max=1, requests_seconds=2.0)) as world:
        await world.send(*HISTORY)
        done = await program(*script("pybit", world.url))
    assert done.code == 0, done.error
    assert msgspec.json.decode(done.output)["insurance"]["retCode"] == 0
    assert "rate limit" in done.error


CHANGES = [
    ("regular_update", "", "5.9", 14),
    ("bankruptcy_loss", "-0.1", "5.9", 13),
    ("liquidation_balance_deposit", "1", "6", 12),
    ("regular_update", "", "5", 5),
    ("liquidation_balance_deposit", "1.5", "5", 3),
    ("adl", "", "3.5", 1),
    ("bankruptcy_loss", "-1.5", "3.5", 1),
    ("liquidation_balance_deposit", "5", "5", 0),
]
"""Type, amount, balance and second of all changes, newest first."""


async def test_python_okx_reads_typed_changes_page_by_page(world):
    answers, fund = await answers_of("okx", world), await fund_of(world)
    (found,) = answers["all"]["data"]
    assert (found["total"], found["instFamily"], found["instType"]) == (fund["balanceUsdt"], SYMBOL, "SWAP")

    def seen(details):
        return [(each["type"], each["amt"], each["balance"], (int(each["ts"]) - TS) // 1000) for each in details]

    assert seen(found["details"]) == seen(answers["pages"]) == CHANGES
    assert seen(answers["losses"]) == [change for change in CHANGES if change[0] == "bankruptcy_loss"]
    assert seen(answers["newer"]) == CHANGES[:1]
    assert [each["adlType"] for each in found["details"] if each["type"] == "adl"] == ["bal_adl_start"]
    assert answers["no family"]["code"] == "50014"
    assert answers["wrong type"]["code"] == "51000"
    assert "regular_update" in answers["wrong type"]["msg"]
    assert answers["margin"] == {"code": "0", "msg": "", "data": []}


async def test_gate_api_reads_days_risks_and_own_reductions(world):
    answers = await answers_of("gate", world)
    days = answers["insurance"]
    assert [day["b"] for day in days] == ["5.9"] * 5
    assert [later["t"] - day["t"] for day, later in itertools.pairwise(days)] == [86_400] * 4
    assert 0 <= time.time() - days[-1]["t"] < 86_400 + 60
    assert answers["risks"]["states"][SYMBOL]["state"] == "adl_risk"
    (reduction,) = answers["deleveraged"]
    assert (reduction["time"], reduction["order_id"], reduction["contract"]) == (TS // 1000 + 1, 1, SYMBOL)
    assert (reduction["trade_size"], reduction["position_size"], reduction["fill_price"]) == ("40", "-10", "39000")
    assert (answers["error"]["status"], answers["error"]["label"]) == (404, "CONTRACT_NOT_FOUND")


async def test_binance_clients_read_balances_risks_and_own_quantiles(world):
    answers, fund = await answers_of("binance", world), await fund_of(world)
    assets = [{"asset": "USDT", "marginBalance": fund["balance"], "updateTime": fund["updatedAt"]}]
    group = {"symbols": [SYMBOL], "assets": assets}
    risk = {"symbol": SYMBOL, "adlRisk": "high", "updateTime": fund["updatedAt"]}
    assert answers["connector"] == answers["insurances"] == [group]
    assert (answers["insurance"], answers["risk"], answers["risks"]) == (group, risk, [risk])
    (position,) = (await world.data("/api/v1/adl/positions", account="secret-anna"))["positions"]
    quantile = position["lights"] - 1
    assert answers["quantile"] == [{"symbol": SYMBOL, "adlQuantile": {"LONG": 0, "SHORT": quantile, "BOTH": quantile}}]
    assert answers["error"] == {"status": 400, "code": -1121, "message": "no contract 'NONE' is listed"}


async def test_ccxt_loads_the_markets_of_kucoin_futures(world):
    await world.send(*(Listing(each.specification()) for each in INSTRUMENTS))
    answers = await answers_of("ccxt_markets", world)
    assert answers["markets"] == {
        each.symbol: ["future" if each.settles else "swap", each.settle, each.is_inverse, abs(each.multiplier)]
        for each in INSTRUMENTS
    }
    assert answers["currencies"] == {"ETH": 1e-10, "USDC": 1e-8, "USDT": 1e-8, "XBT": 1e-10}


async def test_ccxt_reads_four_venues_with_its_implicit_methods(world):
    answers, fund = await answers_of("ccxt", world), await fund_of(world)
    (pool,) = answers["bybit insurance"]["result"]["list"]
    (alert,) = answers["bybit alert"]["result"]["list"]
    assert pool["balance"] == alert["balance"] == fund["balance"]
    assert len(answers["okx"]["data"][0]["details"]) == len(CHANGES)
    assert answers["gate insurance"][-1]["b"] == fund["balance"]
    assert answers["binance insurance"]["assets"][0]["marginBalance"] == fund["balance"]
    assert answers["binance risk"]["adlRisk"] == "high"
    assert answers["kucoin contracts"] == [SYMBOL]
    errors = {name: answers[f"{name} error"] for name in ("bybit", "okx", "gate", "binance")}
    assert errors == {"bybit": "BadRequest", "okx": "BadRequest", "gate": "BadSymbol", "binance": "BadSymbol"}


async def test_kucoin_sdk_reads_contracts_and_server_time(world):
    answers = await answers_of("kucoin", world)
    assert answers["one"] == {"symbol": SYMBOL, "multiplier": 0.001, "type": "FFWCSX", "status": "Open"}
    assert answers["all"] == [SYMBOL]
    assert abs(answers["time"] / 1000 - time.time()) < 60


async def test_kucoin_futures_client_reads_contracts_and_receives_topics_over_tls(config, environment, tmp_path):
    certificate, key = make_certificate(tmp_path)
    config = with_section(config, "http", certificate=str(certificate), certificate_key=str(key))
    async with world_of(config, ssl.create_default_context(cafile=certificate)) as world:
        await world.send(*HISTORY)
        trust = dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), str(certificate))
        client = await asyncio.create_subprocess_exec(
            *script("kucoin_futures", world.url),
            env={**os.environ, **trust},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert b"listening" in await client.stderr.readline()
        await world.send(*MORE)
        output, error = await client.communicate()
        assert client.returncode == 0, error.decode()
        fund = await fund_of(world)
    answers = msgspec.json.decode(output)
    assert answers["contracts"] == [SYMBOL]
    assert answers["contract"]["multiplier"] == 0.001
    balances = [each for each in answers["received"] if each["subject"] == "balance.change"]
    (entry,) = [each["data"] for each in answers["received"] if each["subject"] == "entry"]
    assert balances[0]["topic"] == f"/insuranceFund/balance:{SYMBOL}"
    assert (entry["entry"], entry["change"]) == (5, "1")
    assert fund["entry"] > entry["entry"]
