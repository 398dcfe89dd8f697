"""Generates the token secret and the ledger secret of a data directory on first use, so that embedded runs can verify tokens
and seal accounts at once.
"""

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

import msgspec

from fundsvc.config.settings import Config

SECRET_BYTES = 32
"""The number of bytes that HMAC-SHA256 can use."""

SECRET_FILE, LEDGER_FILE, REVOKED_FILE = "token.secret", "ledger.secret", "token.revoked"
"""The files of the token secret, of the ledger secret, and of the ids of revoked tokens."""


def with_secret(config: Config) -> Config:
    """Returns the configuration with the data directory's token secret and its file of revoked tokens, unless set.

    Only a configuration that uses an embedded server and sets no key has them.
    """
    if config.token.secret or config.token.keys or not _is_embedded(config):
        return config
    directory = Path(config.data.directory)
    token = msgspec.structs.replace(config.token, secret=stored_secret(directory))
    if not token.revoked:
        revoked = directory / REVOKED_FILE
        revoked.touch(mode=0o600)
        token = msgspec.structs.replace(token, revoked=str(revoked))
    return msgspec.structs.replace(config, token=token)


def with_ledger_secret(config: Config) -> Config:
    """Returns the configuration with the data directory's ledger secret, if it uses an embedded server and sets none.

    Raises ConfigError if a secret is too short.
    """
    if config.ledger.secrets.current or not _is_embedded(config):
        return config
    secret = stored_secret(Path(config.data.directory), LEDGER_FILE)
    return msgspec.structs.replace(config, ledger=msgspec.structs.replace(config.ledger, secret=secret))


def _is_embedded(config: Config) -> bool:
    return config.database.embedded or config.stream.embedded


def stored_secret(directory: Path, name: str = SECRET_FILE) -> str:
    """Returns a secret of a data directory, generated on first use. Only the directory's owner can read the file."""
    path = directory / name
    if not path.exists():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make(path)
    return path.read_text().strip()


def _make(path: Path) -> None:
    """Creates the file atomically. If several processes do, the first file remains."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent) as file:  # readable only for the owner
        file.write(secrets.token_urlsafe(SECRET_BYTES))
        file.flush()
        os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(file.name, path)
