"""The id of a request: whoever asks may name it, else it is made; every log line of the request carries it, its answer too."""

import re
import secrets
from itertools import count

from aiohttp import web
from multidict import istr
from structlog.contextvars import bind_contextvars

REQUEST_ID = istr("X-Request-Id")
"""The header that proxies and clients already use for it."""

_SANE = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
"""What an id from elsewhere may be, as it goes into logs and headers: every UUID, ULID, base64 text and trace id is."""

_PROCESS = secrets.token_hex(4)
"""Tells the processes of a service apart; with a number it makes an id at a tenth of a UUID's cost."""

_NUMBERS = count(1)
_ID = web.RequestKey("request id", str)


def take_id(request: web.Request) -> None:
    """Gives a request its id, and binds that to what its connection's task logs, until the next request takes its own."""
    asked = request.headers.get(REQUEST_ID)
    name = asked if asked is not None and _SANE.fullmatch(asked) else f"{_PROCESS}-{next(_NUMBERS)}"
    request[_ID] = name
    bind_contextvars(request_id=name)


async def echo_id(request: web.Request, response: web.StreamResponse) -> None:
    """Says the id with the answer, also with one that is streamed or an error."""
    name = request.get(_ID)
    if name is not None:
        response.headers[REQUEST_ID] = name
