"""HTTP errors, and their answers in KuCoin's envelope {"code": "400100", "msg": "..."} with the matching HTTP status."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import msgspec
import structlog
from aiohttp import hdrs, web

from fundsvc.logs.faults import ThrottledFaults
from fundsvc.readmodel.adl_books import NotFollowed
from fundsvc.store.archive.files import ArchiveUnreachable
from fundsvc.store.database import CellAway, StoreFault
from fundsvc.store.freshness import Behind

RETRY_SECONDS = "1"
"""The engine retries at the same interval."""

log = structlog.get_logger()


class Failure(msgspec.Struct, frozen=True):
    """The body of an error: KuCoin's code, and a message with the problem and its remedy."""

    code: str
    msg: str


class Problem(Exception):
    """Base of the errors that a request receives; the client sees the message."""

    status = 500
    code = "500000"
    headers: Mapping[str, str] = MappingProxyType({})


class BadParameter(Problem):
    """A parameter or a body is unknown, malformed or out of its bounds."""

    status = 400
    code = "400100"


class MissingParameter(BadParameter):
    """A required parameter is missing."""


class NoToken(Problem):
    """The path requires an access token, and the request has none."""

    status = 401
    code = "400001"
    headers = MappingProxyType({hdrs.WWW_AUTHENTICATE: "Bearer"})


class WrongToken(NoToken):
    """The token is malformed, or its signature or a claim is invalid."""

    code = "400003"


class ExpiredToken(NoToken):
    """The token has expired or is not valid yet."""

    code = "400004"


class Forbidden(Problem):
    """The token is valid but does not permit the request."""

    status = 403
    code = "400007"


class NotFound(Problem):
    """The path, or the contract or number in it, does not exist."""

    status = 404
    code = "404000"


class MethodNotAllowed(Problem):
    """The path exists but does not support the method."""

    status = 405
    code = "405000"

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(f"{method} is not allowed here: use {allowed}")
        self.headers = {hdrs.ALLOW: allowed}


class StreamChanged(Problem):
    """Earlier posted events may be lost; the producer must read the cursor first."""

    status = 409
    code = "409000"


class TooLarge(Problem):
    """The body has more bytes or more events than the service accepts."""

    status = 413
    code = "413000"


class Late(Problem):
    """The request did not arrive in time."""

    status = 408
    code = "408000"


class LateBody(web.RequestPayloadError):
    """The body of a request did not arrive in time; the message states the limit."""


class WrongMedia(Problem):
    """The service does not accept the media type or the coding of the body."""

    status = 415
    code = "415000"


class TooManyRequests(Problem):
    """The client has reached a limit; it may retry after `seconds`."""

    status = 429
    code = "429000"

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message)
        self.seconds = seconds
        self.headers = {hdrs.RETRY_AFTER: str(seconds)}


class Unavailable(Problem):
    """The database or the stream server is unreachable, a limit is reached, or books are not loaded yet."""

    status = 503
    code = "503000"
    headers = MappingProxyType({hdrs.RETRY_AFTER: RETRY_SECONDS})


ErrorFormatter = Callable[[Problem], web.Response]
"""Makes the answer to a problem."""


def error_response(problem: Problem) -> web.Response:
    """Returns the answer to a problem in our envelope."""
    body = msgspec.json.encode(Failure(problem.code, str(problem)))
    return web.Response(body=body, status=problem.status, content_type="application/json", headers=problem.headers)


class Errors:
    """Makes the answers to exceptions. Logs unexpected exceptions and hides their details from the client."""

    def __init__(self) -> None:
        self._away = ThrottledFaults(log, "requests")

    def answer(self, request: web.Request, error: Exception, format_error: ErrorFormatter = error_response) -> web.Response:
        """Returns the answer to an exception; raises aiohttp's exceptions that are answers, such as redirects."""
        response = format_error(self._problem(request, error))
        if isinstance(error, web.RequestPayloadError):
            response.force_close()  # the rest of the body would be parsed as the next request
        return response

    def _problem(self, request: web.Request, error: Exception) -> Problem:  # noqa: PLR0911 - one for each kind of error
        match error:
            case Problem():
                return error
            case NotFollowed() | Behind():
                return Unavailable(str(error))
            case ArchiveUnreachable() | CellAway():
                self._away.note(error)
                return Unavailable(error.public_text)
            case StoreFault():
                self._away.note(error)
                return Unavailable("the database is unreachable: retry shortly")
            case web.HTTPException():
                return _framework_problem(request, error)
            case web.RequestPayloadError():
                return Late(str(error)) if isinstance(error, LateBody) else BadParameter("the body is incomplete")
            case ConnectionError() if request.transport is None or request.transport.is_closing():
                return BadParameter("the client is gone")  # only counts the request: the client is gone
            case _:  # a bug: only the log shows its details
                log.error("request failed", method=request.method, path=request.path, exc_info=error)
                return Problem("internal error")


def _framework_problem(request: web.Request, error: web.HTTPException) -> Problem:
    """Converts aiohttp's client errors; raises all other exceptions of aiohttp."""
    match error:
        case web.HTTPNotFound():
            return NotFound(f"{request.path} does not exist")
        case web.HTTPMethodNotAllowed(allowed_methods=methods):
            return MethodNotAllowed(request.method, ", ".join(sorted(methods)))
        case web.HTTPRequestEntityTooLarge():
            return TooLarge(f"{(error.text or '').rstrip('.')}: send less")
        case _:
            raise error
