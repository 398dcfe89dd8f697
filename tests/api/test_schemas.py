"""The JSON Schemas and the AsyncAPI document agree with what the service decodes and sends."""

import time

import msgspec
import pytest
from conftest import with_section
from escalations import BEGINNING, SYMBOL, executed, mark, shortfall
from jsonschema import Draft202012Validator
from live import BALANCE, ENTRY, ORDER, POSITION, Service
from mutuals import ANNA, POOL, STORY, settled_pool, some_life
from served import served
from tokens import signed, with_secret

from fundsvc.api.docs.schemas import BUNDLES, INTERNAL, json_schemas, tag_of
from fundsvc.core.events import Event, Rejection
from fundsvc.mutual import codec as pool_codec
from fundsvc.mutual.core.events import Event as PoolEvent
from fundsvc.wire.codec import decode_event

SCHEMAS = json_schemas()
EXAMPLES = {
    "fill": {
        "seq": 2, "side": "sell", "lots": 10, "price": "39100.5", "bankruptcyPrice": "39000", "ts": 0, "tradeId": "t",
        "orderId": "o", "account": "a", "prevSeq": 1,
    },
    "takeover": {
        "seq": 2, "side": "buy", "lots": 10, "bankruptcyPrice": "0", "ts": 0, "tradeId": "t", "orderId": "o", "account": "a",
        "prevSeq": None,
    },
    "unwind": {
        "seq": 2, "side": "sell", "lots": 10, "price": "39100", "ts": 0, "tradeId": "t", "orderId": "o", "prevSeq": 0
    },
    "settle": {"seq": 2, "price": "39100", "ts": 0, "prevSeq": 1},
    "mark": {"price": "39100", "ts": 0, "indexPrice": "39101", "seq": 1},
    "position": {
        "account": "a", "lots": -5, "entryPrice": "39100", "margin": "1.5", "ts": 0, "positionSide": "SHORT", "owner": "o",
        "seq": 1,
    },
    "snapshot": {"phase": "begin", "ts": 0},
    "adlFill": {"seq": 2, "adl": 1, "account": "a", "lots": 1, "ts": 0, "prevSeq": 1},
    "adlEnd": {"seq": 2, "adl": 1, "ts": 0, "prevSeq": 1},
    "adlAck": {"adl": 1, "round": 1, "ts": 0},
    "rate": {"currency": "USDT", "price": "1", "ts": 0},
    "contract": {"contract": {"symbol": SYMBOL, "settleCurrency": "USDT", "multiplier": 0.001, "isInverse": False}},
}  # fmt: skip
"""An example of each event with all its fields, without type and symbol."""

WITHOUT_SYMBOL = ("rate", "contract")
WRONG = (None, True, 0, -1, 1.5, 2**63, [], {}, "", "x" * 65)


def example(tag):
    return {"type": tag} | ({} if tag in WITHOUT_SYMBOL else {"symbol": SYMBOL}) | EXAMPLES[tag]


def changes_of(event):
    """Yields legal and illegal variants of an event."""
    yield event
    yield event | {"unknown": 1}
    for name in event.keys() - {"type", "contract"}:
        yield {key: value for key, value in event.items() if key != name}
        yield from (event | {name: value} for value in WRONG)


@pytest.fixture(scope="module", params=sorted(SCHEMAS))
def schema(request):
    return SCHEMAS[request.param]


def test_schemas_are_valid(schema):
    Draft202012Validator.check_schema(schema)


def test_every_event_has_a_schema():
    assert {tag_of(kind) for base in (Event, PoolEvent) for kind in base.__subclasses__()} < SCHEMAS.keys()
    assert {tag_of(kind) for kind in {*Event.__subclasses__()} - {*INTERNAL}} == EXAMPLES.keys()


@pytest.mark.parametrize("tag", EXAMPLES)
def test_schema_accepts_an_event_exactly_if_the_service_decodes_it(tag):
    single, any_event = Draft202012Validator(SCHEMAS[tag]), Draft202012Validator(SCHEMAS["events"])
    seen = set()
    for event in changes_of(example(tag)):
        is_legal = not isinstance(decode_event("json", msgspec.json.encode(event)), Rejection)
        assert (single.is_valid(event), any_event.is_valid(event)) == (is_legal, is_legal), event
        seen.add(is_legal)
    assert seen == {True, False}


def test_schema_accepts_a_listing_exactly_if_its_contract_has_the_required_fields():
    validator = Draft202012Validator(SCHEMAS["contract"])
    whole = example("contract")
    more = {"status": "Open", "maxPrice": "1000000", "multiplier": "0.001", "indexPrice": None}
    assert validator.is_valid(whole | {"contract": whole["contract"] | more})
    for name in whole["contract"]:
        assert not validator.is_valid({"type": "contract", "contract": whole["contract"] | {name: None}}), name


def test_schema_accepts_the_events_of_a_pool():
    validator = Draft202012Validator(SCHEMAS["poolEvents"])
    sent = [event for event in (*STORY, *some_life()) if not isinstance(event, INTERNAL)]
    assert {type(event) for event in sent} == set(BUNDLES["poolEvents"][2]) - {pool_codec.Disable}
    assert all(validator.is_valid(msgspec.to_builtins(event)) for event in sent)
    assert not validator.is_valid(msgspec.to_builtins(sent[0]) | {"unknown": 1})


@pytest.fixture
def config(config):
    return with_section(with_section(with_secret(config), "http", book_seconds=0.05), "adl", ack_seconds=60.0)


@pytest.fixture
async def service(config):
    async with served(config) as service:
        yield service


def validators_of(document):
    """Returns a validator of each message of a document by its name."""
    components = document["components"]
    return {
        name: Draft202012Validator({**message["payload"], "components": components})
        for name, message in components["messages"].items()
    }


async def document_of(service, path):
    async with service.http.get(path) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json(content_type=None)


async def test_served_schemas_are_those_of_the_structs(service):
    assert await document_of(service, "/schemas") == sorted(f"{name}.json" for name in SCHEMAS)
    assert await document_of(service, "/schemas/fill.json") == SCHEMAS["fill"]
    async with service.http.get("/schemas/none.json") as answer:
        assert (answer.status, (await answer.json())["code"]) == (404, "404000")


async def test_all_messages_match_the_asyncapi_document(service, config):
    """Follows an order to its end, with every topic subscribed to."""
    document = await document_of(service, "/asyncapi.json")
    validators = validators_of(document)
    api = Service(service.url, service.http, None)
    seen = set()
    await service.append(*BEGINNING)
    await settled_pool(config, STORY, service)

    def check(message):
        topic = message.get("topic", "").partition(":")[0]
        name = "".join(part[0].upper() + part[1:] for part in topic.split("/") if part)
        key = f"{name}.{message['subject']}" if topic else message["type"].capitalize().replace("Error", "CommandFailure")
        validators[key].validate(message)
        seen.add(key)

    async with api.connected(signed("trader", account=ANNA)) as client, api.connected(signed("engine")) as engine:
        seen.add("Welcome")
        for topic in (
            f"{BALANCE}:{SYMBOL}",
            f"{ENTRY}:{SYMBOL}",
            f"{ORDER}:{SYMBOL}",
            POSITION,
            f"/mutual/pool:{POOL}",
            "/mutual/account",
        ):
            await client.send(id=1, type="subscribe", topic=topic, response=True)
        await engine.subscribe("/adl/instruction")
        await client.send(id=1, type="ping")
        await client.send(id=1, type="subscribe", topic="/none")
        await service.append(shortfall(1), executed(2, 1, ANNA, 40), mark(39010))
        expected = {name for name in validators if "." in name} | {"Welcome", "Ack", "Pong", "CommandFailure"}
        check(await engine.next())
        deadline = time.monotonic() + 20
        while seen != expected:
            assert time.monotonic() < deadline, expected - seen
            check(await client.next())
    for announced in await service.announced():
        validators["Announcement"].validate(announced)
        Draft202012Validator(SCHEMAS["adlOrder"]).validate(announced)
    addresses = {channel["address"] for channel in document["channels"].values()}
    assert {"fundsvc:{partition}:in", "fundsvc:{partition}:adl", "fundsvc:mutual:in:{pool}", f"{ENTRY}:{{part}}"} <= addresses
