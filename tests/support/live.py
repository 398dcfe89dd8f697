"""Runs the HTTP side of the service with its live topics, and WebSocket clients for it."""

import asyncio
import base64
import socket
from contextlib import asynccontextmanager

import aiohttp
import msgspec
from aiohttp import WSMsgType
from eventually import eventually
from yarl import URL

from fundsvc.app import http_side
from fundsvc.metrics import Metrics
from fundsvc.store.database import open_pool
from fundsvc.streams.client import open_client

BALANCE, ENTRY, ORDER, POSITION = "/insuranceFund/balance", "/insuranceFund/entry", "/adl/order", "/adl/position"


class Service:
    """A running HTTP side at `url`."""

    def __init__(self, url, http, metrics):
        self.url = url
        self.http = http
        self._metrics = metrics

    def count(self, name, **labels):
        return self._metrics.registry.get_sample_value(name, labels)

    async def until(self, symbol, entry):
        """Waits until the API shows a fund with its entry number."""
        await eventually(lambda: self.shows(symbol, entry))

    async def shows(self, symbol, entry):
        async with self.http.get(f"/api/v1/insurance-fund/{symbol}") as answer:
            return answer.status == 200 and (await answer.json())["data"]["entry"] == entry

    async def data(self, path, method="GET", **options):
        async with self.http.request(method, path, **options) as answer:
            body = await answer.json()
            assert (answer.status, body["code"]) == (200, "200000"), body
            return body["data"]

    async def bullet(self, token=None):
        if token is None:
            return await self.data("/api/v1/bullet-public", "POST")
        return await self.data("/api/v1/bullet-private", "POST", headers={"Authorization": f"Bearer {token}"})

    @asynccontextmanager
    async def connected(self, token=None, connect_id="mine"):
        """Yields a connected client that has received its welcome."""
        bullet = await self.bullet(token)
        (server,) = bullet["instanceServers"]
        parameters = {"token": bullet["token"], "connectId": connect_id}
        async with self.http.ws_connect(server["endpoint"], params=parameters) as connection:
            client = Listener(connection)
            assert await client.next() == {"id": connect_id, "type": "welcome"}
            yield client


class Listener:
    """A WebSocket client that reads its messages."""

    def __init__(self, connection):
        self.socket = connection

    async def send(self, **message):
        await self.socket.send_json(message)

    async def next(self):
        return await self.socket.receive_json(timeout=10)

    async def request(self, **message):
        await self.send(**message)
        return await self.next()

    async def subscribe(self, topic, **more):
        assert await self.request(id="s", type="subscribe", topic=topic, response=True, **more) == {"id": "s", "type": "ack"}

    async def data(self, topic, subject):
        """Returns the data of the next message, which must have this topic and subject."""
        message = await self.next()
        assert (message["type"], message["topic"], message["subject"]) == ("message", topic, subject), message
        return message["data"]

    async def closed(self):
        """Returns the code and reason of the close frame; drops the messages before it."""
        while True:
            message = await self.socket.receive(timeout=15)
            if message.type is aiohttp.WSMsgType.CLOSE:
                return message.data, message.extra


@asynccontextmanager
async def serving(config):
    """Runs the HTTP side of a service and yields a client of it."""
    metrics = Metrics()
    async with (
        open_pool(config.database.reader_dsn or config.database.dsn, 4) as pool,
        open_client(config.stream) as client,
        http_side(config, metrics, pool, client, engine=None, public=True) as url,
        aiohttp.ClientSession(url) as http,
    ):
        yield Service(url, http, metrics)


class StalledClient:
    """A client that subscribes and then reads nothing until `messages` is called."""

    def __init__(self, reader, writer):
        self.closed = None
        self._reader = reader
        self._writer = writer

    async def messages(self):
        """Yields all messages until the connection is closed. `closed` is then the code and reason of the close frame."""
        while True:
            opcode, payload = await asyncio.wait_for(self.frame(), 10)
            if opcode == WSMsgType.CLOSE:
                self.closed = int.from_bytes(payload[:2], "big"), payload[2:].decode()
                return
            yield msgspec.json.decode(payload)

    async def frame(self):
        """Returns the opcode and payload of the next frame."""
        head = await self._reader.readexactly(2)
        length = head[1]
        if length == 126:
            length = int.from_bytes(await self._reader.readexactly(2), "big")
        elif length == 127:
            length = int.from_bytes(await self._reader.readexactly(8), "big")
        return head[0] & 15, await self._reader.readexactly(length)

    def send(self, message):
        """Sends a message as one frame with a mask of zeros."""
        payload = msgspec.json.encode(message)
        assert len(payload) < 126
        self._writer.write(bytes((0x81, 0x80 | len(payload))) + bytes(4) + payload)


@asynccontextmanager
async def stalled_client(service, *commands):
    """Yields a client that has received the acknowledgements of its commands and reads nothing more. Its buffers are small."""
    bullet = await service.bullet()
    url = URL(service.url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, (url.host, url.port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=2**12)
    key = base64.b64encode(bytes(16)).decode()
    writer.write(
        f"GET /ws?token={bullet['token']} HTTP/1.1\r\nHost: {url.host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")
    client = StalledClient(reader, writer)
    await client.frame()
    for command in commands:
        client.send({**command, "response": True})
        _, payload = await client.frame()
        assert msgspec.json.decode(payload)["type"] == "ack"
    try:
        yield client
    finally:
        writer.transport.abort()
