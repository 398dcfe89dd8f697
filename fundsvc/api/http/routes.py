"""The table of what is served: what a path takes and answers stands beside its handler, and the description is made of that."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from aiohttp import hdrs

from fundsvc.api.http.access import PUBLIC, Roles, RouteHandler
from fundsvc.api.http.errors import ErrorFormatter, error_response
from fundsvc.api.http.parameters import Parameters

JSON = "application/json"

Cost = Callable[..., int]
"""As how many requests more an answer counts; called with the path's parameters by name."""

READ_FAILURES = frozenset({400, 429, 503})
"""How whatever reads the ledger may fail."""


class Media(NamedTuple):
    """The content type of a body, and the type that it is of, or that the `data` in its envelope is of."""

    content_type: str
    kind: Any = str
    in_envelope: bool = False


class Endpoint(NamedTuple):
    """A path, its handler, and what that answers by status, errors apart; `bodies` are those it takes.

    `roles` are those that its handler lets through, `fails` the statuses of errors besides those that follow from roles,
    bodies and paths. `refuse` says errors; what is not our envelope is among the answers. `told` is the function whose
    docstring tells what it does, the handler itself where there is none. `cost` says as how many more
    requests an answer counts, by what stands in its path.
    With `token_optional` a token is not required and shows more.
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
