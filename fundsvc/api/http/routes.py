"""The table of endpoints: each path with its handler, and the types that OpenAPI describes."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from aiohttp import hdrs

from fundsvc.api.http.access import PUBLIC, Roles, RouteHandler
from fundsvc.api.http.errors import ErrorFormatter, error_response
from fundsvc.api.http.parameters import Parameters

JSON = "application/json"

Cost = Callable[..., int]
"""Returns how many more requests an answer counts as; receives the path's parameters by name."""

READ_FAILURES = frozenset({400, 429, 503})
"""The error statuses of endpoints that read the ledger."""


class Media(NamedTuple):
    """The content type of a body, and the Python type of the body or of the `data` in its envelope."""

    content_type: str
    kind: Any = str
    in_envelope: bool = False


class Endpoint(NamedTuple):
    """A path, its handler, and the types of its bodies and answers by status.

    `with_caller` describes the arguments of `handler`. `roles` are the roles that the path requires. With `token_optional`, a
    token is not required and shows more. `fails` are the error statuses besides those that follow from roles, bodies and
    path. `format_error` makes the answers to errors; error answers in another shape than our envelope are in `answers`.
    `documented` is the function whose docstring documents the endpoint; by default the handler. `cost` returns how many more
    requests an answer counts as; it receives the path's parameters. The answers of a `cached` endpoint are for everyone: they
    name their version, and a client that has it receives 304.
    """

    path: str
    handler: RouteHandler
    answers: Mapping[int, Media]
    method: str = hdrs.METH_GET
    query: type[Parameters] = Parameters
    bodies: tuple[Media, ...] = ()
    roles: Roles = PUBLIC
    token_optional: bool = False
    fails: frozenset[int] = READ_FAILURES
    format_error: ErrorFormatter = error_response
    documented: Callable[..., Any] | None = None
    cost: Cost | None = None
    cached: bool = False
