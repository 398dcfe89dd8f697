"""Integers above 2^53 as strings over HTTP and WebSocket, for clients whose numbers are doubles."""

import json
import time

import msgspec
import pytest
from conftest import with_section
from hypothesis import given
from hypothesis import strategies as st
from ledgers import listing, owned
from live import BALANCE, ENTRY, serving
from tokens import bearer, with_secret

from fundsvc.api.http.big_integers import integers_as_strings
from fundsvc.core.events import Fill, Mark, Position

SEQ, LOTS = 1765416983918000123, 9007199254740993
TS = time.time_ns() // 1_000_000
STRINGS = {"numbers": "string"}
EVENTS = [
    listing("BIG", multiplier="0.000000001", maxPrice=1000000, status="Open", tickSize=0.1, extra=2**62),
    Mark("BIG", "39000", TS),
    Position("BIG", "anna", -LOTS, "45000", "1000000", TS),
    Fill("BIG", SEQ - 1, "sell", LOTS, "39100", "39000", TS, "0", "7", "12"),
    Fill("BIG", SEQ, "sell", LOTS, "38000", "39000", TS, "1:2,3", '{"a":1}', "[1,2]"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def quoted(value):
    match value:
        case bool() | None | float() | str():
            return value
        case int():
            return str(value)
        case list():
            return list(map(quoted, value))
        case dict():
            return {name: quoted(part) for name, part in value.items()}


@given(JSON)
def test_only_integers_become_strings(value):
    for body in (msgspec.json.encode(value), json.dumps(value).encode(), json.dumps(value, indent=1).encode()):
        assert json.loads(integers_as_strings(body)) == quoted(json.loads(body))


@pytest.mark.parametrize("text", ["1E-05", "1e5", "0.10", "-0.0", "1.0E+2", '"1"', '"\\"1,2"', "[0.1,-1e-7]", "{}", '""'])
def test_fractions_and_strings_keep_their_bytes(text):
    assert integers_as_strings(text.encode()) == text.encode()


@pytest.fixture
async def service(config):
    config = with_section(with_secret(config), "http", port=0, tail_seconds=0.005, book_seconds=0.05, requests_max=100_000)
    async with owned(config) as owner:
        await owner.settle(EVENTS)
        async with serving(config) as service:
            await service.until("BIG", 2)
            yield service


def integers(value):
    """Returns all integers in an answer."""
    if isinstance(value, dict | list):
        return [found for part in (value.values() if isinstance(value, dict) else value) for found in integers(part)]
    return [value] if type(value) is int else []


PATHS = (
    *("/api/v1/timestamp", "/api/v1/contracts/active", "/api/v1/contracts/BIG", "/api/v1/ingest/cursor"),
    *("/api/v1/insurance-fund", "/api/v1/insurance-fund/BIG", "/api/v1/insurance-fund/summary"),
    *("/api/v1/summary/candles", "/api/v1/summary/hours"),
    *(
        f"/api/v1/insurance-fund/BIG/{each}"
        for each in ("at?ts=1", "candles", "chart", "history", "history?maxCount=1", "entries/2")
    ),
    *(f"/api/v1/adl/BIG/{each}" for each in ("orders", "orders/1/rounds/1", "queue")),
    "/api/v1/adl/positions?account=anna",
)


@pytest.mark.parametrize("path", PATHS)
async def test_every_answer_has_all_integers_as_numbers_or_as_strings(service, path):
    headers = bearer("risk")
    plain = await service.data(path, headers=headers)
    same = await service.data(f"{path}{'&' if '?' in path else '?'}numbers=number", headers=headers)
    texts = await service.data(f"{path}{'&' if '?' in path else '?'}numbers=string", headers=headers)
    assert integers(plain)
    assert not integers(texts)
    if not any(each in path for each in ("timestamp", "summary", "queue", "positions")):  # these contain the current time
        for answer in (plain, same, texts):
            if isinstance(answer, dict):
                answer.pop("asOf", None)
        assert plain == same
        assert texts == quoted(plain)


async def test_large_integers_are_returned_exactly(service):
    engine = {"headers": bearer("engine"), "params": STRINGS}
    (cursor,) = (await service.data("/api/v1/ingest/cursor", **engine))["contracts"]
    assert cursor["seq"] == str(SEQ)
    for path in ("/api/v1/insurance-fund/BIG/history", "/api/v1/insurance-fund/BIG/entries/2"):
        answer = await service.data(path, params=STRINGS)
        entry = answer["entry"] if "entry" in answer else answer["dataList"][0]
        assert (entry["seq"], entry["lots"], entry["tradeId"], entry["orderId"]) == (str(SEQ), str(LOTS), "1:2,3", '{"a":1}')
    (order,) = (await service.data("/api/v1/adl/BIG/orders", params=STRINGS))["dataList"]
    assert order["deficitLots"] == str(LOTS)


async def test_other_values_of_numbers_are_rejected(service):
    async with service.http.get("/api/v1/insurance-fund?numbers=text") as answer:
        assert (answer.status, (await answer.json())["msg"]) == (
            400,
            "numbers is 'text': it must be one of number, string",
        )
    async with service.http.get("/ws", params={"token": (await service.bullet())["token"], "numbers": "5"}) as answer:
        assert (answer.status, (await answer.json())["msg"]) == (400, "numbers is '5': it must be one of number, string")


async def test_pushes_write_integers_as_the_connection_or_subscription_requests(service):
    token = (await service.bullet())["token"]
    async with service.http.ws_connect("/ws", params={"token": token, "connectId": "5", "numbers": "string"}) as connection:
        assert await connection.receive_json() == {"id": "5", "type": "welcome"}
        await connection.send_json({"id": 7, "type": "subscribe", "topic": f"{ENTRY}:BIG", "after": 0, "response": True})
        assert await connection.receive_json() == {"id": 7, "type": "ack"}
        pushed = [(await connection.receive_json())["data"] for _ in range(2)]
        assert [(entry["entry"], entry["seq"]) for entry in pushed] == [("1", str(SEQ - 1)), ("2", str(SEQ))]
    async with service.connected() as client:
        await client.subscribe(f"{BALANCE}:BIG")
        assert (await client.data(f"{BALANCE}:BIG", "balance.change"))["seq"] == SEQ
        await client.subscribe(f"{BALANCE}:BIG", numbers="string")
        assert (await client.data(f"{BALANCE}:BIG", "balance.change"))["seq"] == str(SEQ)
        answer = await client.request(id="x", type="subscribe", topic=f"{BALANCE}:BIG", numbers="float")
        assert (answer["code"], "$.numbers" in answer["data"]) == (400, True)


async def test_subscriptions_continue_after_a_number_or_its_text(service):
    for after in (1, "1"):
        async with service.connected() as client:
            await client.subscribe(f"{ENTRY}:BIG", after=after)
            assert (await client.data(f"{ENTRY}:BIG", "entry"))["entry"] == 2
    async with service.connected() as client:
        for wrong in ("-1", "1.5", "", str(2**63 - 1), str(2**63)):
            answer = await client.request(id="x", type="subscribe", topic=f"{ENTRY}:BIG", after=wrong)
            assert (answer["type"], answer["code"]) == ("error", 400), wrong


async def test_answers_to_posts_write_integers_as_requested(service):
    fill = {"type": "fill", "symbol": "BIG", "side": "sell", "lots": 1, "price": "1", "bankruptcyPrice": "1", "ts": TS}
    post = {"json": {**fill, "seq": SEQ + 5, "prevSeq": SEQ + 4}, "headers": bearer("engine")}
    plain = await service.data("/api/v1/ingest/events", "POST", **post)
    (gap,) = plain["gaps"]
    assert (gap["seq"], gap["prevSeq"], gap["lastSeq"]) == (SEQ + 5, SEQ + 4, SEQ)
    post["json"] = {**fill, "seq": SEQ + 7, "prevSeq": SEQ + 6}
    texts = await service.data("/api/v1/ingest/events", "POST", **post, params=STRINGS)
    (gap,) = texts["gaps"]
    assert (gap["seq"], gap["prevSeq"], gap["lastSeq"]) == (str(SEQ + 7), str(SEQ + 6), str(SEQ + 5))
    assert texts["accepted"] == "1"
