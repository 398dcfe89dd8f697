"""Tokens for tests, signed as an issuer would, for services configured with `SECRET`."""

import time

import jwt
from conftest import with_section

SECRET = "a secret of tests, long enough for HS256"
AUDIENCE = "fundsvc"


def signed(role="risk", *, key=SECRET, algorithm="HS256", kid=None, **claims):
    """A token that lives a minute; a claim given as None is left out."""
    now = int(time.time())
    given = {"aud": AUDIENCE, "iat": now, "exp": now + 60, "role": role, **claims}
    headers = {"kid": kid} if kid else None
    return jwt.encode({name: value for name, value in given.items() if value is not None}, key, algorithm, headers)


def bearer(role="risk", **claims):
    """The headers of a request with such a token."""
    return {"Authorization": f"Bearer {signed(role, **claims)}"}


def with_secret(config):
    return with_section(config, "token", secret=SECRET)
