"""Adds the id of the current request to every log line."""

from contextvars import ContextVar

from structlog.typing import EventDict, WrappedLogger

_REQUEST_ID: ContextVar[str] = ContextVar("request_id")


def bind_request_id(name: str) -> None:
    """Sets the request id for the log lines of the current task and of the tasks that it creates."""
    _REQUEST_ID.set(name)


def add_request_id(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """Adds the request id to a line, as a structlog processor."""
    name = _REQUEST_ID.get(None)
    return line if name is None else {"request_id": name, **line}
