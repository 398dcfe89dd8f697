"""The secrets of a data directory, of tokens and of the ledger: each is made at random when it is first asked for, so that
embedded runs can check tokens and seal accounts at once.
"""

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

import msgspec

from fundsvc.config.settings import Config

SECRET_BYTES = 32
"""As many as HMAC-SHA256 can make use of."""

SECRET_FILE, LEDGER_FILE = "token.secret", "ledger.secret"
"""The files of both."""


def with_secret(config: Config) -> Config:
    """The configuration with the data directory's secret, where a server of ours runs there and it names no key itself."""
    if config.token.secret or config.token.keys or not _is_embedded(config):
        return config
    secret = stored_secret(Path(config.data.directory))
    return msgspec.structs.replace(config, token=msgspec.structs.replace(config.token, secret=secret))


def with_ledger_secret(config: Config) -> Config:
    """The configuration with the data directory's ledger secret, where a server of ours runs there and it names none itself.

    Raises ConfigError where a secret is too short.
    """
    if config.ledger.secrets.current or not _is_embedded(config):
        return config
    secret = stored_secret(Path(config.data.directory), LEDGER_FILE)
    return msgspec.structs.replace(config, ledger=msgspec.structs.replace(config.ledger, secret=secret))


def _is_embedded(config: Config) -> bool:
    return config.database.embedded or config.stream.embedded


def stored_secret(directory: Path, name: str = SECRET_FILE) -> str:
    """A secret of a data directory, made if it has none; its owner alone may read the file."""
    path = directory / name
    if not path.exists():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make(path)
    return path.read_text().strip()


def _make(path: Path) -> None:
    """Makes the file whole or not at all; of several processes that do, the first one's stays."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent) as file:  # which the owner alone may read, too
        file.write(secrets.token_urlsafe(SECRET_BYTES))
        file.flush()
        os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(file.name, path)
