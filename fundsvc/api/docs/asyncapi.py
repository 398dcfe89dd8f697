"""Generates the AsyncAPI 3 document of streams and topics from the structs that encode and decode their messages."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import msgspec
from aiohttp import web

import fundsvc
from fundsvc.api.docs.generated import Generated
from fundsvc.api.docs.openapi import paragraphs
from fundsvc.api.docs.schemas import EVENTS, POOL_EVENTS, Schema, components_of, tag_of
from fundsvc.api.http.routes import JSON, Endpoint, Media
from fundsvc.api.websocket.frames import Ack, CommandFailure, Pong, Push, Welcome
from fundsvc.api.websocket.topics import Command, Topic
from fundsvc.wire.rounds import Announcement

ABOUT = """The streams that connect a matching engine, and the topics of the WebSocket.

An entry of a stream has one field, `json` or `msgpack`, whose value is one event or an array of up to 10,000 events. Entries of
the ADL streams have the field `json` with one round. Braces are part of the keys. The partition of a contract is
crc32(symbol) mod partitions; GET /api/v1/contracts/{symbol} names it.

Clients of the WebSocket request an address at POST /api/v1/bullet-public or bullet-private, connect to it, and subscribe. With
`numbers=string` all integers of pushes are decimal strings."""

SERVERS: Schema = {
    "stream": {
        "host": "{host}",
        "protocol": "redis",
        "description": "Valkey or Redis: `stream.url` of the service.",
        "variables": {"host": {"default": "localhost:6379"}},
    },
    "websocket": {
        "host": "{host}",
        "pathname": "/ws",
        "protocol": "wss",
        "description": "The service. POST /api/v1/bullet-public answers the address.",
        "variables": {"host": {"default": "localhost:8080"}},
    },
}

_PARTITION = {"description": "The number of the partition in braces, which are part of the key.", "examples": ["{0}", "{1}"]}
_POOL = {"description": "The name of the pool in braces, which are part of the key.", "examples": ["{alpha}"]}
_PART = "The names of one or several contracts or pools, separated by commas; `all` where the topic permits it."

_REPLIES = (Welcome, Ack, Pong, CommandFailure)


def asyncapi_endpoint(topics: Collection[Topic]) -> Endpoint:
    """Returns the endpoint of the document that describes the streams and these topics."""
    generated = Generated(lambda: msgspec.json.encode(description(topics)))

    async def asyncapi(_: web.Request) -> web.Response:
        """The AsyncAPI 3 document of streams and topics."""
        return web.Response(body=await generated.result(), content_type=JSON)

    return Endpoint("/asyncapi.json", asyncapi, {200: Media(JSON, dict[str, Any])})


def description(topics: Iterable[Topic]) -> Schema:
    """Returns the AsyncAPI document of the streams and of topics."""
    document = _Document()
    document.add_stream("partition", "fundsvc:{partition}:in", {"partition": _PARTITION}, "receive", EVENTS)
    document.add_stream("rounds", "fundsvc:{partition}:adl", {"partition": _PARTITION}, "send", (Announcement,))
    document.add_stream("pool", "fundsvc:mutual:in:{pool}", {"pool": _POOL}, "receive", POOL_EVENTS)
    document.add_commands()
    for topic in topics:
        document.add_topic(topic)
    return document.complete()


class _Document:
    """Collects channels, operations and the types of messages."""

    def __init__(self) -> None:
        self._channels: Schema = {}
        self._operations: Schema = {}
        self._messages: Schema = {}
        self._payloads: dict[str, Any] = {}

    def add_stream(
        self, name: str, address: str, parameters: Schema, action: str, kinds: Sequence[type[msgspec.Struct]]
    ) -> None:
        """Adds a stream that the service receives or sends."""
        messages = {tag_of(kind): self._message(kind.__name__, tag_of(kind), kind) for kind in kinds}
        self._add(name, address, "stream", parameters, messages)
        self._operate(f"{action}{_camel(name)}", name, action, messages)

    def add_commands(self) -> None:
        """Adds the commands of clients, and their answers."""
        commands = {Command.__name__: self._message(Command.__name__, "command", Command)}
        replies = {tag_of(kind): self._message(kind.__name__, tag_of(kind), kind) for kind in _REPLIES}
        self._add("commands", "/ws", "websocket", {}, {**commands, **replies})
        self._operate("receiveCommands", "commands", "receive", commands)
        self._operate("sendReplies", "commands", "send", replies)

    def add_topic(self, topic: Topic) -> None:
        """Adds a topic, which the service sends to its subscribers."""
        name = "".join(map(_camel, topic.path.strip("/").split("/")))
        parameters = {"part": {"description": f"{_PART} Syntax: {topic.suffix}"}} if topic.suffix else {}
        address = f"{topic.path}:{{part}}" if topic.suffix else topic.path
        messages = {
            subject: self._message(f"{name}.{subject}", subject, kind, subject) for subject, kind in topic.pushes.items()
        }
        self._add(name, address, "websocket", parameters, messages, paragraphs(type(topic))[0])
        self._operate(f"send{name}", name, "send", messages)

    def complete(self) -> Schema:
        """Returns the document."""
        names = list(self._payloads)
        found, components = components_of([*self._payloads.values(), Push], "#/components/schemas/{name}")
        *payloads, _ = found
        for name, payload in zip(names, payloads, strict=True):
            self._messages[name]["payload"] = self._payload(self._messages[name].pop("subject", None), payload, components)
        del components[Push.__name__]
        return {
            "asyncapi": "3.1.0",
            "info": {"title": "fundsvc: streams and topics", "version": fundsvc.__version__, "description": ABOUT},
            "defaultContentType": JSON,
            "servers": SERVERS,
            "channels": self._channels,
            "operations": self._operations,
            "components": {"messages": self._messages, "schemas": components},
        }

    def _payload(self, subject: str | None, data: Schema, components: Schema) -> Schema:
        """Returns the schema of a message; that of a push contains its data."""
        if subject is None:
            return data
        push = components[Push.__name__]
        return {**push, "title": subject, "properties": {**push["properties"], "subject": {"const": subject}, "data": data}}

    def _message(self, key: str, title: str, kind: Any, subject: str | None = None) -> Schema:
        text = paragraphs(kind)[0]
        self._messages[key] = {"name": title, "summary": text} | ({"subject": subject} if subject else {})
        self._payloads[key] = kind
        return {"$ref": f"#/components/messages/{key}"}

    def _add(
        self, name: str, address: str, server: str, parameters: Schema, messages: Schema, summary: str | None = None
    ) -> None:
        self._channels[name] = {
            "address": address,
            "servers": [{"$ref": f"#/servers/{server}"}],
            "messages": messages,
            **({"parameters": parameters} if parameters else {}),
            **({"summary": summary} if summary else {}),
        }

    def _operate(self, name: str, channel: str, action: str, messages: Schema) -> None:
        self._operations[name] = {
            "action": action,
            "channel": {"$ref": f"#/channels/{channel}"},
            "messages": [{"$ref": f"#/channels/{channel}/messages/{message}"} for message in messages],
        }


def _camel(word: str) -> str:
    return word[0].upper() + word[1:]
