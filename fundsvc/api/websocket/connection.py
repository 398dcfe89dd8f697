"""One WebSocket connection: handles the messages of the client in their order until one side closes it."""

import asyncio
import time
from collections import deque
from collections.abc import Mapping

import msgspec
from aiohttp import WSCloseCode, WSMessage, WSMsgType, web
from msgspec import UNSET

from fundsvc.api.websocket.frames import Id, ack, error, pong, pong_frame
from fundsvc.api.websocket.subscriber import Subscriber
from fundsvc.api.websocket.topics import After, Command, CommandError, Topic, parse_topic
from fundsvc.config.settings import WebsocketConfig
from fundsvc.core.numbers import INT64_MAX
from fundsvc.metrics import Metrics
from fundsvc.wire.duplicate_keys import decode_json

MESSAGES_MAX = 100
MESSAGES_SECONDS = 10.0
"""The message limit of KuCoin. Pings and pongs of the WebSocket protocol count, because they cost as much."""

SILENT_INTERVALS_MAX = 3
"""Ping intervals without a message after which a client is closed: with KuCoin's interval, a few seconds before KuCoin does."""

_CLIENT_FRAMES = frozenset({WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.PING, WSMsgType.PONG})
"""Types of frames that a client sends. Any other type means that the connection is closed."""


class _MessageId(msgspec.Struct):
    """The id alone, to answer a message that is not a valid command."""

    id: Id = ""


class Connection:
    """Answers the messages of one client and owns its subscriptions, by topic and part."""

    def __init__(
        self,
        socket: web.WebSocketResponse,
        subscriber: Subscriber,
        topics: Mapping[str, Topic],
        config: WebsocketConfig,
        metrics: Metrics,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._socket = socket
        self._subscriber = subscriber
        self._topics = topics
        self._config = config
        self._metrics = metrics
        self._tasks = tasks
        self._subscriptions: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._received_at: deque[float] = deque(maxlen=MESSAGES_MAX)

    async def run(self) -> None:
        """Handles messages until the connection is closed, then unsubscribes from everything."""
        try:
            while await self._handle_next():
                pass
        finally:
            for path, part in list(self._subscriptions):
                self._unsubscribe(self._topics[path], part)

    async def _handle_next(self) -> bool:
        """Handles the next message. Returns False if there are no more."""
        silence = SILENT_INTERVALS_MAX * self._config.ping_interval_seconds
        try:
            message = await self._socket.receive(timeout=silence)
        except TimeoutError:
            self._subscriber.close(
                WSCloseCode.POLICY_VIOLATION, f"no message was received for {silence:g} s: send a ping at every pingInterval"
            )
            return True
        if message.type not in _CLIENT_FRAMES:
            return False
        if self._exceeds_rate():
            reason = f"more than {MESSAGES_MAX} messages in {MESSAGES_SECONDS:g} s: name several contracts in one subscription"
            self._subscriber.close(WSCloseCode.POLICY_VIOLATION, reason)
        if not self._subscriber.closed:
            self._handle_frame(message)
        return True

    def _handle_frame(self, message: WSMessage) -> None:
        match message.type:
            case WSMsgType.TEXT:
                self._handle_text(message.data)
            case WSMsgType.BINARY:
                self._subscriber.close(
                    WSCloseCode.UNSUPPORTED_DATA, "binary frames are not supported: send each message as JSON in a text frame"
                )
            case WSMsgType.PING:
                self._subscriber.send(pong_frame(message.data))

    def _exceeds_rate(self) -> bool:
        now = time.monotonic()
        exceeded = len(self._received_at) == MESSAGES_MAX and now - self._received_at[0] < MESSAGES_SECONDS
        self._received_at.append(now)
        return exceeded

    def _handle_text(self, text: str) -> None:
        try:
            command = decode_json(text, Command)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as invalid:
            self._subscriber.send(error(_id_of(text), 400, f"the message is not a valid command: {invalid}"))
            return
        if command.type == "ping":
            self._subscriber.send(pong(command.id))
            return
        try:
            topic, parts = parse_topic(self._topics, command.topic)
            if command.type == "subscribe":
                self._check(topic, parts, _after(command))
        except CommandError as rejection:
            self._subscriber.send(error(command.id, rejection.code, str(rejection)))
            return
        if command.numbers is not UNSET:
            self._subscriber.numbers = command.numbers
        if command.response:
            self._subscriber.send(ack(command.id))
        for part in parts:
            self._unsubscribe(topic, part)
            if command.type == "subscribe":
                self._subscribe(topic, part, _after(command))

    def _check(self, topic: Topic, parts: list[str], after: After | None) -> None:
        """Raises CommandError if one of the parts cannot be subscribed to. The command then subscribes to none."""
        if topic.roles and self._subscriber.role not in topic.roles:
            roles = " or ".join(sorted(topic.roles))
            raise CommandError(
                403, f"{topic.path} is private: connect with a token of POST /api/v1/bullet-private with role {roles}"
            )
        if len(self._subscriptions.keys() | {(topic.path, part) for part in parts}) > self._config.topics_max:
            raise CommandError(
                400, f"more than {self._config.topics_max} topics: unsubscribe from some, or open another connection"
            )
        for part in parts:
            topic.check(part, after)

    def _subscribe(self, topic: Topic, part: str, after: After | None) -> None:
        self._metrics.websocket_subscriptions.inc()
        self._subscriptions[topic.path, part] = self._tasks.create_task(self._run_subscribe(topic, part, after))

    async def _run_subscribe(self, topic: Topic, part: str, after: After | None) -> None:
        try:
            await topic.subscribe(self._subscriber, part, after)
        except ConnectionResetError:
            return  # The client disconnected: `run` ends by itself.

    def _unsubscribe(self, topic: Topic, part: str) -> None:
        subscribing = self._subscriptions.pop((topic.path, part), None)
        if subscribing:
            subscribing.cancel()
            topic.unsubscribe(self._subscriber, part)
            self._metrics.websocket_subscriptions.dec()


def _after(command: Command) -> After | None:
    """Returns after what a subscription begins, None if the command does not say; raises CommandError."""
    generation = None if command.generation is UNSET else command.generation
    if command.after is UNSET:
        if generation is not None:
            raise CommandError(400, f"generation is {generation} without `after`: add the last entry that you have of it, or 0")
        return None
    after = int(command.after)
    if after >= INT64_MAX:
        raise CommandError(400, f"after is {after}: it must be below {INT64_MAX}")
    return After(after, generation)


def _id_of(text: str) -> Id:
    """Returns the id of an invalid message, "" if it has none."""
    try:
        return msgspec.json.decode(text, type=_MessageId).id
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return ""
