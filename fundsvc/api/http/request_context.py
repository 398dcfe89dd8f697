"""The context of a request: its id, its caller, and the client that it counts for."""

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
"""The usual header for the id of a request. The client may set it; otherwise the service generates an id."""

_SAFE_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
"""Ids that are safe in logs and headers. UUIDs, ULIDs, base64 text and trace ids match."""

_PROCESS = secrets.token_hex(4)
"""Distinguishes the processes of a service. With a number it makes an id at a tenth of a UUID's cost."""

_NUMBERS = count(1)


class RequestContext:
    """The context of one request.

    `caller` is None without a valid token; `token_problem` is then the reason, if there is one. `window` is None for requests
    that are not limited, such as probes.
    """

    __slots__ = ("caller", "client", "request_id", "token_problem", "window")

    def __init__(self, request: web.Request) -> None:
        given = request.headers.get(REQUEST_ID)
        self.request_id = given if given is not None and _SAFE_ID.fullmatch(given) else f"{_PROCESS}-{next(_NUMBERS)}"
        self.caller: Caller | None = None
        self.token_problem: Problem | None = None
        self.window: Window | None = None
        self.client = ""
        bind_request_id(self.request_id)


CONTEXT = web.RequestKey("context", RequestContext)
