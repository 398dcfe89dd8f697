"""Follows topics of the WebSocket, and continues after each lost connection where it ended."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal, TypeVar

import aiohttp
import msgspec
from aiohttp import WSCloseCode, WSMsgType, hdrs

from fundsvc.api.adl_answers.positions import ReductionAnswer
from fundsvc.api.answers import EntryAnswer, FundAnswer
from fundsvc.api.websocket.endpoints import BulletAnswer
from fundsvc.api.websocket.reconnecting import reconnect_seconds
from fundsvc.client.api import Api, ApiError, Unavailable

T = TypeVar("T")

Command = dict[str, Any]
"""Fields of a message to the service."""

RETRY_SECONDS = 0.5
"""Pause before a client connects again, unless the service gives one when it stops."""


class _Pushed(msgspec.Struct):
    """A message of the service; `topic` and `subject` are those of a push."""

    type: str
    id: str | int = ""
    code: int = 0
    topic: str = ""
    subject: str = ""
    data: msgspec.Raw = msgspec.Raw(b"null")


class _Lost(Exception):
    """The connection was lost.

    `refusal` is the reason of the service if it closed the connection by its rules, else "". Connect again after `seconds`.
    """

    def __init__(self, refusal: str = "", seconds: float = RETRY_SECONDS) -> None:
        super().__init__(refusal)
        self.refusal = refusal
        self.seconds = seconds


async def entries(api: Api, symbol: str, after: int = 0, generation: int = 0) -> AsyncIterator[EntryAnswer]:
    """Yields the entries of a contract after a number, each once and in order, as they are written.

    `generation` is that of entry `after`, 0 for the current one. The entries of later generations of the symbol follow.
    """
    first = {"after": after, "generation": generation or await _generation(api, symbol)}
    async for entry in followed(api, f"/insuranceFund/entry:{symbol}", EntryAnswer, _place, first):
        yield entry


async def _generation(api: Api, symbol: str) -> int:
    """Returns the generation that a name selects; retries until the service answers."""
    while True:
        try:
            return (await api.fund(symbol)).generation
        except Unavailable:
            await asyncio.sleep(RETRY_SECONDS)


def _place(entry: EntryAnswer) -> Command:
    return {"after": entry.entry, "generation": entry.generation}


async def funds(api: Api, symbol: str = "all") -> AsyncIterator[FundAnswer]:
    """Yields the funds of one contract or of all open ones: the present state, and each change."""
    async for fund in followed(api, f"/insuranceFund/balance:{symbol}", FundAnswer):
        yield fund


async def reductions(api: Api, after_ms: int) -> AsyncIterator[ReductionAnswer]:
    """Yields the ADL reductions of the account of the token since a time, at least once."""
    async for reduction in followed(
        api,
        "/adl/position",
        ReductionAnswer,
        lambda one: {"after": one.ts},
        {"after": after_ms},
        subject="position.deleveraged",
        scope="private",
    ):
        yield reduction


async def followed(
    api: Api,
    topic: str,
    kind: type[T],
    place_of: Callable[[T], Command] | None = None,
    place: Command | None = None,
    *,
    subject: str = "",
    scope: Literal["public", "private"] = "public",
) -> AsyncIterator[T]:
    """Yields the data of a topic's pushes; raises ApiError if the service rejects the subscription.

    `place_of` returns the fields of the command by which a new connection continues after a push; `place` are those of the
    first connection. Only pushes with `subject` are returned, if it is given.
    """
    refusal = ""
    while True:
        try:
            async for data in _connection(api, topic, subject, scope, place or {}):
                value = msgspec.json.decode(data, type=kind)
                if place_of is not None:
                    place = place_of(value)
                refusal = ""
                yield value
        except _Lost as lost:
            # The first time, the reason may be of the connection, for example that a suspended client sent no pings.
            if lost.refusal and lost.refusal == refusal:
                raise ApiError(WSCloseCode.POLICY_VIOLATION, str(WSCloseCode.POLICY_VIOLATION.value), refusal) from None
            refusal = lost.refusal
            await asyncio.sleep(lost.seconds)
        except Unavailable:
            await asyncio.sleep(RETRY_SECONDS)


async def _connection(api: Api, topic: str, subject: str, scope: str, place: Command) -> AsyncIterator[msgspec.Raw]:
    """Yields the data of the pushes of one connection; raises _Lost at its end."""
    bullet = await api.request(hdrs.METH_POST, f"bullet-{scope}", BulletAnswer)
    (server,) = bullet.instance_servers
    command: Command = {"id": 1, "type": "subscribe", "topic": topic, "response": True, **place}
    try:
        async with api.http.ws_connect(server.endpoint, params={"token": bullet.token}) as socket:
            await socket.send_json(command)
            pinged = time.monotonic()
            while True:
                wait = pinged + server.ping_interval / 1000 - time.monotonic()
                try:
                    message = await socket.receive(timeout=max(0.0, wait))
                except TimeoutError:
                    await socket.send_json({"id": 1, "type": "ping"})
                    pinged = time.monotonic()
                    continue
                if message.type is not WSMsgType.TEXT:
                    raise _lost(message)
                pushed = msgspec.json.decode(message.data, type=_Pushed)
                if pushed.type == "error":
                    raise ApiError(pushed.code, str(pushed.code), msgspec.json.decode(pushed.data, type=str))
                if pushed.type == "message" and (not subject or pushed.subject == subject):
                    yield pushed.data
    except (aiohttp.ClientError, OSError) as fault:
        raise _Lost from fault


def _lost(message: aiohttp.WSMessage) -> _Lost:
    """Returns what the last message of a connection tells about its end."""
    reason = message.extra or ""
    if message.data == WSCloseCode.POLICY_VIOLATION:
        return _Lost(reason)
    seconds = reconnect_seconds(reason) if message.data == WSCloseCode.GOING_AWAY else None
    return _Lost() if seconds is None else _Lost(seconds=seconds)
