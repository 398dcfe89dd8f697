"""One connection: what the client says, answered one message after the other, until either side ends it."""

import asyncio
import time
from collections import deque
from collections.abc import Mapping

import msgspec
from aiohttp import WSCloseCode, WSMessage, WSMsgType, web
from msgspec import UNSET

from fundsvc.api.websocket.frames import Id, ack, error, pong, pong_frame
from fundsvc.api.websocket.subscriber import Client
from fundsvc.api.websocket.topics import Command, Refused, Topic, asked
from fundsvc.config.settings import WebsocketConfig
from fundsvc.metrics import Metrics
from fundsvc.wire.duplicate_keys import decode_json

MESSAGES_MAX = 100
MESSAGES_SECONDS = 10.0
"""KuCoin's own limit of what a client may send; pings and pongs of the protocol count too, as they cost as much."""

SILENT_INTERVALS_MAX = 3
"""Pings that a client may miss; with KuCoin's interval it is closed a few seconds before KuCoin would."""

_SAID = frozenset({WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.PING, WSMsgType.PONG})
"""What a client sends, as long as the connection is not over."""


class _Named(msgspec.Struct):
    """What a message that is otherwise wrong may still say."""

    id: Id = ""


class Connection:
    """Speaks with a client, who has joined topics by contract and leaves them all in the end."""

    def __init__(
        self,
        socket: web.WebSocketResponse,
        client: Client,
        topics: Mapping[str, Topic],
        config: WebsocketConfig,
        metrics: Metrics,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._socket = socket
        self._client = client
        self._topics = topics
        self._config = config
        self._metrics = metrics
        self._tasks = tasks
        self._joined: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._said: deque[float] = deque(maxlen=MESSAGES_MAX)

    async def run(self) -> None:
        """Answers until the connection is over."""
        try:
            while await self._answer_next():
                pass
        finally:
            for path, part in list(self._joined):
                self._leave(self._topics[path], part)

    async def _answer_next(self) -> bool:
        """Answers a message, unless the connection is to be closed; False when there will be no other."""
        silence = SILENT_INTERVALS_MAX * self._config.ping_interval_seconds
        try:
            message = await self._socket.receive(timeout=silence)
        except TimeoutError:
            self._client.end(WSCloseCode.POLICY_VIOLATION, f"nothing was heard for {silence:g} s: send a ping now and then")
            return True
        if message.type not in _SAID:
            return False
        if self._says_too_much():
            reason = f"more than {MESSAGES_MAX} messages within {MESSAGES_SECONDS:g} s: name several contracts in one"
            self._client.end(WSCloseCode.POLICY_VIOLATION, reason)
        if not self._client.over:
            self._hear(message)
        return True

    def _hear(self, message: WSMessage) -> None:
        match message.type:
            case WSMsgType.TEXT:
                self._answer(message.data)
            case WSMsgType.BINARY:
                self._client.end(
                    WSCloseCode.UNSUPPORTED_DATA, "binary frames are not read: send each message as a text frame of JSON"
                )
            case WSMsgType.PING:
                self._client.send(pong_frame(message.data))

    def _says_too_much(self) -> bool:
        now = time.monotonic()
        too_much = len(self._said) == MESSAGES_MAX and now - self._said[0] < MESSAGES_SECONDS
        self._said.append(now)
        return too_much

    def _answer(self, text: str) -> None:
        try:
            command = decode_json(text, Command)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as mistake:
            self._client.send(error(_id_in(text), 400, f"the message is not what it must be: {mistake}"))
            return
        if command.type == "ping":
            self._client.send(pong(command.id))
            return
        try:
            found, parts = asked(self._topics, command.topic)
            if command.type == "subscribe":
                self._check(found, parts, _after(command))
        except Refused as refused:
            self._client.send(error(command.id, refused.code, str(refused)))
            return
        if command.numbers is not UNSET:
            self._client.numbers = command.numbers
        if command.response:
            self._client.send(ack(command.id))
        for part in parts:
            self._leave(found, part)
            if command.type == "subscribe":
                self._join(found, part, _after(command))

    def _check(self, topic: Topic, parts: list[str], after: int | None) -> None:
        """Raises Refused when one of the parts cannot be joined: then none is."""
        if topic.private and not self._client.account:
            raise Refused(403, f"{topic.path} is private: connect with a token of POST /api/v1/bullet-private")
        if len(self._joined.keys() | {(topic.path, part) for part in parts}) > self._config.topics_max:
            raise Refused(400, f"more than {self._config.topics_max} topics: unsubscribe from some, or connect once more")
        for part in parts:
            topic.check(part, after)

    def _join(self, topic: Topic, part: str, after: int | None) -> None:
        self._metrics.websocket_subscriptions.inc()
        self._joined[topic.path, part] = self._tasks.create_task(self._begin(topic, part, after))

    async def _begin(self, topic: Topic, part: str, after: int | None) -> None:
        try:
            await topic.join(self._client, part, after)
        except ConnectionResetError:
            return  # The client is gone, which ends the connection elsewhere.

    def _leave(self, topic: Topic, part: str) -> None:
        joining = self._joined.pop((topic.path, part), None)
        if joining:
            joining.cancel()
            topic.leave(self._client, part)
            self._metrics.websocket_subscriptions.dec()


def _after(command: Command) -> int | None:
    return None if command.after is UNSET else command.after


def _id_in(text: str) -> Id:
    """The id of a message that is otherwise wrong, "" if there is none."""
    try:
        return msgspec.json.decode(text, type=_Named).id
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return ""
