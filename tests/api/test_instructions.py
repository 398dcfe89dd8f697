"""ADL over HTTP alone: a matching engine posts its events, receives rounds from a topic, and reads orders with accounts."""

import msgspec
import pytest
from conftest import with_section
from escalations import BEGINNING, SYMBOL, ended, executed, shortfall
from eventually import eventually
from live import Service
from served import served
from tokens import bearer, signed, with_secret

from fundsvc.core.events import AdlAck

TOPIC = "/adl/instruction"
ORDERS = f"/api/v1/adl/{SYMBOL}/orders"
REQUESTED = {"secret-anna": 50, "secret-bert": 30, "secret-emil": 5, "secret-carl": 15}
"""The lots of the first round, by account."""


@pytest.fixture
def config(config):
    return with_section(with_section(with_secret(config), "http", tail_seconds=0.005), "adl", ack_seconds=60.0)


@pytest.fixture
async def service(config):
    async with served(config) as service:
        await service.send(*BEGINNING)
        yield service


def connected(service, role="engine", **claims):
    return Service(service.url, service.http, None).connected(signed(role, **claims))


async def round_of(client):
    return await client.data(TOPIC, "round")


def lots_of(announced):
    return {each["account"]: each["lots"] for each in announced["allocations"]}


async def test_engine_executes_an_order_over_http_alone(service):
    async with connected(service) as engine:
        await engine.subscribe(TOPIC)
        await service.send(shortfall(1))
        first = await round_of(engine)
        assert (first["adl"], first["round"], first["reduce"], first["lots"], lots_of(first)) == (1, 1, "short", 100, REQUESTED)
        assert first == (await service.announced())[0]
        await service.send(AdlAck(SYMBOL, 1, 1, 0), executed(2, 1, "secret-anna", 20), ended(3, 1))
        second = await round_of(engine)
        assert (second["adl"], second["round"], second["lots"]) == (1, 2, 80)
        fills = [executed(seq, 1, account, lots) for seq, (account, lots) in enumerate(lots_of(second).items(), 4)]
        await service.send(*fills)
        await service.send(shortfall(20))
        assert [(await round_of(engine))["adl"]] == [2]
    assert (await service.fund(SYMBOL))["outstanding"] == "0"
    assert await service.reasons() == []


async def test_each_subscription_begins_with_what_is_left_of_the_open_rounds(service):
    await service.send(shortfall(1), shortfall(2, 10))
    await service.send(executed(3, 1, "secret-anna", 20))
    await eventually(lambda: shows_orders(service, 2))
    for _ in range(2):
        async with connected(service) as engine:
            await engine.subscribe(TOPIC)
            rounds = {announced["adl"]: announced for announced in (await round_of(engine), await round_of(engine))}
            assert lots_of(rounds[1]) == {**REQUESTED, "secret-anna": 30}
            assert rounds[2]["lots"] == 10


async def shows_orders(service, count):
    return len((await service.get(f"{ORDERS}?maxCount=10"))["dataList"]) == count


@pytest.mark.parametrize("claims", [{"role": "trader", "account": "secret-anna"}, None])
async def test_other_roles_may_not_subscribe(service, claims):
    api = Service(service.url, service.http, None)
    async with api.connected(signed(**claims) if claims else None) as client:
        answer = await client.request(id=1, type="subscribe", topic=TOPIC)
        assert (answer["type"], answer["code"]) == ("error", 403)
        assert "role engine" in answer["data"]


async def test_private_topics_of_traders_are_closed_to_engines(service):
    async with connected(service) as engine:
        answer = await engine.request(id=1, type="subscribe", topic="/adl/position")
        assert (answer["type"], answer["code"]) == ("error", 403)


async def test_topic_has_no_history(service):
    async with connected(service) as engine:
        answer = await engine.request(id=1, type="subscribe", topic=TOPIC, after=1)
        assert (answer["type"], answer["code"]) == ("error", 400)


async def test_order_shows_accounts_to_engines_and_risk_only(service):
    await service.send(shortfall(1))
    await service.send(executed(2, 1, "secret-anna", 20))
    for role in ("engine", "risk"):
        order = await service.get(f"{ORDERS}/1", role)
        ((round_),) = order["rounds"]
        assert {each["account"]: each["asked"] for each in round_["allocations"]} == REQUESTED
        assert lots_of(order["instruction"]) == {**REQUESTED, "secret-anna": 30}
    for role, status in (("trader", 403), (None, 401)):
        headers = bearer("trader", account="secret-anna") if role else {}
        async with service.http.get(f"{ORDERS}/1", headers=headers) as answer:
            assert answer.status == status
            assert "secret" not in await answer.text()


async def test_order_that_is_over_has_no_instruction(service):
    await service.send(shortfall(1))
    await service.send(*(executed(seq, 1, account, lots) for seq, (account, lots) in enumerate(REQUESTED.items(), 2)))
    order = await service.get(f"{ORDERS}/1", "engine")
    assert (order["state"], order["instruction"]) == ("done", None)


@pytest.mark.parametrize("number", ["2", "0", "x", "1234567890"])
async def test_unknown_order_is_not_found(service, number):
    await service.send(shortfall(1))
    async with service.http.get(f"{ORDERS}/{number}", headers=bearer("engine")) as answer:
        assert answer.status == 404, msgspec.json.decode(await answer.read())
