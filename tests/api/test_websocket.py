"""The protocol of a WebSocket connection, and the limits of a client."""

import asyncio
import re
import time
from itertools import pairwise

import aiohttp
import jwt
import pytest
from conftest import with_section
from eventually import eventually
from ledgers import fill, listing, owned
from live import BALANCE, ENTRY, ORDER, POSITION, serving
from tokens import SECRET, signed

from fundsvc.api.websocket import connection, endpoints, entries, reconnecting


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


async def test_bullet_answers_endpoint_and_ping_interval(service):
    answer = await service.bullet()
    (server,) = answer["instanceServers"]
    assert server == {
        "endpoint": f"{service.url.replace('http', 'ws')}/ws",
        "encrypt": False,
        "protocol": "websocket",
        "pingInterval": 5000,
        "pingTimeout": 10000,
    }


@pytest.mark.parametrize(
    ("public_url", "endpoint"), [("https://fund.test", "wss://fund.test/ws"), ("http://fund.test/x/", "ws://fund.test/x/ws")]
)
async def test_bullet_answers_the_configured_public_url(config, ledger, public_url, endpoint):
    async with serving(with_section(config, "http", public_url=public_url)) as service:
        (server,) = (await service.bullet())["instanceServers"]
        assert (server["endpoint"], server["encrypt"]) == (endpoint, endpoint.startswith("wss"))


async def test_welcome_repeats_the_connect_id(service):
    async with service.connected(connect_id="hQvf8jkno"):
        assert service.count("fundsvc_websocket_clients") == 1
    await eventually(lambda: service.count("fundsvc_websocket_clients") == 0)


@pytest.mark.parametrize("wrong", ["", "nonsense", "access token", "late", "another key"])
async def test_handshake_requires_a_valid_connection_token(service, monkeypatch, wrong):
    match wrong:
        case "access token":
            wrong = signed("trader", account="anna")
        case "late":
            monkeypatch.setattr(endpoints, "TOKEN_SECONDS", -60)
            wrong = (await service.bullet())["token"]
        case "another key":
            claims = {"aud": endpoints.AUDIENCE, "exp": int(time.time()) + 60, "account": "anna"}
            wrong = jwt.encode(claims, "k" * 32, "HS256")
    with pytest.raises(aiohttp.WSServerHandshakeError) as rejected:
        await service.http.ws_connect("/ws", params={"token": wrong})
    assert rejected.value.status == 401


async def test_connection_token_is_not_accepted_as_access_token(service):
    public = (await service.bullet())["token"]
    headers = {"Authorization": f"Bearer {public}"}
    async with service.http.post("/api/v1/bullet-private", headers=headers) as answer:
        assert answer.status == 401


async def test_connection_closes_when_its_access_token_is_revoked(config, ledger, tmp_path):
    revoked = tmp_path / "revoked"
    revoked.write_text("")
    async with serving(with_section(config, "token", revoked=str(revoked))) as service:
        stolen, other = (signed("trader", account="anna", jti=name) for name in ("stolen", "other"))
        async with service.connected(stolen) as closing, service.connected(other) as staying:
            revoked.write_text("stolen\n")
            code, reason = await closing.closed()
            assert (code, "is revoked" in reason) == (aiohttp.WSCloseCode.POLICY_VIOLATION, True)
            await staying.subscribe(f"{BALANCE}:AAA")


async def test_processes_with_the_same_secret_accept_each_others_connection_tokens(config, ledger):
    async with serving(config) as one, serving(config) as other:
        await other.http.ws_connect("/ws", params={"token": (await one.bullet())["token"]})
    unset = with_section(config, "token", secret="")
    async with serving(unset) as one, serving(unset) as other:
        await one.http.ws_connect("/ws", params={"token": (await one.bullet())["token"]})
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await other.http.ws_connect("/ws", params={"token": (await one.bullet())["token"]})


async def test_connections_beyond_clients_max_are_rejected(service):
    async with service.connected(), service.connected(), service.connected():
        with pytest.raises(aiohttp.WSServerHandshakeError) as rejected:
            async with service.connected():
                pass
        assert rejected.value.status == 503


@pytest.mark.parametrize("message_id", ["/contract/instrument@@XBTUSDTM", "", 1545910590801])
async def test_answers_repeat_the_id_of_the_message(service, message_id):
    async with service.connected() as client:
        assert await client.request(id=message_id, type="ping") == {"id": message_id, "type": "pong"}
        for kind in ("subscribe", "unsubscribe"):
            answer = await client.request(
                id=message_id, type=kind, topic=f"{ORDER}:AAA", privateChannel=False, response=True, tunnelId="x"
            )
            assert answer == {"id": message_id, "type": "ack"}


async def test_commands_are_acknowledged_only_with_response_true(service):
    async with service.connected() as client:
        await client.send(id="1", type="subscribe", topic=f"{ORDER}:AAA")
        await client.send(id="2", type="unsubscribe", topic=f"{ORDER}:AAA", response=False)
        assert await client.request(id="3", type="ping") == {"id": "3", "type": "pong"}


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
async def test_rejected_command_is_answered_with_its_id_and_a_remedy(service, message, code, words):
    async with service.connected() as client:
        answer = await client.request(id="mine", **message)
        assert (answer["id"], answer["type"], answer["code"]) == ("mine", "error", code)
        assert words in answer["data"]
        assert await client.request(id="still here", type="ping") == {"id": "still here", "type": "pong"}


async def test_after_beyond_the_year_9999_is_rejected(service):
    async with service.connected(signed("trader", account="anna")) as client:
        answer = await client.request(id="mine", type="subscribe", topic=POSITION, response=True, after=253_402_300_800_000)
        assert (answer["id"], answer["type"], answer["code"]) == ("mine", "error", 400)
        assert "a time in milliseconds, at most 253402300799999" in answer["data"]
        await client.subscribe(POSITION, after=253_402_300_799_999)
        assert await client.request(id="still here", type="ping") == {"id": "still here", "type": "pong"}


async def test_plain_get_of_the_websocket_path_explains_how_to_connect(service):
    async with service.http.get("/ws", params={"token": (await service.bullet())["token"]}) as answer:
        body = await answer.json()
        assert (answer.status, body["code"]) == (400, "400100")
        assert "POST /api/v1/bullet-public" in body["msg"]


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "\ud7ff", '{"id":{}}', "[" * 5000])
async def test_invalid_message_is_answered_with_an_error(service, text):
    async with service.connected() as client:
        await client.socket.send_str(text)
        answer = await client.next()
        assert (answer["id"], answer["type"], answer["code"]) == ("", "error", 400)


async def test_repeated_subscription_to_a_contract_counts_once(service):
    async with service.connected() as client:
        for _ in range(5):
            await client.subscribe(f"{ORDER}:AAA,BBB,AAA")
        assert service.count("fundsvc_websocket_subscriptions") == 2
        assert (await client.request(id="1", type="unsubscribe", topic=f"{ORDER}:AAA", response=True))["type"] == "ack"
        assert service.count("fundsvc_websocket_subscriptions") == 1
        await client.subscribe(f"{ORDER}:CCC,DDD")
    await eventually(lambda: service.count("fundsvc_websocket_subscriptions") == 0)


async def test_subscription_after_an_entry_that_never_appears_is_closed(service, monkeypatch):
    monkeypatch.setattr(entries, "AHEAD_RETRIES_MAX", 2)
    async with service.connected() as client:
        await client.subscribe(f"{ENTRY}:AAA", after=7)
        assert await client.closed() == (1008, "after is 7: the last entry of AAA is 0")


async def test_client_above_the_message_rate_is_closed(service):
    async with service.connected() as client:
        for number in range(connection.MESSAGES_MAX + 1):
            await client.send(id=str(number), type="ping")
        assert await client.closed() == (1008, "more than 100 messages in 10 s: name several contracts in one subscription")


async def test_client_that_sends_too_long_a_message_is_closed(service):
    async with service.connected() as client:
        await client.send(id="1", type="subscribe", topic="x" * endpoints.MESSAGE_BYTES_MAX)
        code, _ = await client.closed()
        assert code == 1009


UNSUPPORTED = (1003, "binary frames are not supported: send each message as JSON in a text frame")


@pytest.mark.parametrize("body", [b"", b"\xff\x00", b'{"id":"1","type":"ping"}', b"x" * (endpoints.MESSAGE_BYTES_MAX - 1)])
async def test_binary_frame_closes_the_connection_with_a_reason(service, body):
    async with service.connected() as client:
        await client.subscribe(f"{ORDER}:AAA")
        await client.socket.send_bytes(body)
        assert await client.closed() == UNSUPPORTED
    await eventually(
        lambda: service.count("fundsvc_websocket_subscriptions") == service.count("fundsvc_websocket_clients") == 0
    )


async def test_protocol_pings_and_pongs_are_not_answered_as_messages(service):
    async with service.connected() as client:
        await client.socket.pong(b"unsolicited")
        await client.socket.ping(b"\xff")
        assert await client.request(id="1", type="ping") == {"id": "1", "type": "pong"}


async def test_silent_client_is_closed(config, ledger, monkeypatch):
    monkeypatch.setattr(connection, "SILENT_INTERVALS_MAX", 0.1)
    # The talker connects first: when the silent client reaches the limit, the talker has been connected for longer.
    async with serving(config) as service, service.connected() as talker, service.connected() as silent:
        closing = asyncio.create_task(silent.closed())
        while not closing.done():
            assert (await talker.request(id="1", type="ping"))["type"] == "pong"
            await asyncio.wait({closing}, timeout=0.1)
        assert await closing == (1008, "no message was received for 0.5 s: send a ping at every pingInterval")
        assert (await talker.request(id="1", type="ping"))["type"] == "pong"


async def test_stopping_service_closes_connections_with_1001(config, ledger):
    async with aiohttp.ClientSession() as session:
        async with serving(config) as service:
            bullet = await service.bullet()
            socket = await session.ws_connect(f"{service.url}/ws", params={"token": bullet["token"]})
            assert (await socket.receive_json())["type"] == "welcome"
            waiting = asyncio.create_task(socket.receive())
        message = await waiting
    assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1001)
    assert re.fullmatch(r"the service stops: reconnect in \d+ ms, and subscribe with `after` to miss nothing", message.extra)


async def test_connections_are_drained_one_by_one_with_different_delays(config, ledger, monkeypatch):
    monkeypatch.setattr(reconnecting, "RECONNECTS_PER_SECOND", 0.1)
    delays = []

    async def closed_at(socket):
        message = await socket.receive()
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1001)
        delays.append(reconnecting.reconnect_seconds(message.extra))
        await socket.close()
        return time.monotonic()

    async with aiohttp.ClientSession() as session:
        async with serving(
            with_section(with_section(config, "http", drain_seconds=1.0), "websocket", clients_max=10)
        ) as service:
            url, waiting = f"{service.url}/ws", []
            for _ in range(5):
                token = (await service.bullet())["token"]
                socket = await session.ws_connect(url, params={"token": token})
                assert (await socket.receive_json())["type"] == "welcome"
                waiting.append(asyncio.create_task(closed_at(socket)))
        times = sorted([await closing for closing in waiting])
    assert all(later - earlier > 0.1 for earlier, later in pairwise(times))
    assert times[-1] - times[0] > 0.7
    assert len(set(delays)) == 5
    assert 0 <= min(delays) < max(delays) <= 5 / 0.1


async def test_unsubscribed_contract_publishes_no_further_entries(service, ledger):
    async with service.connected() as client:
        await client.subscribe(f"{ENTRY}:AAA,BBB")
        assert (await client.request(id="1", type="unsubscribe", topic=f"{ENTRY}:AAA", response=True))["type"] == "ack"
        await ledger.settle([fill("AAA", 1, 1), fill("BBB", 1, 1)])
        assert (await client.data(f"{ENTRY}:BBB", "entry"))["entry"] == 1
        assert await client.request(id="2", type="ping") == {"id": "2", "type": "pong"}
