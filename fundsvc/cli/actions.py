"""Records commands that change something: the operator, the time, the action, and the reason."""

import getpass
import logging
import os
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import structlog
import typer

from fundsvc.config.settings import LogConfig

Why = Annotated[str, typer.Option(help="Reason, for the record of operator actions.")]


def record_action(config: LogConfig, action: str, why: str, **concerned: str) -> None:
    """Records an action before it begins: in the file `log.actions`, or without one in the log, at any level.

    `concerned` is what the action concerns, by name.
    Raises OSError if the file cannot be written: then the action must not begin.
    """
    who = operator()
    if config.actions:
        now = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
        descriptor = os.open(Path(config.actions), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode({"at": now, "who": who, "action": action, "why": why, **concerned}) + b"\n")
        return
    log = structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr), wrapper_class=structlog.make_filtering_bound_logger(logging.INFO)
    )
    log.info("operator action", who=who, action=action, why=why, concerned=concerned)


def operator() -> str:
    """Returns the user that runs the command, or that used sudo to run it, and the host."""
    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no account
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
