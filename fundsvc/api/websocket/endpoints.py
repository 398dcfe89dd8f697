"""The endpoints of the WebSocket API: KuCoin's bullet requests, which answer URL and connection token, and the handshake."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager

import msgspec
import structlog
from aiohttp import WSCloseCode, hdrs, web

from fundsvc.api.answers import Answer, Envelope
from fundsvc.api.fund_cache import FundCache
from fundsvc.api.http.access import Roles
from fundsvc.api.http.big_integers import NUMBERS, Numbers
from fundsvc.api.http.client_address import address_of
from fundsvc.api.http.errors import BadParameter, TooManyRequests, Unavailable
from fundsvc.api.http.routes import JSON, Endpoint, Media
from fundsvc.api.http.shared_limits import Limits
from fundsvc.api.http.tokens import Caller, Tokens
from fundsvc.api.websocket.balances import Balances
from fundsvc.api.websocket.connection import Connection
from fundsvc.api.websocket.entries import Entries
from fundsvc.api.websocket.frames import welcome
from fundsvc.api.websocket.instructions import Instructions
from fundsvc.api.websocket.orders import Orders
from fundsvc.api.websocket.positions import Positions
from fundsvc.api.websocket.reconnecting import stop_reason
from fundsvc.api.websocket.session_tokens import Claims, ConnectionTokens, used_before
from fundsvc.api.websocket.subscriber import CLOSE_SECONDS_MAX, Subscriber
from fundsvc.api.websocket.topics import SHOWN_LENGTH_MAX, LedgerTopic, Topic
from fundsvc.concurrency.background import keep_running
from fundsvc.config.settings import Config
from fundsvc.core.policy import Policy
from fundsvc.metrics import Metrics
from fundsvc.readmodel.adl_books import AdlBooks
from fundsvc.readmodel.cell_tails import AnyTail
from fundsvc.store.adl import AdlReader
from fundsvc.store.reader import Reader

log = structlog.get_logger()

PATH = "/ws"

TOKEN_SECONDS = 60
"""How long a connection token is valid. Clients connect at once; an open connection outlives its token."""

AUDIENCE = "fundsvc websocket"

REVOCATION_SECONDS = 1.0
"""The interval at which a private connection checks that its access token is not revoked: one `stat` of a file."""

RETRY_AFTER_SECONDS = 60
"""`Retry-After` for a client at its limit of connections: a silent connection is closed within that time."""

MESSAGE_BYTES_MAX = 16_384
"""Suffices to name a hundred contracts. A longer message closes the connection."""

CONNECT_ID_LENGTH_MAX = 256
"""The longest `connectId`, in characters. The welcome message repeats it."""

PRIVATE: Roles = frozenset({"engine", "trader"})
"""The roles with topics of their own."""


class InstanceServer(Answer, frozen=True, kw_only=True):
    """Where to connect: `endpoint?token=...&connectId=...`.

    `pingInterval` is the time between two pings, `pingTimeout` the longest wait for a pong; both in milliseconds.
    """

    endpoint: str
    encrypt: bool
    protocol: str = "websocket"
    ping_interval: int
    ping_timeout: int


class BulletAnswer(Answer, frozen=True):
    """A connection token, valid for one minute, and the servers that accept it."""

    token: str
    instance_servers: list[InstanceServer]


class WebSocketEndpoints:
    """Issues connection tokens and serves the connections. `topics` are those to which clients can subscribe."""

    def __init__(self, config: Config, topics: Mapping[str, Topic], metrics: Metrics, limits: Limits) -> None:
        self.topics = tuple(topics.values())
        self._config = config
        self._topics = topics
        self._metrics = metrics
        self._subscribers: set[Subscriber] = set()
        self._limits = limits
        self._slots = limits.connections
        self._access_tokens = Tokens(config.token)
        self._tokens = ConnectionTokens(config.token.secret, AUDIENCE, config.token.leeway_seconds)
        bullet = {200: Media(JSON, BulletAnswer, in_envelope=True)}
        self.endpoints = (
            Endpoint("/api/v1/bullet-public", self.bullet_public, bullet, hdrs.METH_POST),
            Endpoint("/api/v1/bullet-private", self.bullet_private, bullet, hdrs.METH_POST, roles=PRIVATE),
        )
        self.socket = Endpoint(PATH, self.connect, {})

    async def bullet_public(self, request: web.Request) -> web.Response:
        """Returns the WebSocket URL and a connection token for the public topics."""
        return self._bullet(request, None)

    async def bullet_private(self, request: web.Request, caller: Caller) -> web.Response:
        """Returns the WebSocket URL and a connection token for the public topics and those of the caller's account or role."""
        return self._bullet(request, caller)

    async def connect(self, request: web.Request) -> web.WebSocketResponse:
        """Serves a connection from its handshake until it is closed."""
        address = address_of(request, self._config.http.proxies)
        claims = self._tokens.verify(request.query.get("token", ""), address)
        numbers = _numbers(request.query.get("numbers", NUMBERS[0]))
        socket = web.WebSocketResponse(
            timeout=CLOSE_SECONDS_MAX, max_msg_size=MESSAGE_BYTES_MAX, compress=False, autoclose=False, autoping=False
        )
        if not socket.can_prepare(request):
            raise BadParameter(
                "the request is not a WebSocket handshake: connect a WebSocket client as POST /api/v1/bullet-public answers"
            )
        clients = (address, *([f"account {claims.account}"] if claims.account else []))
        self._check_limits(clients)
        with self._slots.taken(*clients):
            self._tokens.redeem(claims)
            if not await self._limits.claim(claims.id, claims.expires - time.time()):
                raise used_before()
            await self._serve(request, socket, claims, numbers)
        return socket

    def _check_limits(self, clients: Iterable[str]) -> None:
        """Raises Unavailable at the limit of all connections, TooManyRequests at the limit of one of the clients."""
        if self._slots.are_full:
            limit = self._config.websocket.clients_max
            raise Unavailable(f"this server has {limit} connections, its limit: try again later, or try another server")
        if any(map(self._slots.are_full_for, clients)):
            limit = self._slots.client_slots
            raise TooManyRequests(
                f"this client has {limit} connections, its limit: subscribe on an open one, or close one", RETRY_AFTER_SECONDS
            )

    async def _serve(self, request: web.Request, socket: web.WebSocketResponse, claims: Claims, numbers: Numbers) -> None:
        writer = await socket.prepare(request)
        transport = request.transport
        if transport is None:
            return
        async with asyncio.TaskGroup() as tasks:
            subscriber = Subscriber(
                writer,
                transport,
                tasks.create_task,
                self._metrics,
                account=claims.account,
                role=claims.role,
                numbers=numbers,
                queue_bytes_max=self._config.websocket.queue_bytes_max,
            )
            watching = tasks.create_task(self._close_when_revoked(subscriber, claims.access_token))
            with self._counted(subscriber):
                subscriber.send(welcome(request.query.get("connectId", "")[:CONNECT_ID_LENGTH_MAX]))
                await Connection(socket, subscriber, self._topics, self._config.websocket, self._metrics, tasks).run()
            watching.cancel()
            if not subscriber.closed:
                await socket.close()

    async def _close_when_revoked(self, subscriber: Subscriber, access_token: str) -> None:
        """Closes a connection soon after the access token with which it was requested is revoked."""
        while access_token and not subscriber.closed:
            await asyncio.sleep(REVOCATION_SECONDS)
            if self._access_tokens.is_revoked(access_token):
                subscriber.close(WSCloseCode.POLICY_VIOLATION, "the access token of this connection is revoked")

    async def close_connections(self, _application: web.Application) -> None:
        """Closes all connections because the service stops.

        Spreads them over `http.drain_seconds` in random order, and gives each client a delay, so that the other processes
        receive them one by one.
        """
        subscribers = random.sample(list(self._subscribers), len(self._subscribers))
        began, drain_seconds = time.monotonic(), self._config.http.drain_seconds
        for place, subscriber in enumerate(subscribers):
            await asyncio.sleep(began + drain_seconds * place / len(subscribers) - time.monotonic())
            subscriber.close(WSCloseCode.GOING_AWAY, stop_reason(len(subscribers)))

    def _bullet(self, request: web.Request, caller: Caller | None) -> web.Response:
        config = self._config.websocket
        endpoint = self._endpoint(request)
        server = InstanceServer(
            endpoint=endpoint,
            encrypt=endpoint.startswith("wss"),
            ping_interval=round(config.ping_interval_seconds * 1000),
            ping_timeout=round(config.ping_timeout_seconds * 1000),
        )
        role, account, access_token = (caller.role, caller.account, caller.token_id) if caller else ("", "", "")
        client = address_of(request, self._config.http.proxies)
        token = self._tokens.sign(role, account, client, TOKEN_SECONDS, access_token)
        answer = BulletAnswer(token, [server])
        return web.Response(body=msgspec.json.encode(Envelope(data=answer)), content_type=JSON)

    def _endpoint(self, request: web.Request) -> str:
        """Returns the URL of the handshake: from `http.public_url`, by default from the scheme and host of the request."""
        url = self._config.http.public_url or f"{request.scheme}://{request.host}"
        return "ws" + url.removeprefix("http").rstrip("/") + PATH

    @contextmanager
    def _counted(self, subscriber: Subscriber) -> Iterator[None]:
        self._subscribers.add(subscriber)
        self._metrics.websocket_clients.inc()
        try:
            yield
        finally:
            self._subscribers.remove(subscriber)
            self._metrics.websocket_clients.dec()


def _numbers(given: str) -> Numbers:
    """Parses the query parameter `numbers`. Raises BadParameter."""
    for numbers in NUMBERS:
        if given == numbers:
            return numbers
    raise BadParameter(f"numbers is {given[:SHOWN_LENGTH_MAX]!r}: it must be one of {', '.join(NUMBERS)}")


@contextmanager
def _subscribed(tail: AnyTail, topics: Iterable[LedgerTopic]) -> Iterator[None]:
    """Subscribes the topics to the changes of the ledger while the context is open."""
    listeners = [topic.publish for topic in topics]
    tail.listeners.extend(listeners)
    try:
        yield
    finally:
        for listener in listeners:
            tail.listeners.remove(listener)


@asynccontextmanager
async def websocket_endpoints(
    config: Config,
    tail: AnyTail,
    funds: FundCache,
    reader: Reader,
    ledger: AdlReader,
    books: AdlBooks,
    metrics: Metrics,
    policy_of: Callable[[str], Policy],
    limits: Limits,
    others: Sequence[Topic] = (),
) -> AsyncIterator[WebSocketEndpoints]:
    """Opens the topics of the ledger and publishes changes to their subscribers while the context is open.

    Clients can also subscribe to `others`, which are open.
    """
    orders = Orders(tail, ledger, metrics)
    positions = Positions(tail, ledger, books, metrics, config.http.book_seconds, policy_of)
    instructions = Instructions(tail, ledger, metrics)
    public = Balances(tail, funds, metrics), Entries(tail, reader, metrics), orders
    topics: tuple[LedgerTopic, ...] = (*public, positions, instructions)
    async with asyncio.TaskGroup() as tasks:
        works = (orders.run, positions.run, positions.run_lights, instructions.run)
        running = [tasks.create_task(keep_running("topics", work, log)) for work in works]
        try:
            with _subscribed(tail, topics):
                yield WebSocketEndpoints(config, {topic.path: topic for topic in (*topics, *others)}, metrics, limits)
        finally:
            for task in running:
                task.cancel()
