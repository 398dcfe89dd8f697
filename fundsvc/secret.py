"""The secrets of a data directory, each made at random when it is first asked for: embedded runs need no preparation."""

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

import msgspec

from fundsvc.config import Config

SECRET_BYTES = 32
"""As many as HMAC-SHA256 can make use of."""

SECRET_FILE = "token.secret"  # noqa: S105 - its name
"""With which tokens are signed."""


def with_secret(config: Config) -> Config:
    """The configuration with the data directory's secret, where a server of ours runs there and it names no key itself."""
    embedded = config.database.embedded or config.stream.embedded
    if config.token.secret or config.token.keys or not embedded:
        return config
    secret = kept_secret(Path(config.data.directory))
    return msgspec.structs.replace(config, token=msgspec.structs.replace(config.token, secret=secret))


def kept_secret(directory: Path, file: str = SECRET_FILE) -> str:
    """A secret of a data directory, made if it has none; its owner alone may read the file."""
    path = directory / file
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
