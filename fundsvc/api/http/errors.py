"""What goes wrong over HTTP: KuCoin's envelope {"code": "400100", "msg": "..."} with a fitting HTTP status."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import msgspec
import structlog
from aiohttp import hdrs, web

from fundsvc.logs.faults import ThrottledFaults
from fundsvc.readmodel.adl_books import NotFollowed
from fundsvc.store.database import StoreFault
from fundsvc.store.freshness import Behind

RETRY_SECONDS = "1"
"""What is away is usually back by then; the engine asks for it again as often."""

log = structlog.get_logger()


class Failure(msgspec.Struct, frozen=True):
    """An error as it is answered: KuCoin's code for its kind, and what to do about it."""

    code: str
    msg: str


class Problem(Exception):
    """A question that cannot be answered; the message is for whoever asked."""

    status = 500
    code = "500000"
    headers: Mapping[str, str] = MappingProxyType({})


class BadParameter(Problem):
    """A parameter is unknown or out of its bounds."""

    status = 400
    code = "400100"


class MissingParameter(BadParameter):
    """A parameter that must be there is not."""


class NoToken(Problem):
    """What is asked for needs an access token, and there is none."""

    status = 401
    code = "400001"
    headers = MappingProxyType({hdrs.WWW_AUTHENTICATE: "Bearer"})


class WrongToken(NoToken):
    """The token is not one that this service believes."""

    code = "400003"


class StaleToken(NoToken):
    """The token was good, or will be, but not now."""

    code = "400004"


class Forbidden(Problem):
    """The token is good, but not for this."""

    status = 403
    code = "400007"


class NotFound(Problem):
    """There is no such contract or path."""

    status = 404
    code = "404000"


class MethodNotAllowed(Problem):
    """The path exists, but not for this method; others are allowed."""

    status = 405
    code = "405000"

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(f"{method} is not allowed here, only {allowed}")
        self.headers = {hdrs.ALLOW: allowed}


class StreamChanged(Problem):
    """What was posted before may be lost: the cursor must be asked for first."""

    status = 409
    code = "409000"


class TooLarge(Problem):
    """The body is longer, or holds more, than is taken at once."""

    status = 413
    code = "413000"


class Late(Problem):
    """The client did not send its request within the time that it has for that."""

    status = 408
    code = "408000"


class LateBody(web.RequestPayloadError):
    """The body of a request was not whole in time; the message says within which."""


class WrongMedia(Problem):
    """The body is of a kind that is not read here."""

    status = 415
    code = "415000"


class TooManyRequests(Problem):
    """The client has what it may have at a time, or within a window of time; it may ask again after some seconds."""

    status = 429
    code = "429000"

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message)
        self.seconds = seconds
        self.headers = {hdrs.RETRY_AFTER: str(seconds)}


class Unavailable(Problem):
    """The database is away for now, or books are not loaded yet."""

    status = 503
    code = "503000"
    headers = MappingProxyType({hdrs.RETRY_AFTER: RETRY_SECONDS})


Refuse = Callable[[Problem], web.Response]
"""How a problem is said to whoever asked."""


def refuse(problem: Problem) -> web.Response:
    """Says it in our envelope."""
    body = msgspec.json.encode(Failure(problem.code, str(problem)))
    return web.Response(body=body, status=problem.status, content_type="application/json", headers=problem.headers)


class Errors:
    """Answers to whatever is raised; what nobody foresaw is logged and told to nobody."""

    def __init__(self) -> None:
        self._away = ThrottledFaults(log, "requests")

    def answer(self, request: web.Request, error: Exception, say: Refuse = refuse) -> web.Response:
        """The answer; raises again what is no error of the asker's but the framework's own way to answer."""
        response = say(self._problem(request, error))
        if isinstance(error, web.RequestPayloadError):
            response.force_close()  # what follows on its connection cannot be told from it
        return response

    def _problem(self, request: web.Request, error: Exception) -> Problem:  # noqa: PLR0911 - one for each kind of error
        match error:
            case Problem():
                return error
            case NotFollowed() | Behind():
                return Unavailable(str(error))
            case StoreFault():
                self._away.note(error)
                return Unavailable("the ledger's database is away, ask again shortly")
            case web.HTTPException():
                return _refused(request, error)
            case web.RequestPayloadError():
                return Late(str(error)) if isinstance(error, LateBody) else BadParameter("the body broke off")
            case ConnectionError() if request.transport is None or request.transport.is_closing():
                return BadParameter("the client is gone")  # nobody reads this: it is what the request is counted as
            case _:  # the last stop: our mistake goes to the log, and its details to nobody else
                log.error("request failed", method=request.method, path=request.path, exc_info=error)
                return Problem("internal error")


def _refused(request: web.Request, refusal: web.HTTPException) -> Problem:
    """What the framework refuses; raises what is no error of the asker's."""
    match refusal:
        case web.HTTPNotFound():
            return NotFound(f"there is no {request.path}")
        case web.HTTPMethodNotAllowed(allowed_methods=methods):
            return MethodNotAllowed(request.method, ", ".join(sorted(methods)))
        case web.HTTPRequestEntityTooLarge():
            return TooLarge(f"{(refusal.text or '').rstrip('.')}: send less at once")
        case _:
            raise refusal
