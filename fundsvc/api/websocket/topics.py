"""Commands of clients: parses topics and their parts, and defines what a topic provides."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from fundsvc.api.http.access import Roles
from fundsvc.api.http.big_integers import Numbers
from fundsvc.api.http.parameters import Entry
from fundsvc.api.websocket.frames import Id
from fundsvc.api.websocket.subscriber import Subscriber
from fundsvc.core.generations import GENERATION_MAX
from fundsvc.readmodel.cell_tails import AnyTail
from fundsvc.readmodel.ledger_tail import RETRY_SECONDS, Change
from fundsvc.store.database import StoreFault

T = TypeVar("T")

Pushes = Mapping[str, Any]
"""The types of the data of a topic's pushes, by subject."""

SHOWN_LENGTH_MAX = 60
"""Characters of an invalid value that an error message quotes."""


EntryText = Annotated[str, msgspec.Meta(pattern="^[0-9]{1,19}$")]
"""An offset as text, for clients whose numbers are doubles."""


class CommandError(Exception):
    """A command that is rejected. `code` is an HTTP status; the message contains the problem and its remedy."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Command(msgspec.Struct, rename="camel"):
    """A message of a client. `after` is the last entry that the client has, for positions a time in milliseconds; a number, or
    its decimal text. `generation` is the generation of that entry, by default the current one.

    `numbers` sets the representation of integers from then on. Other fields of KuCoin's protocol are ignored.
    """

    type: Literal["ping", "subscribe", "unsubscribe"]
    id: Id = ""
    topic: str = ""
    response: bool = False
    after: Entry | EntryText | UnsetType = UNSET
    generation: Annotated[int, msgspec.Meta(ge=1, le=GENERATION_MAX)] | UnsetType = UNSET
    numbers: Numbers | UnsetType = UNSET


class After(NamedTuple):
    """What a client has: the number of the last entry, and its generation if the client names it; or a time (ms)."""

    number: int
    generation: int | None = None

    def __str__(self) -> str:
        return str(self.number)


class Topic(Protocol):
    """A topic. Its parts are public names of contracts, `all`, or "" for a topic without parts; `suffix` shows their syntax.

    `roles` are those that may subscribe, none for a public topic; `pushes` are its pushes. A client has at most one
    subscription of each part. Each `subscribe` that began is followed by an `unsubscribe`.
    """

    path: str
    suffix: str
    roles: Roles
    pushes: ClassVar[Pushes]

    def check(self, part: str, after: After | None) -> None:
        """Raises CommandError if the part does not exist, or if `after` is not valid for it."""

    async def subscribe(self, subscriber: Subscriber, part: str, after: After | None) -> None:
        """Sends the initial messages, then every change without a gap."""

    def unsubscribe(self, subscriber: Subscriber, part: str) -> None:
        """Ends a subscription, even one whose `subscribe` was cancelled."""


class LedgerTopic(Topic, Protocol):
    """A topic that follows the ledger of the funds."""

    def publish(self, change: Change) -> None:
        """Sends a change of the ledger to the subscribers, or queues it."""


class Turns:
    """Sends what has changed in turns: changes that come during a turn are sent together in the next one.

    `send` sends all changes that the topic has queued. A topic that holds `lock` delays the next turn.
    """

    def __init__(self, send: Callable[[], Awaitable[None]]) -> None:
        self.lock = asyncio.Lock()
        self._send = send
        self._is_due = asyncio.Event()

    def request(self) -> None:
        """Lets the next turn begin."""
        self._is_due.set()

    async def run(self) -> None:
        """Takes the requested turns until cancelled."""
        while True:
            await self._is_due.wait()
            self._is_due.clear()
            async with self.lock:
                await self._send()


class TopicParts(NamedTuple):
    """The topic and the parts that a command names."""

    topic: Topic
    parts: list[str]


def parse_topic(topics: Mapping[str, Topic], name: str) -> TopicParts:
    """Parses the topic of a command, such as /insuranceFund/entry:XBTUSDTM,ETHUSDTM. Raises CommandError."""
    path, colon, parts = name.partition(":")
    topic = topics.get(path)
    if topic is None:
        known = ", ".join(f"{topic.path}{topic.suffix}" for topic in topics.values())
        raise CommandError(404, f"topic {_shown(name)} does not exist: subscribe to one of {known}")
    if bool(colon and parts) != bool(topic.suffix):
        raise CommandError(400, f"topic {_shown(name)} is not valid: it must be {topic.path}{topic.suffix}")
    return TopicParts(topic, list(dict.fromkeys(parts.split(","))))


def listed_key(tail: AnyTail, name: str) -> str:
    """Returns the ledger key of the contract with a public name; raises CommandError if it is not listed."""
    key = tail.key_of(name)
    if key is None:
        raise CommandError(404, f"contract {_shown(name)} is not listed: GET /api/v1/contracts/active lists all")
    return key


async def retry_faults(query: Callable[[], Awaitable[T]]) -> T:
    """Returns the answer of a query. Retries it until the database answers."""
    while True:
        try:
            return await query()
        except StoreFault:
            await asyncio.sleep(RETRY_SECONDS)


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_LENGTH_MAX else text[:SHOWN_LENGTH_MAX] + "...")
