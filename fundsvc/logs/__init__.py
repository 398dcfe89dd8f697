"""Logging with structlog to standard error, as text or JSON lines; log lines of libraries get the same format.

No line at level info or above names an account. The logged fields of events, orders and failures exclude it, and exception
texts omit the rows that PostgreSQL quotes.
"""

import logging
import re
import sys
import traceback
from types import TracebackType
from typing import TextIO

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

from fundsvc.config.settings import LogConfig
from fundsvc.logs.escaping import visible
from fundsvc.logs.requests import add_request_id

HANDLER = "fundsvc"
"""The name of this service's handler at the root logger, so that a second configuration replaces only this handler."""

EXCEPTION = "exception"
"""The part of a line that has lines of its own: a traceback."""

_DETAIL = re.compile(r"^([ |]*DETAIL: +).*$", re.MULTILINE)
"""A line of a database error that quotes a row."""

log = structlog.get_logger()


def configure_logs(config: LogConfig, output: TextIO = sys.stderr) -> None:
    """Configures the logging of the process, including uncaught exceptions, to `output`."""
    level = logging.getLevelNamesMapping()[config.level.upper()]
    prepare: list[Processor] = [
        add_request_id,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.ExceptionRenderer(exception_text),
    ]
    render: list[Processor] = (
        [structlog.processors.JSONRenderer(default=str)]
        if config.format == "json"
        else [
            show_unprintable,
            structlog.dev.ConsoleRenderer(colors=output.isatty(), exception_formatter=structlog.dev.plain_traceback),
        ]
    )
    structlog.configure(
        processors=[*prepare, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(output),
    )
    _format_library_logs(level, prepare, render, output)
    sys.excepthook = _log_uncaught


def exception_text(exc_info: ExcInfo) -> str:
    """Returns an exception's traceback without the DETAIL lines of PostgreSQL, which may contain an account."""
    return _DETAIL.sub(r"\1(not shown)", "".join(traceback.format_exception(*exc_info)).rstrip())


def show_unprintable(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """Escapes control characters of requests and messages, as a structlog processor. JSON escapes on its own."""
    for name, value in line.items():
        if isinstance(value, str) and not value.isprintable():
            line[name] = visible(value, keeps="\n" if name == EXCEPTION else "")
    return line


def _format_library_logs(level: int, prepare: list[Processor], render: list[Processor], output: TextIO) -> None:
    """Formats log lines of libraries like those of the service. Below level warning they appear only at level debug."""
    handler = logging.StreamHandler(output)
    handler.set_name(HANDLER)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *prepare],
            processors=[ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers = [other for other in root.handlers if other.get_name() != HANDLER]
    root.addHandler(handler)
    root.setLevel(level if level == logging.DEBUG else max(level, logging.WARNING))


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        log.critical("uncaught", exc_info=(kind, error, trace))
