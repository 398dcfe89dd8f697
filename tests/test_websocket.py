"""The words that are spoken over a connection, and the bounds of what a client may do."""

import asyncio
import time

import aiohttp
import jwt
import pytest
from conftest import with_section
from eventually import eventually
from ledgers import fill, listing, owned
from live import BALANCE, ENTRY, ORDER, POSITION, serving
from tokens import SECRET, signed

from fundsvc.api.websocket import connection, endpoints, entries


@pytest.fixture
def config(config):
    config = with_section(config, "token", secret=SECRET)
    config = with_section(config, "websocket", topics_max=3, clients_max=3, ping_interval_seconds=5)
    return with_section(config, "http", port=0, tail_seconds=0.005, requests_max=100_000)


@pytest.fixture
async def ledger(config):
    async with owned(config) as owner:
        await owner.settle([listing(symbol) for symbol in ("AAA", "BBB", "CCC", "DDD")])
        yield owner


@pytest.fixture
async def service(config, ledger):
    async with serving(config) as service:
        await eventually(lambda: has_funds(service))
        yield service


async def has_funds(service):
    async with service.http.get("/api/v1/insurance-fund") as answer:
        return answer.status == 200 and len((await answer.json())["data"]) == 4


async def test_a_bullet_tells_where_to_connect_and_how_often_to_ping(service):
    answer = await service.bullet()
    (server,) = answer["instanceServers"]
    url = service.http._base_url
    assert server == {
        "endpoint": f"ws://{url.host}:{url.port}/ws",
        "encrypt": False,
        "protocol": "websocket",
        "pingInterval": 5000,
        "pingTimeout": 10000,
    }


@pytest.mark.parametrize(
    ("public_url", "endpoint"), [("https://fund.test", "wss://fund.test/ws"), ("http://fund.test/x/", "ws://fund.test/x/ws")]
)
async def test_a_bullet_tells_the_configured_address(config, ledger, public_url, endpoint):
    async with serving(with_section(config, "http", public_url=public_url)) as service:
        (server,) = (await service.bullet())["instanceServers"]
        assert (server["endpoint"], server["encrypt"]) == (endpoint, endpoint.startswith("wss"))


async def test_whoever_connects_is_welcomed_by_the_name_that_it_gave_itself(service):
    async with service.connected(connect_id="hQvf8jkno"):
        assert service.count("fundsvc_websocket_clients") == 1
    await eventually(lambda: service.count("fundsvc_websocket_clients") == 0)


@pytest.mark.parametrize("wrong", ["", "nonsense", "access token", "late", "another key"])
async def test_nobody_connects_without_a_connection_token_of_these_days(service, monkeypatch, wrong):
    match wrong:
        case "access token":
            wrong = signed("trader", account="anna")
        case "late":
            monkeypatch.setattr(endpoints, "TOKEN_SECONDS", -60)
            wrong = (await service.bullet())["token"]
        case "another key":
            claims = {"aud": endpoints.AUDIENCE, "exp": int(time.time()) + 60, "account": "anna"}
            wrong = jwt.encode(claims, "k" * 32, "HS256")
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await service.http.ws_connect("/ws", params={"token": wrong})
    assert refused.value.status == 401


async def test_a_connection_token_is_no_access_token(service):
    public = (await service.bullet())["token"]
    headers = {"Authorization": f"Bearer {public}"}
    async with service.http.post("/api/v1/bullet-private", headers=headers) as answer:
        assert answer.status == 401


async def test_a_token_of_another_process_with_the_same_secret_is_good(config, ledger):
    async with serving(config) as one, serving(config) as other:
        await other.http.ws_connect("/ws", params={"token": (await one.bullet())["token"]})
    unset = with_section(config, "token", secret="")
    async with serving(unset) as one, serving(unset) as other:
        await one.http.ws_connect("/ws", params={"token": (await one.bullet())["token"]})
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await other.http.ws_connect("/ws", params={"token": (await one.bullet())["token"]})


async def test_no_more_clients_connect_than_are_allowed(service):
    async with service.connected(), service.connected(), service.connected():
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with service.connected():
                pass
        assert refused.value.status == 503


@pytest.mark.parametrize("message_id", ["/contract/instrument@@XBTUSDTM", "", 1545910590801])
async def test_answers_carry_the_id_of_what_they_answer(service, message_id):
    async with service.connected() as client:
        assert await client.ask(id=message_id, type="ping") == {"id": message_id, "type": "pong"}
        for kind in ("subscribe", "unsubscribe"):
            answer = await client.ask(
                id=message_id, type=kind, topic=f"{ORDER}:AAA", privateChannel=False, response=True, tunnelId="x"
            )
            assert answer == {"id": message_id, "type": "ack"}


async def test_only_who_wants_a_response_is_acknowledged(service):
    async with service.connected() as client:
        await client.say(id="1", type="subscribe", topic=f"{ORDER}:AAA")
        await client.say(id="2", type="unsubscribe", topic=f"{ORDER}:AAA", response=False)
        assert await client.ask(id="3", type="ping") == {"id": "3", "type": "pong"}


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        ({"type": "subscribe", "topic": "/market/ticker:AAA"}, 404, "/insuranceFund/entry:{symbol,...}"),
        ({"type": "subscribe", "topic": f"{BALANCE}:NONE"}, 404, "/api/v1/contracts/active"),
        ({"type": "subscribe", "topic": f"{ENTRY}:AAA,NONE"}, 404, "'NONE'"),
        ({"type": "subscribe", "topic": f"{ENTRY}:AAA,"}, 404, "''"),
        ({"type": "subscribe", "topic": ENTRY}, 400, f"{ENTRY}:{{symbol,...}}"),
        ({"type": "subscribe", "topic": f"{POSITION}:AAA"}, 400, POSITION),
        ({"type": "subscribe", "topic": POSITION}, 403, "bullet-private"),
        ({"type": "subscribe", "topic": f"{ENTRY}:AAA", "after": -1}, 400, "$.after"),
        ({"type": "subscribe", "topic": f"{BALANCE}:AAA", "after": 0}, 400, ENTRY),
        ({"type": "subscribe", "topic": f"{ORDER}:AAA", "after": 0}, 400, "/api/v1/adl/AAA/orders"),
        ({"type": "subscribe", "topic": f"{ORDER}:AAA,BBB,CCC,DDD"}, 400, "more than 3 topics"),
        ({"type": "openTunnel"}, 400, "openTunnel"),
        ({"topic": 7}, 400, "$.topic"),
    ],
)
async def test_what_cannot_be_done_is_told_with_its_id_and_what_to_do(service, message, code, words):
    async with service.connected() as client:
        answer = await client.ask(id="mine", **message)
        assert (answer["id"], answer["type"], answer["code"]) == ("mine", "error", code)
        assert words in answer["data"]
        assert await client.ask(id="still here", type="ping") == {"id": "still here", "type": "pong"}


async def test_a_time_beyond_all_calendars_is_refused(service):
    async with service.connected(signed("trader", account="anna")) as client:
        answer = await client.ask(id="mine", type="subscribe", topic=POSITION, response=True, after=253_402_300_800_000)
        assert (answer["id"], answer["type"], answer["code"]) == ("mine", "error", 400)
        assert "a time in milliseconds, at most 253402300799999" in answer["data"]
        await client.subscribe(POSITION, after=253_402_300_799_999)
        assert await client.ask(id="still here", type="ping") == {"id": "still here", "type": "pong"}


async def test_who_asks_without_a_handshake_is_told_what_this_is(service):
    async with service.http.get("/ws", params={"token": (await service.bullet())["token"]}) as answer:
        body = await answer.json()
        assert (answer.status, body["code"]) == (400, "400100")
        assert "POST /api/v1/bullet-public" in body["msg"]


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "\ud7ff", '{"id":{}}', "[" * 5000])
async def test_what_is_no_message_is_told_too(service, text):
    async with service.connected() as client:
        await client.socket.send_str(text)
        answer = await client.next()
        assert (answer["id"], answer["type"], answer["code"]) == ("", "error", 400)


async def test_a_contract_counts_once_however_often_it_is_subscribed_to(service):
    async with service.connected() as client:
        for _ in range(5):
            await client.subscribe(f"{ORDER}:AAA,BBB,AAA")
        assert service.count("fundsvc_websocket_subscriptions") == 2
        assert (await client.ask(id="1", type="unsubscribe", topic=f"{ORDER}:AAA", response=True))["type"] == "ack"
        assert service.count("fundsvc_websocket_subscriptions") == 1
        await client.subscribe(f"{ORDER}:CCC,DDD")
    await eventually(lambda: service.count("fundsvc_websocket_subscriptions") == 0)


async def test_whoever_goes_on_from_an_entry_that_never_comes_is_closed(service, monkeypatch):
    monkeypatch.setattr(entries, "AHEAD_RETRIES_MAX", 2)
    async with service.connected() as client:
        await client.subscribe(f"{ENTRY}:AAA", after=7)
        assert await client.closed() == (1008, "after is 7: the last entry of AAA is 0")


async def test_whoever_says_too_much_is_closed(service):
    async with service.connected() as client:
        for number in range(connection.MESSAGES_MAX + 1):
            await client.say(id=str(number), type="ping")
        assert await client.closed() == (1008, "more than 100 messages within 10 s: name several contracts in one")


async def test_whoever_says_something_too_long_is_closed(service):
    async with service.connected() as client:
        await client.say(id="1", type="subscribe", topic="x" * endpoints.MESSAGE_BYTES_MAX)
        code, _ = await client.closed()
        assert code == 1009


UNSUPPORTED = (1003, "binary frames are not read: send each message as a text frame of JSON")


@pytest.mark.parametrize("body", [b"", b"\xff\x00", b'{"id":"1","type":"ping"}', b"x" * (endpoints.MESSAGE_BYTES_MAX - 1)])
async def test_a_binary_frame_closes_the_connection_with_the_reason(service, body):
    async with service.connected() as client:
        await client.subscribe(f"{ORDER}:AAA")
        await client.socket.send_bytes(body)
        assert await client.closed() == UNSUPPORTED
    await eventually(
        lambda: service.count("fundsvc_websocket_subscriptions") == service.count("fundsvc_websocket_clients") == 0
    )


async def test_a_binary_message_in_fragments_is_closed_too_and_nothing_after_it_is_answered(service):
    async with service.connected() as client:
        transport = client.socket._writer.transport
        for head in (0x02, 0x00, 0x80):
            transport.write(bytes((head, 0x81, 0, 0, 0, 0, 7)))
        await client.socket.send_str('{"id":"1","type":"ping"}')
        assert await client.closed() == UNSUPPORTED


async def test_pings_and_pongs_of_the_protocol_are_no_messages(service):
    async with service.connected() as client:
        await client.socket.pong(b"unasked")
        await client.socket.ping(b"\xff")
        assert await client.ask(id="1", type="ping") == {"id": "1", "type": "pong"}


async def test_whoever_says_nothing_is_closed(config, ledger, monkeypatch):
    monkeypatch.setattr(connection, "SILENT_INTERVALS_MAX", 0.1)
    # The talker connects first, so that it outlives its own limit when the silent client reaches its.
    async with serving(config) as service, service.connected() as talker, service.connected() as silent:
        closing = asyncio.create_task(silent.closed())
        while not closing.done():
            assert (await talker.ask(id="1", type="ping"))["type"] == "pong"
            await asyncio.wait({closing}, timeout=0.1)
        assert await closing == (1008, "nothing was heard for 0.5 s: send a ping now and then")
        assert (await talker.ask(id="1", type="ping"))["type"] == "pong"


async def test_a_service_that_stops_says_goodbye(config, ledger):
    async with serving(config) as service:
        bullet = await service.bullet()
        session = aiohttp.ClientSession(service.http._base_url)
        socket = await session.ws_connect("/ws", params={"token": bullet["token"]})
        assert (await socket.receive_json())["type"] == "welcome"
        waiting = asyncio.create_task(socket.receive())
    message = await waiting
    assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1001)
    assert "after=" in message.extra
    await session.close()


async def test_a_subscription_ends_with_the_fund_still_settling(service, ledger):
    async with service.connected() as client:
        await client.subscribe(f"{ENTRY}:AAA,BBB")
        assert (await client.ask(id="1", type="unsubscribe", topic=f"{ENTRY}:AAA", response=True))["type"] == "ack"
        await ledger.settle([fill("AAA", 1, 1), fill("BBB", 1, 1)])
        assert (await client.data(f"{ENTRY}:BBB", "entry"))["entry"] == 1
        assert await client.ask(id="2", type="ping") == {"id": "2", "type": "pong"}
