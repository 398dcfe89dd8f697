"""Follows topics of the WebSocket, and continues after each lost connection where it ended."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal, TypeVar

import aiohttp
import msgspec
from aiohttp import WSMsgType, hdrs

from fundsvc.api.adl_answers.positions import ReductionAnswer
from fundsvc.api.answers import EntryAnswer, FundAnswer
from fundsvc.api.websocket.endpoints import BulletAnswer
from fundsvc.client.api import Api, ApiError, Unavailable

T = TypeVar("T")

RETRY_SECONDS = 0.5
"""Pause before a client connects again. The service closes connections only for faults of the client, or when it stops."""


class _Pushed(msgspec.Struct):
    """A message of the service; `topic` and `subject` are those of a push."""

    type: str
    id: str | int = ""
    code: int = 0
    topic: str = ""
    subject: str = ""
    data: msgspec.Raw = msgspec.Raw(b"null")


class _Lost(Exception):
    """The connection was lost."""


async def entries(api: Api, symbol: str, after: int = 0) -> AsyncIterator[EntryAnswer]:
    """Yields the entries of a contract after a number, each once and in order, as they are written."""
    async for entry in followed(api, f"/insuranceFund/entry:{symbol}", EntryAnswer, lambda entry: entry.entry, after):
        yield entry


async def funds(api: Api, symbol: str = "all") -> AsyncIterator[FundAnswer]:
    """Yields the funds of one contract or of all open ones: the present state, and each change."""
    async for fund in followed(api, f"/insuranceFund/balance:{symbol}", FundAnswer):
        yield fund


async def reductions(api: Api, after_ms: int) -> AsyncIterator[ReductionAnswer]:
    """Yields the ADL reductions of the account of the token since a time, at least once."""
    async for reduction in followed(
        api, "/adl/position", ReductionAnswer, lambda one: one.ts, after_ms, subject="position.deleveraged", scope="private"
    ):
        yield reduction


async def followed(
    api: Api,
    topic: str,
    kind: type[T],
    number_of: Callable[[T], int] | None = None,
    after: int | None = None,
    *,
    subject: str = "",
    scope: Literal["public", "private"] = "public",
) -> AsyncIterator[T]:
    """Yields the data of a topic's pushes; raises ApiError if the service rejects the subscription.

    `number_of` returns the number from which a new connection continues; `after` is the first one. Only pushes with `subject`
    are returned, if it is given.
    """
    while True:
        try:
            async for data in _connection(api, topic, subject, scope, after):
                value = msgspec.json.decode(data, type=kind)
                if number_of is not None:
                    after = number_of(value)
                yield value
        except (_Lost, Unavailable):
            await asyncio.sleep(RETRY_SECONDS)


async def _connection(api: Api, topic: str, subject: str, scope: str, after: int | None) -> AsyncIterator[msgspec.Raw]:
    """Yields the data of the pushes of one connection; raises _Lost at its end."""
    bullet = await api.request(hdrs.METH_POST, f"bullet-{scope}", BulletAnswer)
    (server,) = bullet.instance_servers
    command: dict[str, Any] = {"id": 1, "type": "subscribe", "topic": topic, "response": True}
    try:
        async with api.http.ws_connect(server.endpoint, params={"token": bullet.token}) as socket:
            await socket.send_json(command if after is None else {**command, "after": after})
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
                    raise _Lost
                pushed = msgspec.json.decode(message.data, type=_Pushed)
                if pushed.type == "error":
                    raise ApiError(pushed.code, str(pushed.code), msgspec.json.decode(pushed.data, type=str))
                if pushed.type == "message" and (not subject or pushed.subject == subject):
                    yield pushed.data
    except (aiohttp.ClientError, OSError) as fault:
        raise _Lost from fault
