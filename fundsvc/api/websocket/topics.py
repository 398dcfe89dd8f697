"""What clients ask for: topics by name, contracts in them, and from where on."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal, NamedTuple, Protocol, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from fundsvc.api.http.big_integers import Numbers
from fundsvc.api.http.parameters import Entry
from fundsvc.api.websocket.frames import Id
from fundsvc.api.websocket.subscriber import Subscriber
from fundsvc.readmodel.ledger_tail import RETRY_SECONDS, Change, Tail
from fundsvc.store.database import StoreFault

T = TypeVar("T")

SHOWN_LENGTH_MAX = 60
"""How much of a wrong topic an error quotes."""


class CommandError(Exception):
    """A message that cannot be done; `code` is as HTTP has it, the message says what to do."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Command(msgspec.Struct, rename="camel"):
    """A client's message. `after` is where a topic goes on: an entry, or for private positions a time (ms).

    `numbers` is how integers are written from then on. Whatever else it holds is KuCoin's and means nothing here.
    """

    type: Literal["ping", "subscribe", "unsubscribe"]
    id: Id = ""
    topic: str = ""
    response: bool = False
    after: Entry | UnsetType = UNSET
    numbers: Numbers | UnsetType = UNSET


class Topic(Protocol):
    """A topic. A client joins each of its parts (contracts, mostly) at most once, and leaves each that it began to join."""

    path: str
    suffix: str
    private: bool

    def check(self, part: str, after: int | None) -> None:
        """Raises CommandError for a part that does not exist, or cannot be concatenate from there."""

    async def subscribe(self, subscriber: Subscriber, part: str, after: int | None) -> None:
        """Sends what comes first and then, with nothing lost or repeated in between, what is new."""

    def unsubscribe(self, subscriber: Subscriber, part: str) -> None:
        """Ends that, wherever joining was."""

    def publish(self, change: Change) -> None:
        """Sends a change of the ledger to the clients that concatenate, or queues it for that."""


class TopicParts(NamedTuple):
    """A topic and the parts of it that a command names."""

    topic: Topic
    parts: list[str]


def parse_topic(topics: Mapping[str, Topic], name: str) -> TopicParts:
    """Reads a topic's name, such as /insuranceFund/entry:XBTUSDTM,ETHUSDTM; raises CommandError."""
    path, colon, parts = name.partition(":")
    topic = topics.get(path)
    if topic is None:
        known = ", ".join(f"{topic.path}{topic.suffix}" for topic in topics.values())
        raise CommandError(404, f"topic {_shown(name)} is not found: there are {known}")
    if bool(colon and parts) != bool(topic.suffix):
        raise CommandError(400, f"topic {_shown(name)} must be {topic.path}{topic.suffix}")
    return TopicParts(topic, list(dict.fromkeys(parts.split(","))))


def check_listed(tail: Tail, symbol: str) -> None:
    """Raises CommandError for what is no contract."""
    if symbol not in tail.contracts:
        raise CommandError(404, f"no contract {_shown(symbol)} is listed: GET /api/v1/contracts/active tells which are")


async def retry_faults(query: Callable[[], Awaitable[T]]) -> T:
    """What the database answers, however long it is away."""
    while True:
        try:
            return await query()
        except StoreFault:
            await asyncio.sleep(RETRY_SECONDS)


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_LENGTH_MAX else text[:SHOWN_LENGTH_MAX] + "...")
