"""The id of the request in hand, in every line that is logged on its behalf."""

from contextvars import ContextVar

from structlog.typing import EventDict, WrappedLogger

_REQUEST_ID: ContextVar[str] = ContextVar("request_id")


def bind_request_id(name: str) -> None:
    """Has what this task logs from now on, and tasks that it makes, say the id, until the next request takes its own."""
    _REQUEST_ID.set(name)


def say_request_id(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """The processor that adds it to lines."""
    name = _REQUEST_ID.get(None)
    return line if name is None else {"request_id": name, **line}
