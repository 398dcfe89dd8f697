"""Where to connect and with what token, as KuCoin's bullets tell, and the connections themselves."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import msgspec
import structlog
from aiohttp import WSCloseCode, hdrs, web

from fundsvc.api.answers import Answer, Envelope
from fundsvc.api.fund_cache import CachedFunds
from fundsvc.api.http.access import Roles, allowed
from fundsvc.api.http.big_integers import NUMBERS, Numbers
from fundsvc.api.http.client_address import address_of
from fundsvc.api.http.errors import BadParameter, TooManyRequests, Unavailable
from fundsvc.api.http.routes import JSON, Endpoint, Media
from fundsvc.api.http.slots import Places
from fundsvc.api.websocket.balances import Balances
from fundsvc.api.websocket.connection import Connection
from fundsvc.api.websocket.entries import Entries
from fundsvc.api.websocket.frames import welcome
from fundsvc.api.websocket.orders import Orders
from fundsvc.api.websocket.positions import Positions
from fundsvc.api.websocket.session_tokens import ConnectionTokens
from fundsvc.api.websocket.subscriber import CLOSE_SECONDS_MAX, Client
from fundsvc.api.websocket.topics import Topic
from fundsvc.concurrency.background import keep_running
from fundsvc.config.settings import Config
from fundsvc.metrics import Metrics
from fundsvc.readmodel.adl_books import Follower
from fundsvc.readmodel.ledger_tail import Tail
from fundsvc.store.adl import Deleveragings
from fundsvc.store.reader import Reader

log = structlog.get_logger()

PATH = "/ws"

TOKEN_SECONDS = 60
"""How long a connection token is good for connecting, which clients do at once; what is connected stays."""

AUDIENCE = "fundsvc websocket"

CROWDED_SECONDS = 60
"""When a client with as many connections as it may have may try again: one that stays silent is closed by then."""

MESSAGE_BYTES_MAX = 16_384
"""Room for a hundred contracts by name; a longer message is answered by a close."""

CONNECT_ID_LENGTH_MAX = 256
"""Of what a client calls its connection, which comes back in the welcome."""

TRADERS: Roles = frozenset({"trader"})


class InstanceServer(Answer, frozen=True, kw_only=True):
    """Where to connect, as `endpoint?token=...&connectId=...`, and how often (ms) to send a ping, and wait for a pong."""

    endpoint: str
    encrypt: bool
    protocol: str = "websocket"
    ping_interval: int
    ping_timeout: int


class BulletAnswer(Answer, frozen=True):
    """A token that is good for connecting within a minute, and to where."""

    token: str
    instance_servers: list[InstanceServer]


class Live:
    """Hands out connection tokens and holds the connections."""

    def __init__(self, config: Config, topics: Mapping[str, Topic], metrics: Metrics) -> None:
        self._config = config
        self._topics = topics
        self._metrics = metrics
        self._clients: set[Client] = set()
        self._places = Places(config.websocket.clients_max, config.websocket.client_connections_max)
        self._tokens = ConnectionTokens(config.token.secret, AUDIENCE, config.token.leeway_seconds)
        bullet = {200: Media(JSON, BulletAnswer, in_envelope=True)}
        self.endpoints = (
            Endpoint("/api/v1/bullet-public", self.bullet_public, bullet, hdrs.METH_POST),
            Endpoint("/api/v1/bullet-private", self.bullet_private, bullet, hdrs.METH_POST, roles=TRADERS),
        )
        self.socket = Endpoint(PATH, self.connect, {})

    async def bullet_public(self, request: web.Request) -> web.Response:
        """Where to connect for live topics, and a connection token for the public ones."""
        return self._bullet(request, account="")

    async def bullet_private(self, request: web.Request) -> web.Response:
        """Where to connect for live topics, and a connection token for those of the caller's account, too."""
        return self._bullet(request, allowed(request, TRADERS).account)

    async def connect(self, request: web.Request) -> web.WebSocketResponse:
        """A connection, from its handshake to its end."""
        address = address_of(request, self._config.http.proxies)
        ticket = self._tokens.read(request.query.get("token", ""), address)
        numbers = _numbers(request.query.get("numbers", NUMBERS[0]))
        socket = web.WebSocketResponse(
            timeout=CLOSE_SECONDS_MAX, max_msg_size=MESSAGE_BYTES_MAX, compress=False, autoclose=False, autoping=False
        )
        if not socket.can_prepare(request):
            raise BadParameter("this is a WebSocket: connect with a client of such, as POST /api/v1/bullet-public tells")
        clients = (address, *([f"account {ticket.account}"] if ticket.account else []))
        self._check_room(clients)
        with self._places.taken(*clients):
            self._tokens.take(ticket)
            await self._attend(request, socket, ticket.account, numbers)
        return socket

    def _check_room(self, clients: Iterable[str]) -> None:
        """Raises Unavailable where there are too many connections, TooManyRequests where one of these clients has too many."""
        if self._places.are_full:
            raise Unavailable("there are as many connections as are allowed: try again later, or another server")
        if any(map(self._places.are_full_for, clients)):
            allowed = self._places.client_places
            raise TooManyRequests(f"this client has {allowed} connections, as many as are allowed: use those", CROWDED_SECONDS)

    async def _attend(self, request: web.Request, socket: web.WebSocketResponse, account: str, numbers: Numbers) -> None:
        writer = await socket.prepare(request)
        transport = request.transport
        if transport is None:
            return
        async with asyncio.TaskGroup() as tasks:
            client = Client(
                writer,
                transport,
                tasks.create_task,
                self._metrics,
                account=account,
                numbers=numbers,
                queue_bytes_max=self._config.websocket.queue_bytes_max,
            )
            with self._counted(client):
                client.send(welcome(request.query.get("connectId", "")[:CONNECT_ID_LENGTH_MAX]))
                await Connection(socket, client, self._topics, self._config.websocket, self._metrics, tasks).run()
            if not client.over:
                await socket.close()

    async def say_goodbye(self, _application: web.Application) -> None:
        """Closes all connections: the service stops."""
        for client in self._clients:
            client.end(WSCloseCode.GOING_AWAY, "the service stops: connect again, go on with after=")

    def _bullet(self, request: web.Request, account: str) -> web.Response:
        config = self._config.websocket
        endpoint = self._endpoint(request)
        server = InstanceServer(
            endpoint=endpoint,
            encrypt=endpoint.startswith("wss"),
            ping_interval=round(config.ping_interval_seconds * 1000),
            ping_timeout=round(config.ping_timeout_seconds * 1000),
        )
        token = self._tokens.mint(account, address_of(request, self._config.http.proxies), TOKEN_SECONDS)
        answer = BulletAnswer(token, [server])
        return web.Response(body=msgspec.json.encode(Envelope(data=answer)), content_type=JSON)

    def _endpoint(self, request: web.Request) -> str:
        """Where clients reach this: as configured, or else as this one did."""
        url = self._config.http.public_url or f"{request.scheme}://{request.host}"
        return "ws" + url.removeprefix("http").rstrip("/") + PATH

    @contextmanager
    def _counted(self, client: Client) -> Iterator[None]:
        self._clients.add(client)
        self._metrics.websocket_clients.inc()
        try:
            yield
        finally:
            self._clients.remove(client)
            self._metrics.websocket_clients.dec()


def _numbers(given: str) -> Numbers:
    """How a connection's integers are written; raises BadParameter."""
    for numbers in NUMBERS:
        if given == numbers:
            return numbers
    raise BadParameter(f"numbers must be one of {', '.join(NUMBERS)}")


@asynccontextmanager
async def living(
    config: Config, tail: Tail, funds: CachedFunds, reader: Reader, ledger: Deleveragings, follower: Follower, metrics: Metrics
) -> AsyncIterator[Live]:
    """All topics, told of what is new for as long as the context is open."""
    orders = Orders(tail, ledger, metrics)
    positions = Positions(tail, ledger, follower, metrics, config.http.book_seconds)
    topics: tuple[Topic, ...] = (Balances(tail, funds, metrics), Entries(tail, reader, metrics), orders, positions)
    async with asyncio.TaskGroup() as tasks:
        works = (orders.run, positions.run, positions.run_lights)
        running = [tasks.create_task(keep_running("topics", work, log)) for work in works]
        try:
            yield Live(config, {topic.path: topic for topic in topics}, metrics)
        finally:
            for task in running:
                task.cancel()
