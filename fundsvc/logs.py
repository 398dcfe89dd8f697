"""Logging: structlog, to standard error, for people or as JSON lines."""

import logging
import sys
from typing import TextIO

import structlog

from fundsvc.config import LogConfig


def configure_logs(config: LogConfig, output: TextIO = sys.stderr) -> None:
    """Sets up structlog for the process; `output` is where the lines go."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if config.format == "json"
        else structlog.dev.ConsoleRenderer(colors=output.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[config.level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(output),
    )
