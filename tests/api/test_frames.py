"""Frames that only a faulty or hostile client sends: unmasked, split, endless fragments and pings."""

import asyncio
import base64
import struct
from contextlib import asynccontextmanager

import pytest
from conftest import with_section
from eventually import eventually
from ledgers import listing, owned
from live import ORDER, serving
from raw import raw
from tokens import SECRET, signed

from fundsvc.api.websocket.connection import MESSAGES_MAX
from fundsvc.api.websocket.masking import FRAGMENTS_MAX, ILLEGAL, MaskCheck

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def frame(payload=b"", opcode=TEXT, *, masked=True, final=True):
    """Returns a frame of a client, with a mask of zeros."""
    bit = 0x80 if masked else 0
    length = len(payload)
    if length < 126:
        head = bytes((opcode | (0x80 if final else 0), bit | length))
    else:
        head = bytes((opcode | (0x80 if final else 0), bit | 126)) + struct.pack("!H", length)
    return head + (bytes(4) if masked else b"") + payload


class Recorder:
    """A reader that records its input."""

    def __init__(self):
        self.fed = b""

    def feed_data(self, data):
        self.fed += data
        return False, b""


LEGAL = frame(b"a") + frame(b"b" * 125) + frame(b"c" * 126) + frame(b"", PING) + frame(b"d" * 5000) + frame(b"", CLOSE)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 130, 10_000])
def test_masked_frames_pass_unchanged_in_chunks_of_any_size(size):
    reader = Recorder()
    check = MaskCheck(reader)
    for start in range(0, len(LEGAL), size):
        assert check.feed_data(LEGAL[start : start + size]) == (False, b"")
    assert reader.fed == LEGAL


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 130, 10_000])
@pytest.mark.parametrize("length", [0, 1, 125, 126, 5000])
def test_unmasked_frame_is_replaced_by_an_illegal_one_and_the_rest_is_dropped(size, length):
    reader = Recorder()
    check = MaskCheck(reader)
    data = LEGAL + frame(b"x" * length, masked=False) + LEGAL
    for start in range(0, len(data), size):
        check.feed_data(data[start : start + size])
    assert reader.fed == LEGAL + ILLEGAL


def test_fragments_of_a_message_are_limited_and_control_frames_do_not_count():
    reader = Recorder()
    check = MaskCheck(reader)
    whole = frame(b"a", final=False) + (frame(b"", 0, final=False) + frame(b"", PING)) * (FRAGMENTS_MAX - 1) + frame(b"z", 0)
    check.feed_data(whole * 2)
    assert reader.fed == whole * 2
    check.feed_data(frame(b"", final=False) * (FRAGMENTS_MAX + 2))
    assert reader.fed.endswith(ILLEGAL)


@pytest.fixture
def config(config):
    config = with_section(config, "token", secret=SECRET)
    config = with_section(config, "websocket", client_connections_max=3)
    return with_section(config, "http", port=0)


@pytest.fixture
async def service(config):
    async with owned(config) as owner:
        await owner.settle([listing("AAA")])
        async with serving(config) as service:
            yield service


@asynccontextmanager
async def opened(service, bullet=None, source=None):
    """Yields a connection after its handshake, and the HTTP status of the handshake."""
    token = (bullet or await service.bullet())["token"]
    async with raw(service.url, source) as connection:
        key = base64.b64encode(bytes(16)).decode()
        await connection.send(
            f"GET /ws?token={token} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        status, _ = await connection.head()
        yield connection, status


async def received(connection):
    """Returns the opcode and the payload of the next frame."""
    head = await asyncio.wait_for(connection.reader.readexactly(2), 10)
    length = head[1]
    if length == 126:
        length = int.from_bytes(await connection.reader.readexactly(2), "big")
    return head[0] & 15, await connection.reader.readexactly(length)


async def code_of_close(connection):
    while True:
        opcode, payload = await received(connection)
        if opcode == CLOSE:
            return int.from_bytes(payload[:2], "big")


UNMASKED = [
    frame(b'{"id":"1","type":"ping"}', masked=False),
    frame(b"", PING, masked=False),
    frame(b"", PONG, masked=False),
    frame(b"x", BINARY, masked=False),
    frame(b'{"id":"1","type":"ping"}') + frame(b"", masked=False),
    frame(b'{"id"', final=False) + frame(b"", 0, masked=False),
]


@pytest.mark.parametrize("sent", UNMASKED)
async def test_unmasked_frame_closes_the_connection_with_1002(service, sent):
    async with opened(service) as (connection, status):
        assert status == 101
        await connection.send(sent)
        assert await code_of_close(connection) == 1002
        assert await connection.rest() == b""


async def test_endless_fragments_close_the_connection_with_1002(service):
    async with opened(service) as (connection, _):
        await connection.send(frame(b"", final=False) + frame(b"", 0, final=False) * 1000)
        assert await code_of_close(connection) == 1002


async def test_fragmented_binary_message_closes_the_connection_and_later_messages_are_not_answered(service):
    parts = frame(b"x", BINARY, final=False) + frame(b"x", 0, final=False) + frame(b"x", 0)
    async with opened(service) as (connection, _):
        assert (await received(connection))[0] == TEXT  # the welcome
        await connection.send(parts + frame(b'{"id":"1","type":"ping"}'))
        opcode, payload = await received(connection)
        assert (opcode, int.from_bytes(payload[:2], "big")) == (CLOSE, 1003)


@pytest.mark.parametrize("opcode", [PING, PONG])
async def test_control_frames_count_as_messages(service, opcode):
    async with opened(service) as (connection, _):
        await connection.send(frame(b"x", opcode) * (MESSAGES_MAX + 1))
        assert await code_of_close(connection) == 1008


async def test_ping_is_answered_with_its_payload(service):
    async with opened(service) as (connection, _):
        assert (await received(connection))[0] == TEXT  # the welcome
        for payload in (b"", b"x", b"y" * 125):
            await connection.send(frame(payload, PING))
            assert await received(connection) == (PONG, payload)


@pytest.mark.parametrize("last_opcode", [TEXT, PONG, CLOSE])
async def test_client_that_floods_pings_and_disconnects_logs_no_error(service, capfd, caplog, last_opcode):
    for _ in range(3):
        async with opened(service) as (connection, _):
            flooding = asyncio.create_task(connection.send(frame(b"z" * 125, PING) * 200_000))
            await connection.reader.readuntil(bytes((0x80 | last_opcode,)))
            connection.abort()
            await asyncio.gather(flooding, return_exceptions=True)
    await eventually(lambda: service.count("fundsvc_websocket_clients") == 0)
    assert "Traceback" not in "".join(capfd.readouterr())
    assert [record for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}] == []
    async with service.connected() as client:
        await client.subscribe(f"{ORDER}:AAA")


async def test_connection_token_is_valid_for_one_connection(service):
    bullet = await service.bullet()
    async with opened(service, bullet) as (_, status):
        assert status == 101
        async with opened(service, bullet) as (_, again):
            assert again == 401
    async with opened(service, bullet) as (_, later):
        assert later == 401


async def test_rejected_handshake_does_not_redeem_the_connection_token(service):
    bullet = await service.bullet()
    for parameters in ({}, {"numbers": "roman"}):
        async with service.http.get("/ws", params={"token": bullet["token"], **parameters}) as answer:
            assert answer.status == 400
    async with opened(service, bullet) as (_, status):
        assert status == 101


async def test_connection_token_is_valid_only_from_the_address_that_requested_it(service):
    bullet = await service.bullet()
    async with opened(service, bullet, source="127.0.0.2") as (_, status):
        assert status == 401
    async with opened(service, bullet) as (_, status):
        assert status == 101


@pytest.mark.parametrize(
    ("requested_from", "connected_from", "status"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::7", 101),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", 401),
        ("203.0.113.8", "::ffff:203.0.113.8", 101),
        ("203.0.113.8", "203.0.113.9", 401),
    ],
)
async def test_behind_a_proxy_the_connection_token_belongs_to_the_forwarded_address(
    config, requested_from, connected_from, status
):
    async with serving(with_section(config, "http", proxies=1)) as service:
        bullet = await service.data("/api/v1/bullet-public", "POST", headers={"X-Forwarded-For": requested_from})
        headers = {
            "X-Forwarded-For": connected_from,
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
        }
        async with raw(service.url) as connection:
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            await connection.send(f"GET /ws?token={bullet['token']} HTTP/1.1\r\nHost: x\r\n{lines}\r\n")
            assert (await connection.head())[0] == status


async def test_connections_of_one_address_are_limited(service):
    async with service.connected(), service.connected(), service.connected():
        async with opened(service) as (_, status):
            assert status == 429
        token = await bullet_from(service, "127.0.0.2")
        async with opened(service, token, source="127.0.0.2") as (_, status):
            assert status == 101
    async with service.connected():
        pass


async def bullet_from(service, source, authorization=""):
    """Requests a connection token from another loopback address."""
    path = "private" if authorization else "public"
    async with raw(service.url, source) as connection:
        await connection.send(f"POST /api/v1/bullet-{path} HTTP/1.1\r\nHost: x\r\n{authorization}Content-Length: 0\r\n\r\n")
        status, body = await connection.answer()
        assert status == 200
        return {"token": body.decode().split('"token":"')[1].split('"')[0]}


async def test_connections_of_one_account_are_limited_across_addresses(service):
    token = signed("trader", account="anna")
    async with service.connected(token), service.connected(token), service.connected(token):
        bullet = await bullet_from(service, "127.0.0.2", f"Authorization: Bearer {token}\r\n")
        async with opened(service, bullet, source="127.0.0.2") as (_, status):
            assert status == 429
        bullet = await bullet_from(service, "127.0.0.2", f"Authorization: Bearer {signed('trader', account='bert')}\r\n")
        async with opened(service, bullet, source="127.0.0.2") as (_, status):
            assert status == 101
