"""Access tokens for services that are configured with `SECRET`."""

import time

import jwt
from conftest import with_section

SECRET = "a secret of tests, long enough for HS256"
AUDIENCE = "fundsvc"


def signed(role="risk", *, key=SECRET, algorithm="HS256", kid=None, **claims):
    """Returns a token that is valid for a minute. A claim of None is omitted."""
    now = int(time.time())
    given = {"aud": AUDIENCE, "iat": now, "exp": now + 60, "role": role, **claims}
    headers = {"kid": kid} if kid else None
    return jwt.encode({name: value for name, value in given.items() if value is not None}, key, algorithm, headers)


def bearer(role="risk", **claims):
    """Returns the headers of a request with such a token."""
    return {"Authorization": f"Bearer {signed(role, **claims)}"}


def with_secret(config):
    return with_section(config, "token", secret=SECRET)
