"""What is known of a request from its first moment: its id, who makes it, what it is counted by."""

import re
import secrets
from itertools import count

from aiohttp import web
from multidict import istr

from fundsvc.api.http.errors import Problem
from fundsvc.api.http.rate_limits import Window
from fundsvc.api.http.tokens import Caller
from fundsvc.logs.requests import bind_request_id

REQUEST_ID = istr("X-Request-Id")
"""The header that proxies and clients already use for a request's id: whoever asks may name it, else it is made."""

_SANE = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
"""What an id from elsewhere may be, as it goes into logs and headers: every UUID, ULID, base64 text and trace id is."""

_PROCESS = secrets.token_hex(4)
"""Tells the processes of a service apart; with a number it makes an id at a tenth of a UUID's cost."""

_NUMBERS = count(1)


class RequestContext:
    """A request's own facts. Whoever's token is bad has no `caller` but a `refusal`; probes are counted by no `window`."""

    __slots__ = ("caller", "client", "refusal", "request_id", "window")

    def __init__(self, request: web.Request) -> None:
        asked = request.headers.get(REQUEST_ID)
        self.request_id = asked if asked is not None and _SANE.fullmatch(asked) else f"{_PROCESS}-{next(_NUMBERS)}"
        self.caller: Caller | None = None
        self.refusal: Problem | None = None
        self.window: Window | None = None
        self.client = ""
        bind_request_id(self.request_id)


CONTEXT = web.RequestKey("visit", RequestContext)
